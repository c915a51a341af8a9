"""Deep k-NN: a sample whose neighbours in feature space have other labels is dropped."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.registry import register
from bench.settings import Settings
from defenses.base import Services
from defenses.filtering import Filter, declared_rate


class DeepKnnSettings(Settings):
    k: int = Field(0, ge=0, le=1_000_000, description="neighbours that vote (0: twice the number of poisons)")
    rate: float = Field(
        0.0, ge=0, lt=1, description="poison rate of the training set (0: as the threat model declares)"
    )
    rule: Literal["half", "plurality"] = Field(
        "half", description="a sample stays if at least half of its neighbours, or no other class more of them, agree"
    )


@register("defense", "deepknn")
@register("defense", "deepknn-plurality", rule="plurality")
class DeepKnn(Filter):
    """Deep k-NN (Peri et al., ECCV workshops 2020), with the original's rule and that of data-poisoning.

    A network is trained on all samples; each sample's k nearest others in feature space (Euclidean) vote with their
    labels. `deepknn` keeps a sample if at least half of them have its label (data-poisoning), `deepknn-plurality` if
    no other label has more votes (the paper). k is twice the number of poisons unless it is given. Threat model:
    poisons that lie among another class. Needs: the poison rate, or k. Cost: one more training (shared by all
    filters) and n^2 distances.
    """

    Settings = DeepKnnSettings
    settings: DeepKnnSettings
    needs = ("poison_rate",)

    def kept(self, features: Tensor, labels: Tensor, services: Services) -> Tensor:
        k = self.settings.k
        if not k:
            k = max(int(2 * declared_rate(services, self.settings.rate) * len(labels) + 1e-9), 1)
        votes = neighbour_votes(features, labels, min(k, len(labels) - 1), services.classes, services.report)
        own = votes.gather(1, labels[:, None])[:, 0]
        return 2 * own >= votes.sum(1) if self.settings.rule == "half" else own >= votes.max(1).values


def neighbour_votes(
    features: Tensor, labels: Tensor, k: int, classes: int, report: object = None, chunk: int = 1024
) -> Tensor:
    """Labels of the k nearest others of each sample, counted: int64 [n, classes]. Each sample is left out by its row,
    not as its own nearest, so that duplicates vote. Ties in distance go to the lower row."""
    squares = features.square().sum(1)
    one_hot = F.one_hot(labels, classes).to(torch.int32)
    votes = torch.empty(len(features), classes, dtype=torch.int64, device=features.device)
    for start in range(0, len(features), chunk):
        part = features[start : start + chunk]
        rows = torch.arange(start, start + len(part), device=features.device)
        distances = squares - 2 * part @ features.T  # the sample's own square is the same for all its neighbours
        distances[torch.arange(len(part), device=features.device), rows] = torch.inf
        nearest = distances.topk(k, largest=False, sorted=False).indices
        votes[rows] = one_hot[nearest].sum(1).long()
        if callable(report):
            report("neighbours", min(start + chunk, len(features)), len(features))
    return votes
