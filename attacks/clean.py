"""No attack: the clean control, whose success is the base rate."""

from __future__ import annotations

import torch

from bench.plugin import Attack, Field, Poisons, Scene, Settings, register


class CleanControlSettings(Settings):
    trigger: bool = Field(False, description="evaluate on images with the trigger, as backdoor attacks do")


@register("attack", "none")
@register("attack", "none-trigger", trigger=True)
class CleanControl(Attack):
    """Clean control: nothing is poisoned. Its success rate is how often a target (`none-trigger`: an image with the
    trigger) is already classified as the target class, which every attack must beat. Assumes: nothing. Cost: none."""

    Settings = CleanControlSettings
    uses_surrogates = False
    poisons_data = False
    settings: CleanControlSettings

    @property
    def shows_trigger(self) -> bool:
        return self.settings.trigger

    def craft(self, scene: Scene) -> Poisons:
        nothing = scene.bases.subset(torch.zeros(0, dtype=torch.long, device=scene.device))
        return Poisons(nothing.images.cpu(), nothing.ids.cpu(), nothing.labels.cpu())
