"""Records and leaderboards as data frames. Nothing here imports torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.foundation.errors import BadInput, nearest
from bench.foundation.shown import echo
from bench.storage import records as storage
from bench.storage.record import Record

if TYPE_CHECKING:
    import pandas as pd

Paths = str | Path | Iterable[str | Path]


def records(paths: Paths = "results/runs") -> pd.DataFrame:
    """Trial records as a frame with one row per trial, finished or failed.

    paths: one or several of: an output folder of runs, or a file with one JSON record per line. Damaged records are
    skipped and reported on stderr. BadInput when a path cannot be read.

        >>> frame = bench.records("results/quick/records.jsonl")
        >>> frame.groupby(["attack", "defense"]).success.mean()
    """
    from bench.views.frames import records_frame

    several = [paths] if isinstance(paths, str | Path) else list(paths)
    say = functools.partial(echo, err=True)
    return records_frame(
        _of_all([Path(path) for path in several], functools.partial(storage.read, say=say, curves=False))
    )


def leaderboard(records: pd.DataFrame | Sequence[Record], baseline: str = "none", pool: bool = False) -> pd.DataFrame:
    """Cells as a frame with one row per attack x defense, ranked within each attack: lower success first, then higher
    clean accuracy.

    records: what `bench.records`, `bench.run` or `bench.sweep` returned (some rows of it will do, several frames can be
    put together), or a list of records. baseline: the defense that the others are tested against, on the trials that
    both finished. pool: the trials of several seeds as one cell, with intervals that count by seeds too.

    Rates, accuracies and drops are shares (0 to 1) with 95 % intervals; costs are multiples of the undefended victim's
    training time; `comparison_difference` is the change of success, `comparison_margin` that of the target's margin in
    logits, below 0 where the defense moved the target away from the attacker's class. BadInput for what are no records,
    or a baseline without any.

        >>> bench.leaderboard(bench.records())[["attack", "defense", "success_rate", "accuracy_drop"]]
    """
    from bench.views import leaderboard as views
    from bench.views.frames import leaderboard_frame, records_of

    trials = list(records) if isinstance(records, Sequence) else records_of(records)
    return leaderboard_frame(views.leaderboard(select(trials, (), baseline), baseline, pool))


def read(paths: Sequence[Path], say: Callable[[str], None]) -> list[Record]:
    """What a leaderboard needs of the records of output folders and of files with one record per line; a damaged one is
    told to `say` and skipped. BadInput where there are none."""
    return _of_all(paths, functools.partial(storage.read_standings, say=say))


def _of_all(paths: Sequence[Path], read: Callable[..., list[Record]]) -> list[Record]:
    trials: list[Record] = []
    for path in paths:
        folder, files = (path / "records", []) if _is_folder(path) else (None, [path])
        trials += read(folder, files)
    if not trials:
        where = ", ".join(f"'{path}'" for path in paths)
        raise BadInput(f"leaderboard: no records under {where}; fix: --out DIR or --records FILE")
    return trials


def select(records: Sequence[Record], protocols: Sequence[str], baseline: str) -> list[Record]:
    """The records of some protocols (none named: of all). BadInput for a protocol or a baseline without records."""
    for protocol in protocols:
        _must_have("protocol", protocol, records)
    chosen = [record for record in records if not protocols or record["protocol"] in protocols]
    if baseline != "none":
        _must_have("defense", baseline, chosen)
    return chosen


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.exists() and path.suffix not in (".json", ".jsonl")


def _must_have(key: Literal["protocol", "defense"], name: str, records: Sequence[Record]) -> None:
    names = {record[key] for record in records}
    if name not in names:
        raise BadInput(f"leaderboard: no records of {key} '{name}'{nearest(name, names)}")
