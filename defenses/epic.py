"""EPIC: samples that are isolated in gradient space are dropped during training, permanently."""

from __future__ import annotations

import heapq
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.defenses.shared.outputs import outputs_of
from bench.plugin import Classifier, Defense, Field, Images, Run, Settings, TrialFailed, register


class EpicSettings(Settings):
    """Defaults: FRIENDS section 4.2 for Gradient Matching (T = 1, K = 5); in transfer those of EPIC's own code."""

    fraction: float = Field(0.1, gt=0, lt=1, description="medoids, as a share of the training set")
    every: int = Field(1, ge=1, le=10000, description="epochs between selections (T)")
    start: int = Field(5, ge=0, le=10000, description="first epoch that may drop (K); in transfer 1")
    stop: int = Field(
        0,
        ge=0,
        le=10000,
        description="first epoch without drops (0: after the last drop of the learning rate); in transfer 10",
    )


@register("defense", "epic-0.1", fraction=0.1)
@register("defense", "epic-0.2", fraction=0.2)
@register("defense", "epic-0.3", fraction=0.3)
class Epic(Defense):
    """EPIC (Yang et al., ICML 2022): effective poisons are isolated in gradient space.

    Every T epochs from epoch K on, each sample is described by the gradient of its loss in the logits, softmax(z) -
    onehot(y); in every class medoids are chosen by greedy facility location, each sample joins its most similar
    medoid, and samples that form a cluster of one are dropped, permanently. More medoids mean more clusters of one, so
    a larger fraction drops more. FRIENDS takes T = 1 over 80 epochs (gm) and T = 2 over 40 (Sleeper Agent, protocol
    cifar10-scratch-40), K = 5; in transfer samples are dropped in epochs 1 to 9, as in EPIC's own code. Threat model:
    targeted clean-label poisons. Assumes: the training set alone. Cost: one forward pass over the training set and the
    selection, each time.
    """

    Settings = EpicSettings
    settings: EpicSettings
    by_scenario = {"transfer": {"start": 1, "stop": 10}}

    def epoch(self, run: Run, epoch: int) -> None:
        settings, recipe = self.settings, run.recipe
        last_drop = recipe.drops[-1] + 1 if recipe.schedule == "step" and recipe.drops else recipe.epochs
        if settings.start <= epoch < (settings.stop or last_drop) and epoch % settings.every == 0:
            alone = self.isolated(run)
            run.suspected = run.suspected | (run.active & alone)
            run.active = run.active & ~alone
            remaining = torch.bincount(run.data.labels[run.active], minlength=run.model.head.out_features)
            present = torch.bincount(run.data.labels, minlength=run.model.head.out_features)
            for label in torch.nonzero((remaining == 0) & (present > 0)).flatten().tolist():
                raise TrialFailed(f"epoch {epoch}: defense '{self.name}' left no training sample of class {label}")

    def isolated(self, run: Run) -> Tensor:
        """Which samples are the only member of their medoid's cluster, bool [n]."""
        labels, classes = run.data.labels, run.model.head.out_features
        counts = medoids_per_class(labels, self.settings.fraction, classes, run.stream("surplus"))
        gradients = logit_gradients(run.model, run.data)
        if not torch.isfinite(gradients).all():
            raise TrialFailed(f"defense '{self.name}': the network's outputs are not finite; fix: a smaller train.lr")
        return alone_in_cluster(gradients, labels, counts)


def alone_in_cluster(gradients: Tensor, labels: Tensor, counts: list[int]) -> Tensor:
    """Which samples share their medoid with no other, bool [n]; counts: medoids of each class."""
    alone = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label, count in enumerate(counts):
        rows = torch.nonzero(labels == label).flatten()
        if count:
            similar = similarity(gradients[rows]).cpu().numpy()
            medoids = facility_location(similar, count)
            alone[rows] = torch.from_numpy(cluster_sizes(similar, medoids) == 1).to(labels.device)
    return alone


def logit_gradients(model: Classifier, data: Images, chunk: int = 1024) -> Tensor:
    """softmax(z) - onehot(y), [n, classes], in eval mode on un-augmented images."""
    logits = outputs_of(model, data.images, chunk=chunk)
    return logits.softmax(1) - F.one_hot(data.labels, logits.shape[1])


def medoids_per_class(labels: Tensor, fraction: float, classes: int, stream: torch.Generator) -> list[int]:
    """How many medoids each class gets: its share of fraction x n, rounded up; the surplus is taken back from classes
    at random."""
    total = int(fraction * len(labels) + 1e-9)
    sizes = torch.bincount(labels, minlength=classes).tolist()
    counts = [math.ceil(size / len(labels) * total - 1e-9) for size in sizes]
    order = torch.randperm(classes, generator=stream, device=stream.device).tolist()
    while sum(counts) > total:
        for label in order:
            if sum(counts) > total and counts[label] > 0:
                counts[label] -= 1
    return counts


def similarity(gradients: Tensor) -> Tensor:
    """exp(-|g_i - g_j| / C) for gradients [n, C], float32 [n, n]."""
    return torch.cdist(gradients, gradients).div_(-gradients.shape[1]).exp_()


def facility_location(similar: np.ndarray, count: int) -> np.ndarray:
    """Greedy choice of `count` columns j that maximise sum_i max_j similar[i, j]; ties to the lower index.

    Lazy (Minoux 1978): gains only shrink, so a gain that still leads after it is recomputed is the best. That holds to
    the last bit, because every gain is summed in the same order.
    """
    columns = np.array(similar.T, dtype=np.float64, order="C")  # a column of `similar` is scattered over all memory
    covered, buffer = np.zeros(len(similar)), np.empty(len(similar))
    bounds = [(-_gain(column, covered, buffer), j) for j, column in enumerate(columns)]
    heapq.heapify(bounds)
    chosen: list[int] = []
    while len(chosen) < count and bounds:
        _, j = heapq.heappop(bounds)
        bound = (-_gain(columns[j], covered, buffer), j)
        if bounds and bound > bounds[0]:
            heapq.heappush(bounds, bound)
            continue
        chosen.append(j)
        np.maximum(covered, columns[j], out=covered)
    return np.array(chosen, dtype=np.int64)


def _gain(column: np.ndarray, covered: np.ndarray, buffer: np.ndarray) -> float:
    """By how much a medoid with these similarities raises the sum of what is covered."""
    np.maximum(column, covered, out=buffer)
    return float(np.subtract(buffer, covered, out=buffer).sum())


def cluster_sizes(similar: np.ndarray, medoids: np.ndarray) -> np.ndarray:
    """For every sample the size of its cluster, [n]; each joins its most similar medoid."""
    member = similar[:, medoids].argmax(1)
    return np.bincount(member, minlength=len(medoids))[member]
