"""Random noise on the bases: the baseline with the attacker's budget and eps, but no optimisation."""

from __future__ import annotations

from typing import Literal

import torch

from bench.plugin import Attack, Field, Poisons, Scene, Settings, register


class RandomNoiseSettings(Settings):
    distribution: Literal["bernoulli", "uniform"] = Field(
        "bernoulli", description="+-eps with equal chance at every pixel and channel, or uniform in [-eps, eps]"
    )
    trigger: bool = Field(False, description="evaluate on images with the trigger, as backdoor attacks do")


@register("attack", "random-noise")
@register("attack", "random-noise-trigger", trigger=True)
class RandomNoise(Attack):
    """Baseline: same budget, bases and eps as an attack, perturbed at random. What it achieves owes nothing to
    optimisation. Assumes: the bases alone. Cost: none."""

    Settings = RandomNoiseSettings
    uses_surrogates = False
    settings: RandomNoiseSettings

    @property
    def shows_trigger(self) -> bool:
        return self.settings.trigger

    def craft(self, scene: Scene) -> Poisons:
        stream = scene.stream("noise")
        delta = torch.empty(scene.bases.images.shape, device=scene.device)
        if self.settings.distribution == "bernoulli":
            delta.bernoulli_(0.5, generator=stream).mul_(2 * scene.eps).sub_(scene.eps)
        else:
            delta.uniform_(-scene.eps, scene.eps, generator=stream)
        return scene.poisons(delta)
