"""Cutout: a box of every image is blanked."""

from __future__ import annotations

from torch import Generator

from bench.defenses.shared.mixing import OnView, cut_out
from bench.plugin import Batch, Field, Run, Settings, register


class CutoutSettings(Settings):
    share: float = Field(0.5, gt=0, le=1, description="side of the box, as a share of the image's")


@register("defense", "cutout")
class Cutout(OnView):
    """Cutout (DeVries and Taylor 2017): a box of every image, at a random place, gets the mean colour.

    Threat model: any. Assumes: the training set alone. Cost: none. 16 of 32 pixels, as in the paper on CIFAR-10.
    """

    Settings = CutoutSettings
    settings: CutoutSettings

    def mixed(self, batch: Batch, run: Run, stream: Generator) -> Batch:
        batch.pixels = cut_out(batch.pixels, run.augmentation.fill, self.settings.share, stream)
        return batch
