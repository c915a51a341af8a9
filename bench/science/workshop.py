"""What an attacker may have made in a trial beyond its surrogates: more training, snapshots, a defense's transform.

The bench fills it in; each call is cached in the store under all that shaped it, so that a killed crafting resumes
where it stopped and trials share what does not depend on them. The defaults are for attacks that are called on their
own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from torch import Generator, Tensor

from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.poisons import Poisons
from bench.science.services import WithoutCache

Transform = Callable[[Tensor, Generator], Tensor]
"""(pixels [n, 3, h, w] in [0, 1], stream) -> pixels, as a defense changes them at a step before augmentation."""


class Retrain(Protocol):
    """Trains the surrogates numbered `which` from scratch on `data`; returns them in eval mode. names: distinguish this
    training from others; behind: the name of a defense to train them with, `settings` being that defense's."""

    def __call__(
        self, data: Images, *names: str | int, which: Sequence[int], behind: str = "", **settings: Any
    ) -> Sequence[Classifier]: ...


class Snapshots(Protocol):
    """For each surrogate its weights after each epoch of `Attack.snapshots`, as networks in eval mode."""

    def __call__(self) -> Sequence[Sequence[Classifier]]: ...


class KeepTensor(Protocol):
    """The tensor that `make()` returns, cached for all that share the surrogates, the code of `make` and `inputs` (JSON
    types)."""

    def __call__(self, name: str, inputs: dict[str, Any], make: Callable[[], Tensor], /) -> Tensor: ...


class Timed(Protocol):
    """A context; seconds spent inside go into the record as a part of the crafting time."""

    def __call__(self, name: str, /) -> contextlib.AbstractContextManager[Any]: ...


class TransformOf(Protocol):
    """What the defense called `defense` does to the images `ids` of the training set `data`."""

    def __call__(self, defense: str, data: Images, ids: Tensor, **settings: Any) -> Transform: ...


class PoisonsOf(Protocol):
    """The poisons of another attack, called `name`, in the same trial."""

    def __call__(self, name: str, **settings: Any) -> Poisons: ...


class Unavailable:
    """Stands in for what only a study can provide."""

    def __call__(self, *arguments: object, **named: object) -> NoReturn:
        raise NotImplementedError("this scene has no workshop")


class Untimed:
    """`timed` outside a study: there is no record to write the seconds into."""

    def __call__(self, name: str, /) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()


@dataclass(frozen=True)
class Workshop:
    """What an attack may call; each field's type says what it does."""

    retrain: Retrain = Unavailable()
    snapshots: Snapshots = Unavailable()
    keep: KeepTensor = WithoutCache()
    timed: Timed = Untimed()
    transform: TransformOf = Unavailable()
    poisons_of: PoisonsOf = Unavailable()
