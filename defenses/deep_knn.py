"""Deep k-NN: samples whose neighbours in feature space have other labels are dropped."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from bench.defenses.shared.filtering import Filter, declared_rate
from bench.plugin import Field, Report, Services, Settings, register, resumable


class DeepKnnSettings(Settings):
    k: int = Field(0, ge=0, le=1_000_000, description="neighbours that vote (0: twice the number of poisons)")
    rate: float = Field(
        0.0, ge=0, lt=1, description="poison rate of the training set (0: as the threat model declares)"
    )
    rule: Literal["half", "plurality"] = Field(
        "half", description="a sample stays if half of its neighbours share its label, or if no other label has more"
    )


@register("defense", "deepknn")
@register("defense", "deepknn-plurality", rule="plurality")
class DeepKnn(Filter):
    """Deep k-NN (Peri et al., ECCV workshops 2020), with the paper's rule and that of the library data-poisoning.

    A network is trained on all samples; each sample's k nearest others in feature space (Euclidean) vote with their
    labels. `deepknn` keeps a sample if at least half of them have its label (data-poisoning), `deepknn-plurality` if
    no other label has more votes (the paper). k is twice the number of poisons unless it is given. Threat model:
    poisons that lie among another class. Assumes: the poison rate, or k. Cost: one more training (shared by all
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
        agreeing = votes.gather(1, labels[:, None])[:, 0]
        return 2 * agreeing >= votes.sum(1) if self.settings.rule == "half" else agreeing >= votes.max(1).values


def neighbour_votes(
    features: Tensor, labels: Tensor, k: int, classes: int, report: Report | None = None, chunk: int = 1024
) -> Tensor:
    """Counts of the labels of each sample's k nearest neighbours: int64 [n, classes]. A sample is excluded by its row,
    not as its own nearest neighbour, so that duplicates vote. Ties in distance go to the lower row."""
    squares = features.square().sum(1)
    none = torch.zeros(len(features), classes, dtype=torch.int64, device=features.device)
    state: dict[str, Any] = {"votes": none, "done": 0}
    kept = resumable("neighbours", state, features, labels, k)
    votes = state["votes"]
    for start in range(state["done"], len(features), chunk):
        queries = features[start : start + chunk]
        rows = torch.arange(start, start + len(queries), device=features.device)
        # |a - b|^2 without the sample's own square, which is the same for all its neighbours.
        distances = ((-2 * queries) @ features.T).add_(squares)
        distances[torch.arange(len(queries), device=features.device), rows] = torch.inf
        # One more than votes: topk leaves open which of equally far samples it takes; the next shows whether any are.
        nearest = distances.topk(k + 1, largest=False)
        voters, farthest = labels[nearest.indices[:, :k]], nearest.values[:, k - 1]
        votes[rows] = votes.new_zeros(len(queries), classes).scatter_add_(1, voters, torch.ones_like(voters))
        for i in torch.nonzero(nearest.values[:, k] == farthest).flatten().tolist():
            nearer, tied = distances[i] < farthest[i], torch.nonzero(distances[i] == farthest[i]).flatten()
            votes[start + i] = torch.bincount(labels[nearer], minlength=classes)
            votes[start + i] += torch.bincount(labels[tied[: k - int(nearer.sum())]], minlength=classes)
        state["done"] = start + chunk
        kept.step()
        if report is not None:
            report("neighbours", min(start + chunk, len(features)), len(features))
    kept.end()
    return votes
