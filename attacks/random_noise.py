"""Random noise on the bases: the baseline with the attacker's budget and eps, but no optimisation."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from attacks.base import Attack, Scene
from bench.poisons import Poisons
from bench.registry import register
from bench.settings import Settings


class RandomNoiseSettings(Settings):
    distribution: Literal["bernoulli", "uniform"] = Field(
        "bernoulli", description="+-eps with equal chance at every pixel and channel, or uniform in [-eps, eps]"
    )


@register("attack", "random-noise")
class RandomNoise(Attack):
    """Baseline: same budget, bases and eps as an attack, perturbed at random. What it reaches is no merit of
    optimisation. Needs: nothing beyond the bases. Cost: nothing."""

    Settings = RandomNoiseSettings
    uses_surrogates = False
    settings: RandomNoiseSettings

    def craft(self, scene: Scene) -> Poisons:
        stream = scene.stream("noise")
        u = torch.rand(scene.bases.images.shape, generator=stream, device=scene.device) * 2 - 1
        delta = scene.eps * (torch.sign(u) if self.settings.distribution == "bernoulli" else u)
        return scene.poisons(delta)
