"""No attack: the clean control, whose success is the base rate."""

from __future__ import annotations

import torch

from attacks.base import Attack, Scene
from bench.poisons import Poisons
from bench.registry import register


@register("attack", "none")
class CleanControl(Attack):
    """Clean control: nothing is poisoned. Its success rate is how often a target is already taken for the
    adversarial class, which every attack must beat. Needs: nothing. Cost: nothing."""

    uses_surrogates = False
    poisons_data = False

    def craft(self, scene: Scene) -> Poisons:
        nothing = scene.bases.subset(torch.zeros(0, dtype=torch.long, device=scene.device))
        return Poisons(nothing.images.cpu(), nothing.ids.cpu(), nothing.labels.cpu())
