"""MaxUp: of several augmented copies of each image only the worst is learned."""

from __future__ import annotations

from torch import Tensor

from bench.defenses.shared.mixing import cut_out
from bench.plugin import Batch, Defense, Field, Run, Settings, register


class MaxupSettings(Settings):
    trials: int = Field(4, ge=2, le=64, description="augmented copies of every image")
    start: int = Field(5, ge=0, le=10000, description="first epoch with copies")
    cutout: float = Field(0.5, ge=0, le=1, description="side of a copy's cut-out box, as a share (0: none)")


@register("defense", "maxup")
class Maxup(Defense):
    """MaxUp (Gong et al., CVPR 2021): of several augmented copies of each image only the worst is learned.

    Every copy has its own shift, flip and cut-out box; an image's loss is the largest of its copies'. Threat model:
    any. Assumes: the training set alone. Cost: as many forward and backward passes as copies.
    """

    Settings = MaxupSettings
    settings: MaxupSettings

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["maxup"] = run.stream("maxup")

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if run.current_epoch < self.settings.start:
            return batch
        if stage == "pixel":  # before augmentation, so that every copy gets its own
            copies = self.settings.trials
            fields = (batch.pixels, batch.labels, batch.rows, batch.ids)
            return Batch(*(field.repeat(copies, *[1] * (field.ndim - 1)) for field in fields))
        if self.settings.cutout:
            batch.pixels = cut_out(batch.pixels, run.augmentation.fill, self.settings.cutout, run.side["maxup"])
        return batch

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        if run.current_epoch < self.settings.start:
            return losses.mean()
        return losses.view(self.settings.trials, -1).max(0).values.mean()
