"""What the feature attacks share: a loss over the features of the poisons, its gradient, and the descent on it.

The surrogates are frozen and in eval mode; the features of the target are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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


def match_features(
    scene: Scene, settings: FeatureSettings, loss: FeatureLoss, memory: Any = None, **provenance: object
) -> Poisons:
    """Poisons that minimise the mean over surrogates of `loss`. memory: what `loss` remembers, as of `craft`."""
    objective = _Objective(scene, settings, loss)
    std = objective.surrogates[0].normalise.std.flatten()
    delta, losses, scores = craft(scene, settings, std, objective.gradient, objective.score, memory)
    return scene.poisons(delta, losses=losses, final_losses=scores, **provenance)


class _Objective:
    """The mean of a feature loss over the surrogates, as a function of the poisons' pixels."""

    def __init__(self, scene: Scene, settings: FeatureSettings, loss: FeatureLoss) -> None:
        self.scene, self.settings, self.loss = scene, settings, loss
        self.surrogates = scene.surrogates()
        with frozen(*self.surrogates), torch.no_grad():
            targets = to_pixels(scene.targets)
            self.target_features = [stages(model, targets, settings.layers) for model in self.surrogates]

    def mean(self, pixels: Tensor) -> Tensor:
        losses = [
            self.loss(k, stages(model, pixels, self.settings.layers), self.target_features[k])
            for k, model in enumerate(self.surrogates)
        ]
        return torch.stack(losses).mean()

    def gradient(self, pixels: Tensor, step: int) -> tuple[float, Tensor]:
        leaf = pixels.detach().requires_grad_(True)
        view, scene = leaf, self.scene
        if self.settings.augment:
            view = scene.augmentation(leaf, scene.augmentation.draw(len(leaf), scene.stream("augment", step)))
        with frozen(*self.surrogates):
            loss = self.mean(view)
            return loss.item(), torch.autograd.grad(loss, leaf)[0]

    def score(self, pixels: Tensor) -> float:
        with frozen(*self.surrogates), torch.no_grad():
            return self.mean(pixels).item()


def stages(model: Classifier, pixels: Tensor, layers: int) -> list[Tensor]:
    """The last `layers` stages, flat, the penultimate features last; all of them if there are fewer."""
    return [model.features(pixels)] if layers == 1 else model.stages(pixels)[-layers:]


def mean_over(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
