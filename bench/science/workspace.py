"""Where a study is done: its networks and poisons with the store that keeps them, and what was taken from there."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.foundation.allocator import keep_freed_memory
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
        return cls(study, Store(out / "store", say), report)

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

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - started


def seconds(artefacts: Iterable[Artefact], only_new: bool = False) -> float:
    """Seconds that the artefacts took to make; only_new: those that were made just now."""
    return sum(artefact.meta["seconds"] for artefact in artefacts if not (only_new and artefact.reused))
