"""Matching of training gradients: what Gradient Matching, Sleeper Agent and MetaPoison share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.attacks.crafting.descent import DescentSettings
from bench.plugin import Field, Scene


class MatchingSettings(DescentSettings):
    augment: bool = Field(True, description="craft through the victim's random shift and flip, redrawn every step")
    chunk: int = Field(256, ge=1, le=65536, description="images that are differentiated at once; bounds the memory")


Slope = Callable[[Tensor], tuple[float, Tensor]]
"""(pixels [n, 3, h, w]) -> loss, d loss / d pixels."""


def augmented(scene: Scene, augment: bool, slope: Slope, pixels: Tensor, step: int) -> tuple[float, Tensor]:
    """Loss and gradient in `pixels` of `slope`, through the victim's augmentation of this step if `augment`."""
    if not augment:
        return slope(pixels)
    draw = scene.augmentation.draw(len(pixels), scene.stream("augment", step))
    return through(pixels, lambda leaf: scene.augmentation(leaf, draw), slope)


def through(pixels: Tensor, transform: Callable[[Tensor], Tensor], slope: Slope) -> tuple[float, Tensor]:
    """Loss and gradient in `pixels` of slope(transform(pixels)), where `slope` returns its own gradient."""
    leaf = pixels.detach().requires_grad_(True)
    view = transform(leaf)
    loss, outer = slope(view.detach())
    return loss, torch.autograd.grad(view, leaf, outer)[0]
