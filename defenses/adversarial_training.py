"""Adversarial training: every batch is replaced by its adversarial examples."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.defenses.shared.signed_steps import ball, climb, clip
from bench.plugin import Batch, Classifier, Defense, Field, Run, Settings, frozen, register


class AdversarialTrainingSettings(Settings):
    eps: float = Field(4.0, gt=0, le=255, description="largest change of a pixel, levels of 255")
    steps: int = Field(7, ge=1, le=1000, description="attack steps per batch")
    rule: Literal["pgd", "sign-adam"] = Field(
        "pgd", description="pgd: signed steps of fixed length; sign-adam: Adam on the sign, as the FRIENDS baseline"
    )
    step: float = Field(
        0.25, gt=0, le=100, description="pgd: step as a share of eps; sign-adam: in standard deviations of a channel"
    )


@register("defense", "adv-training")
@register("defense", "adv-training-friends", eps=16.0, steps=5, rule="sign-adam", step=0.1)
class AdversarialTraining(Defense):
    """Adversarial training (Madry et al., ICLR 2018): train on examples that maximise the loss in the eps ball.

    `adv-training`: PGD-7 at eps 4 with a random start, as the diffusion-denoising paper (its step is not printed; a
    quarter of eps is Madry's). `adv-training-friends`: the baseline of FRIENDS' Table 1, 5 steps of signed Adam from
    Gaussian noise at the attack's own eps of 16. Both work on the augmented batch, with the current network in eval
    mode. Threat model: any small perturbation. Assumes: the training set alone (`-friends`: the attack's eps).
    Cost: `steps` more forward and backward passes to the pixels.
    """

    Settings = AdversarialTrainingSettings
    settings: AdversarialTrainingSettings

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["adversarial"] = run.stream("start")

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage == "view":
            batch.pixels = self.worst(run.model, batch.pixels, batch.labels, run.side["adversarial"])
        return batch

    def worst(self, model: Classifier, pixels: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Pixels within eps of `pixels` and in [0, 1], moved up the model's loss."""
        settings, eps = self.settings, self.settings.eps / 255

        def slope(at: Tensor) -> Tensor:
            leaf = at.detach().requires_grad_(True)
            loss = F.cross_entropy(model(leaf), labels, reduction="sum")
            return torch.autograd.grad(loss, leaf)[0]

        with frozen(model):
            if settings.rule == "sign-adam":
                return climb(pixels, eps, settings.steps, settings.step * model.normalise.std, slope, stream)
            low, high = ball(pixels, eps)
            moved = clip(pixels + torch.empty_like(pixels).uniform_(-eps, eps, generator=stream), low, high)
            for _ in range(settings.steps):
                moved = clip(moved + settings.step * eps * slope(moved).sign(), low, high)
            return moved
