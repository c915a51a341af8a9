"""EPIC: the greedy choice against the naive one, clusters, permanent drops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.defenses.epic import (
    Epic,
    EpicSettings,
    alone_in_cluster,
    cluster_sizes,
    facility_location,
    logit_gradients,
    medoids_per_class,
    similarity,
)
from bench.foundation.errors import TrialFailed
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.training import Batch, Recipe, Run, Trained, train


def naive(similar: np.ndarray, count: int) -> tuple[list[int], float]:
    """The greedy choice by its definition, every gain taken anew at every step."""
    covered, chosen = np.zeros(len(similar)), []
    for _ in range(count):
        gains = [
            -np.inf if j in chosen else np.maximum(similar[:, j], covered).sum() - covered.sum()
            for j in range(len(similar))
        ]
        best = int(np.argmax(gains))
        chosen.append(best)
        covered = np.maximum(covered, similar[:, best])
    return chosen, covered.sum()


@pytest.mark.parametrize("seed", range(5))
def test_lazy_greedy_is_naive_greedy(seed: int) -> None:
    gradients = torch.tensor(np.random.default_rng(seed).dirichlet(np.ones(4), size=200))
    similar = similarity(gradients).numpy()
    lazy = facility_location(similar, 20)
    expected, value = naive(similar, 20)
    assert lazy.tolist() == expected
    assert similar[:, lazy].max(1).sum() == pytest.approx(value)


@pytest.mark.parametrize("seed", range(5))
def test_ties_go_to_the_lower_index_in_lazy_greedy_too(seed: int) -> None:
    """Similarities in quarters, so that sums are exact, and every sample four times: most gains are tied."""
    chance = np.random.default_rng(seed)
    half = chance.integers(0, 5, size=(50, 50))
    similar = np.tile(np.maximum(half, half.T) / 4, (4, 4)).astype(np.float32)
    order = chance.permutation(200)
    similar = similar[order][:, order]
    expected, _ = naive(similar, 40)
    assert facility_location(similar, 40).tolist() == expected


def test_samples_that_are_alone_are_those_of_the_naive_choice_in_every_class() -> None:
    chance = np.random.default_rng(0)
    gradients, labels = chance.dirichlet(np.ones(3) / 2, size=150), chance.integers(3, size=150)
    counts = [14, 0, 25]
    expected = np.zeros(150, dtype=bool)
    for label in (0, 2):
        rows = np.flatnonzero(labels == label)
        similar = np.exp(-np.linalg.norm(gradients[rows, None] - gradients[rows], axis=2) / 3)
        medoids, _ = naive(similar, counts[label])
        member = np.array([medoids[int(np.argmax(line[medoids]))] for line in similar])
        clusters = {medoid: np.flatnonzero(member == medoid) for medoid in medoids}
        assert sum(len(cluster) for cluster in clusters.values()) == len(rows)
        expected[[rows[cluster[0]] for cluster in clusters.values() if len(cluster) == 1]] = True
    found = alone_in_cluster(torch.tensor(gradients), torch.tensor(labels), counts)
    assert found.tolist() == expected.tolist() and 0 < expected.sum() < 39


def test_similarity_is_the_exponential_of_the_distance() -> None:
    gradients = torch.rand(9, 3, dtype=torch.float64)
    for i in range(9):
        for j in range(9):
            expected = np.exp(-np.linalg.norm((gradients[i] - gradients[j]).numpy()) / 3)
            assert similarity(gradients)[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_clusters_hold_every_sample_once() -> None:
    similar = similarity(torch.rand(50, 3, generator=torch.Generator().manual_seed(0))).numpy()
    medoids = facility_location(similar, 12)
    sizes = cluster_sizes(similar, medoids)
    member = similar[:, medoids].argmax(1)
    assert sum(1 / size for size in sizes) == pytest.approx(len(set(member)))
    assert all(sizes[i] == (member == member[i]).sum() for i in range(50))


def test_an_outlier_stands_alone() -> None:
    gradients = torch.cat([0.01 * torch.rand(20, 3), torch.tensor([[5.0, 5.0, 5.0]])])
    similar = similarity(gradients).numpy()
    sizes = cluster_sizes(similar, facility_location(similar, 2))
    assert sizes[-1] == 1 and sizes[0] == 20


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.33])
def test_medoids_are_shared_out_by_class_size(fraction: float) -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([50, 30, 21]))
    counts = medoids_per_class(labels, fraction, 3, torch.Generator().manual_seed(0))
    assert sum(counts) == int(fraction * 101)
    assert all(abs(count - size * fraction) <= 1.5 for count, size in zip(counts, (50, 30, 21), strict=True))


def test_gradients_are_those_of_the_loss_in_the_logits(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model, data = make_model(), make_images(6)
    logits = model(data.images.float() / 255).detach().requires_grad_(True)
    expected = torch.autograd.grad(F.cross_entropy(logits, data.labels, reduction="sum"), logits)[0]
    torch.testing.assert_close(logit_gradients(model, data, chunk=4), expected)


RECIPE = Recipe(epochs=6, batch=16, lr=0.05, drops=(), augment="none", flip=False)


def run_with(make_small: Callable[..., Classifier], data: Images, **settings: Any) -> Trained:
    defense = Epic(EpicSettings(**{"fraction": 0.3, "start": 2, **settings}), "epic")
    return train(make_small(), data, RECIPE, seed=0, hooks=defense)


def test_drops_are_permanent_and_begin_when_they_should(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    samples = [epoch["samples"] for epoch in run_with(make_small, make_images(90), every=2).history]
    assert samples[:2] == [90, 90]
    assert samples == sorted(samples, reverse=True) and samples[-1] < 90
    assert samples[2] == samples[3] and samples[4] == samples[5]  # every second epoch


def test_what_was_dropped_is_suspected(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    result = run_with(make_small, make_images(90))
    assert 90 - len(result.suspected.unique()) == result.history[-1]["samples"] < 90


def test_who_was_dropped_never_comes_back(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    trained_on: dict[Any, Any] = {}

    class Watched(Epic):
        def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
            trained_on.setdefault(run.current_epoch, set()).update(batch.ids.tolist())
            return batch

    defense = Watched(EpicSettings(fraction=0.3, start=1), "epic")
    train(make_small(), make_images(90), RECIPE, seed=0, hooks=defense)
    for epoch in range(1, 6):
        assert trained_on[epoch] <= trained_on[epoch - 1]
    assert len(trained_on[5]) < len(trained_on[1]) < 90


def test_outputs_that_are_not_finite_fail_the_trial(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> None:
    run = make_run(make_model(), make_images(9))
    run.model.head.weight.data.fill_(float("inf"))
    with pytest.raises(TrialFailed, match="'epic'.*not finite"):
        Epic(EpicSettings(start=0), "epic").epoch(run, 0)


def test_nothing_is_dropped_from_stop_on(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    samples = [epoch["samples"] for epoch in run_with(make_small, make_images(90), stop=3).history]
    assert samples[2] < 90 and len(set(samples[2:])) == 1


def test_a_larger_fraction_drops_more(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    left = [run_with(make_small, make_images(90), fraction=f).history[-1]["samples"] for f in (0.1, 0.6)]
    assert left[1] < left[0]


def test_the_model_is_left_alone_by_the_selection(
    make_model: Callable[..., Classifier],
    make_images: Callable[..., Images],
    make_run: Callable[..., Run],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    run = make_run(make_model().train(), make_images(30))
    before = snapshot(run.model)
    Epic(EpicSettings(start=0), "epic").epoch(run, 0)
    assert_untouched(run.model, before)


def test_a_class_that_is_dropped_whole_fails_the_trial(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> None:
    run = make_run(make_model(), make_images(9))
    with pytest.raises(TrialFailed, match="left no training sample of class"):
        Epic(EpicSettings(start=0, fraction=0.99), "epic").epoch(run, 0)
