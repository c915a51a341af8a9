"""Checkpoints of work that takes long: a kill costs what was done since the last one, and the bits are the same.

    state = {"pixels": pixels, "step": 0}
    kept = resumable("crafting", state, scene.seed)     the state of an earlier attempt that was killed, if there is one
    for step in range(state["step"], steps):
        state["pixels"], state["step"] = better(state["pixels"]), step + 1
        kept.step()                                     a checkpoint, when the last one is long enough ago
    kept.end()

Whatever comes before is done again, and must come to the same. What may stand in the state is said in `memory`.
Outside of a study nothing is kept.
"""

from __future__ import annotations

import json
import time
from contextvars import ContextVar
from typing import Any, Protocol

from bench.foundation.errors import TrialFailed
from bench.science.memory import Reader, Unstorable, Writer, survey
from bench.storage.making import Making, current
from bench.storage.store import Made, digest_of

_gained: ContextVar[float] = ContextVar("gained", default=0.0)


def clock() -> float:
    """Seconds of work: moves on with the time, and by what earlier attempts had spent where their work is taken up."""
    return time.perf_counter() + _gained.get()


class Beside(Protocol):
    """What work leaves outside of its own state, such as notes: since a mark, as JSON, and added again."""

    def mark(self) -> Any: ...
    def since(self, mark: Any) -> dict[str, Any]: ...
    def add(self, since: dict[str, Any]) -> None: ...


def remember(beside: Beside) -> None:
    """Have checkpoints of what is being made keep this, too."""
    if (making := current()) is not None:
        making.beside = beside


def resumable(title: str, state: dict[str, Any], *of: Any, unless: str = "") -> Stretch:
    """Work that goes on from the last checkpoint: `state` is changed in place. title: for people; of: what tells this
    work from all other of that title within one artefact or record; unless: why it cannot be kept."""
    making = current()
    return Stretch() if making is None else _Kept(making, title, state, of, unless)


class Stretch:
    """Work outside of a study, of which nothing is kept."""

    def step(self) -> None:
        """The state is whole: a good moment for a checkpoint."""

    def end(self) -> None:
        """The work is done, and its outcome stands in the state."""


class _Kept(Stretch):
    def __init__(self, making: Making, title: str, state: dict[str, Any], of: tuple[Any, ...], unless: str) -> None:
        self.making, self.title, self.state, self.unless = making, title, state, unless
        self.name = _name(making, title, of)
        self.kept = False  # whether all that was done is on the disk
        self.anchors = dict(survey(state))
        self.began = clock()
        self.mark = making.beside.mark() if making.beside is not None else None
        if not unless and (found := making.get(self.name)) is not None:
            self._resume(*found)

    def step(self) -> None:
        self.kept = False
        if self.making.due and (made := self._made()) is not None:
            self.making.write(self.name, made)

    def end(self) -> None:
        if not self.kept and (made := self._made()) is not None:
            tensors = {name: tensor.clone() for name, tensor in made[0].items()}  # others may go on with them
            self.making.waiting[self.name] = tensors, made[1]
            if self.making.due:
                self.making.write(self.name, self.making.waiting.pop(self.name))

    def _made(self) -> Made | None:
        if self.unless:
            self._cannot()
            return None
        writer = Writer(self.anchors)
        try:
            tree = writer.node(self.state, "")
        except Unstorable as error:
            self.unless = str(error)
            return None
        beside = self.making.beside.since(self.mark) if self.making.beside is not None else None
        return writer.tensors, {"state": tree, "seconds": clock() - self.began, "beside": beside}

    def _cannot(self) -> None:
        if self.making.due and self.title:
            why = self.unless.lstrip(".")
            self.making.store.say(f"{self.title}: no checkpoints ({why}), it starts again if it is killed")
            self.title = ""

    def _resume(self, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        try:
            Reader(tensors).into(self.state, meta["state"])
            if self.making.beside is not None:
                self.making.beside.add(meta["beside"])
            seconds = max(float(meta["seconds"]), 0.0)
        except Exception as error:  # whatever a plug-in that is set up otherwise, or a forged file, leads to
            # Half of the state may have been changed: only an attempt that begins anew is right.
            why = " ".join(str(error).split())[:200]
            raise TrialFailed(
                f"{self.title}: its checkpoint does not fit ({type(error).__name__}: {why}) and is removed; fix: the "
                "same command again, it starts anew"
            ) from error
        self.kept = True
        _gained.set(_gained.get() + seconds)
        self.making.store.say(f"{self.title}: goes on where it was killed, {seconds:.0f} s are kept")


def _name(making: Making, title: str, of: tuple[Any, ...]) -> str:
    """The name of a checkpoint: what the work is of, and how many of it there have been."""
    writer = Writer({})
    text = json.dumps([title, writer.node(list(of), "")])
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in writer.tensors.items()}
    name = digest_of(tensors, text)
    making.opened[name] = making.opened.get(name, 0) + 1
    return f"{name[:24]}-{making.opened[name]}"
