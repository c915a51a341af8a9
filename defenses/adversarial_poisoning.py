"""Adversarial poisoning: the victim poisons part of each of its own batches and learns to resist."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.defenses.shared.signed_steps import climb
from bench.plugin import Batch, Defense, Field, Matcher, Run, Settings, register


class AdversarialPoisoningSettings(Settings):
    share: float = Field(0.75, gt=0, lt=1, description="share of every batch that is poisoned")
    eps: float = Field(16.0, gt=0, le=255, description="largest change of a pixel, levels of 255")
    steps: int = Field(5, ge=1, le=1000, description="crafting steps per batch")
    step: float = Field(0.1, gt=0, le=100, description="step in standard deviations of a channel")


@register("defense", "ap-0.25", share=0.25)
@register("defense", "ap-0.5", share=0.5)
@register("defense", "ap-0.75", share=0.75)
class AdversarialPoisoning(Defense):
    """Adversarial poisoning (Geiping et al. 2021, "What Doesn't Kill You Makes You Robust(er)"), gradient-matching
    form.

    The first part of every augmented batch is perturbed within eps, by 5 steps of signed Adam, so that its training
    gradient aligns with that of the rest labelled as the first part's commonest class; then the batch is learned with
    its own labels. The current network crafts, in eval mode.
    Threat model: gradient matching. Assumes: the attack family and its eps. Cost: per crafting step about three passes
    over the first part for its gradient and six for the derivative; the gradient of the rest once per batch.
    """

    Settings = AdversarialPoisoningSettings
    settings: AdversarialPoisoningSettings
    needs = ("attack_family",)

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["poisoning"] = run.stream("start")

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage != "view":
            return batch
        if batch.labels.ndim == 2:
            raise ValueError("adversarial poisoning needs hard labels; fix: leave out the defense that mixes them")
        count = round(self.settings.share * len(batch.pixels))
        if 0 < count < len(batch.pixels):
            poisons = self.poisoned(run, batch.pixels[:count], batch.labels[:count], batch.pixels[count:])
            batch.pixels = torch.cat([poisons, batch.pixels[count:]])
        return batch

    def poisoned(self, run: Run, pixels: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """`pixels` within eps and [0, 1], matched to the gradient of `targets` with the commonest of `labels`."""
        settings, model = self.settings, run.model
        target_labels = torch.bincount(labels).argmax().expand(len(targets))
        # The matcher works on a copy in eval mode.
        matcher = Matcher([model], targets, target_labels, labels, chunk=len(pixels) + len(targets))
        step = settings.step * model.normalise.std
        stream = run.side["poisoning"]
        return climb(pixels, settings.eps / 255, settings.steps, step, lambda at: -matcher.slope(at)[1], stream)
