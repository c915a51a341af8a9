"""Anti-backdoor learning: isolate the samples that are learned too easily, then unlearn them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from bench.defenses.shared.outputs import outputs_of
from bench.plugin import Batch, Defense, Field, Run, Settings, register


class AblSettings(Settings):
    """Defaults: the paper's 20 + 60 + 5 epochs as shares of the recipe's, isolation of 1 %."""

    isolation: float = Field(0.01, gt=0, lt=1, description="share of the training set that is isolated")
    first: float = Field(20 / 85, gt=0, lt=1, description="share of the epochs before the isolation")
    last: float = Field(5 / 85, gt=0, lt=1, description="share of the epochs that unlearn, at the end")
    rule: Literal["lga", "flooding"] = Field(
        "lga", description="before the isolation: sign(L - gamma) L, local gradient ascent; or |L - gamma| + gamma"
    )
    gamma: float = Field(0.5, gt=0, le=100, description="loss below which a batch is not learned further")
    unlearn_lr: float = Field(0.005, gt=0, le=1, description="learning rate of the unlearning, as a share of train.lr")
    cap: float = Field(10.0, gt=0, le=1e6, description="unlearning is unbounded: it stops at this loss of the batch")

    @model_validator(mode="after")
    def _room(self) -> AblSettings:
        if self.first + self.last >= 1:
            raise ValueError("first + last leave no epochs in between; fix: smaller shares")
        return self


@register("defense", "abl")
class Abl(Defense):
    """Anti-backdoor learning (Li et al., NeurIPS 2021), within the epochs of the recipe.

    First the network is held at a loss of gamma without augmentation, so that only what is learned fast falls below it;
    the samples with the lowest loss are isolated; the network then trains on the rest; at the end it ascends the loss
    of the isolated samples. The learning rate falls to a tenth after one half and three quarters of the middle phase.
    Threat model: backdoors that are learned faster than classes. Assumes: the training set, and how much to isolate.
    Cost: none.
    """

    Settings = AblSettings
    settings: AblSettings

    def setup(self, run: Run) -> None:
        first, last = self.turns(run.recipe.epochs)
        drops = sorted({first + round((last - first) * share) for share in (0.5, 0.75)} - {0})
        run.recipe = run.recipe.model_copy(update={"schedule": "step", "drops": tuple(drops)})

    def turns(self, epochs: int) -> tuple[int, int]:
        """The epochs at which isolation and unlearning start; every phase is at least one epoch long."""
        first = min(max(round(self.settings.first * epochs), 1), max(epochs - 2, 1))
        return first, max(epochs - max(round(self.settings.last * epochs), 1), first)

    def epoch(self, run: Run, epoch: int) -> None:
        first, last = self.turns(run.recipe.epochs)
        if epoch == 0:
            run.side["augmentation"] = run.augmentation
            run.augmentation = replace(run.augmentation, kind="none")
        if epoch == first:
            run.augmentation = run.side["augmentation"]
            run.side["isolated"] = self.isolated(run)
            run.suspected = run.side["isolated"]
            run.active = ~run.side["isolated"]
        if epoch == last:
            run.active = run.side["isolated"]
            run.lr_scale = self.settings.unlearn_lr / 0.1 ** len(run.recipe.drops)
        run.side["phase"] = (epoch >= first) + (epoch >= last)

    def isolated(self, run: Run) -> Tensor:
        """Which samples have the lowest loss, bool [n], ties to the lower row: eval mode, un-augmented."""
        losses = F.cross_entropy(outputs_of(run.model, run.data.images), run.data.labels, reduction="none")
        count = max(round(self.settings.isolation * len(run.data)), 1)
        isolated = torch.zeros(len(run.data), dtype=torch.bool, device=run.device)
        isolated[torch.argsort(losses, stable=True)[:count]] = True
        return isolated

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        mean, gamma = losses.mean(), self.settings.gamma
        if run.side["phase"] == 0:
            if self.settings.rule == "flooding":
                return (mean - gamma).abs() + gamma
            return torch.sign(mean.detach() - gamma) * mean
        if run.side["phase"] == 1:
            return mean
        return torch.where(mean.detach() < self.settings.cap, -mean, 0 * mean)
