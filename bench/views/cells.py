"""A cell in figures: success with its interval, clean accuracy, time; made from trial records, here only.

What all views agree on before they count: which record of a trial counts, and which trials two cells have in common.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.foundation.statistics import interval, mean_interval, rates_interval, spread
from bench.storage.record import Record


@dataclass(frozen=True)
class Cell:
    """One attack x defense x protocol. n: trials with a finished victim; victims: finished ones; failed: victims;
    successes: sum over trials of their rates; low, high: 95 %, Clopper-Pearson for one victim a trial, else
    `statistics.rates_interval`;
    clean_accuracy_std: standard deviation over trials; clean_accuracy_interval: 95 % of its mean (Student), None for
    fewer than two trials; seconds: mean of each stage over finished trials, as if nothing had been cached."""

    attack: str
    defense: str
    protocol: str
    n: int
    victims: int
    failed: int
    successes: float
    success_rate: float
    success_low: float
    success_high: float
    clean_accuracy: float
    clean_accuracy_std: float
    clean_accuracy_interval: tuple[float, float] | None
    seconds: dict[str, float]


def summarise(records: Sequence[Record]) -> Cell:
    """The figures of the records of one cell (at least one record; rates are NaN when none is finished)."""
    finished = [record for record in records if record["status"] == "done"]
    rates = trial_means(finished, [record["success"] or 0.0 for record in finished])
    accuracies = trial_means(finished, [record["clean_accuracy"] or 0.0 for record in finished])
    n, successes = len(rates), math.fsum(rates)
    low, high = rates_interval(rates) if len(finished) > n else interval(successes, n)
    stages = {stage: None for record in finished for stage in record["seconds"]}
    return Cell(
        attack=records[0]["attack"],
        defense=records[0]["defense"],
        protocol=records[0]["protocol"],
        n=n,
        victims=len(finished),
        failed=len(records) - len(finished),
        successes=successes,
        success_rate=successes / n if n else float("nan"),
        success_low=low,
        success_high=high,
        clean_accuracy=statistics.fmean(accuracies) if n else float("nan"),
        clean_accuracy_std=spread(accuracies) if n > 1 else 0.0,
        clean_accuracy_interval=mean_interval(accuracies),
        seconds={stage: statistics.fmean(record["seconds"].get(stage, 0.0) for record in finished) for stage in stages},
    )


def one_per_key(records: Iterable[Record]) -> list[Record]:
    """Every trial once, in the order in which keys first come: of several records with one key, that of most
    `precedence`."""
    best: dict[str, Record] = {}
    for record in records:
        rival = best.setdefault(record["key"], record)
        if rival is not record and precedence(rival) < precedence(record):
            best[record["key"]] = record
    return list(best.values())


def by_cell(records: Iterable[Record]) -> list[list[Record]]:
    """The records of each cell, one per victim, sorted by trial and victim; cells in the order in which they first
    come."""
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in one_per_key(records):
        place = (record["protocol"], record["attack"], record["defense"], record["cell"])
        cells.setdefault(place, []).append(record)
    return [sorted(trials, key=lambda record: (record["trial"], record["victim"])) for trials in cells.values()]


def common_trials(ours: Sequence[Record], theirs: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Trials that both cells finished, with the same target and target class where records tell them; of several
    victims of a trial, those of one number and seed."""
    finished = {(record["trial"], record["victim"]): record for record in theirs if record["status"] == "done"}
    mine = [((r["trial"], r["victim"]), r) for r in ours if r["status"] == "done"]
    pairs = [(r, finished[place]) for place, r in mine if place in finished]
    return [(a, b) for a, b in pairs if _aim(a) == _aim(b)]


def trial_means(records: Sequence[Record], values: Sequence[float]) -> list[float]:
    """A value of each record as one of each trial: the mean over its victims."""
    trials: dict[int, list[float]] = {}
    for record, value in zip(records, values, strict=True):
        trials.setdefault(record["trial"], []).append(value)
    return [statistics.fmean(victims) if len(victims) > 1 else victims[0] for victims in trials.values()]


def _aim(record: Record) -> tuple[Any, ...]:
    draw = record.get("draw")
    return (draw["target_ids"], draw["target_class"]) if draw else (None, None)


def shape_of(record: Record) -> dict[str, Any]:
    """The settings of the protocol, without the data set where its fingerprint is known: however it was asked for, the
    same content is the same data set."""
    protocol = record["settings"].get("protocol") or {}
    known = record["data"].get("fingerprint")
    return {name: value for name, value in protocol.items() if name != "dataset" or not known}


def background_of(record: Record) -> list[Any]:
    """What a cell shares with the clean control that it is compared with: everything but attack and defense."""
    return [record["protocol"], shape_of(record), record["seed"], record["data"].get("fingerprint")]


def setting_of(record: Record) -> str:
    """What a cell shares with the undefended cell that it is compared with: everything but the defense. A digest."""
    same = [*background_of(record), record["attack"], record["settings"].get("attack")]
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def precedence(record: Record) -> tuple[bool, int]:
    """Of two results of one trial the greater counts: finished before failed, then newer before older."""
    return record["status"] == "done", milliseconds(record["finished"])


def milliseconds(text: str) -> int:
    """An ISO time as milliseconds since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
