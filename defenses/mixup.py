"""mixup: train on convex combinations of images and labels."""

from __future__ import annotations

from torch import Generator

from bench.defenses.shared.mixing import OnView, blend, permutations, simplex_weights, soft_labels
from bench.plugin import Batch, Field, Run, Settings, register


class MixupSettings(Settings):
    ways: int = Field(2, ge=2, le=16, description="images that are mixed")


@register("defense", "mixup")
class Mixup(OnView):
    """mixup (Zhang et al., ICLR 2018), n-way as in Borgnia et al. (ICASSP 2021): the "strong augmentation" of FRIENDS.

    Trains on convex combinations of images and of their labels; weights uniform on the simplex, one draw per batch.
    Threat model: any. Assumes: the training set alone. Cost: none.
    """

    Settings = MixupSettings
    settings: MixupSettings

    def mixed(self, batch: Batch, run: Run, stream: Generator) -> Batch:
        weights = simplex_weights(self.settings.ways, stream)
        orders = permutations(self.settings.ways, len(batch.pixels), stream)
        soft = soft_labels(batch.labels, run.model.head.out_features)
        batch.pixels, batch.labels = blend(batch.pixels, weights, orders), blend(soft, weights, orders)
        return batch
