"""InstaHide: mixup of many images, and Laplace noise."""

from __future__ import annotations

import torch
from torch import Generator

from bench.defenses.mixup import Mixup, MixupSettings
from bench.defenses.shared.mixing import OnView
from bench.plugin import Batch, Field, Run, Settings, register


class InstaHideSettings(Settings):
    ways: int = Field(4, ge=2, le=16, description="images that are mixed")
    scale: float = Field(0.03, gt=0, le=1, description="scale of the Laplace noise, pixels in [0, 1]")


@register("defense", "instahide")
class InstaHide(OnView):
    """DP-InstaHide (Borgnia et al. 2021): mixup of k images and Laplace noise, clipped to the range of pixels.

    Threat model: any. Assumes: the training set alone. Cost: none. The paper's privacy claim ties the noise to 1/k;
    no such claim is made here.
    """

    Settings = InstaHideSettings
    settings: InstaHideSettings

    def mixed(self, batch: Batch, run: Run, stream: Generator) -> Batch:
        batch = Mixup(MixupSettings(ways=self.settings.ways), self.name).mixed(batch, run, stream)
        uniform = torch.rand(batch.pixels.shape, generator=stream, device=stream.device) - 0.5
        # The inverse of Laplace's distribution function; the clamp keeps 1 - 2|u| above 0.
        noise = -self.settings.scale * uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.5 - 1e-7))
        batch.pixels = (batch.pixels + noise).clamp(0, 1)
        return batch
