"""A plan as text: the cells with what the records hold, what is to be made, and how long that may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.execution.past import Past
from bench.execution.plan import Plan
from bench.execution.tasks import KINDS, Crafting, Reference, Task, VictimTraining, missing, scheduled
from bench.storage.records import read
from bench.views.text import draw

HEAD = ("attack", "defense", "trials", "done", "to run", "s each")


def outline(plan: Plan, out: Path, width: int, say: Callable[[str], None]) -> str:
    """width: tasks at a time. A table per part, then the effort. Of several victims a trial
    the table says `20 x 4` trials, and how many victims are done."""
    folder = out / "records"
    past_records = read(folder, [], say, curves=False) if folder.is_dir() else []
    records = {record["key"]: record for record in past_records}
    finished = {key for key, record in records.items() if record["status"] == "done"}
    past = Past(list(records.values()))
    tables, wanted = [], {}
    for part in plan.parts:
        cells: dict[str, list[VictimTraining]] = {}
        for task in part.victims(out).values():
            cells.setdefault(str(task.expected["cell"]), []).append(task)
        rows = []
        for tasks in cells.values():
            to_run = [task for task in tasks if task.key not in finished]
            wanted.update({task.key: task for task in to_run})
            seconds = past.seconds(tasks[0])
            each = f"{seconds:.1f}" if seconds is not None else "?"
            trials, victims = len({task.index for task in tasks}), tasks[0].study.protocol.victims
            count = (
                f"{trials} x {victims}" if victims > 1 else str(trials),
                str(len(tasks) - len(to_run)),
                str(len(to_run)),
            )
            rows.append((tasks[0].attack.label, tasks[0].defense.label, *count, each))
        tables.append(f"{part.title}\n{draw(HEAD, rows)}")
    return "\n\n".join([*tables, _effort(list(wanted.values()), past, width, out)])


def _effort(victims: Sequence[VictimTraining], past: Past, width: int, out: Path) -> str:
    if not victims:
        return "to make: nothing; every trial has its record"
    tasks = missing(victims)
    made = Counter(type(task) for task in tasks.values())
    counts = ", ".join(f"{made[kind]} {kind.plural}" for kind in KINDS if made[kind] or kind is not Reference)
    told = [(task, past.seconds(task)) for task in tasks.values()]
    unknown = Counter(_kind(task) for task, seconds in told if seconds is None)
    schedule = scheduled(tasks, (seconds or 0.0 for _, seconds in told))
    # No sooner than the longest chain, and no sooner than all of it on all workers.
    total = max(*schedule.ways, sum(seconds or 0.0 for _, seconds in told) / width)
    lines = [f"to make: {counts} (what the store under {out} holds is not counted)"]
    if made[Reference]:
        lines.append("targets are drawn when the reference network is trained, among what it classifies right")
    if total:
        lines.append(f"estimate: {_duration(total)} with {width} at a time, from {past.count} records under {out}")
        if unknown:
            names = ", ".join(f"{kind} ({count})" for kind, count in unknown.items())
            lines.append(f"not estimated (no past records): {names}")
    else:
        lines.append(f"no time estimate: {out} has no records with these settings on this device")
    return "\n".join(lines)


def _kind(task: Task) -> str:
    if isinstance(task, VictimTraining):
        return f"victims behind {task.defense.label}"
    if isinstance(task, Crafting):
        return f"poisons of {task.attack.label}"
    return f"{str(task).split()[0]} networks"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
