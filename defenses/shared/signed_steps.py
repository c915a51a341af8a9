"""The inner attack that adversarial training and adversarial poisoning share: signed Adam on a batch, within eps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor


def clip(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(pixels, high), low)


def ball(pixels: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of the pixels within eps of `pixels` and in [0, 1]."""
    return (pixels - eps).clamp(min=0), (pixels + eps).clamp(max=1)


def climb(
    pixels: Tensor, eps: float, steps: int, step: Tensor, slope: Callable[[Tensor], Tensor], stream: Generator
) -> Tensor:
    """`pixels` [b, 3, h, w] moved along `slope` (d objective / d pixels) within eps and [0, 1], starting from Gaussian
    noise of standard deviation eps. step: length of a step in pixels, [1, 3, 1, 1]."""
    low, high = ball(pixels, eps)
    noise = torch.empty_like(pixels).normal_(0, eps, generator=stream)
    moved, momentum = clip(pixels + noise, low, high), torch.zeros_like(pixels)
    for count in range(1, steps + 1):
        momentum = 0.9 * momentum + 0.1 * slope(moved).sign()
        moved = clip(moved + step / (1 - 0.9**count) * momentum, low, high)
    return moved
