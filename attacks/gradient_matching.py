"""Gradient Matching (Witches' Brew): poisons whose training gradient points where the target's adversarial one does."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from attacks.base import Attack, Scene
from attacks.parameter_gradients import ParameterGradients, cosine_distance
from attacks.descent import DescentSettings, craft
from bench.poisons import Poisons
from bench.registry import register
from bench.training import to_pixels


class GradientMatchingSettings(DescentSettings):
    augment: bool = Field(True, description="craft through the victim's random shift and flip, redrawn every step")
    chunk: int = Field(256, ge=1, le=65536, description="poisons that are differentiated at once; bounds the memory")


@register("attack", "gm")
class GradientMatching(Attack):
    """Gradient Matching, "Witches' Brew" (Geiping et al., ICLR 2021); FRIENDS section 4.2.

    Threat model: clean-label, targeted, from scratch, gray box (architecture and recipe known, weights not).
    Minimises 1 - cos(grad CE(target, adversarial class), mean grad CE(poisons, their labels)), one cosine over all
    weights, summed over K surrogates in eval mode. Needs: K clean surrogates, the target picture, the bases.
    Cost: K x (3 forward-equivalents for the gradient + 6 for its derivative) x n x steps x restarts.
    Departs from the released code in one point: restarts are compared on the rounded, un-augmented poisons, not on the
    last noisy training value.
    """

    Settings = GradientMatchingSettings
    settings: GradientMatchingSettings

    def craft(self, scene: Scene) -> Poisons:
        surrogates = scene.surrogates()
        labels = scene.bases.labels
        target = to_pixels(scene.targets)
        wanted = torch.full((len(target),), scene.trial.adversarial_class, device=scene.device)
        sources = [ParameterGradients(model) for model in surrogates]
        aims = [source.mean(target, wanted) for source in sources]
        chunk = self.settings.chunk

        def gradient(pixels: Tensor, step: int) -> tuple[float, Tensor]:
            leaf = pixels.detach().requires_grad_(True)
            view = leaf
            if self.settings.augment:
                draw = scene.augmentation.draw(len(pixels), scene.stream("augment", step))
                view = scene.augmentation(leaf, draw)
            total, losses = torch.zeros_like(pixels), []
            for source, aim in zip(sources, aims, strict=True):
                loss, direction = cosine_distance(source.mean(view, labels, chunk), aim)
                total += source.pixel_gradient(view, labels, direction, chunk)
                losses.append(loss)
            slope = torch.autograd.grad(view, leaf, total)[0] if self.settings.augment else total
            return torch.stack(losses).mean().item(), slope

        def score(pixels: Tensor) -> float:
            losses = [
                cosine_distance(source.mean(pixels, labels, chunk), aim)[0]
                for source, aim in zip(sources, aims, strict=True)
            ]
            return torch.stack(losses).mean().item()

        std = surrogates[0].normalise.std.flatten()
        delta, losses, scores = craft(scene, self.settings, std, gradient, score)
        return scene.poisons(delta, losses=losses, final_losses=scores)
