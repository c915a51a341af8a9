"""Deep k-NN: a sample whose neighbours in feature space have other labels is dropped."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from bench.defenses.shared.filtering import Filter, declared_rate
from bench.plugin import Field, Services, Settings, register


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
    votes = torch.empty(len(features), classes, dtype=torch.int64, device=features.device)
    for start in range(0, len(features), chunk):
        part = features[start : start + chunk]
        rows = torch.arange(start, start + len(part), device=features.device)
        # |a - b|^2 less the sample's own square, which is the same for all its neighbours.
        distances = ((-2 * part) @ features.T).add_(squares)
        distances[torch.arange(len(part), device=features.device), rows] = torch.inf
        found = distances.topk(k, largest=False, sorted=False)
        voters = labels[found.indices]
        votes[rows] = votes.new_zeros(len(part), classes).scatter_add_(1, voters, torch.ones_like(voters))
        # topk leaves open which of equally far samples it takes.
        last = found.values.amax(1, keepdim=True)
        for i in torch.nonzero((distances <= last).sum(1) > k).flatten().tolist():
            nearer, level = distances[i] < last[i], torch.nonzero(distances[i] == last[i]).flatten()
            votes[start + i] = torch.bincount(labels[nearer], minlength=classes)
            votes[start + i] += torch.bincount(labels[level[: k - int(nearer.sum())]], minlength=classes)
        if callable(report):
            report("neighbours", min(start + chunk, len(features)), len(features))
    return votes
