"""What a defense is: typed settings and up to six hooks into training, all optional.

    jobs    before training   one training or many: purify, filter, partition, bag, noise draws
    setup   a training starts may replace model, optimizer, recipe of the run
    epoch   an epoch starts   edit run.active, run.data, run.side, run.lr_scale
    batch   each step, twice  "pixel" before augmentation, "view" after it; pixels in [0, 1]
    loss    each step         per-sample losses to the one that is minimised
    finish  after training    the predictor: repair, test-time wrappers, votes

A defense sees the training set that it is given (without knowing whether it is poisoned), what it declares in `needs`,
and its random streams. Nothing that it is given leads to the target, the trigger, the base ids or the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from bench.foundation.errors import TrialFailed
from bench.foundation.settings import Settings as AnySettings
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.evaluation import ModelPredictor, Predictor
from bench.science.training import Batch, Recipe, Run, Trained
from bench.science.workshop import Transform


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
    """`keep` outside a study: makes the tensors on every call."""

    def __call__(
        self, name: str, inputs: dict[str, Any], make: Callable[[], dict[str, Tensor]], /, external: bool = False
    ) -> dict[str, Tensor]:
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


@dataclass(frozen=True)
class Job:
    """One training that a defense asks for: on `data`, with the victim's full recipe."""

    data: Images


class Defense:
    """Base of all defenses: every hook does nothing, so that this class is the undefended victim."""

    Settings: ClassVar[type[AnySettings]] = AnySettings
    needs: ClassVar[tuple[str, ...]] = ()
    """Knowledge beyond the training set: poison_rate, clean_holdout, external_model, attack_family."""
    beside: tuple[str, ...] = ()
    """Names of the other defenses in a composition."""

    def __init__(self, settings: AnySettings, name: str = "defense") -> None:
        self.settings = settings
        self.name = name

    @property
    def wants_public(self) -> bool:
        """Whether `services.public` will be called, so that it can be checked before any work."""
        return False

    def external(self) -> dict[str, Any]:
        """What is used from outside this tool, as JSON: versions of optional packages, sha256 of files. It is part of
        the identity of a trial's record. Called before any work: BadInput, with a fix, when something is missing."""
        return {}

    def jobs(self, data: Images, services: Services) -> Iterable[Job]:
        """The trainings to run; `data` is the training set on the device."""
        yield Job(data)

    def setup(self, run: Run) -> None:
        """A training starts. May replace run.model, run.optimizer, run.recipe; may fill run.side."""

    def epoch(self, run: Run, epoch: int) -> None:
        """An epoch starts, counted from 0."""

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        """One step's samples, at stage "pixel" (before augmentation) or "view" (after it). Return a batch."""
        return batch

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        """The scalar to minimise from per-sample cross-entropies [b]."""
        return losses.mean()

    def published(self, data: Images, ids: Tensor, services: Services, stream: Generator) -> Transform:
        """For adaptive attackers, who know the defense: what it does at a step, before augmentation, to the images
        `ids` of the training set `data`. Not a hook."""
        raise TrialFailed(f"defense '{self.name}' has no transform of the training images to adapt to")

    def finish(self, trained: Sequence[Trained], services: Services) -> Predictor:
        """The classifier to be evaluated, from the trained networks in the order of the jobs."""
        return ModelPredictor(trained[0].model)
