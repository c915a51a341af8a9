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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Generator, Tensor

from bench.foundation.errors import TrialFailed
from bench.foundation.settings import Settings as AnySettings
from bench.science.dataset import Images
from bench.science.evaluation import ModelPredictor, Predictor
from bench.science.services import Services
from bench.science.training import Batch, Run, Trained
from bench.science.workshop import Transform


@dataclass(frozen=True)
class Job:
    """One training that a defense asks for: on `data`, with the victim's full recipe."""

    data: Images


class Defense:
    """Base of all defenses: every hook does nothing, so that this class is the undefended victim."""

    Settings: ClassVar[type[AnySettings]] = AnySettings
    needs: ClassVar[tuple[str, ...]] = ()
    """Knowledge beyond the training set: poison_rate, clean_holdout, external_model, attack_family."""
    by_scenario: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings that have another default in a scenario, as in {"transfer": {"start": 0}}; a variant's stand."""
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

    def by_content(self) -> dict[str, str]:
        """Settings that lead to a file or folder, by name: what stands for them in identities and records, so that
        the same content is the same however its path is spelled. What `external` checks may be relied on."""
        return {}

    def must_take(self, size: int) -> None:
        """BadInput, with a fix, where images of `size` pixels cannot be worked on. Called before any work."""

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

    def memory(self) -> dict[str, Any]:
        """What checkpoints of a training keep of this instance, beside the run: see `bench.science.memory`. Changed in
        place when a training that was killed goes on. Not a hook."""
        return vars(self)

    def attacker_view(self, data: Images, ids: Tensor, services: Services, stream: Generator) -> Transform:
        """For adaptive attackers, who know the defense: what it does at a step, before augmentation, to the images
        `ids` of the training set `data`. Not a hook."""
        raise TrialFailed(f"defense '{self.name}' has no transform of the training images to adapt to")

    def finish(self, trained: Sequence[Trained], services: Services) -> Predictor:
        """The classifier to be evaluated, from the trained networks in the order of the jobs."""
        return ModelPredictor(trained[0].model)
