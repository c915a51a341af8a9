"""How long a task may take, by past records."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from bench.execution.tasks import Crafting, SurrogateTraining, Task, VictimTraining
from bench.storage.record import Record


class Past:
    """Mean seconds of a task in past records of the same data, networks, training, plug-in settings and device. What
    differs only in seed, trial or the other side's plug-in counts as the same work."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.count = 0
        self._victims: dict[str, list[float]] = {}
        self._poisons: dict[str, dict[str, float]] = {}
        self._surrogates: dict[str, list[float]] = {}
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
        shared = _shared(task.study.settings(), task.study.device.partition(":")[0])
        times: Sequence[float] = ()
        if isinstance(task, VictimTraining):
            times = self._victims.get(_text("victim", shared, task.defense.label, task.defense.values()), [])
        elif isinstance(task, Crafting):
            crafted = self._poisons.get(_text("poisons", shared, task.attack.label, task.attack.values()), {})
            times = list(crafted.values())
        elif isinstance(task, SurrogateTraining):
            times = self._surrogates.get(_text(shared), [])
        return statistics.fmean(times) if times else None


def _shared(protocol: dict[str, Any], device: str | None) -> dict[str, Any]:
    return {"device": device, **{name: protocol.get(name) for name in ("dataset", "model", "train", "threat")}}


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)
