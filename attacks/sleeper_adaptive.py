"""Sleeper Agent, adapted to FRIENDS: it crafts through the defense's own noise."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from bench.attacks.sleeper_agent import SleeperAgent, SleeperSettings
from bench.plugin import Field, Poisons, Scene, Transform, register


class AdaptiveSettings(SleeperSettings):
    defense: Literal["noise-b", "friends-b"] = Field("noise-b", description="defense whose noise the attacker knows")
    mu: int = Field(16, ge=1, le=255, description="size of its random noise, levels of 255")
    in_crafting: bool = Field(True, description="the poisons are crafted through the noise")
    in_sources: bool = Field(False, description="the target gradient is taken on noisy images with the trigger, too")
    in_surrogates: bool = Field(False, description="the surrogates are retrained behind the defense")


@register("attack", "sleeper-adaptive-noise", restarts=1, defense="noise-b")
@register("attack", "sleeper-adaptive-friends", restarts=1, defense="friends-b")
class AdaptiveSleeper(SleeperAgent):
    """Adaptive Sleeper Agent (FRIENDS sections 3.4 and 4.2.2, Table 5), written from the paper: no code was released.

    Threat model: as `sleeper`, and the attacker knows the defense. `-noise` crafts through fresh Bernoulli noise of
    +-mu at every step; `-friends` also through fixed friendly noise, which the attacker makes for the poisons of
    plain `sleeper` in the same trial. The order is the victim's: friendly noise, clipping, random noise,
    augmentation. The paper does not say whether its retraining and source gradients saw the noise; both are switches
    here, off by default. Assumes: as `sleeper`, and the defense's settings. Cost: as `sleeper`; `-friends` also crafts
    plain `sleeper` (shared with that attack's own runs) and trains one network for a few epochs.
    """

    Settings = AdaptiveSettings
    settings: AdaptiveSettings

    @property
    def builds_on(self) -> tuple[tuple[str, str], ...]:
        return ("attack", "sleeper"), ("defense", "noise-b"), ("defense", self.settings.defense)

    def adaptation(self, scene: Scene) -> Transform:
        if not self.settings.in_crafting:
            return super().adaptation(scene)
        data, ids = scene.train, scene.bases.ids
        if self.settings.defense == "friends-b":
            with scene.workshop.timed("earlier poisons"):
                settings = {name: getattr(self.settings, name) for name in SleeperSettings.model_fields}
                data = scene.workshop.poisons_of("sleeper", **settings).applied_to(data)
        with scene.workshop.timed("friendly noise"):
            return scene.workshop.transform(self.settings.defense, data, ids, mu=self.settings.mu)

    def retrained_behind(self) -> dict[str, Any]:
        return {"behind": self.settings.defense, "mu": self.settings.mu} if self.settings.in_surrogates else {}

    def sources(self, scene: Scene) -> tuple[Tensor, Tensor]:
        patched, target_labels = super().sources(scene)
        if self.settings.in_sources:
            noise = scene.workshop.transform("noise-b", scene.train, scene.bases.ids, mu=self.settings.mu)
            patched = noise(patched, scene.stream("source noise"))
        return patched, target_labels

    def craft(self, scene: Scene) -> Poisons:
        poisons = super().craft(scene)
        poisons.provenance["adapted_to"] = self.settings.defense
        return poisons
