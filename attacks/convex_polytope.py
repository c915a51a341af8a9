"""Convex Polytope: the convex hull of the poisons' features comes to contain the target's feature."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.attacks.crafting.feature_matching import FeatureSettings, match_features, mean_over
from bench.plugin import Attack, Field, Poisons, Scene, register


class ConvexPolytopeSettings(FeatureSettings):
    """Defaults: the poisoning benchmark."""

    solver_steps: int = Field(200, ge=1, le=100_000, description="maximum steps of the inner solver per crafting step")
    solver_tolerance: float = Field(1e-6, ge=0, le=1, description="the inner solver stops below this relative change")


@register("attack", "cp", rule="adam", lr=0.04, steps=1200, restarts=1, decay=False, init="base", augment=False)
class ConvexPolytope(Attack):
    """Convex Polytope (Zhu et al., ICML 2019), with the poisoning benchmark's optimiser.

    Threat model: clean-label, targeted, transfer (a new head on frozen features) or finetune. Minimises, as a mean
    over K surrogates, 1/2 |phi(x_t) - sum_i c_i phi(x_i + d_i)|^2 / |phi(x_t)|^2 over the perturbation and over
    coefficients c on the simplex, separate for each surrogate. They alternate: the coefficients are solved for
    (accelerated projected gradient on the n x n Gram matrix, warm-started from the last solution), then the
    perturbation takes a step with them held fixed, which is the exact gradient of the minimum (envelope theorem).
    The coefficients start equal. Assumes: K feature extractors, the target image, the bases.
    Cost: K x (3 forward-equivalents x n + the solver, n^2 per step) x steps.
    """

    Settings = ConvexPolytopeSettings
    settings: ConvexPolytopeSettings

    def craft(self, scene: Scene) -> Poisons:
        settings = self.settings
        coefficients: dict[tuple[int, int], Tensor] = {}  # by surrogate and layer

        def loss(k: int, poisons: list[Tensor], targets: list[Tensor]) -> Tensor:
            losses = []
            for layer, (features, target) in enumerate(zip(poisons, targets, strict=True)):
                goal, start = target.mean(0), coefficients.get((k, layer))
                weights = hull_coefficients(
                    features.detach(), goal, start, settings.solver_steps, settings.solver_tolerance
                )
                coefficients[k, layer] = weights
                difference = goal - weights.to(features.dtype) @ features
                losses.append(0.5 * difference.square().sum() / goal.square().sum().clamp(min=1e-12))
            return mean_over(losses)

        poisons = match_features(scene, settings, loss, memory=coefficients)
        poisons.provenance["coefficients_used"] = [int((c > 1e-3).sum()) for c in coefficients.values()]
        return poisons


def hull_coefficients(
    points: Tensor, goal: Tensor, start: Tensor | None = None, steps: int = 1000, tolerance: float = 1e-9
) -> Tensor:
    """argmin over c >= 0, sum c = 1 of |goal - c points|^2. points [n, d], goal [d]; float64 [n].

    Accelerated projected gradient (Beck and Teboulle 2009) with restart of the momentum when the value rises; step 1/L
    with L the largest eigenvalue of the Gram matrix. In float64: Gram matrices square the condition number.
    """
    centred = points.double() - goal.double()  # then the goal is 0 and |goal - c points|^2 = c gram c
    gram = centred @ centred.T
    n = len(gram)
    lipschitz = torch.linalg.eigvalsh(gram)[-1].clamp(min=1e-300) if n <= 64 else gram.abs().sum(1).max()
    current = torch.full((n,), 1 / n, dtype=torch.float64, device=points.device) if start is None else start
    ahead, momentum, value = current, 1.0, float(current @ gram @ current)
    for step in range(steps):
        following = onto_simplex(ahead - (gram @ ahead) / lipschitz)
        new_value = float(following @ gram @ following)
        if new_value > value:
            if momentum == 1.0:
                break
            ahead, momentum = current, 1.0
            continue
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = following + (momentum - 1) / next_momentum * (following - current)
        settled = value - new_value <= tolerance * value and step > 0
        current, momentum, value = following, next_momentum, new_value
        if settled:
            break
    return current


def onto_simplex(vector: Tensor) -> Tensor:
    """The nearest point of the probability simplex to vector [n] (Duchi et al. 2008)."""
    ordered = torch.sort(vector, descending=True).values
    excess = torch.cumsum(ordered, 0) - 1
    counts = torch.arange(1, len(vector) + 1, device=vector.device, dtype=vector.dtype)
    last = int((ordered - excess / counts > 0).sum()) - 1
    return (vector - excess[last] / counts[last]).clamp(min=0)
