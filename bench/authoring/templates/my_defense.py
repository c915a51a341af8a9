"""Train on images with few brightness levels. An example: replace it with your own defense."""

from __future__ import annotations

from bench.plugin import Batch, Defense, Field, Run, Settings, register

# The hooks into training, all optional:
#
#     jobs(self, data, services)          before training: one training or many; filter or purify the data here
#     setup(self, run)                    a training starts: may replace run.model, run.optimizer, run.recipe
#     epoch(self, run, epoch)             an epoch starts: may edit run.active, run.data, run.side, run.lr_scale
#     batch(self, batch, run, stage)      every step, twice: "pixel" before augmentation, "view" after it
#     loss(self, losses, batch, run)      every step: per-sample losses to the one that is minimised
#     finish(self, trained, services)     after training: the predictor that is evaluated
#
# Random numbers come from run.stream("a name"), created in `epoch` and held in run.side. Knowledge beyond the training
# set is declared, as in `needs = ("poison_rate",)`, and is then available as services.poison_rate.


class MyDefenseSettings(Settings):
    levels: int = Field(16, ge=2, le=256, description="brightness levels that remain in each channel")


@register("defense", "my-defense")
class MyDefense(Defense):
    """Bit-depth reduction ("feature squeezing", Xu, Evans and Qi, NDSS 2018), here on the training images only.
    Threat model: perturbations smaller than a step between levels. Assumes: the training set alone. Cost: none.
    """

    Settings = MyDefenseSettings
    settings: MyDefenseSettings

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage == "pixel":
            steps = self.settings.levels - 1
            batch.pixels = (batch.pixels * steps).round() / steps  # pixels are float in [0, 1]
        return batch
