"""Where a study is done: its networks and poisons with the store that keeps them, and what was taken from there."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.foundation.allocator import keep_freed_memory
from bench.science.checkpoint import clock
from bench.science.networks import Networks, Report
from bench.science.study import Study
from bench.storage.store import Artefact, Store


@dataclass(frozen=True)
class Workspace:
    """A study and the store. report: called as (what is done, steps done, steps in all)."""

    study: Study
    store: Store
    report: Report

    @classmethod
    def at(cls, study: Study, out: Path, report: Report, say: Callable[[str], None]) -> Workspace:
        keep_freed_memory()
        torch.set_num_threads(study.threads)  # keys say so, whoever makes what they stand for
        space = cls(study, Store(out / "store", say), report)
        study.draw_by(lambda: space.networks.right())
        return space

    @functools.cached_property
    def networks(self) -> Networks:
        return Networks(self.study, self.store, self.report)


@dataclass
class Ledger:
    """What a crafting or a defense took from the store, and where its time went. networks: trained for it; external:
    what a defender could have from elsewhere; cached: whether other work was found there; parts: seconds by name."""

    networks: list[Artefact] = field(default_factory=list)
    external: list[Artefact] = field(default_factory=list)
    cached: dict[str, bool] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = clock()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + clock() - started

    def mark(self) -> Ledger:
        return Ledger(list(self.networks), list(self.external), dict(self.cached), dict(self.parts))

    def since(self, mark: Ledger) -> dict[str, Any]:
        """What has come since `mark`, as JSON."""
        taken = {"networks": self.networks[len(mark.networks) :], "external": self.external[len(mark.external) :]}
        return {
            **{name: [[made.meta["seconds"], made.reused] for made in several] for name, several in taken.items()},
            "cached": self.cached,
            "parts": {name: value - mark.parts.get(name, 0.0) for name, value in self.parts.items()},
            "notes": self.notes,
        }

    def add(self, since: dict[str, Any]) -> None:
        for name in ("networks", "external"):
            getattr(self, name).extend(Artefact({}, {"seconds": took}, reused) for took, reused in since[name])
        for name, value in since["parts"].items():
            self.parts[name] = self.parts.get(name, 0.0) + value
        self.cached.update(since["cached"])
        self.notes.update(since["notes"])


def seconds(artefacts: Iterable[Artefact], only_new: bool = False) -> float:
    """Seconds that the artefacts took to make; only_new: those that were made just now."""
    return sum(artefact.meta["seconds"] for artefact in artefacts if not (only_new and artefact.reused))
