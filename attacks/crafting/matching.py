"""Matching of training gradients: the objective that Gradient Matching and Sleeper Agent share, with its pixel
gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from bench.attacks.crafting.descent import DescentSettings
from bench.science.attack import Scene
from bench.science.classifier import Classifier
from bench.science.gradients import ParameterGradients, cosine_distance


class MatchingSettings(DescentSettings):
    augment: bool = Field(True, description="craft through the victim's random shift and flip, redrawn every step")
    chunk: int = Field(256, ge=1, le=65536, description="images that are differentiated at once; bounds the memory")


class Matcher:
    """1 - cos(mean gradient of the poisons, mean gradient of `wanted` images), mean over surrogates.

    pixels: float [t, 3, h, w], what the attacker wants to be classified as `wanted` [t]; labels: int64 [n] of the
    poisons.
    """

    def __init__(
        self, models: Sequence[Classifier], pixels: Tensor, wanted: Tensor, labels: Tensor, chunk: int
    ) -> None:
        self.sources = [ParameterGradients(model) for model in models]
        self.aims = [source.mean(pixels, wanted, chunk) for source in self.sources]
        self.labels, self.chunk = labels, chunk

    def with_models(self, models: dict[int, Classifier], pixels: Tensor, wanted: Tensor) -> Matcher:
        """The same with other surrogates in the given places, whose aims are taken anew; the others keep theirs."""
        other = copy.copy(self)
        other.sources, other.aims = list(self.sources), list(self.aims)
        for k, model in models.items():
            other.sources[k] = ParameterGradients(model)
            other.aims[k] = other.sources[k].mean(pixels, wanted, self.chunk)
        return other

    def slope(self, view: Tensor) -> tuple[float, Tensor]:
        """The loss, and the gradient in the pixels [n, 3, h, w] of its sum over surrogates."""
        total, losses = torch.zeros_like(view), []
        for source, aim in zip(self.sources, self.aims, strict=True):
            loss, direction = cosine_distance(source.mean(view, self.labels, self.chunk), aim)
            total += source.pixel_gradient(view, self.labels, direction, self.chunk)
            losses.append(loss)
        return torch.stack(losses).mean().item(), total

    def loss(self, view: Tensor) -> float:
        each = [
            cosine_distance(source.mean(view, self.labels, self.chunk), aim)[0]
            for source, aim in zip(self.sources, self.aims, strict=True)
        ]
        return torch.stack(each).mean().item()


def augmented(
    scene: Scene, on: bool, pixels: Tensor, step: int, slope: Callable[[Tensor], tuple[float, Tensor]]
) -> tuple[float, Tensor]:
    """Loss and gradient in `pixels` of `slope`, through the victim's augmentation of this step if `on`."""
    if not on:
        return slope(pixels)
    draw = scene.augmentation.draw(len(pixels), scene.stream("augment", step))
    return through(pixels, lambda leaf: scene.augmentation(leaf, draw), slope)


def through(
    pixels: Tensor, transform: Callable[[Tensor], Tensor], slope: Callable[[Tensor], tuple[float, Tensor]]
) -> tuple[float, Tensor]:
    """Loss and gradient in `pixels` of slope(transform(pixels)), where `slope` gives its own gradient."""
    leaf = pixels.detach().requires_grad_(True)
    view = transform(leaf)
    loss, outer = slope(view.detach())
    return loss, torch.autograd.grad(view, leaf, outer)[0]
