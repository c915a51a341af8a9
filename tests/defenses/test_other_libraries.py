"""Filters and noisy SGD against adversarial-robustness-toolbox and Opacus, where these are installed.

What is compared, and what is not:
- spectral signatures: ART projects raw features on the direction of the centred ones, as the first release did, so
  that it is held against `centred=False`; it drops by quantile in every class, as `spectral-percentile` does.
- activation clustering: ART clusters ten principal components with an unseeded k-means and rounds shares to percents.
  Only well separated clusters are compared, which k-means finds from any start; and `relative-size` only where every
  class has a small cluster, because ART 1.20.1 with numpy 2 fails on one that has none (test_filters.py has that case).
- noisy SGD: the deviation of Opacus' noise in the mean gradient. Its clipping is another one, and must be.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.defenses.noisy_sgd import NoisySgd, NoisySgdSettings
from bench.defenses.spectral import spectral_scores
from bench.science.defense import Services
from bench.science.training import Recipe
from tests.plugins import make_defense

SERVICES = Services(Recipe(), 2, None, lambda *_: None, seed=3, poison_rate=0.1)  # type: ignore[arg-type]


def kept(name: str, features: np.ndarray, labels: np.ndarray, **settings: Any) -> list[bool]:
    return make_defense(name, **settings).kept(torch.tensor(features), torch.tensor(labels), SERVICES).tolist()


def skewed(n: Any = 400, d: Any = 24, seed: Any = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features off centre, with some directions longer than others, and labels of two classes in turn."""
    chance = np.random.default_rng(seed)
    values = chance.normal(size=(n, d)) * np.linspace(4, 0.5, d) + chance.normal(size=d)
    return values.astype(np.float32), np.arange(n) % 2


def apart(shares: tuple[float, float], n: Any = 200, d: Any = 24, seed: Any = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of two classes in turn; of each class that share lies far away."""
    chance = np.random.default_rng(seed)
    labels, features = np.arange(n) % 2, chance.normal(size=(n, d)).astype(np.float32) * 0.3
    for label, share in enumerate(shares):
        rows = np.flatnonzero(labels == label)
        features[rows[: round(share * len(rows))], label] += 8
    return features, labels


def test_spectral_signatures_are_those_of_art() -> None:
    module = pytest.importorskip("art.defences.detector.poison.spectral_signature_defense")
    features, labels = skewed()
    theirs = module.SpectralSignatureDefense.spectral_signature_scores(features.astype(np.float64))[:, 0]
    ours = spectral_scores(torch.tensor(features), centred=False).sqrt().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)

    classifier = SimpleNamespace(layer_names=["features"], nb_classes=2, get_activations=lambda x, **_: x)
    defence = module.SpectralSignatureDefense.__new__(module.SpectralSignatureDefense)  # the classifier is a stand-in
    vars(defence).update(classifier=classifier, x_train=features, y_train=labels, batch_size=8)
    vars(defence).update(expected_pp_poison=0.1, eps_multiplier=1.5)
    _, clean = defence.detect_poison()
    assert sum(clean) == 340
    assert kept("spectral-percentile", features, labels, centred=False) == [bool(flag) for flag in clean]
    assert kept("spectral-percentile", features, labels) != [bool(flag) for flag in clean]


@pytest.mark.parametrize(
    ("rule", "shares"),
    [
        ("smaller", (0.2, 0.45)),
        ("smaller", (0.48, 0.05)),
        ("relative-size", (0.1, 0.3)),
        ("relative-size", (0.34, 0.2)),
    ],
)
def test_activation_clustering_is_that_of_art(rule: str, shares: tuple[float, float]) -> None:
    module = pytest.importorskip("art.defences.detector.poison.activation_defence")
    analyzer = pytest.importorskip("art.defences.detector.poison.clustering_analyzer").ClusteringAnalyzer()
    features, labels = apart(shares)
    rows = [np.flatnonzero(labels == label) for label in (0, 1)]
    clusters, _ = module.cluster_activations([features[row] for row in rows], nb_dims=10, reduce="PCA")
    judge = {"smaller": analyzer.analyze_by_size, "relative-size": analyzer.analyze_by_relative_size}[rule]
    expected = np.empty(len(labels), dtype=bool)
    for row, clean in zip(rows, judge(clusters)[0], strict=True):
        expected[row] = np.asarray(clean) == 1
    name = "activation-clustering" if rule == "smaller" else "activation-clustering-size"
    assert kept(name, features, labels, components=10) == expected.tolist()


def pushed(gradients: Tensor, **settings: Any) -> Tensor:
    """What reaches the optimizer when the images of a batch have these gradients [b, ...]."""
    weight = torch.nn.Parameter(torch.zeros(gradients.shape[1:]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    run = SimpleNamespace(side={}, optimizer=optimizer, stream=lambda _: torch.Generator().manual_seed(0))
    defense = NoisySgd(NoisySgdSettings(**settings), "noisy-sgd")
    defense.setup(run)  # type: ignore[arg-type]
    defense.epoch(run, 0)  # type: ignore[arg-type]
    (gradients * weight).flatten(1).sum(1).mean().backward()
    optimizer.step()
    return weight.grad  # type: ignore[return-value]


def opacus_step(gradients: Tensor, sigma: float, clip: float) -> Tensor:
    """The same in Opacus' DP-SGD with noise multiplier sigma."""
    module = pytest.importorskip("opacus.optimizers")
    weight = torch.nn.Parameter(torch.zeros(gradients.shape[1:]))
    weight.grad_sample = gradients.clone()  # type: ignore[attr-defined]
    optimizer = module.DPOptimizer(
        torch.optim.SGD([weight], lr=0.1), noise_multiplier=sigma, max_grad_norm=clip,
        expected_batch_size=len(gradients), generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    optimizer.step()
    return weight.grad  # type: ignore[return-value]


@pytest.mark.parametrize(("clip", "n", "batch"), [(1.0, 0.01, 128), (4.0, 0.05, 8)])
def test_the_noise_of_a_step_is_that_of_opacus_with_sigma_n_times_the_batch(clip: float, n: float, batch: int) -> None:
    gradients = torch.zeros(batch, 100, 60)
    ours, theirs = pushed(gradients, clip=clip, noise=n), opacus_step(gradients, n * batch, clip)
    assert theirs.std().item() == pytest.approx(clip * n, rel=0.04)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.04)


def test_the_clip_is_of_the_batchs_mean_and_not_of_every_image() -> None:
    """Two images that nearly cancel: their mean is short, each of them is long."""
    gradients = torch.tensor([[10.0, 0.0], [-9.5, 0.0]])
    assert pushed(gradients, clip=1.0, noise=0.0).tolist() == [0.25, 0.0]
    each = (gradients / gradients.norm(dim=1, keepdim=True)).mean(0)
    assert each.tolist() == [0.0, 0.0]  # what DP-SGD makes of them


def test_opacus_clips_every_image() -> None:
    theirs = opacus_step(torch.tensor([[10.0, 0.0], [-9.5, 0.0]]), 0.0, 1.0)
    torch.testing.assert_close(theirs, torch.zeros(2), rtol=0, atol=1e-6)
