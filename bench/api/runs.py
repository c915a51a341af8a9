"""Runs and sweeps: what is asked for, resolved and checked, then carried out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.execution import engines, runner
from bench.foundation.errors import BadInput
from bench.foundation.files import make_folder
from bench.foundation.progress import say
from bench.foundation.settings import build
from bench.request import sweep as sweep_file
from bench.science.references import split
from bench.views import tracking as mlflow

if TYPE_CHECKING:
    import pandas as pd

    from bench.science.poisons import Poisons
    from bench.science.threat import Trial

OUT = "results/runs"
OF_ENGINE = "engine."
Names = str | Sequence[str]
Changes = Sequence[str] | Mapping[str, Any]
Record = dict[str, Any]


def run(
    attack: Names = "gm",
    defense: Names = "none",
    *,
    protocol: Names = "quick",
    trials: int | None = None,
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
    """Run attacks against defenses and return the trial records, one row per trial; finished trials are not run again.

    attack, defense, protocol: a name, a plug-in file, or several; `friends-b[mu=8]` is friends-b with another setting,
    `epic-0.1+friends-b` a composition. The undefended victim and the clean control are run too, unless `only`.
    trials: per cell (default: the protocol's). seed: of the study. set: other settings, as {"threat.eps": 8} or
    ["threat.eps=8"]. dataset, data: as --dataset and --data. out: the output folder. device: auto, cpu, cuda, cuda:N.
    jobs: processes (default: one per core, or one per GPU). tracking: an MLflow URI; `poisoning-bench sync` logs
    records later, too.

    The frame's `attrs["leaderboard"]` is the leaderboard of the run, one row per cell. BadInput, before any work, for
    what cannot be done. A trial that fails has status "failed" and its error in its row.

        >>> frame = bench.run("gm", ["friends-b", "epic-0.1"], trials=20)
        >>> frame.attrs["leaderboard"][["defense", "success_rate", "clean_accuracy"]]
    """
    work = prepare(
        None, attacks=_names(attack), defenses=_names(defense), protocols=_names(protocol), trials=trials, seed=seed,
        sets=_sets(set), only=only, dataset=dataset, data=_path(data), out=Path(out), device=device, jobs=jobs,
        tracking=tracking,
    )  # fmt: skip
    return _frame(work.carry_out())


def sweep(
    file: str | Path,
    *,
    trials: int | None = None,
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
    """Run a sweep file, by name (`friends-table1`) or path; the keywords change every block of it. See `run`.

    >>> bench.sweep("friends-table4", trials=2, set={"train.epochs": 40})
    """
    work = prepare(
        str(file), trials=trials, seed=seed, sets=_sets(set), only=only, dataset=dataset, data=_path(data),
        out=Path(out), device=device, jobs=jobs, tracking=tracking,
    )  # fmt: skip
    return _frame(work.carry_out())


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
    clean-label), `ids` int64 [n], rows of the protocol's training set. BadInput for what cannot be done; TrialFailed
    when the attack fails.

        >>> bench.craft("random-noise", trial=3).images.shape
    """
    if trial < 0:
        raise BadInput(f"trial {trial}; allowed: 0 and more")
    work = prepare(
        None, attacks=(attack,), protocols=(protocol,), trials=trial + 1, seed=seed, sets=_sets(set), only=True,
        dataset=dataset, data=_path(data), out=Path(out), device=device, jobs=1, tracking="none",
    )  # fmt: skip
    make_folder(work.out)
    return work.craft([trial])[0][0]


@dataclass(frozen=True)
class Work:
    """A checked plan with where it is done. uri: of MLflow; None: no tracking."""

    parts: list[sweep_file.Part]
    engine: engines.Engine
    out: Path
    uri: str | None

    @property
    def plan(self) -> runner.Plan:
        return runner.joined([part.plan for part in self.parts])

    def outline(self) -> str:
        """The plan as text: the cells with what the records hold, what is to be made, and how long that may take."""
        return sweep_file.outline(self.parts, self.out, self.engine.width, say)

    def table(self, records: Sequence[Record]) -> str:
        """The leaderboard of what was run, and what failed."""
        return sweep_file.report(self.parts, records, self.out)

    def carry_out(self) -> list[Record]:
        """Do what is missing; the records of all trials, in the order of the plan."""
        make_folder(self.out)
        tracker = mlflow.Tracker(self.uri, self.out, say)
        try:
            records = runner.execute(
                self.plan, self.out, self.engine, say, lambda record: tracker.add(record, _image(self.out, record))
            )
        except BaseException:
            tracker.close(patience=5.0)  # whoever interrupts does not want to wait for a slow server
            raise
        tracker.close()
        return records

    def craft(self, trials: Sequence[int] | None = None) -> list[tuple[Poisons, Trial]]:
        """The poisons of the last cell's attack with their trials (default: all of the cell), crafted or from the
        store."""
        cell = self.plan.cells[-1]
        wanted = runner.Plan((replace(cell, trials=tuple(trials if trials is not None else cell.trials)),))
        return runner.craft(wanted, self.out, self.engine, say)


def prepare(
    file: str | None = None,
    *,
    out: Path = Path(OUT),
    engine: str = "local",
    address: str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    threads: int = 1,
    tracking: str | None = None,
    **asked: Any,
) -> Work:
    """Resolve and check everything before any work: the blocks of a sweep file (or one block of `asked`), the engine,
    the tracking store. BadInput in one line.

    asked: fields of a block that the caller gives, and dataset, data, setups, setup, poisons; what is None or empty is
    left to the file or the defaults.
    """
    sets = asked.pop("sets", ())
    options = {name: asked.pop(name, None) for name in ("dataset", "data", "setups", "setup", "poisons")}
    if options["poisons"] is not None and options["setups"] is not None:
        raise BadInput("--poisons brings its own trials; fix: leave --setups out")
    blocks = _blocks(file, {name: value for name, value in asked.items() if _is_given(value)}, sets)
    chosen = engines.choose(
        engine, device=device, jobs=jobs, threads=threads, address=address,
        sets=[item for item in sets if item.startswith(OF_ENGINE)],
    )  # fmt: skip
    parts = sweep_file.parts(blocks, device=chosen.device(), **options)
    return Work(parts, chosen, out, mlflow.resolve_uri(tracking, out))


def sync(out: Path, tracking: str | None) -> tuple[str, mlflow.SyncReport]:
    """Log the records under `out` that MLflow lacks; its URI and what was logged. BadInput where there is nothing."""
    from bench.storage.records import Records

    uri = mlflow.resolve_uri(tracking, out)
    if uri is None:
        raise BadInput("sync: tracking is switched off (none); give --tracking URI")
    if not (out / "records").is_dir():
        raise BadInput(f"sync: no records under '{out}'; give --out DIR")

    def image(record: Record) -> bytes | None:
        path = _image(out, record)
        return path.read_bytes() if path.is_file() else None

    return uri, mlflow.sync(list(Records(out / "records", say).all()), uri, out, image)


def _blocks(file: str | None, changes: dict[str, Any], sets: Sequence[str]) -> list[sweep_file.Block]:
    """The blocks of a sweep file with `changes` in each, or one block of `changes`."""
    if file is not None and (named := [name for name in ("attacks", "defenses") if name in changes]):
        option = f"--{named[0][:-1]}"
        raise BadInput(f"{option}: the sweep file names them; fix: leave {option} out, or the file")
    sets = [item for item in sets if not item.startswith(OF_ENGINE)]
    if file is None:
        return [build(sweep_file.Block, {**changes, "set": tuple(sets)}, "")]
    checked = build(sweep_file.Block, changes, "")
    changes = {name: getattr(checked, name) for name in changes}
    return [block.model_copy(update={**changes, "set": (*block.set, *sets)}) for block in sweep_file.read(file)[0]]


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != ()


def _image(out: Path, record: Record) -> Path:
    from bench.execution.stages import image_path

    return image_path(out, record["poisons"].get("key", "none"))


def _frame(records: Sequence[Record]) -> pd.DataFrame:
    from bench.views.frames import leaderboard_frame, records_frame

    frame = records_frame(records)
    frame.attrs["leaderboard"] = leaderboard_frame(records)
    return frame


def _names(names: Names) -> tuple[str, ...]:
    return tuple(split(names)) if isinstance(names, str) else tuple(names)


def _sets(changes: Changes) -> list[str]:
    """--set items; values of a mapping are written as TOML, so that they are read back as they are."""
    if isinstance(changes, str):
        raise BadInput(f"set={changes!r}: give a list of key=value items, or a dictionary")
    if not isinstance(changes, Mapping):
        return list(changes)
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


def _path(path: str | Path | None) -> Path | None:
    return Path(path) if path is not None else None
