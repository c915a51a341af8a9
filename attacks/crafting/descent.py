"""The crafting engine: descent on the perturbation, within the eps ball and the image's range.

Steps are given in units of the normalised image, as the papers do: 0.1 moves a pixel by 0.1 standard deviations of
its channel. Three rules:

    sign-adam    Adam on the sign of the gradient (Witches' Brew). Its second moment is 1, so that the step is the
                 bias-corrected running mean of signs (the tests compare it with Adam)
    adam         Adam (Kingma and Ba 2015)
    signed-adam  the sign of Adam's step (the poisoning benchmark's other optimiser)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from bench.plugin import Field, Scene, Settings, resumable

Gradient = Callable[[Tensor, int], tuple[float, Tensor]]
"""(perturbed pixels [n, 3, h, w], step counted over all restarts) -> loss, d loss / d pixels."""


class DescentSettings(Settings):
    """Defaults: Witches' Brew, tau = 0.1, M = 250, R = 8."""

    steps: int = Field(250, ge=1, le=100_000, description="crafting steps per restart (M)")
    restarts: int = Field(8, ge=1, le=1000, description="restarts (R) with fresh noise; the lowest final loss wins")
    rule: Literal["sign-adam", "adam", "signed-adam"] = Field("sign-adam", description="how a step is made")
    lr: float = Field(0.1, gt=0, le=10, description="step in standard deviations of a channel (tau)")
    decay: bool = Field(True, description="lr x0.1 after 3/8, 5/8 and 7/8 of the steps")
    init: Literal["noise", "base"] = Field("noise", description="start from Gaussian noise with std eps, or from 0")


def craft(
    scene: Scene,
    settings: DescentSettings,
    std: Tensor,
    gradient: Gradient,
    score: Callable[[Tensor], float],
    memory: Any = None,
) -> tuple[Tensor, list[list[float]], list[float]]:
    """Minimise over the perturbation, with restarts.

    std: [3], of the channels in [0, 1]; score: perturbed, rounded pixels -> final loss, by which restarts are compared.
    memory: what `gradient` and `score` remember between steps, for checkpoints: a dict that they change in place, {} if
    they remember nothing, or an object with `state_dict` and `load_state_dict`; None if that cannot be told, so that
    a crafting that was killed starts again.
    Returns the perturbation [n, 3, h, w] in [0, 1] units with the lowest score, the losses [restart][step], the scores.
    """
    base = scene.base_pixels()
    low, high = (base - scene.eps).clamp(min=0), (base + scene.eps).clamp(max=1)
    unit = std.to(base.device).view(1, 3, 1, 1)
    optimiser, at = _Optimiser(settings, base), _Position(torch.zeros_like(base))
    state = {"at": vars(at), "optimiser": vars(optimiser), "memory": memory}
    unless = "the attack does not say what it remembers from step to step" if memory is None else ""
    kept = resumable("crafting", state, scene.seed, settings.as_dict(), scene.bases.ids, base, unless=unless)
    while len(at.scores) < settings.restarts:
        restart = len(at.scores)
        if len(at.losses) == restart:
            at.losses.append([])
            at.pixels = _start(scene, settings, base, low, high, restart)
            optimiser.restart(base)
        for step in range(len(at.losses[-1]), settings.steps):
            loss, slope = gradient(at.pixels, restart * settings.steps + step)
            if not math.isfinite(loss) or not torch.isfinite(slope).all():
                raise FloatingPointError(f"the crafting loss or its gradient is not finite at step {step}")
            at.losses[-1].append(loss)
            rate, direction = optimiser.step(slope, unit)
            at.pixels = torch.maximum(torch.minimum(at.pixels - rate * unit * direction, high), low)
            kept.step()
            scene.report(restart * settings.steps + step + 1, settings.restarts * settings.steps, {"loss": loss})
        at.scores.append(score(torch.floor(at.pixels * 255 + 0.5) / 255))
        if not math.isfinite(at.scores[-1]):
            raise FloatingPointError(f"the final crafting loss is not finite in restart {restart}")
        if at.scores[-1] == min(at.scores):
            at.best = at.pixels - base
    kept.end()
    return at.best, at.losses, at.scores


class _Position:
    """Where a crafting is: the losses of each restart's steps, the scores of those that have ended, the pixels now."""

    def __init__(self, best: Tensor) -> None:
        self.best = self.pixels = best
        self.losses: list[list[float]] = []
        self.scores: list[float] = []


def _start(scene: Scene, settings: DescentSettings, base: Tensor, low: Tensor, high: Tensor, restart: int) -> Tensor:
    """The pixels that a restart begins with."""
    if settings.init == "base":
        return base.clone()
    noise = torch.randn(base.shape, generator=scene.stream("init", restart), device=scene.device)
    return torch.maximum(torch.minimum(base + scene.eps * noise, high), low)


class _Optimiser:
    """One restart's optimiser and its state."""

    def __init__(self, settings: DescentSettings, like: Tensor) -> None:
        self.settings = settings
        self.drops = [int(settings.steps // divisor) for divisor in (2.667, 1.6, 1.142)] if settings.decay else []
        self.restart(like)

    def restart(self, like: Tensor) -> None:
        self.first = torch.zeros_like(like)
        self.second = torch.zeros_like(like) if self.settings.rule != "sign-adam" else None
        self.steps = 0

    def step(self, slope: Tensor, unit: Tensor) -> tuple[float, Tensor]:
        """From d loss / d pixels: the step in normalised units, as its length and its direction [n, 3, h, w]."""
        rate = self.settings.lr * 0.1 ** sum(self.steps >= drop for drop in self.drops)
        self.steps += 1
        if self.second is None:
            self.first.mul_(0.9).add_(slope.sign(), alpha=0.1)
            return rate / (1 - 0.9**self.steps), self.first
        slope = slope * unit
        self.first.mul_(0.9).add_(slope, alpha=0.1)
        self.second.mul_(0.999).addcmul_(slope, slope, value=0.001)
        mean, size = self.first / (1 - 0.9**self.steps), (self.second / (1 - 0.999**self.steps)).sqrt()
        step = mean / (size + 1e-8)
        return rate, step.sign() if self.settings.rule == "signed-adam" else step
