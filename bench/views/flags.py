"""What should make a reader suspicious of a cell."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from bench.storage.record import Record
from bench.views.cells import Cell, common_trials, trial_of

ENOUGH_TRIALS = 20  # the usual number; fewer leave an interval of more than +-22 points
LARGE_DROP = 0.05  # clean accuracy that a defense without any success should not have cost: perhaps nothing was learnt
LARGE_SHARE = 0.10  # of the training set: a filter that drops more has dropped far more than any budget of poisons


def flags_of(figures: Cell, records: Sequence[Record], drop: float | None) -> list[str]:
    """Of a cell by itself; drop: of its clean accuracy, where that is known."""
    flags = []
    if figures.failed:
        flags.append(f"{figures.failed} failed")
    if figures.n < ENOUGH_TRIALS:
        flags.append(f"n < {ENOUGH_TRIALS}")
    numbers = sorted(set(victims_of(records).values()))
    if len(numbers) > 1:
        flags.append(f"{numbers[0]} to {numbers[-1]} victims per trial")
    if figures.n and figures.successes == 0 and drop is not None and drop > LARGE_DROP:
        flags.append(f"no success, but {100 * drop:.1f} points of clean accuracy lost")
    shares = [_dropped(record) for record in records if record["status"] == "done"]
    if shares and statistics.fmean(shares) > LARGE_SHARE:
        flags.append(f"filtered {100 * statistics.fmean(shares):.0f} % of the training set")
    if unsealed := sum(not record.get("digest") for record in records):
        flags.append(f"{unsealed} record{'s' * (unsealed > 1)} without a digest: written by an older version")
    outside = len({trial_of(record) for record in records if _beyond_eps(record)})
    if outside:
        flags.append(f"poisons beyond eps in {outside} trial{'s' * (outside > 1)}")
    return flags


def flags_of_mixture(records: Sequence[Record], *compared: Sequence[Record]) -> list[str]:
    """For trials, of the cell and of those that it is compared with, made by other code or on other devices, and for
    common trials with other poisons."""
    every = [record for cell in (records, *compared) for record in cell]
    platforms = list({id(record["environment"]): record for record in every}.values())  # most have it in common
    flags = []
    revisions = sorted(revisions_of(every))
    if len(revisions) > 1:
        short = (revision[:8] + "+" * revision.endswith("+") for revision in revisions[:4])
        flags.append(f"{len(revisions)} code revisions ({', '.join(short)})")
    devices = sorted({_device(record) for record in platforms if record["environment"]})
    if len(devices) > 1:
        flags.append(f"{len(devices)} devices ({', '.join(devices[:4])})")
    arithmetic = sorted({text for record in platforms if (text := arithmetic_of(record))})
    if len(arithmetic) > 1:
        flags.append(f"{len(arithmetic)} kinds of arithmetic ({', '.join(arithmetic[:4])})")
    pairs = [pair for cell in compared for pair in common_trials(records, cell)]
    unequal = {trial_of(a) for a, b in pairs if a["poisons"].get("key") != b["poisons"].get("key")}
    if unequal:
        flags.append(f"other poisons than the cell it is compared with in {len(unequal)} trials")
    alone = _alone(records, compared)
    if alone:
        flags.append(f"more or fewer victims than the cell it is compared with in {alone} trials")
    return flags


def flags_of_precision(records: Iterable[Record]) -> list[str]:
    """For cells of one protocol, each given by one of its records, that were not all computed in one precision: their
    settings differ, so that nothing pairs them, and a reader should not either."""
    found = {record["settings"].get("protocol", {}).get("train", {}).get("precision") for record in records} - {None}
    return [f"the board mixes precisions ({', '.join(sorted(found))})"] if len(found) > 1 else []


def flags_of_seeds(seeds: Sequence[int], of_all: Sequence[int]) -> list[str]:
    """For a cell of fewer seeds than its rivals."""
    return [f"{len(seeds)} of {len(of_all)} seeds"] if len(seeds) < len(of_all) else []


def victims_of(records: Iterable[Record]) -> Counter[tuple[int, int]]:
    """How many finished victims each trial has."""
    return Counter(trial_of(record) for record in records if record["status"] == "done")


def _alone(records: Sequence[Record], compared: Iterable[Sequence[Record]]) -> int:
    """In how many trials a cell has another number of victims, where both have some: the others are not compared."""
    ours = victims_of(records)
    theirs = [victims_of(cell) for cell in compared]
    return len({trial for cell in theirs for trial, count in cell.items() if trial in ours and count != ours[trial]})


def revisions_of(records: Iterable[Record]) -> set[str]:
    return {record["revision"] for record in records if record["revision"]}


def _dropped(record: Record) -> float:
    """Share of the training set that the defense left out of every training."""
    size = record["data"].get("train")
    return (record["filter"] or {}).get("dropped", 0) / size if size else 0.0


def _beyond_eps(record: Record) -> bool:
    change, eps = record["poisons"].get("max_change"), record["poisons"].get("eps")
    return change is not None and eps is not None and change > eps


def arithmetic_of(record: Record) -> str:
    """`2 threads, AVX512`; "" for a GPU, and for older records, which do not tell."""
    told = record["environment"]
    if told.get("device") != "cpu" or "capability" not in told:
        return ""
    return f"{told.get('threads', '?')} threads, {told['capability']}"


def _device(record: Record) -> str:
    return " ".join(str(record["environment"].get(name, "?")) for name in ("device", "device_name"))
