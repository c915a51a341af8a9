"""What a command or a call asks for, resolved and checked, then carried out: the same for command line and Python."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.execution import engines, runner
from bench.execution.engines.base import Engine
from bench.execution.outline import outline
from bench.execution.plan import Plan, plan
from bench.foundation.errors import BadInput
from bench.foundation.files import make_folder
from bench.foundation.names import of_trial
from bench.foundation.progress import say
from bench.foundation.scratch import clear_dead
from bench.foundation.settings import build
from bench.request import sweep_file
from bench.request.request import Request
from bench.science.poisons import Poisons
from bench.science.threat import Trial
from bench.storage import poison_images
from bench.storage.record import Record
from bench.views.leaderboard import Entry, leaderboard
from bench.views.mlflow import sync as mlflow
from bench.views.mlflow.server import resolve_uri
from bench.views.reading import reading
from bench.views.text import run_table

OUT = Path("results/runs")
OF_ENGINE = "engine."


@dataclass(frozen=True)
class Work:
    """A plan with where it is carried out. uri: of MLflow; None: no tracking."""

    plan: Plan
    engine: Engine
    out: Path
    uri: str | None

    def outline(self) -> str:
        """The plan as text: the cells with what the records hold, what is to be made, and how long that may take."""
        return outline(self.plan, self.out, self.engine.width, say)

    def carry_out(self) -> list[Record]:
        """Do what is missing; the records of all trials, in the order of the plan."""
        make_folder(self.out)
        clear_dead(self.out)
        tracker = mlflow.Tracker(self.uri, self.out, say)
        try:
            records = runner.execute(
                self.plan, self.out, self.engine, say,
                lambda record: tracker.add(record, functools.partial(_image, self.out, record)),
            )  # fmt: skip
        except BaseException:
            tracker.close(patience=5.0)  # whoever interrupts does not want to wait for a slow server
            raise
        tracker.close()
        return records

    def craft(self, trials: Sequence[int] | None = None) -> list[tuple[Poisons, Trial]]:
        """The poisons of the last cell's attack with their trials (default: all of the cell), crafted or from the
        store."""
        make_folder(self.out)
        cell = self.plan.cells[-1]
        if trials is not None:
            cell = replace(cell, trials=tuple(trials))
        return runner.craft(cell, self.out, self.engine, say)

    def table(self, records: Sequence[Record]) -> str:
        """The leaderboard of what was run, one per part of the plan, and what failed."""
        boards = self._boards(records)
        tables = [f"{title}\n{run_table(board)}" if len(boards) > 1 else run_table(board) for title, board in boards]
        failed = [record for record in records if record["status"] != "done"]
        if failed:
            causes = [
                f"  {r['protocol']}: {r['attack']} x {r['defense']} {of_trial(r['trial'], r['victim'])}: {r['error']}"
                for r in failed
            ]
            what = "victims" if any(record["victim"] for record in records) else "trials"
            tables.append("\n".join([f"{len(failed)} {what} failed (the same command tries them again):", *causes]))
        return "\n\n".join(tables)

    def reading(self, records: Sequence[Record]) -> str:
        """What was seen and what it cannot tell, a line for each attack of each part of the plan."""
        boards = self._boards(records)
        lines = [(title, line) for title, board in boards for line in reading(board)]
        return "\n".join(f"{title}: {line}" if len(boards) > 1 else line for title, line in lines)

    def _boards(self, records: Sequence[Record]) -> list[tuple[str, list[Entry]]]:
        by_key = {record["key"]: record for record in records}
        return [(part.title, leaderboard([by_key[key] for key in part.victims(self.out)])) for part in self.plan.parts]


def prepare(
    requests: Sequence[Request],
    sets: Sequence[str] = (),
    *,
    out: Path = OUT,
    engine: str = "local",
    address: str | None = None,
    device: str = "auto",
    jobs: int | None = None,
    threads: int = 1,
    tracking: str | None = None,
) -> Work:
    """Check everything before any work. sets: --set items, of which those of the engine are taken. BadInput in one
    line."""
    chosen = engines.choose(
        engine, device=device, jobs=jobs, threads=threads, address=address,
        sets=[item for item in sets if item.startswith(OF_ENGINE)],
    )  # fmt: skip
    planned = plan(requests, chosen.device(), chosen.threads)
    for line in dict.fromkeys(line for part in planned.parts for line in part.study.summaries):
        say(line)
    return Work(planned, chosen, out, resolve_uri(tracking, out))


def requests(file: str | None = None, sets: Sequence[str] = (), **asked: Any) -> list[Request]:
    """The blocks of a sweep file with what is asked in each of them, or one request for what is asked.

    asked: fields of Request; what is None, False or empty is left to the file or the defaults. sets: --set items, after
    those of the file. BadInput in one line.
    """
    changes = {name: value for name, value in asked.items() if value is not None and value is not False and value != ()}
    own = tuple(item for item in sets if not item.startswith(OF_ENGINE))
    request = build(Request, {**changes, "set": own}, "")
    if file is None:
        return [request]
    for name in ("attacks", "defenses"):
        if name in changes:
            option = f"--{name[:-1]}"
            raise BadInput(f"{option}: the sweep file names them; fix: leave {option} out, or the file")
    return [block.changed(**{**changes, "set": (*block.set, *own)}) for block in sweep_file.read(file)[0]]


def _image(out: Path, record: Record) -> bytes | None:
    return poison_images.read(out, record["poisons"].get("key", "none"), say)
