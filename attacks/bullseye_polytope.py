"""Bullseye Polytope: poisons whose mean feature is the target's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from bench.attacks.crafting.feature_matching import FeatureSettings, match_features, mean_over
from bench.plugin import Attack, Field, Poisons, Scene, register


class BullseyeSettings(FeatureSettings):
    form: Literal["friends", "original"] = Field(
        "friends",
        description="friends: squared distance, mean over dimensions; original: distance relative to the aim",
    )


@register("attack", "bp")
@register("attack", "bp-original", form="original", rule="adam", lr=0.04, steps=1200, restarts=1, decay=False,
          init="base", augment=False)  # fmt: skip
@register("attack", "bp-end2end", form="original", rule="adam", lr=0.04, steps=1200, restarts=1, decay=False,
          init="base", augment=False, layers=64)  # fmt: skip
class BullseyePolytope(Attack):
    """Bullseye Polytope (Aghakhani et al., EuroS&P 2021): the target's feature becomes the centre of the poisons' own.

    Threat model: clean-label, targeted, transfer (a new head on frozen features; white box: the same weights) or
    finetune. Minimises, as a mean over K surrogates, |mean_i phi(x_i + d_i) - phi(x_t)|: `bp` squared and through the
    crafting engine of Witches' Brew, which FRIENDS section 4.2 uses; `bp-original` un-squared, relative to |phi(x_t)|,
    with plain Adam from the clean bases and no augmentation (poisoning benchmark: lr 0.04, 1200 steps); `bp-end2end`
    the mean of that over the ends of all resolutions of the network (for victims that train all layers).
    Needs: K feature extractors, the target image, the bases. Cost: K x 3 forward-equivalents x n x steps x restarts.
    """

    Settings = BullseyeSettings
    settings: BullseyeSettings

    def craft(self, scene: Scene) -> Poisons:
        def loss(k: int, own: list[Tensor], aims: list[Tensor]) -> Tensor:
            return mean_over([self.distance(mine, aim) for mine, aim in zip(own, aims, strict=True)])

        return match_features(scene, self.settings, loss)

    def distance(self, own: Tensor, aim: Tensor) -> Tensor:
        """Distance of the mean of own [n, d] from the mean of aim [t, d]."""
        apart, aim = own.mean(0) - aim.mean(0), aim.mean(0)
        if self.settings.form == "friends":
            return apart.square().mean()
        return apart.norm() / aim.norm().clamp(min=1e-12)
