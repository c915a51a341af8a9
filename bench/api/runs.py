"""Runs, sweeps and poisons from Python: what `import bench` offers of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.api.work import OUT, prepare, requests
from bench.foundation.errors import BadInput
from bench.science.poisons import Poisons
from bench.science.references import split
from bench.storage.record import Record

if TYPE_CHECKING:
    import pandas as pd

Names = str | Sequence[str]
Changes = Sequence[str] | Mapping[str, Any]


def run(
    attack: Names = "gm",
    defense: Names = "none",
    *,
    protocol: Names = "quick",
    trials: int | None = None,
    victims: int | None = None,
    seed: int = 0,
    set: Changes = (),
    only: bool = False,
    dataset: str | None = None,
    data: str | Path | None = None,
    out: str | Path = OUT,
    device: str = "auto",
    jobs: int | None = None,
    tracking: str = "none",
) -> pd.DataFrame:
    """Run attacks against defenses and return the records, a row per trial and victim; finished ones are not run again.

    attack, defense, protocol: a name, a plug-in file, or several; `friends-b[mu=8]` is friends-b with another setting,
    `epic-0.1+friends-b` a composition. The undefended victim and the clean control are run too, unless `only`.
    trials: per cell (default: the protocol's). victims: per trial, trained on the same poisons with other seeds
    (default: the protocol's); a trial's success is their rate. seed: of the study. set: other settings, as
    {"threat.eps": 8} or ["threat.eps=8"]. dataset, data: as --dataset and --data. out: the output folder. device: auto,
    cpu, cuda, cuda:N. jobs: processes (default: one per core, or one per GPU). tracking: an MLflow URI;
    `poisoning-bench sync` logs the records later, too.

    `bench.leaderboard(frame)` gives its cells, one row each. BadInput, before any work, for what cannot be done. A
    trial that fails has status "failed", and its error in its row.

        >>> frame = bench.run("gm", ["friends-b", "epic-0.1"], trials=20)
        >>> bench.leaderboard(frame)[["defense", "success_rate", "clean_accuracy"]]
    """
    asked = requests(
        None, _sets(set), attacks=_names(attack), defenses=_names(defense), protocols=_names(protocol), trials=trials,
        victims=victims, seed=seed, only=only, dataset=dataset, data=data,
    )  # fmt: skip
    return _frame(prepare(asked, out=Path(out), device=device, jobs=jobs, tracking=tracking).carry_out())


def sweep(
    file: str | Path,
    *,
    trials: int | None = None,
    victims: int | None = None,
    seed: int | None = None,
    set: Changes = (),
    only: bool = False,
    dataset: str | None = None,
    data: str | Path | None = None,
    out: str | Path = OUT,
    device: str = "auto",
    jobs: int | None = None,
    tracking: str = "none",
) -> pd.DataFrame:
    """Run a sweep file, by name (`friends-table1`) or path; the keywords change every block of it. Returns the trial
    records as `run` does.

        >>> bench.sweep("friends-table4", trials=2, set={"train.epochs": 40})
    """
    asked = requests(
        str(file), _sets(set), trials=trials, victims=victims, seed=seed, only=only, dataset=dataset, data=data
    )
    return _frame(prepare(asked, out=Path(out), device=device, jobs=jobs, tracking=tracking).carry_out())


def craft(
    attack: str = "gm",
    *,
    protocol: str = "quick",
    trial: int = 0,
    seed: int = 0,
    set: Changes = (),
    dataset: str | None = None,
    data: str | Path | None = None,
    out: str | Path = OUT,
    device: str = "auto",
) -> Poisons:
    """The poisons of an attack in one trial of a study, crafted or from the store under `out`.

    Returns Poisons: `images` uint8 [n, 3, h, w], `labels` int64 [n] (those of the clean images: the attack is
    clean-label), `ids` int64 [n], of the protocol's training set. The other arguments are those of `run`. BadInput for
    what cannot be done; TrialFailed when the attack fails.

        >>> bench.craft("random-noise", trial=3).images.shape
    """
    if trial < 0:
        raise BadInput(f"trial {trial}; allowed: 0 and more")
    asked = requests(
        None, _sets(set), attacks=(attack,), protocols=(protocol,), seed=seed, only=True, dataset=dataset, data=data
    )
    return prepare(asked, out=Path(out), device=device, jobs=1, tracking="none").craft([trial])[0][0]


def _frame(records: Sequence[Record]) -> pd.DataFrame:
    from bench.views.frames import records_frame

    return records_frame(records)


def _names(names: Names) -> tuple[str, ...]:
    return tuple(split(names)) if isinstance(names, str) else tuple(names)


def _sets(changes: Changes) -> list[str]:
    """--set items; values of a mapping are written as TOML, so that they are read back as they are."""
    if isinstance(changes, str):
        raise BadInput(f"set={changes!r}; allowed: a list of key=value items, or a dictionary")
    if not isinstance(changes, Mapping):
        return list(changes)
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]
