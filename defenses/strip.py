"""STRIP: a triggered image is classified the same whatever it is blended with, so that its entropy stays low."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.defenses.shared.filtering import Filter
from bench.plugin import (
    Classifier,
    Defense,
    Field,
    Images,
    ModelPredictor,
    Services,
    Settings,
    Trained,
    frozen,
    known_clean,
    register,
    to_pixels,
    torch_stream,
)

BLENDS_AT_ONCE = 1024
"""Blended images in one forward pass."""


class StripSettings(Settings):
    pictures: int = Field(
        100, ge=2, le=10000, description="N, clean images that each image is blended with (at most the hold-out)"
    )
    blend: float = Field(0.5, gt=0, lt=1, description="weight of the image itself in a blend")
    fpr: float = Field(0.05, gt=0, lt=1, description="share of clean images that may be flagged")


@dataclass(frozen=True)
class Blends:
    """A network and the clean images to blend with: the same for every image that is tested.

    model: used in eval mode; partners: float [N, 3, h, w] in [0, 1]; ids: int64 [N]; weight: of the image itself.
    """

    model: Classifier
    partners: Tensor
    ids: Tensor
    weight: float

    @torch.no_grad()
    def entropy(self, pixels: Tensor, ids: Tensor | None = None) -> Tensor:
        """H, float64 [n], for pixels [n, 3, h, w]: the mean over the partners of the entropy (nats) over classes of
        softmax f(weight x + (1 - weight) partner). ids: int64 [n]; an image is not blended with itself."""
        means = []
        with frozen(self.model):
            for rows in torch.arange(len(pixels), device=pixels.device).split(self.chunk):
                entropies = self._entropies(pixels[rows])
                counted = torch.ones_like(entropies) if ids is None else (ids[rows, None] != self.ids).double()
                means.append((entropies * counted).sum(1) / counted.sum(1))
        return torch.cat(means)

    @property
    def chunk(self) -> int:
        """Images whose blends fit into one forward pass."""
        return max(BLENDS_AT_ONCE // len(self.partners), 1)

    def _entropies(self, pixels: Tensor) -> Tensor:
        """Of each image with each partner, float64 [n, N]."""
        mixed = torch.lerp(self.partners[None], pixels[:, None], self.weight).flatten(0, 1)
        logits = self.model(mixed.contiguous(memory_format=torch.channels_last))
        # entr(p) = -p log p, and 0 at p = 0.
        entropies = torch.special.entr(logits.double().softmax(1)).sum(1)
        return entropies.view(len(pixels), len(self.partners))


def prepare(model: Classifier, settings: StripSettings, services: Services) -> tuple[Blends, float]:
    """The partners, drawn once, and the threshold below which H is suspicious; both go into the record's notes.

    The threshold is the value that a new clean image falls below with probability fpr (the quantile at fpr (n + 1),
    between order statistics), estimated on the hold-out, each image blended with all partners but itself.
    """
    clean = known_clean(services)
    chance = torch_stream("cpu", services.seed, "strip")
    partners = torch.randperm(len(clean), generator=chance)[: settings.pictures].to(clean.ids.device)
    pixels = to_pixels(clean.images)
    blends = Blends(model, pixels[partners], clean.ids[partners], settings.blend)
    entropies = blends.entropy(pixels, clean.ids).cpu().numpy()
    threshold = float(np.quantile(entropies, settings.fpr, method="weibull"))
    services.note(
        "strip",
        {
            "holdout": len(clean),
            "blended with": len(partners),
            "capped by the hold-out": settings.pictures > len(partners),
            "threshold": threshold,
            "median entropy of the hold-out": float(np.median(entropies)),
        },
    )
    return blends, threshold


class StripPredictor(ModelPredictor):
    """A network that rejects images whose entropy is below the threshold."""

    def __init__(self, model: Classifier, blends: Blends, threshold: float) -> None:
        super().__init__(model)
        self.blends, self.threshold = blends, threshold

    def rejects(self, pixels: Tensor) -> Tensor:
        return self.blends.entropy(pixels) < self.threshold


@register("defense", "strip")
class Strip(Defense):
    """STRIP (Gao et al., ACSAC 2019): the trained network rejects images that look triggered.

    An image is blended half and half with N clean ones; if the predictions stay the same (mean entropy below that of
    95 % of the clean hold-out), something in it dominates whatever it is blended with. A rejected image counts neither
    as attack success nor as correct. Threat model: a trigger that works on any image; clean-label poisons without one,
    and triggers that work on one class only, need not lower the entropy. The hold-out is part of the training set,
    since the defender has no other data, so that of test images, on which the network is less confident, fewer may be
    rejected than fpr says. Assumes: a clean hold-out. Cost: none in training, N forward passes per classified image.
    """

    Settings = StripSettings
    settings: StripSettings
    needs = ("clean_holdout",)

    def finish(self, trained: Sequence[Trained], services: Services) -> StripPredictor:
        model = trained[0].model
        return StripPredictor(model, *prepare(model, self.settings, services))


@register("defense", "strip-filter", fpr=0.1)
class StripFilter(Filter):
    """STRIP (Gao et al., ACSAC 2019) on the training set, as backdoor toolboxes use it.

    Applies the test of `strip` with a network trained on all samples; those that look triggered are dropped, and the
    victim is trained on the rest. Drops a tenth of the clean samples by design (fpr). Those toolboxes add the clean
    image to the sample in normalised space; here blends are as in STRIP, half and half of pixels. Threat model: as
    `strip`, and the poisons carry the trigger. Assumes: a clean hold-out; its images are training samples too and are
    not blended with themselves. Cost: one more training (shared by all filters), and N forward passes over the
    training set.
    """

    Settings = StripSettings
    settings: StripSettings
    needs = ("clean_holdout",)

    def kept_by(self, model: Classifier, data: Images, services: Services) -> Tensor:
        blends, threshold = prepare(model, self.settings, services)
        kept = []
        for rows in torch.arange(len(data), device=data.ids.device).split(blends.chunk):
            kept.append(blends.entropy(to_pixels(data.images[rows]), data.ids[rows]) >= threshold)
            services.report("blending", int(rows[-1]) + 1, len(data))
        return torch.cat(kept)
