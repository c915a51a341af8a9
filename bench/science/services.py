"""What a defense may ask of the bench: more training, a cache, progress, notes, and the knowledge that it declares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bench.foundation.errors import TrialFailed
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.recipe import Recipe

T = TypeVar("T")


class Fit(Protocol):
    """Trains another network, of the architecture `model`, for the first `epochs` of the recipe; eval mode.
    Deterministic in the defense's seed and `names`, which distinguish this training from others; cached in the store.
    """

    def __call__(self, data: Images, model: str, epochs: int, /, *names: str | int) -> Classifier: ...


class Report(Protocol):
    """Shows progress: `done` steps of `total` in the phase `phase`."""

    def __call__(self, phase: str, done: int, total: int, /) -> None: ...


class Keep(Protocol):
    """Tensors that are costly to make: from the store, or made by `make()` and stored under `inputs` (JSON: everything
    that shapes them) and the code of `make`. external: for what the defender could have obtained elsewhere; its time is
    not counted as training."""

    def __call__(
        self, name: str, inputs: dict[str, Any], make: Callable[[], dict[str, Tensor]], /, external: bool = False
    ) -> dict[str, Tensor]: ...


class Note(Protocol):
    """Writes `value` (JSON) into the trial's record."""

    def __call__(self, name: str, value: Any, /) -> None: ...


class WithoutCache:
    """`keep` outside a study: calls `make` every time."""

    def __call__(self, name: str, inputs: dict[str, Any], make: Callable[[], T], /, external: bool = False) -> T:
        return make()


class WithoutRecord:
    """`note` outside a study: there is no record to write into."""

    def __call__(self, name: str, value: Any, /) -> None:
        return None


@dataclass(frozen=True)
class Services:
    """What a defense may ask of the bench.

    recipe: how the victim will be trained; classes: number of classes; fit, report, keep, note: see their types;
    model: the name of the architecture that is trained; seed: the defense's own in this trial.

    Knowledge beyond the training set, None unless the defense declares it in `needs`:
    poison_rate: share of the training set that the attacker may poison;
    clean_holdout: a few images of the training set that are known to be clean, some of every class;
    public: images from elsewhere, without a test image among them, to train an `external_model` on.
    """

    recipe: Recipe
    classes: int
    fit: Fit
    report: Report
    model: str = ""
    seed: int = 0
    keep: Keep = WithoutCache()
    note: Note = WithoutRecord()
    poison_rate: float | None = None
    clean_holdout: Images | None = None
    public: Callable[[], Images] | None = None

    def only(self, needs: Sequence[str]) -> Services:
        """The same without the knowledge that is not among `needs`."""
        return replace(
            self,
            poison_rate=self.poison_rate if "poison_rate" in needs else None,
            clean_holdout=self.clean_holdout if "clean_holdout" in needs else None,
            public=self.public if "external_model" in needs else None,
        )


def known_clean(services: Services) -> Images:
    """The clean hold-out in the order of ids, so that no order of the training set shows. TrialFailed without one."""
    holdout = services.clean_holdout
    if holdout is None or len(holdout) < 2:
        raise TrialFailed("no clean hold-out of two images or more; fix: a larger threat.holdout")
    return holdout.subset(torch.argsort(holdout.ids))
