"""A cell in figures: success with its interval, clean accuracy, time; made from trial records, here only."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.foundation.statistics import interval, mean_interval


@dataclass(frozen=True)
class Cell:
    """One attack x defense x protocol. successes: sum over finished trials; low, high: 95 % Clopper-Pearson;
    clean_accuracy_interval: 95 % of its mean (Student), None for fewer than two trials; seconds: mean of each stage
    over finished trials, as if nothing had been cached."""

    attack: str
    defense: str
    protocol: str
    n: int
    failed: int
    successes: float
    success_rate: float
    success_low: float
    success_high: float
    clean_accuracy: float
    clean_accuracy_deviation: float
    clean_accuracy_interval: tuple[float, float] | None
    seconds: dict[str, float]


def summarise(records: Sequence[Mapping[str, Any]]) -> Cell:
    """The figures of the records of one cell (at least one record; rates are NaN when none is finished)."""
    done = [record for record in records if record["status"] == "done"]
    successes = sum(record["success"] for record in done)
    accuracies = [record["clean_accuracy"] for record in done]
    low, high = interval(successes, len(done))
    stages = {stage: None for record in done for stage in record["seconds"]}
    return Cell(
        attack=records[0]["attack"],
        defense=records[0]["defense"],
        protocol=records[0]["protocol"],
        n=len(done),
        failed=len(records) - len(done),
        successes=successes,
        success_rate=successes / len(done) if done else float("nan"),
        success_low=low,
        success_high=high,
        clean_accuracy=statistics.fmean(accuracies) if done else float("nan"),
        clean_accuracy_deviation=statistics.stdev(accuracies) if len(done) > 1 else 0.0,
        clean_accuracy_interval=mean_interval(accuracies),
        seconds={stage: statistics.fmean(record["seconds"].get(stage, 0.0) for record in done) for stage in stages},
    )


# Settings that came later, with what records from before them were made with.
CAME_LATER = {"threat": {"holdout": 0.05}}


def protocol_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record's protocol, with those that it is too old to name."""
    found = dict((record.get("settings") or {}).get("protocol") or {})
    for section, later in CAME_LATER.items():
        if isinstance(found.get(section), Mapping):
            found[section] = {**later, **found[section]}
    return found


def scene_of(record: Mapping[str, Any]) -> str:
    """What a cell shares with the undefended cell that it is compared with: everything but the defense."""
    settings, data = record.get("settings") or {}, record.get("data") or {}
    same = [record["protocol"], protocol_of(record), record["attack"], settings.get("attack"), record["seed"]]
    text = json.dumps([*same, data.get("fingerprint")], indent=1, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rank_of(record: Mapping[str, Any]) -> tuple[bool, int]:
    """Of two results of one trial the greater counts: done before failed, then newer before older."""
    return record["status"] == "done", milliseconds(record["finished"])


def milliseconds(text: str) -> int:
    """An ISO time as milliseconds since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
