"""How a network is trained: epochs, learning rate, augmentation."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from bench.foundation.settings import Settings
from bench.science.augmentation import Augmentation
from bench.science.precision import resolved


class Recipe(Settings):
    """How a network is trained. Defaults: FRIENDS section 4.1, 80 epochs from scratch."""

    epochs: int = Field(80, ge=1, le=10000, description="passes over the training set")
    batch: int = Field(128, ge=2, le=65536, description="images per step; BatchNorm needs two")
    lr: float = Field(0.1, gt=0, le=100, description="largest learning rate")
    schedule: Literal["step", "one-cycle"] = Field(
        "step", description="step: x0.1 at each drop; one-cycle: up, then down to 0"
    )
    drops: tuple[int, ...] = Field(
        (30, 50, 70), description="epochs before which the rate falls to a tenth (step only)"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(True, description="Nesterov momentum")
    weight_decay: float = Field(5e-4, ge=0, le=1, description="weight decay, on all parameters")
    augment: Literal["none", "crop", "bilinear"] = Field(
        "bilinear", description="random shift: none, whole pixels, fractions"
    )
    shift: int = Field(4, ge=0, le=64, description="largest shift, pixels")
    flip: bool = Field(True, description="mirror half of the images")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of forward and backward passes; auto: bfloat16 where the device has units for it"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0; fix: nesterov = false")
        if list(self.drops) != sorted(set(self.drops)) or any(drop < 1 for drop in self.drops):
            raise ValueError(f"drops must be rising epochs from 1 on, not {list(self.drops)}")
        return self

    def learning_rate(self, epoch: int, step: int, steps: int) -> float:
        """The rate of step `step` of `steps` in `epoch`."""
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(epoch >= drop for drop in self.drops)
        # One cycle (Smith 2018): linear from lr/25 to lr over the first 30 %, then linear to 0.
        done = (epoch + step / steps) / self.epochs
        return self.lr * (0.04 + 0.96 * done / 0.3) if done < 0.3 else self.lr * (1 - done) / 0.7

    def on(self, device: torch.device | str) -> Recipe:
        """The same with the precision that `auto` means on a device."""
        return self.model_copy(update={"precision": resolved(self.precision, device)})

    def augmentation(self, fill: tuple[float, ...]) -> Augmentation:
        return Augmentation(self.augment, self.shift, self.flip, (fill[0], fill[1], fill[2]))
