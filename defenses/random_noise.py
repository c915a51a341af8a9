"""Random noise on every training image at every step; the varying half of FRIENDS, and a defense of its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.plugin import Batch, Defense, Field, Images, Run, Services, Settings, Transform, register

Distribution = Literal["uniform", "bernoulli", "gaussian"]


def draw_noise(like: Tensor, distribution: Distribution, mu: float, stream: torch.Generator) -> Tensor:
    """Independent noise for every pixel and channel, in the units of mu (FRIENDS section 3.3).

    uniform: U[-mu, mu]; bernoulli: -mu or mu with equal chance; gaussian: N(0, sd = mu).
    """
    if distribution == "gaussian":
        return torch.empty_like(like).normal_(0, mu, generator=stream)
    if distribution == "bernoulli":
        return torch.empty_like(like).bernoulli_(0.5, generator=stream).mul_(2 * mu).sub_(mu)
    return torch.empty_like(like).uniform_(-mu, mu, generator=stream)


class RandomNoiseSettings(Settings):
    noise: Distribution = Field("bernoulli", description="distribution of the noise")
    mu: int = Field(32, ge=1, le=255, description="size of the noise, levels of 255 (Gaussian: its standard deviation)")


@register("defense", "noise-u", noise="uniform")
@register("defense", "noise-b", noise="bernoulli")
@register("defense", "noise-g", noise="gaussian")
class RandomNoise(Defense):
    """Random noise only (FRIENDS, Table 4, "Noise Only": mu = 32). Added before augmentation and not clipped, as in the
    paper's released code. Assumes: the training set alone. Cost: close to none."""

    Settings = RandomNoiseSettings
    settings: RandomNoiseSettings

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage == "pixel":
            stream = run.side.setdefault("noise", run.stream("noise"))
            batch.pixels = batch.pixels + draw_noise(batch.pixels, self.settings.noise, self.settings.mu / 255, stream)
        return batch

    def attacker_view(self, data: Images, ids: Tensor, services: Services, stream: torch.Generator) -> Transform:
        return lambda pixels, chance: pixels + draw_noise(pixels, self.settings.noise, self.settings.mu / 255, chance)

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["noise"] = run.stream("noise")
