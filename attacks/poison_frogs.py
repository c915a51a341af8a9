"""Poison Frogs, feature collision: every poison's feature is moved onto the target's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.attacks.crafting.feature_matching import FeatureSettings, match_features, mean_over, stages
from bench.plugin import Attack, Classifier, Field, Poisons, Scene, Settings, frozen, register, resumable, to_pixels


class PoisonFrogsSettings(FeatureSettings):
    mean: bool = Field(
        False, description="collide the mean feature only, as in the code of Witches' Brew (which is Bullseye Polytope)"
    )


@register("attack", "pf")
@register("attack", "pf-mean", mean=True)
class PoisonFrogs(Attack):
    """Poison Frogs (Shafahi et al., NeurIPS 2018) in the eps ball: each poison collides with the target in feature
    space.

    Threat model: clean-label, targeted, transfer (a new head on frozen features) or finetune. `pf` minimises the mean
    over poisons of |phi(x_i + d_i) - phi(x_t)|^2 (mean over dimensions, and over K surrogates); the original's pull
    to the base is replaced by the eps ball, as in Witches' Brew's comparison. `pf-mean` collides only the mean
    feature, which is what that code, and so presumably FRIENDS' tables, call Poison Frogs.
    Assumes: K feature extractors, the target image, the bases. Cost: K x 3 forward-equivalents x n x steps x restarts.
    """

    Settings = PoisonFrogsSettings
    settings: PoisonFrogsSettings

    def craft(self, scene: Scene) -> Poisons:
        def loss(k: int, poisons: list[Tensor], targets: list[Tensor]) -> Tensor:
            if self.settings.mean:
                poisons = [features.mean(0, keepdim=True) for features in poisons]
            pairs = zip(poisons, targets, strict=True)
            return mean_over([(features - target.mean(0)).square().mean() for features, target in pairs])

        return match_features(scene, self.settings, loss, memory={})


class ForwardBackwardSettings(Settings):
    """Defaults: the poisoning benchmark's feature collision."""

    steps: int = Field(120, ge=1, le=100_000, description="maximum number of steps")
    lr: float = Field(1e-3, gt=0, le=1e3, description="first step length, in the normalised image; x0.2 on a rejection")
    watermark: float = Field(0.3, ge=0, le=1, description="share of the target image that the start is blended with")
    beta: float = Field(
        0.0, ge=0, le=1e3, description="pull towards the base (the backward step); 0: the eps ball alone"
    )
    tolerance: float = Field(1e-5, ge=0, le=1, description="relative change of its loss at which a poison stops")


@register("attack", "pf-original")
class ForwardBackward(Attack):
    """Poison Frogs by forward-backward splitting (Shafahi et al., Algorithm 1) with the poisoning benchmark's settings.

    Threat model: as `pf`. Every poison on its own descends sum_k |phi_k(p) - phi_k(x_t)|^2 (forward), is pulled towards
    its base (backward, if beta > 0) and projected on the eps ball; a step that does not lower its objective is undone
    and its step length cut to a fifth. It starts from a blend with the target, projected before its first evaluation
    (in the benchmark's code the start lies outside the ball). All poisons are optimised together, each with its own
    step. Assumes: K feature extractors, the target image, the bases. Cost: K x 4 forward-equivalents x n x steps.
    """

    Settings = ForwardBackwardSettings
    settings: ForwardBackwardSettings

    def craft(self, scene: Scene) -> Poisons:
        surrogates, settings = scene.surrogates(), self.settings
        base, target = scene.base_pixels(), to_pixels(scene.targets).mean(0, keepdim=True)
        low, high = (base - scene.eps).clamp(min=0), (base + scene.eps).clamp(max=1)
        unit = surrogates[0].normalise.std
        with frozen(*surrogates):
            with torch.no_grad():
                aims = [stages(model, to_pixels(scene.targets), 1)[0].mean(0) for model in surrogates]
            pixels = torch.maximum(torch.minimum(torch.lerp(base, target, settings.watermark), high), low)
            step = torch.full((len(base), 1, 1, 1), settings.lr, device=scene.device)
            value, slope = collisions(surrogates, pixels, aims)
            running = torch.ones(len(base), dtype=torch.bool, device=scene.device)
            losses = [value.mean().item()]
            state: dict[str, Any] = {"losses": losses, "at": (pixels, slope, value, step, running)}
            kept = resumable("crafting", state, scene.seed, settings.as_dict(), scene.bases.ids, base)
            pixels, slope, value, step, running = state["at"]
            for step_index in range(len(losses) - 1, settings.steps):
                if not running.any():
                    break
                moved = pixels - step * unit**2 * slope  # a step in the normalised image
                if settings.beta:
                    moved = (moved + step * settings.beta * base) / (1 + step * settings.beta)
                moved = torch.maximum(torch.minimum(moved, high), low)
                pull = settings.beta / 2
                new_value, new_slope = collisions(surrogates, moved, aims)
                before = value + pull * ((pixels - base) / unit).square().sum((1, 2, 3))
                after = new_value + pull * ((moved - base) / unit).square().sum((1, 2, 3))
                better = running & (after < before)
                step = torch.where((running & ~better).view(-1, 1, 1, 1), step * 0.2, step)
                running &= ~(better & ((before - after) <= settings.tolerance * before.abs()))
                taken = better.view(-1, 1, 1, 1)
                pixels, slope = torch.where(taken, moved, pixels), torch.where(taken, new_slope, slope)
                value = torch.where(better, new_value, value)
                losses.append(value.mean().item())
                state["at"] = pixels, slope, value, step, running
                kept.step()
                scene.report(step_index + 1, settings.steps, {"loss": losses[-1]})
            kept.end()
        return scene.poisons(pixels - base, losses=[losses], final_losses=[losses[-1]])


def collisions(models: Sequence[Classifier], pixels: Tensor, aims: list[Tensor]) -> tuple[Tensor, Tensor]:
    """sum_k |phi_k(p_i) - aim_k|^2 for each image [n], and its gradient in the pixels [n, 3, h, w]."""
    leaf = pixels.detach().requires_grad_(True)
    value = torch.stack(
        [(model.features(leaf) - aim).square().sum(1) for model, aim in zip(models, aims, strict=True)]
    ).sum(0)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]
