"""How long a task may take, by past records."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from bench.execution.tasks import Crafting, Pretraining, SurrogateTraining, Task, VictimTraining
from bench.science.selection import SelectedAttack, SelectedDefense
from bench.storage.record import Record


class Past:
    """Mean seconds of a task in past records of the same data, networks, training, plug-in settings and device. What
    differs only in seed, trial or the other side's plug-in counts as the same work."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.count = 0
        self._victims: dict[str, list[float]] = {}
        self._poisons: dict[str, dict[str, float]] = {}
        self._surrogates: dict[str, list[float]] = {}
        self._texts: dict[tuple[Any, ...], str] = {}  # of tasks, by what makes them the same work
        for record in records:
            if record["status"] == "done":
                self._learn(record)

    def _learn(self, record: Record) -> None:
        self.count += 1
        settings, seconds = record["settings"], record["seconds"]
        shared = _shared(settings.get("protocol", {}), record["environment"].get("device"))
        train = seconds.get("train", 0.0) + seconds.get("evaluate", 0.0)
        victim = _text("victim", shared, record["defense"], settings.get("defense"))
        self._victims.setdefault(victim, []).append(train)
        crafted = _text("poisons", shared, record["attack"], settings.get("attack"))
        self._poisons.setdefault(crafted, {})[record["poisons"].get("key", "")] = seconds.get("craft", 0.0)
        networks = len(record.get("seeds", {}).get("surrogates", []))
        if networks and seconds.get("surrogates"):
            self._surrogates.setdefault(_text(shared), []).append(seconds["surrogates"] / networks)

    def seconds(self, task: Task) -> float | None:
        """None where nothing is known, as of pretrained networks."""
        times: Sequence[float] = ()
        if isinstance(task, VictimTraining):
            times = self._victims.get(self._text_of(task, "victim", task.defense), [])
        elif isinstance(task, Crafting):
            times = list(self._poisons.get(self._text_of(task, "poisons", task.attack), {}).values())
        elif isinstance(task, SurrogateTraining):
            times = self._surrogates.get(self._text_of(task), [])
        return statistics.fmean(times) if times else None

    def _text_of(self, task: Task, kind: str = "", plugin: SelectedAttack | SelectedDefense | None = None) -> str:
        place = (task.study, kind, plugin)
        if place not in self._texts:
            shared = _shared(task.study.settings(), task.study.device.partition(":")[0])
            parts = (kind, shared, plugin.label, plugin.values()) if plugin is not None else (shared,)
            self._texts[place] = _text(*parts)
        return self._texts[place]


def expected(tasks: Iterable[Task], past: Past) -> list[float]:
    """Seconds of each task: as in the past, or else by its epochs, each of which takes what it does in the tasks of
    which the past knows (or one second where it knows of none)."""
    told = [(past.seconds(task), _epochs(task)) for task in tasks]
    paces = [seconds / epochs for seconds, epochs in told if seconds is not None]
    pace = statistics.median(paces) if paces else 1.0
    return [seconds if seconds is not None else epochs * pace for seconds, epochs in told]


def _epochs(task: Task) -> float:
    """A guess how long a task takes, in epochs: crafting as the training of a victim, a defense half of it."""
    protocol = task.study.protocol
    if isinstance(task, Pretraining):
        return protocol.pretrain.epochs
    if isinstance(task, SurrogateTraining):
        return protocol.surrogate.epochs
    defended = isinstance(task, VictimTraining) and task.defense.label != "none"
    return protocol.train.epochs * (1.5 if defended else 1.0)


def _shared(protocol: dict[str, Any], device: str | None) -> dict[str, Any]:
    return {"device": device, **{name: protocol.get(name) for name in ("dataset", "model", "train", "threat")}}


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)
