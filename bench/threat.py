"""The threat model, and the drawing of a trial: who is attacked, as what, and with which training pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.datasets.base import Dataset
from bench.errors import BadInput
from bench.seeds import numpy_stream
from bench.settings import Settings


class Threat(Settings):
    """What the attacker may do. Defaults: FRIENDS section 4.2 (gray box: architecture known, weights not)."""

    scenario: Literal["from-scratch"] = Field("from-scratch", description="how the victim is trained")
    eps: int = Field(16, ge=1, le=255, description="largest change of a pixel, in levels of 255 (L-infinity)")
    budget: float = Field(0.01, gt=0, le=1, description="share of the training set that is poisoned")
    targets: int = Field(1, ge=1, le=1000, description="test pictures to be misclassified in a trial")
    surrogate: str = Field("", description="architecture that the attacker trains; empty: the victim's")
    surrogates: int = Field(1, ge=1, le=100, description="K, how many surrogates the attacker trains")

    def poisons(self, n: int) -> int:
        """How many of n training pictures may be poisoned: ceil(budget n), as the Witches' Brew code counts."""
        return math.ceil(self.budget * n - 1e-9)


@dataclass(frozen=True)
class Trial:
    """One draw: make `target_ids` (test ids, all of class `true_class`) be classified as `adversarial_class` by
    changing `base_ids` (train ids, all of class `adversarial_class`: the attack is clean-label)."""

    index: int
    target_ids: Tensor
    true_class: int
    adversarial_class: int
    base_ids: Tensor

    def as_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "target_ids": self.target_ids.tolist(),
            "true_class": self.true_class,
            "adversarial_class": self.adversarial_class,
            "base_ids": self.base_ids.tolist(),
        }


def check_budget(dataset: Dataset, threat: Threat) -> None:
    """BadInput unless every class has pictures enough for the budget and for the targets."""
    wanted = threat.poisons(len(dataset.train))
    smallest = int(torch.bincount(dataset.train.labels, minlength=len(dataset.classes)).min())
    if wanted > smallest:
        most = math.floor(1e4 * smallest / len(dataset.train)) / 1e4
        raise BadInput(
            f"threat.budget {threat.budget:g} asks for {wanted} poisons of one class, but the smallest class of "
            f"'{dataset.name}' has {smallest} training pictures; allowed: at most {most:g}"
        )
    fewest = int(torch.bincount(dataset.test.labels, minlength=len(dataset.classes)).min())
    if threat.targets > fewest:
        raise BadInput(f"threat.targets {threat.targets}: the smallest class has only {fewest} test pictures")


def draw_trial(dataset: Dataset, threat: Threat, seed: int, index: int) -> Trial:
    """Draw trial `index` of a study: uniform true class, another class as adversarial, distinct random bases of it.

    This is the single-class threat model of Witches' Brew: bases come from the adversarial class.
    Trial i does not depend on how many trials are run, nor on attack or defense.
    """
    check_budget(dataset, threat)
    chance = numpy_stream(seed, "trial", index)
    count = len(dataset.classes)
    true_class = int(chance.integers(count))
    adversarial_class = int((true_class + 1 + chance.integers(count - 1)) % count)
    of_true = dataset.test.ids[dataset.test.labels == true_class].numpy()
    of_adversarial = dataset.train.ids[dataset.train.labels == adversarial_class].numpy()
    targets = chance.choice(of_true, size=threat.targets, replace=False)
    bases = chance.choice(of_adversarial, size=threat.poisons(len(dataset.train)), replace=False)
    return Trial(index, torch.from_numpy(targets), true_class, adversarial_class, torch.from_numpy(bases))
