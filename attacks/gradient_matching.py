"""Gradient Matching (Witches' Brew): poisons whose training gradient aligns with the target's adversarial one."""

from __future__ import annotations

from functools import partial

import torch

from bench.attacks.crafting.descent import craft
from bench.attacks.crafting.matching import MatchingSettings, augmented
from bench.plugin import Attack, Matcher, Poisons, Scene, register, to_pixels


@register("attack", "gm")
class GradientMatching(Attack):
    """Gradient Matching, "Witches' Brew" (Geiping et al., ICLR 2021); FRIENDS section 4.2.

    Threat model: clean-label, targeted, from scratch, gray box (architecture and recipe known, weights not).
    Minimises 1 - cos(grad CE(target, target class), mean grad CE(poisons, their labels)), one cosine over all
    weights, summed over K surrogates in eval mode. Assumes: K clean surrogates, the target image, the bases.
    Cost: K x (3 forward-equivalents for the gradient + 6 for its derivative) x n x steps x restarts.
    One departure from the released code: restarts are compared on the rounded, un-augmented poisons, not on the last
    noisy training loss.
    """

    Settings = MatchingSettings
    settings: MatchingSettings

    def craft(self, scene: Scene) -> Poisons:
        surrogates, targets = scene.surrogates(), to_pixels(scene.targets)
        target_labels = torch.full((len(targets),), scene.trial.target_class, device=scene.device)
        matcher = Matcher(surrogates, targets, target_labels, scene.bases.labels, self.settings.chunk)
        gradient = partial(augmented, scene, self.settings.augment, matcher.slope)
        std = surrogates[0].normalise.std.flatten()
        delta, losses, scores = craft(scene, self.settings, std, gradient, matcher.loss, memory={})
        return scene.poisons(delta, losses=losses, final_losses=scores)
