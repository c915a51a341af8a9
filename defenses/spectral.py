"""Spectral signatures: samples that stand out along the first principal direction of their class are dropped."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from bench.defenses.shared.filtering import Filter, declared_rate
from bench.plugin import Field, Services, Settings, register


class SpectralSettings(Settings):
    rule: Literal["count", "percentile"] = Field(
        "count", description="count: factor x rate x training set from every class; percentile: a share of every class"
    )
    factor: float = Field(1.5, gt=0, le=10, description="count: how many times the expected poisons are dropped")
    rate: float = Field(
        0.0, ge=0, lt=1, description="poison rate of the training set (0: as the threat model declares)"
    )
    percentile: float = Field(85.0, gt=0, lt=100, description="percentile: scores above it are dropped")
    centred: bool = Field(True, description="score centred features (the first release scored raw features)")


@register("defense", "spectral")
@register("defense", "spectral-percentile", rule="percentile")
class Spectral(Filter):
    """Spectral signatures (Tran et al., NeurIPS 2018), with the rules of two releases.

    A network is trained on all samples; in every class the features are centred and scored by their squared
    projection on the first right singular vector. `spectral` drops 1.5 x poison rate x training set of them from
    every class, at most all but one (data-poisoning and Sleeper Agent: 15 % of all data at 1 %);
    `spectral-percentile` drops those above the 85th percentile. Threat model: poisons of one class that share a
    direction. Assumes: the poison rate (`spectral`). Cost: one more training (shared by all filters), then
    milliseconds.
    """

    Settings = SpectralSettings
    settings: SpectralSettings
    needs = ("poison_rate",)

    def kept(self, features: Tensor, labels: Tensor, services: Services) -> Tensor:
        keep = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        for label in range(services.classes):
            rows = torch.nonzero(labels == label).flatten()
            if not len(rows):
                continue
            drop = self.drops(len(rows), len(labels), services)
            scores = spectral_scores(features[rows], self.settings.centred)
            keep[rows[torch.argsort(scores, descending=True, stable=True)[:drop]]] = False
        return keep

    def drops(self, class_size: int, total: int, services: Services) -> int:
        """How many samples of a class are dropped."""
        if self.settings.rule == "percentile":
            return math.floor(class_size * (1 - self.settings.percentile / 100) + 1e-9)
        count = int(self.settings.factor * declared_rate(services, self.settings.rate) * total + 1e-9)
        return min(count, class_size - 1)


def spectral_scores(features: Tensor, centred: bool = True) -> Tensor:
    """Squared projections [n] of features [n, d] on the first right singular vector of the centred features,
    float64."""
    values = features.double()
    deviations = values - values.mean(0)
    # The covariance is d x d however many samples there are; its last eigenvector is that singular vector.
    direction = torch.linalg.eigh(deviations.T @ deviations).eigenvectors[:, -1]
    return ((deviations if centred else values) @ direction).square()
