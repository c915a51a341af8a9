"""What a defense is: typed settings and up to six hooks into training, all optional.

    jobs    before training   one training or many: purify, filter, partition, bag, noise draws
    setup   a training starts may replace model, optimizer, recipe of the run
    epoch   an epoch starts   edit run.active, run.data, run.side, run.lr_scale
    batch   each step, twice  "pixel" before augmentation, "view" after it; pixels in [0, 1]
    loss    each step         per-sample losses to the one that is minimised
    finish  after training    the predictor: repair, test-time wrappers, votes

A defense sees the training set that it is handed (poisoned or not, it is not told), what it declares in `needs`, and
its random streams. Target, trigger, base ids and test set are in nothing that it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from bench.foundation.errors import TrialFailed
from bench.foundation.settings import Settings as AnySettings
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.evaluation import ModelPredictor, Predictor
from bench.science.training import Batch, Recipe, Run, Trained


def make_anew(
    name: str, inputs: dict[str, Any], make: Callable[[], dict[str, Tensor]], external: bool = False
) -> dict[str, Tensor]:
    """`keep` of Services where nothing is kept."""
    return make()


def forget(name: str, value: Any) -> None:
    """`note` of Services where there is no record."""


@dataclass(frozen=True)
class Services:
    """What a defense may ask of the bench.

    recipe: how the victim will be trained; classes: number of classes;
    fit: train another network on a training set, `fit(data, model name, epochs, *who)`: eval mode, deterministic in
    the defense's seed and `who`, kept in the store;
    report: show progress, called as (what, done, of); model: the name of the architecture that is trained;
    seed: the defense's own in this trial;
    keep: tensors that are costly to make, `keep(name, inputs, make)`: from the store, or made by `make()` and kept
    under `inputs` (JSON: all that shapes them) and the code of `make`; `external=True` for what the defender could have
    from elsewhere, whose time is not counted as training;
    note: write something into the trial's record, `note(name, JSON)`.

    Knowledge beyond the training set, None unless the defense declares it in `needs`:
    poison_rate: share of the training set that the attacker may poison;
    clean_holdout: a few images of the training set that are known to be clean, some of every class;
    public: images from elsewhere, without a test image among them, to train an `external_model` on.
    """

    recipe: Recipe
    classes: int
    fit: Callable[..., Classifier]
    report: Callable[[str, int, int], None]
    model: str = ""
    seed: int = 0
    keep: Callable[..., dict[str, Tensor]] = make_anew
    note: Callable[[str, Any], None] = forget
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
    found = services.clean_holdout
    if found is None or len(found) < 2:
        raise TrialFailed("no clean hold-out of two images or more; fix: a larger threat.holdout")
    return found.subset(torch.argsort(found.ids))


@dataclass(frozen=True)
class Job:
    """One training that a defense wants: on `data`, for the victim's full recipe."""

    data: Images


class Defense:
    """Base of all defenses: every hook does nothing, so that this class is the undefended victim."""

    Settings: ClassVar[type[AnySettings]] = AnySettings
    needs: ClassVar[tuple[str, ...]] = ()
    """Knowledge beyond the training set: poison_rate, clean_holdout, external_model, attack_family."""
    on_its_own: ClassVar[bool] = True
    """False for what cannot be run by its name alone."""
    beside: tuple[str, ...] = ()
    """Names of the other parts of a composition."""

    def __init__(self, settings: AnySettings, name: str = "defense") -> None:
        self.settings = settings
        self.name = name

    @property
    def wants_public(self) -> bool:
        """Whether `services.public` will be called, so that it can be checked before any work."""
        return False

    def external(self) -> dict[str, Any]:
        """What is used from outside this tool, as JSON: versions of optional packages, sha256 of files. It is part of
        what a trial's record is found by. Asked before any work: BadInput when something is missing, naming the
        repair."""
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

    def published(
        self, data: Images, ids: Tensor, services: Services, stream: Generator
    ) -> Callable[[Tensor, Generator], Tensor]:
        """For adaptive attackers, who know the defense: what it does at a step, before augmentation, to the images
        `ids` of the training set `data`, as a function (pixels [n, 3, h, w], stream) -> pixels. Not a hook."""
        raise TrialFailed(f"defense '{self.name}' has no transform of the training images to adapt to")

    def finish(self, trained: Sequence[Trained], services: Services) -> Predictor:
        """The classifier to be judged, from the trained networks in the order of the jobs."""
        return ModelPredictor(trained[0].model)
