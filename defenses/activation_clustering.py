"""Activation clustering: every class is split in two, and a cluster that looks poisoned is dropped."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bench.defenses.shared.filtering import Filter
from bench.plugin import Field, Services, Settings, register


class ActivationClusteringSettings(Settings):
    rule: Literal["smaller", "relative-size"] = Field(
        "smaller", description="smaller: drop the smaller cluster of every class; relative-size: only if it is small"
    )
    components: int = Field(0, ge=0, le=1000, description="principal components to cluster (0: raw features)")
    threshold: float = Field(
        0.35, gt=0, le=0.5, description="relative-size: share of its class below which it is dropped"
    )


@register("defense", "activation-clustering")
@register("defense", "activation-clustering-size", rule="relative-size", components=10)
class ActivationClustering(Filter):
    """Activation clustering (Chen et al., SafeAI 2019), with the rules of two releases.

    A network is trained on all samples; the features of every class are split by 2-means. `activation-clustering`
    drops the smaller cluster of every class, whatever its size (data-poisoning and Sleeper Agent: this costs 20 to
    50 % of the clean data); `activation-clustering-size` works on 10 principal components and drops a cluster of less
    than 35 % of its class. Threat model: poisons of one class that form a cluster. Assumes: the training set, and that
    poisons are the minority. Cost: one more training (shared by all filters), then k-means.
    """

    Settings = ActivationClusteringSettings
    settings: ActivationClusteringSettings

    def kept(self, features: Tensor, labels: Tensor, services: Services) -> Tensor:
        keep = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        values = features.double().cpu().numpy()
        for label in range(services.classes):
            rows = torch.nonzero(labels == label).flatten()
            if len(rows) < 2:
                continue
            smaller = self.smaller(values[rows.cpu().numpy()], services.seed % 2**32)
            if self.settings.rule == "smaller" or smaller.mean() < self.settings.threshold:
                keep[rows[torch.from_numpy(smaller).to(rows.device)]] = False
        return keep

    def smaller(self, values: np.ndarray, seed: int) -> np.ndarray:
        """Which of values [n, d] are in the smaller of two clusters, bool [n]; the second if they are equal."""
        from sklearn.cluster import KMeans  # here: every command would wait a second for it
        from sklearn.decomposition import PCA

        if 0 < self.settings.components < min(values.shape):
            values = PCA(self.settings.components, svd_solver="full").fit_transform(values)
        second = KMeans(2, n_init=10, random_state=seed).fit_predict(values) == 1
        return second if second.sum() * 2 <= len(second) else ~second
