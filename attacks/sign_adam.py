"""The crafting engine: signed Adam on the perturbation, within the eps ball and the picture's range.

Adam fed with the sign of the gradient has a second moment of 1, so the rule is the bias-corrected running mean of signs
(facts: equal to Adam to 1e-6 over 250 steps). Steps are given in units of the normalised picture, as the papers do:
0.1 moves a pixel by 0.1 standard deviations of its channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Scene
from bench.settings import Settings

Gradient = Callable[[Tensor, int], tuple[float, Tensor]]


class SignAdamSettings(Settings):
    """Defaults: Witches' Brew, tau = 0.1, M = 250, R = 8."""

    steps: int = Field(250, ge=1, le=100_000, description="crafting steps of a restart (M)")
    restarts: int = Field(8, ge=1, le=1000, description="restarts from fresh noise (R); the lowest final loss is kept")
    lr: float = Field(0.1, gt=0, le=10, description="step in standard deviations of a channel (tau)")
    decay: bool = Field(True, description="lr x0.1 after 3/8, 5/8 and 7/8 of the steps")


def craft(
    scene: Scene, settings: SignAdamSettings, std: Tensor, gradient: Gradient, score: Callable[[Tensor], float]
) -> tuple[Tensor, list[list[float]], list[float]]:
    """Minimise over the perturbation, with restarts.

    std: [3], of the channels in [0, 1]; gradient: (perturbed pixels, step) -> (loss, d loss / d pixels);
    score: perturbed, rounded pixels -> final loss, by which restarts are compared.
    Returns the perturbation [n, 3, h, w] in [0, 1] units with the lowest score, the losses [restart][step], the scores.
    """
    base = scene.base_pixels()
    low, high = (base - scene.eps).clamp(min=0), (base + scene.eps).clamp(max=1)
    drops = [int(settings.steps // divisor) for divisor in (2.667, 1.6, 1.142)] if settings.decay else []
    best = torch.zeros_like(base)
    losses: list[list[float]] = []
    scores: list[float] = []
    for restart in range(settings.restarts):
        noise = torch.randn(base.shape, generator=scene.stream("init", restart), device=scene.device)
        pixels = torch.maximum(torch.minimum(base + scene.eps * noise, high), low)
        momentum = torch.zeros_like(base)
        losses.append([])
        for step in range(settings.steps):
            loss, slope = gradient(pixels, restart * settings.steps + step)
            if not math.isfinite(loss) or not torch.isfinite(slope).all():
                raise FloatingPointError(f"the crafting loss or its gradient is not finite at step {step}")
            losses[-1].append(loss)
            momentum.mul_(0.9).add_(slope.sign(), alpha=0.1)
            rate = settings.lr * 0.1 ** sum(step >= drop for drop in drops) / (1 - 0.9 ** (step + 1))
            pixels = torch.maximum(torch.minimum(pixels - rate * std.view(1, 3, 1, 1) * momentum, high), low)
            scene.report(restart * settings.steps + step + 1, settings.restarts * settings.steps, {"loss": loss})
        scores.append(score(torch.floor(pixels * 255 + 0.5) / 255))
        if not math.isfinite(scores[-1]):
            raise FloatingPointError(f"the final crafting loss is not finite in restart {restart}")
        if scores[-1] == min(scores):
            best = pixels - base
    return best, losses, scores
