"""The costly part of figures: work on a study's cells in processes, each result kept in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.execution.engines.local import Local
from bench.execution.plan import Cell, Part
from bench.execution.runner import craft
from bench.execution.schedule import Schedule
from bench.execution.tasks import Task, work
from bench.foundation.devices import default_jobs
from bench.foundation.errors import TrialFailed
from bench.foundation.files import make_folder
from bench.foundation.progress import say
from bench.science.identity import identities
from bench.science.workspace import Workspace
from bench.storage.store import Artefact, Made, Store, key_of

Make = Callable[[Workspace, Cell, int], Made]
"""A function of (workspace, cell, trial) that a worker process can import."""


@dataclass(frozen=True, eq=False)
class _Measurement(Task):
    """What `make` gives for a cell and a trial; kept under all that shapes the cell's records, and the trial."""

    title: str
    make: Make
    cell: Cell
    index: int
    kind = "kept"

    @classmethod
    def of(cls, title: str, make: Make, cell: Cell, index: int, out: Path) -> _Measurement:
        task = cls(cell.study, out, "", title, make, cell, index)
        return cls(cell.study, out, task.expected_key(), title, make, cell, index)

    def __str__(self) -> str:
        return f"{self.title} of {self.cell.attack.label} x {self.cell.defense.label} trial {self.index}"

    def expected_key(self) -> str:
        cell = identities(self.study).cell(self.cell.attack, self.cell.defense)
        return key_of({"kind": self.title, "cell": cell, "trial": self.index})

    def run(self, space: Workspace) -> None:
        space.store.get_or_make(self.kind, self.key, lambda: self.make(space, self.cell, self.index))


def made(title: str, make: Make, part: Part, cells: Sequence[Cell], out: Path) -> list[Artefact]:
    """What `make` gives for each cell and the part's trial, from the store or made now; poisons are crafted first.

    title: names it in the store and to the user. TrialFailed when one cannot be made.
    """
    make_folder(out)
    (index,) = part.cells[0].trials
    store = Store(out / "store", say)
    tasks = [_Measurement.of(title, make, cell, index, out) for cell in cells]
    missing = [task for task in tasks if store.get(task.kind, task.key) is None]
    if missing:
        device = part.study.device
        engine = Local(default_jobs((device,)), devices=(device,))
        craft(part.cells[-1], out, engine, say)
        with engine.open(out):
            for done in engine.run(Schedule.of(title, missing), work):
                if done.error is not None:
                    raise TrialFailed(f"{done.unit}: {done.error}")
    return [store.get_or_make(task.kind, task.key, _gone) for task in tasks]


def _gone() -> Made:
    raise TrialFailed("what was just made is not in the store: does another process clear it?")
