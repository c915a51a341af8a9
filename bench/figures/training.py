"""The costly part of figures: work on a study's cells in processes, each result kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.execution.engines.local import Local
from bench.execution.runner import Cell, Plan, craft
from bench.execution.stages import Bench
from bench.foundation.devices import default_jobs
from bench.foundation.errors import TrialFailed
from bench.foundation.files import make_folder
from bench.foundation.progress import Heartbeat, say
from bench.science.study import Study
from bench.storage.store import Artefact, Made, key_of

Make = Callable[[Bench, Cell, int], Made]
"""A function of (bench, cell, trial) that a worker process can import."""


@dataclass(frozen=True)
class _Unit:
    study: Study
    out: Path
    kind: str
    make: Make
    cell: Cell
    index: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.cell.attack.label} x {self.cell.defense.label} trial {self.index}"

    @property
    def key(self) -> str:
        """Under what the result is kept: all that shapes the cell's records, and the trial."""
        cell = self.study.cell_identity(self.cell.attack, self.cell.defense)
        return key_of({"kind": self.kind, "cell": cell, "trial": self.index})


def _work(unit: _Unit, heartbeat: Heartbeat) -> None:
    bench = Bench.at(unit.study, unit.out, heartbeat, say)
    bench.store.get_or_make("kept", unit.key, lambda: unit.make(bench, unit.cell, unit.index))


def made(kind: str, make: Make, plan: Plan, cells: Sequence[Cell], out: Path) -> list[Artefact]:
    """What `make` gives for each cell and the plan's trial, from the store or made now; poisons are crafted first.

    kind: names it in the store and to the user. TrialFailed when one cannot be made.
    """
    make_folder(out)
    (index,) = plan.cells[0].trials
    study, bench = plan.study, Bench.at(plan.study, out, lambda *_: None, say)
    units = [_Unit(study, out, kind, make, cell, index) for cell in cells]
    missing = [unit for unit in units if bench.store.get("kept", unit.key) is None]
    if missing:
        engine = Local(default_jobs((study.device,)), devices=(study.device,))
        craft(plan, out, engine, say)  # in processes: its surrogates and their training
        with engine.open(out):
            for done in engine.run(kind, missing, _work):
                if done.error is not None:
                    raise TrialFailed(f"{done.unit}: {done.error}")
    return [bench.store.get_or_make("kept", unit.key, _gone) for unit in units]


def _gone() -> Made:
    raise TrialFailed("what was just made is not in the store: does another process clear it?")
