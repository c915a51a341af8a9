"""Several defenses as one: `--defense spectral+friends-b`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.foundation.errors import BadInput
from bench.foundation.settings import Settings
from bench.science.dataset import Images
from bench.science.defense import Defense, Job, Services
from bench.science.evaluation import Predictor
from bench.science.seeds import derive
from bench.science.training import Batch, Run, Trained

SINGLE = {
    "loss": "only one part may turn the samples' losses into the one that is minimised",
    "finish": "only one part may make the classifier from what was trained",
    "setup": "only one part may replace network, optimizer or recipe",
}
"""Hooks that cannot be shared, and why."""


class Composition(Defense):
    """Several defenses at once, in the order in which they are named; not run by this name: write `a+b`.

    Every training set that a part makes is passed to the next; hooks in epochs and batches run one after the other.
    Each part has its own random streams and its own state, so that two of a kind do not interfere. Refused if two parts
    own the same hook that cannot be shared. Assumes: what its parts assume; each is given only what it declares. Cost:
    the sum of its parts'.
    """

    def __init__(self, parts: Sequence[Defense], name: str = "composition") -> None:
        super().__init__(Settings(), name)
        self.parts = list(parts)
        for part in self.parts:
            part.beside = tuple(other.name for other in self.parts if other is not part)

    @staticmethod
    def check(makers: Sequence[type[Defense]], labels: Sequence[str]) -> None:
        """BadInput with the reason when these cannot be composed."""
        if len(makers) < 2 or len(set(labels)) < len(labels):
            raise BadInput(f"defense '{'+'.join(labels)}': name two or more different defenses")
        for hook, reason in SINGLE.items():
            owners = [
                label
                for maker, label in zip(makers, labels, strict=True)
                if getattr(maker, hook) is not getattr(Defense, hook)
            ]
            if len(owners) > 1:
                raise BadInput(f"defense '{'+'.join(labels)}': {owners[0]} and {owners[1]} both own `{hook}`: {reason}")

    @property
    def wants_public(self) -> bool:
        return any(part.wants_public for part in self.parts)

    def external(self) -> dict[str, Any]:
        return {part.name: found for part in self.parts if (found := part.external())}

    def must_take(self, size: int) -> None:
        for part in self.parts:
            part.must_take(size)

    def memory(self) -> dict[str, Any]:
        return {part.name: part.memory() for part in self.parts}

    def jobs(self, data: Images, services: Services) -> Iterable[Job]:
        yield from self._jobs(data, services, self.parts)

    def _jobs(self, data: Images, services: Services, parts: Sequence[Defense]) -> Iterable[Job]:
        if not parts:
            yield Job(data)
            return
        for job in parts[0].jobs(data, _own(services, parts[0])):
            yield from self._jobs(job.data, services, parts[1:])

    def setup(self, run: Run) -> None:
        for part in self.parts:
            with _as(part, run):
                part.setup(run)

    def epoch(self, run: Run, epoch: int) -> None:
        for part in self.parts:
            with _as(part, run):
                part.epoch(run, epoch)

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        for part in self.parts:
            with _as(part, run):
                batch = part.batch(batch, run, stage)
        return batch

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        owner = self._owner("loss")
        with _as(owner, run):
            return owner.loss(losses, batch, run)

    def finish(self, trained: Sequence[Trained], services: Services) -> Predictor:
        owner = self._owner("finish")
        return owner.finish(trained, _own(services, owner))

    def _owner(self, hook: str) -> Defense:
        """The part that has a hook of its own, else the first."""
        owning = (part for part in self.parts if getattr(type(part), hook) is not getattr(Defense, hook))
        return next(owning, self.parts[0])


@contextlib.contextmanager
def _as(part: Defense, run: Run) -> Iterator[None]:
    """Inside, the run has the part's random streams, state and services."""
    owner, side, services = run.owner, run.side, run.services
    mine: dict[str, Any] = side.setdefault(f"part {part.name}", {})
    run.owner, run.side = part.name, mine
    run.services = _own(services, part) if services is not None else None
    try:
        yield
    finally:
        run.owner, run.side, run.services = owner, side, services


def _own(services: Services, part: Defense) -> Services:
    """The services of one part: its own seed, and only the knowledge that it declares."""
    return replace(services, seed=derive(services.seed, part.name)).only(part.needs)
