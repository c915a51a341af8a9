"""Gradient Matching (Witches' Brew): poisons whose training gradient points where the target's adversarial one does."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks.crafting.descent import craft
from bench.attacks.crafting.matching import MatchingSettings, augmented
from bench.plugin import Attack, Matcher, Poisons, Scene, register, to_pixels


@register("attack", "gm")
class GradientMatching(Attack):
    """Gradient Matching, "Witches' Brew" (Geiping et al., ICLR 2021); FRIENDS section 4.2.

    Threat model: clean-label, targeted, from scratch, gray box (architecture and recipe known, weights not).
    Minimises 1 - cos(grad CE(target, target class), mean grad CE(poisons, their labels)), one cosine over all
    weights, summed over K surrogates in eval mode. Needs: K clean surrogates, the target image, the bases.
    Cost: K x (3 forward-equivalents for the gradient + 6 for its derivative) x n x steps x restarts.
    Departs from the released code in one point: restarts are compared on the rounded, un-augmented poisons, not on the
    last noisy training value.
    """

    Settings = MatchingSettings
    settings: MatchingSettings

    def craft(self, scene: Scene) -> Poisons:
        surrogates, target = scene.surrogates(), to_pixels(scene.targets)
        wanted = torch.full((len(target),), scene.trial.target_class, device=scene.device)
        matcher = Matcher(surrogates, target, wanted, scene.bases.labels, self.settings.chunk)

        def gradient(pixels: Tensor, step: int) -> tuple[float, Tensor]:
            return augmented(scene, self.settings.augment, pixels, step, matcher.slope)

        std = surrogates[0].normalise.std.flatten()
        delta, losses, scores = craft(scene, self.settings, std, gradient, matcher.loss)
        return scene.poisons(delta, losses=losses, final_losses=scores)
