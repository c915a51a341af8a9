"""In which order units are done: each as soon as what it needs is done, and of those that may begin the one first whose
turn comes first, and among these the one that has the longest way to the end.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Turn = tuple[float, ...]
ANY_TIME: Turn = (math.inf,)


@dataclass(frozen=True)
class Step:
    """unit: for an engine; title: of its kind, as progress shows it; needs: places of earlier steps that must be done
    before; seconds: that it may take, which only shape the order; turn: the lowest comes first, and what a step needs
    has its turn too."""

    unit: Any
    title: str
    needs: tuple[int, ...] = ()
    seconds: float = 1.0
    turn: Turn = ANY_TIME


class Schedule:
    """Steps, known by their places. ways: seconds from the begin of each to the end of the longest chain that follows
    from it; ranks: of each in the order in which they are to begin; done: how many have ended, by title."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.totals = Counter(step.title for step in steps)
        self.done: Counter[str] = Counter()
        self._missing = [len(set(step.needs)) for step in steps]
        self._followers: list[list[int]] = [[] for _ in steps]
        self.ways = [step.seconds for step in steps]
        turns = [step.turn for step in steps]
        for place in reversed(range(len(steps))):  # those that follow are later, so their ways are known
            step = steps[place]
            for need in set(step.needs):
                assert need < place, "a step stands on earlier ones"
                self._followers[need].append(place)
                self.ways[need] = max(self.ways[need], steps[need].seconds + self.ways[place])
                turns[need] = min(turns[need], turns[place])
        self._order = sorted(range(len(steps)), key=lambda place: (turns[place], -self.ways[place], place))
        self.ranks = [0] * len(steps)
        for rank, place in enumerate(self._order):
            self.ranks[place] = rank
        self._ready: list[int] = []  # ranks
        for place, missing in enumerate(self._missing):
            self._release(place, missing)

    @classmethod
    def of(cls, title: str, units: Iterable[Any]) -> Schedule:
        """Units of one kind that stand on nothing, in their order."""
        return cls([Step(unit, title) for unit in units])

    def __iter__(self) -> Iterator[int]:
        """Hand out the places of the steps to begin next, until all that may begin has begun."""
        while self._ready:
            yield self._order[heapq.heappop(self._ready)]

    def end(self, place: int, well: bool) -> None:
        """A step has ended; what stands on one that did not end well is never handed out."""
        self.done[self.steps[place].title] += 1
        for follower in self._followers[place] if well else ():
            self._missing[follower] -= 1
            self._release(follower, self._missing[follower])

    def _release(self, place: int, missing: int) -> None:
        if not missing:
            heapq.heappush(self._ready, self.ranks[place])
