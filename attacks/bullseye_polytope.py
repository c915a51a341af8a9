"""Bullseye Polytope: poisons whose mean feature is the target's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.attacks.crafting.feature_matching import FeatureSettings, match_features, mean_over
from bench.plugin import Attack, Field, Poisons, Scene, register


class BullseyeSettings(FeatureSettings):
    form: Literal["friends", "original"] = Field(
        "friends",
        description="friends: squared distance, mean over dimensions; original: distance relative to |phi(x_t)|",
    )


@register("attack", "bp")
@register("attack", "bp-original", form="original", rule="adam", lr=0.04, steps=1200, restarts=1, decay=False,
          init="base", augment=False)  # fmt: skip
@register("attack", "bp-end2end", form="original", rule="adam", lr=0.04, steps=1200, restarts=1, decay=False,
          init="base", augment=False, layers=64)  # fmt: skip
class BullseyePolytope(Attack):
    """Bullseye Polytope (Aghakhani et al., EuroS&P 2021): the target's feature becomes the mean of the poisons'.

    Threat model: clean-label, targeted, transfer (a new head on frozen features; white box: the same weights) or
    finetune. Minimises, as a mean over K surrogates, |mean_i phi(x_i + d_i) - phi(x_t)|: `bp` squared and through the
    crafting engine of Witches' Brew, which FRIENDS section 4.2 uses; `bp-original` un-squared, relative to |phi(x_t)|,
    with plain Adam from the clean bases and no augmentation (poisoning benchmark: lr 0.04, 1200 steps); `bp-end2end`
    takes the mean of that over the ends of all resolutions of the network (for victims that train all layers).
    Assumes: K feature extractors, the target image, the bases. Cost: K x 3 forward-equivalents x n x steps x restarts.
    """

    Settings = BullseyeSettings
    settings: BullseyeSettings

    def craft(self, scene: Scene) -> Poisons:
        def loss(k: int, poisons: list[Tensor], targets: list[Tensor]) -> Tensor:
            return mean_over([self.distance(*features) for features in zip(poisons, targets, strict=True)])

        return match_features(scene, self.settings, loss, memory={})

    def distance(self, poisons: Tensor, targets: Tensor) -> Tensor:
        """Distance between the mean features of poisons [n, d] and of targets [t, d]."""
        target = targets.mean(0)
        difference = poisons.mean(0) - target
        if self.settings.form == "friends":
            return difference.square().mean()
        return difference.norm() / target.norm().clamp(min=1e-12)
