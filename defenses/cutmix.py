"""CutMix: a box of each image comes from another image; labels are mixed by area."""

from __future__ import annotations

import torch
from torch import Generator

from bench.defenses.shared.mixing import OnView, box, permutations, soft_labels
from bench.plugin import Batch, Field, Run, Settings, register


class CutmixSettings(Settings):
    share: float = Field(0.5, gt=0, le=1, description="share of the batches that are mixed")


@register("defense", "cutmix")
class Cutmix(OnView):
    """CutMix (Yun et al., ICCV 2019): a box of every image is replaced with another image's, labels mixed by area.

    One box and one pairing per batch, the box's area uniform (Beta(1, 1)), in half of the batches. Threat model: any.
    Assumes: the training set alone. Cost: none.
    """

    Settings = CutmixSettings
    settings: CutmixSettings

    def mixed(self, batch: Batch, run: Run, stream: Generator) -> Batch:
        chance, area = torch.rand(2, generator=stream, device=stream.device).tolist()
        if chance >= self.settings.share:
            return batch
        height, width = batch.pixels.shape[2:]
        inside = box(round(height * area**0.5), round(width * area**0.5), height, width, stream, 1)
        pair = permutations(2, len(batch.pixels), stream)[1]
        share = 1 - inside.float().mean()  # that stays; the box may be cut at the border
        soft = soft_labels(batch.labels, run.model.head.out_features)
        batch.labels = share * soft + (1 - share) * soft[pair]
        batch.pixels = torch.where(inside, batch.pixels[pair], batch.pixels)
        return batch
