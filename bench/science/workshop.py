"""What an attacker may have made in a trial beyond its surrogates: more training, snapshots, a defense's transform.

The bench fills it in; each call is kept in the store under all that shaped it, so that a killed crafting goes on
where it stopped and trials share what does not depend on them. The defaults are for attacks that are called on their
own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from bench.science.classifier import Classifier
from bench.science.poisons import Poisons

Transform = Callable[[Tensor, Generator], Tensor]
"""(pixels [n, 3, h, w] in [0, 1], stream) -> pixels, as a defense changes them at a step before augmentation."""


def _missing(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("this scene has no workshop")


def _make(name: str, inputs: dict[str, Any], make: Callable[[], Tensor]) -> Tensor:
    return make()


@dataclass(frozen=True)
class Workshop:
    """retrain(data, *who, which=[...], behind="", **settings): the surrogates of these numbers, trained anew on
    `data`, in eval mode; `who` names them apart; behind: a defense, by name, that they are trained with, and its
    settings.
    snapshots(): for each surrogate its weights after each epoch of `Attack.snapshots`, as networks in eval mode.
    keep(name, inputs, make): the tensor that `make()` gives, kept for all that share the surrogates, the code of
    `make` and `inputs` (JSON types).
    timed(name): a context; seconds spent inside go to the record as a part of the crafting time.
    transform(defense, data, ids, **settings): what a defense, by name, does to the images `ids` of the training set
    `data`.
    poisons_of(attack, **settings): the poisons of another attack, by name, in the same trial.
    """

    retrain: Callable[..., Sequence[Classifier]] = _missing
    snapshots: Callable[[], Sequence[Sequence[Classifier]]] = _missing
    keep: Callable[[str, dict[str, Any], Callable[[], Tensor]], Tensor] = _make
    timed: Callable[[str], contextlib.AbstractContextManager[Any]] = lambda name: contextlib.nullcontext()
    transform: Callable[..., Transform] = _missing
    poisons_of: Callable[..., Poisons] = _missing
