"""A plan carried out: what the records already hold, and the rest, each task as soon as what it needs is there.

pretrained networks once per study, in the scenarios `transfer` and `finetune`
reference networks  once per study, with threat.eligible=correct
surrogates          once per study, shared by all attacks
poisons             once per attack and trial, shared by all defenses
victims             one for every cell and trial, each with its record
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.execution.engines.base import Engine
from bench.execution.past import Past, expected
from bench.execution.plan import Cell, Plan
from bench.execution.recording import failure
from bench.execution.schedule import Schedule
from bench.execution.tasks import Crafting, Task, VictimTraining, missing, scheduled, work
from bench.foundation import files
from bench.foundation.errors import DiskFull, TrialFailed
from bench.foundation.progress import Say
from bench.foundation.shown import plain_lines
from bench.science.crafting import poisons_of
from bench.science.poisons import Poisons
from bench.science.threat import Trial
from bench.science.workspace import Workspace
from bench.storage.record import Record
from bench.storage.records import Records, sample

OnRecord = Callable[[Record], None]


def execute(plan: Plan, out: Path, engine: Engine, say: Say, on_record: OnRecord) -> list[Record]:
    """Run what is missing; return the records of all cells and trials, in plan order, each with `cached`.

    on_record: called with every record, old or new, as soon as it is there. A trial that fails gets a failed record
    (and is tried again by the next run); the others go on.
    """
    records, victims = Records(out / "records", say), plan.victims(out)
    results = Results(on_record)
    for task in victims.values():
        if (record := records.find(task.expected)) is not None:
            results.add(record, cached=True)
    to_run = [task for key, task in victims.items() if key not in results.by_key]
    if to_run:
        what = "victims" if any(task.victim for task in victims.values()) else "trials"
        say(f"{len(to_run)} of {len(victims)} {what} to run, {engine}")
        with engine.open(out):
            failed = _carry_out(missing(to_run), out, engine, say, results.add)
        for task in to_run:
            if task.key not in results.by_key:
                record = records.find(task.expected)  # by another command on the same output folder
                results.add(record or _failure(task, records, failed[task.key], say), cached=record is not None)
    return [results.by_key[key] for key in victims]


class Results:
    """Records as they come, by key, each with `cached`."""

    def __init__(self, on_record: OnRecord) -> None:
        self.by_key: dict[str, Record] = {}
        self._on_record = on_record

    def add(self, record: Record, cached: bool = False) -> None:
        self.by_key[record["key"]] = {**record, "cached": cached}
        self._on_record(self.by_key[record["key"]])


def _failure(task: VictimTraining, records: Records, cause: str, say: Say) -> Record:
    space = Workspace.at(task.study, task.out, lambda *_: None, say)
    return failure(space, records, task.case, task.attack, task.defense, cause)


def craft(cell: Cell, out: Path, engine: Engine, say: Say) -> list[tuple[Poisons, Trial]]:
    """The poisons of a cell's attack, from the store or crafted, with their trials. TrialFailed when one cannot be
    made."""
    wanted = missing(Crafting.of(cell.study, out, cell.attack, index) for index in cell.trials)
    with engine.open(out):
        failed = _carry_out(wanted, out, engine, say, lambda record: None)
    for task in wanted.values():
        if isinstance(task, Crafting) and task.key in failed:
            raise TrialFailed(f"{task}: {failed[task.key]}")
    space = Workspace.at(cell.study, out, lambda *_: None, say)
    cases = [cell.study.case(index) for index in cell.trials]
    return [(poisons_of(space, case, cell.attack)[0], case.trial) for case in cases]


def _carry_out(tasks: Mapping[str, Task], out: Path, engine: Engine, say: Say, on_record: OnRecord) -> dict[str, str]:
    """Have the tasks done; return what failed, by key, with the cause; so did those that stand on one that failed.
    DiskFull from any of them ends them all."""
    failed: dict[str, str] = {}
    if not tasks:
        return failed
    with contextlib.closing(engine.run(_schedule(tasks, out), work)) as ended:
        for done in ended:
            if done.disk_full:
                raise DiskFull(str(done.error))
            if done.error is not None:
                failed[done.unit.key] = done.error
                log = out / "logs" / f"{str(done.unit).replace(' ', '_')}-{done.unit.key[:8]}.log"
                files.write_bytes(log, plain_lines(done.trace or done.error).encode())
                say(f"failed: {done.unit}: {done.error} (see {log})")
                continue
            record, lines = done.result
            for line in lines:
                say(line)
            if record is not None:
                on_record(record)
    if failed:
        for task in tasks.values():  # each after what it stands on
            for need in task.needs():
                if need.key in failed:
                    failed.setdefault(task.key, f"{need.called} failed: {failed[need.key]}")
    return failed


def _schedule(tasks: Mapping[str, Task], out: Path) -> Schedule:
    """In the order that past records below `out` suggest."""
    attacks = {task.attack.label for task in tasks.values() if isinstance(task, Crafting)}
    defenses = {task.defense.label for task in tasks.values() if isinstance(task, VictimTraining)}
    past = Past(sample(out / "records", attacks, defenses))
    return scheduled(tasks, expected(tasks.values(), past))
