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

from bench.foundation.statistics import covering, interval, mean_interval, rates_interval, spread
from bench.storage.record import Record


@dataclass(frozen=True)
class Cell:
    """One attack x defense x protocol. seeds: of all its trials, sorted; n: trials with a finished victim; victims:
    finished ones; failed: victims; successes: sum over trials of their rates; counted: each of these is 0 or 1; low,
    high: 95 %, Clopper-Pearson for one victim a trial, else `statistics.rates_interval`; clean_accuracy_std: standard
    deviation over trials; clean_accuracy_interval: 95 % of its mean (Student), None for fewer than two trials; seconds:
    mean of each stage over finished trials, as if nothing had been cached. Intervals over several seeds cover what
    `statistics.over_seeds` says too."""

    attack: str
    defense: str
    protocol: str
    seeds: tuple[int, ...]
    n: int
    victims: int
    failed: int
    successes: float
    counted: bool
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
    n, successes, seeds = len(rates), math.fsum(rates), trial_seeds(finished)
    ends = rates_interval(rates) if len(finished) > n else interval(successes, n)
    low, high = covering(ends, rates, seeds, (0.0, 1.0)) or ends
    stages = {stage: None for record in finished for stage in record["seconds"]}
    return Cell(
        attack=records[0]["attack"],
        defense=records[0]["defense"],
        protocol=records[0]["protocol"],
        seeds=tuple(sorted({record["seed"] for record in records})),
        n=n,
        victims=len(finished),
        failed=len(records) - len(finished),
        successes=successes,
        counted=set(rates) <= {0.0, 1.0},
        success_rate=successes / n if n else float("nan"),
        success_low=low,
        success_high=high,
        clean_accuracy=statistics.fmean(accuracies) if n else float("nan"),
        clean_accuracy_std=spread(accuracies) if n > 1 else 0.0,
        clean_accuracy_interval=covering(mean_interval(accuracies), accuracies, seeds),
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


def pooled(cells: Iterable[list[Record]]) -> list[list[Record]]:
    """Cells that differ in nothing but the seed as one, in the order in which they first come. Two of one seed are told
    apart by something that their records do not say: they stay as they are, with those that they might belong to."""
    alike: dict[str, list[list[Record]]] = {}
    for cell in cells:
        alike.setdefault(_digest(_but_for_the_seed(cell[0])), []).append(cell)
    found = []
    for several in alike.values():
        seeds = [cell[0]["seed"] for cell in several]
        if len(set(seeds)) < len(seeds):
            found += several
        else:
            found.append([record for _, cell in sorted(zip(seeds, several, strict=True)) for record in cell])
    return found


def name_of(cell: Sequence[Record]) -> str:
    """The key of a cell, or a digest of the keys of those that were pooled."""
    keys = sorted({record["cell"] for record in cell})
    return keys[0] if len(keys) == 1 else _digest(keys)


def trial_of(record: Record) -> tuple[int, int]:
    """What tells the trials of a cell apart: seed and number."""
    return record["seed"], record["trial"]


def common_trials(ours: Sequence[Record], theirs: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Trials that both cells finished, with the same target and target class where records tell them; of several
    victims of a trial, those of one number and seed."""
    finished = {(*trial_of(record), record["victim"]): record for record in theirs if record["status"] == "done"}
    mine = [((*trial_of(r), r["victim"]), r) for r in ours if r["status"] == "done"]
    pairs = [(r, finished[place]) for place, r in mine if place in finished]
    return [(a, b) for a, b in pairs if _aim(a) == _aim(b)]


def trials_with_margin(pairs: Iterable[tuple[Record, Record]]) -> tuple[list[Record], list[float]]:
    """Of the pairs in which both tell the target's margin, as older records do not: the first of each, and by how much
    its margin is above the second's."""
    margins = [(record, _margin(record), _margin(other)) for record, other in pairs]
    told = [(record, ours - theirs) for record, ours, theirs in margins if ours is not None and theirs is not None]
    return [record for record, _ in told], [change for _, change in told]


def trial_means(records: Sequence[Record], values: Sequence[float]) -> list[float]:
    """A value of each record as one of each trial: the mean over its victims."""
    trials: dict[tuple[int, int], list[float]] = {}
    for record, value in zip(records, values, strict=True):
        trials.setdefault(trial_of(record), []).append(value)
    return [statistics.fmean(victims) if len(victims) > 1 else victims[0] for victims in trials.values()]


def trial_seeds(records: Iterable[Record]) -> list[int]:
    """The seed of each trial, in the order of `trial_means`."""
    return [seed for seed, _ in dict.fromkeys(map(trial_of, records))]


def _margin(record: Record) -> float | None:
    return (record["outcome"] or {}).get("target_margin")


def _aim(record: Record) -> tuple[Any, ...]:
    draw = record.get("draw")
    return (draw["target_ids"], draw["target_class"]) if draw else (None, None)


def shape_of(record: Record) -> dict[str, Any]:
    """The settings of the protocol, without the data set where its fingerprint is known: however it was asked for, the
    same content is the same data set."""
    protocol = record["settings"].get("protocol") or {}
    known = record["data"].get("fingerprint")
    return {name: value for name, value in protocol.items() if name != "dataset" or not known}


def background_of(record: Record, pool: bool = False) -> list[Any]:
    """What a cell shares with the clean control that it is compared with: everything but attack and defense. pool: and
    but the seed."""
    seed = [] if pool else [record["seed"]]
    return [record["protocol"], shape_of(record), *seed, record["data"].get("fingerprint")]


def setting_of(record: Record, pool: bool = False) -> str:
    """What a cell shares with the undefended cell that it is compared with: everything but the defense. A digest."""
    return _digest([*background_of(record, pool), record["attack"], record["settings"].get("attack")])[:16]


def _but_for_the_seed(record: Record) -> list[Any]:
    surroundings = [record["environment"].get(name) for name in ("device", "threads", "capability")]
    return [
        *(setting_of(record, pool=True), record["defense"], record["settings"].get("defense")),
        *(record["code"].get("fingerprint"), *surroundings),
    ]


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def precedence(record: Record) -> tuple[bool, int]:
    """Of two results of one trial the greater counts: finished before failed, then newer before older."""
    return record["status"] == "done", milliseconds(record["finished"])


def milliseconds(text: str) -> int:
    """An ISO time as milliseconds since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
