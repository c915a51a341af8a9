"""What the feature attacks share: a loss over the features of the poisons, its gradient, and the descent on it.

The surrogates are frozen and in eval mode; the features of the target are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.attacks.crafting.descent import DescentSettings, craft
from bench.plugin import Classifier, Field, Poisons, Scene, frozen, to_pixels


class FeatureSettings(DescentSettings):
    augment: bool = Field(True, description="craft through the victim's random shift and flip, redrawn every step")
    layers: int = Field(
        1, ge=1, le=64, description="how many stages of the network are matched, from the penultimate features down"
    )


FeatureLoss = Callable[[int, list[Tensor], list[Tensor]], Tensor]
"""(surrogate k, features of the poisons by stage [n, d_i], of the targets [t, d_i]) -> scalar loss of surrogate k."""


def match_features(scene: Scene, settings: FeatureSettings, loss: FeatureLoss, **provenance: object) -> Poisons:
    """Poisons that minimise the mean over surrogates of `loss`."""
    surrogates = scene.surrogates()
    with frozen(*surrogates), torch.no_grad():
        aims = [stages(model, to_pixels(scene.targets), settings.layers) for model in surrogates]

    def total(pixels: Tensor) -> Tensor:
        each = [loss(k, stages(model, pixels, settings.layers), aims[k]) for k, model in enumerate(surrogates)]
        return torch.stack(each).mean()

    def gradient(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        leaf = pixels.detach().requires_grad_(True)
        view = leaf
        if settings.augment:
            view = scene.augmentation(leaf, scene.augmentation.draw(len(leaf), scene.stream("augment", step)))
        with frozen(*surrogates):
            value = total(view)
            return value.item(), torch.autograd.grad(value, leaf)[0]

    def score(pixels: Tensor) -> float:
        with frozen(*surrogates), torch.no_grad():
            return total(pixels).item()

    std = surrogates[0].normalise.std.flatten()
    delta, losses, scores = craft(scene, settings, std, gradient, score)
    return scene.poisons(delta, losses=losses, final_losses=scores, **provenance)


def stages(model: Classifier, pixels: Tensor, layers: int) -> list[Tensor]:
    """The last `layers` stages, flat, the penultimate features last; all there are when there are fewer."""
    return [model.features(pixels)] if layers == 1 else model.stages(pixels)[-layers:]


def mean_over(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
