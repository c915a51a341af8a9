"""The filters: rules against scikit-learn, brute force and planted poisons; invariance to order and batch size."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from bench.defenses import deep_knn
from bench.defenses.deep_knn import neighbour_votes
from bench.defenses.shared import filtering
from bench.defenses.shared.filtering import features_of
from bench.defenses.spectral import spectral_scores
from bench.foundation.errors import TrialFailed
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.evaluation import filter_quality
from tests.plugins import make_defense

NAMES = [
    "spectral", "spectral-percentile", "activation-clustering", "activation-clustering-size", "deepknn",
    "deepknn-plurality",
]  # fmt: skip


@pytest.fixture
def lend(services: Services, make_model: Callable[..., Classifier]) -> Callable[..., Services]:
    """Services that hand out one fixed network."""
    model = make_model()

    def make(rate: Any = 0.1, **changes: Any) -> Services:
        fit = lambda data, name, epochs, *who: model  # noqa: E731
        return dataclasses.replace(services, fit=fit, model="convnet", poison_rate=rate, seed=3, **changes)

    return make


def planted(n: Any = 100, poisons: Any = 6, d: Any = 8, seed: Any = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features of two classes; `poisons` of class 1 lie where class 0 is."""
    chance = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    features = chance.normal(size=(n, d)) * 0.3
    features[:, 0] += 6 * labels
    bad = np.flatnonzero(labels == 1)[:poisons]
    features[bad, 0] -= 6
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels), torch.tensor(bad)


SERVICES = Services(None, 2, None, lambda *_: None, "convnet", seed=3, poison_rate=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_planted_poisons_are_all_found(name: str) -> None:
    features, labels, bad = planted()
    keep = make_defense(name).kept(features, labels, SERVICES)
    everything = torch.arange(len(labels))
    quality = filter_quality(everything, everything[keep], bad)
    assert quality.recall == 1.0
    if name.startswith("deepknn"):
        assert quality.precision == 1.0


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("spectral", 5 / 30), ("spectral-percentile", 5 / 14), ("activation-clustering", None),
        ("activation-clustering-size", 1), ("deepknn", 1), ("deepknn-plurality", 1),
    ],
)  # fmt: skip
def test_planted_poisons_are_found_by_the_whole_filter(
    name: str,
    precision: float,
    lend: Callable[..., Services],
    make_images: Callable[..., Images],
    wrap: Callable[..., Classifier],
) -> None:
    """From images to the evaluator's count: the network sees nothing but mean colours. precision: what the rule
    allows; every class of 50 gives up 15 samples, or 7, or (smaller cluster) as many as k-means says."""
    data = make_images(100, classes=2)
    chance = torch.Generator().manual_seed(0)
    red = torch.where(data.labels == 0, 60, 190) + torch.randint(-8, 9, (100,), generator=chance)
    green, blue = (torch.randint(90, 150, (100,), generator=chance) for _ in range(2))
    bad = torch.nonzero(data.labels == 1).flatten()[3:28:5]
    red[bad] = torch.tensor([58, 62, 60, 59, 61])
    colours = torch.stack([red, green, blue], 1).to(torch.uint8)
    data = data.with_images(colours[:, :, None, None].expand_as(data.images).contiguous())
    model = wrap(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), 3, classes=2)
    lent = dataclasses.replace(lend(), fit=lambda *_: model, classes=2)
    settings = {"components": 2} if name.endswith("size") else {}
    (job,) = make_defense(name, **settings).jobs(data, lent)
    quality = filter_quality(data.ids, job.data.ids, data.ids[bad])
    assert quality.recall == 1.0
    if precision is not None:
        assert quality.precision == pytest.approx(precision)
    else:
        other = torch.isin(data.ids[data.labels == 1], job.data.ids)
        assert int((~other).sum()) == 5  # in their own class nobody else goes


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_depends_on_the_samples_and_not_on_their_order(
    name: str, lend: Callable[..., Services], make_images: Callable[..., Images]
) -> None:
    data = make_images(45)
    shuffled = data.subset(torch.randperm(45, generator=torch.Generator().manual_seed(1)))

    def ids(of: Images) -> Tensor:
        (job,) = make_defense(name).jobs(of, lend())
        return job.data.ids

    kept = ids(data)
    assert 0 < len(kept) <= 45
    assert sorted(ids(shuffled).tolist()) == sorted(kept.tolist())
    assert kept.tolist() == [i for i in data.ids.tolist() if i in set(kept.tolist())]  # in the order of the data


def test_features_do_not_depend_on_the_batch(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model, images = make_model(), make_images(30).images
    torch.testing.assert_close(features_of(model, images, chunk=7), features_of(model, images))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_does_not_depend_on_the_batch(
    name: str, lend: Callable[..., Services], make_images: Callable[..., Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, kept = make_images(45), []
    for chunk in (7, 45, 1024):
        # The modules themselves, because a chunk is no setting: it must not change a result.
        monkeypatch.setattr(filtering, "features_of", functools.partial(features_of, chunk=chunk))
        monkeypatch.setattr(deep_knn, "neighbour_votes", functools.partial(neighbour_votes, chunk=chunk))
        (job,) = make_defense(name).jobs(data, lend())
        kept.append(job.data.ids.tolist())
    assert kept[0] == kept[1] == kept[2] and 0 < len(kept[0]) < 45


def test_spectral_scores_are_those_of_the_singular_vector() -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)) @ np.diag([5, 2, 1, 1, 1, 1, 1])
    middle = values - values.mean(0)
    svd = TruncatedSVD(1, algorithm="arpack").fit(middle)
    expected = (middle @ svd.components_[0]) ** 2
    np.testing.assert_allclose(spectral_scores(torch.tensor(values)), expected, rtol=1e-8)
    raw = (values @ svd.components_[0]) ** 2
    np.testing.assert_allclose(spectral_scores(torch.tensor(values), centred=False), raw, rtol=1e-8)


@pytest.mark.parametrize(("rate", "dropped"), [(0.01, 6), (0.1, 60), (0.9, 199)])
def test_spectral_drops_one_and_a_half_times_the_poisons_from_every_class(rate: float, dropped: int) -> None:
    labels = torch.arange(400) % 2
    features = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    keep = make_defense("spectral", rate=rate).kept(features, labels, SERVICES)
    assert [int((~keep & (labels == c)).sum()) for c in (0, 1)] == [dropped, dropped]


def test_the_percentile_rule_drops_those_above_it() -> None:
    labels, features = torch.zeros(200, dtype=torch.long), torch.randn(200, 5)
    keep = make_defense("spectral-percentile").kept(features, labels, SERVICES)
    scores = spectral_scores(features)
    assert int((~keep).sum()) == 30
    assert scores[~keep].min() > np.percentile(scores, 85) - 1e-9 > scores[keep].max() - 1e-6


def test_the_smaller_cluster_goes_whatever_its_size_or_only_if_it_is_small() -> None:
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(100, 4, generator=chance) * 0.1
    features[:45, 0] += 5  # 45 % of the class lie apart
    labels = torch.zeros(100, dtype=torch.long)
    one = dataclasses.replace(SERVICES, classes=1)
    assert silhouette_score(features.numpy(), features[:, 0].numpy() > 2.5) > 0.9
    keep = make_defense("activation-clustering").kept(features, labels, one)
    assert torch.equal(~keep, torch.arange(100) < 45)
    assert make_defense("activation-clustering-size", components=2).kept(features, labels, one).all()


def best_split(values: np.ndarray) -> set[int]:
    """The smaller side of the best 2-means of numbers: of all cuts of the sorted ones, that of the least squares."""
    order = np.argsort(values)
    cuts = range(1, len(values))
    cost = [sum(side.var() * len(side) for side in np.split(values[order], [cut])) for cut in cuts]
    sides = np.split(order, [int(np.argmin(cost)) + 1])
    return set(min(sides, key=len).tolist())


@pytest.mark.parametrize(("share", "goes"), [(0.05, True), (0.3, True), (0.4, False)])
def test_activation_clustering_is_the_best_of_all_splits(share: float, goes: bool) -> None:
    """Along the one direction that varies; the others hold next to nothing. With these seeds k-means calls now the
    larger side the first, now the smaller."""
    labels, one = torch.zeros(120, dtype=torch.long), dataclasses.replace(SERVICES, classes=1)
    for seed in range(10, 18):
        chance = np.random.default_rng(seed)
        features = chance.normal(size=(120, 12)) * 0.05
        far = np.arange(120) < share * 120
        line = chance.normal(size=120) + 12 * (far[::-1] if seed % 2 else far)
        features += line[:, None] * np.eye(12)[3]
        expected, seeded = best_split(line), dataclasses.replace(one, seed=seed)
        for name, drops in (("activation-clustering", True), ("activation-clustering-size", goes)):
            keep = make_defense(name).kept(torch.tensor(features), labels, seeded)
            assert set(torch.nonzero(~keep).flatten().tolist()) == (expected if drops else set())


def test_only_the_longest_components_are_clustered() -> None:
    """The first direction varies most, the second has two sides: raw features split there, one component cannot."""
    half = np.random.default_rng(0).normal(size=200) * 1.14
    sides = np.where(np.arange(200) < 80, 1, -1)
    features = np.stack([np.concatenate([half, -half]), np.concatenate([sides, sides])], 1)  # uncorrelated
    labels, one = torch.zeros(400, dtype=torch.long), dataclasses.replace(SERVICES, classes=1)
    for components, side in ((0, features[:, 1] > 0), (1, features[:, 0] > 0)):
        kept = (
            make_defense("activation-clustering", components=components)
            .kept(torch.tensor(features), labels, one)
            .numpy()
        )
        assert max((kept == side).mean(), (kept != side).mean()) > 0.98


def test_votes_are_those_of_scikit_learn() -> None:
    chance = np.random.default_rng(0)
    features, labels = chance.normal(size=(300, 6)).astype(np.float32), chance.integers(4, size=300)
    nearest = NearestNeighbors(n_neighbors=9).fit(features).kneighbors(return_distance=False)  # leaves the sample out
    expected = np.stack([np.bincount(labels[rows], minlength=4) for rows in nearest])
    for chunk in (7, 1024):
        found = neighbour_votes(torch.tensor(features), torch.tensor(labels), 9, 4, chunk=chunk)
        assert (found.numpy() != expected).any(1).mean() < 0.01  # float32 distances may tie otherwise


def test_a_duplicate_votes_for_its_twin_but_nobody_for_himself() -> None:
    features = torch.tensor([[0.0], [0.0], [5.0], [5.1], [9.0]])
    labels = torch.tensor([0, 1, 0, 0, 1])
    votes = neighbour_votes(features, labels, 1, 2)
    assert votes.tolist() == [[0, 1], [1, 0], [1, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize("k", [1, 7, 60])
def test_votes_with_duplicates_are_those_of_scikit_learn(k: int) -> None:
    """Whole numbers, so that distances are exact; a third of the samples are copies, some with another label."""
    chance = np.random.default_rng(1)
    features = chance.integers(-9, 10, size=(300, 6)).astype(np.float32)
    features[200:] = features[:100]
    labels = chance.integers(3, size=300)
    distances, rows = NearestNeighbors(n_neighbors=300, algorithm="brute").fit(features).kneighbors(features)
    votes, clear = np.zeros((300, 3), dtype=np.int64), np.zeros(300, dtype=bool)
    for i in range(300):
        others = rows[i] != i  # by name: a twin is as near as the sample itself
        far, near = distances[i][others], rows[i][others]
        votes[i] = np.bincount(labels[near[:k]], minlength=3)
        clear[i] = far[k] - far[k - 1] > 1e-4
    found = neighbour_votes(torch.tensor(features), torch.tensor(labels), k, 3, chunk=64).numpy()
    assert clear.sum() > 60
    assert (found[clear] == votes[clear]).all() and (found.sum(1) == k).all()
    copies = np.flatnonzero(clear[:100] & clear[200:])
    if k > 1:
        assert ((found[copies] - found[copies + 200]).sum(1) == 0).all() and len(copies)


@pytest.mark.parametrize("k", [3, 40, 150])
def test_of_equally_far_neighbours_the_first_rows_vote(k: int) -> None:
    chance = np.random.default_rng(2)
    features, labels = chance.integers(0, 3, size=(400, 2)), chance.integers(3, size=400)
    distances = ((features[:, None] - features) ** 2).sum(2).astype(float)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    expected = np.stack([np.bincount(labels[rows], minlength=3) for rows in nearest])
    found = neighbour_votes(torch.tensor(features, dtype=torch.float32), torch.tensor(labels), k, 3, chunk=128)
    assert (found.numpy() == expected).all()


def test_half_and_plurality_differ_where_they_should() -> None:
    """A sample with votes 2 own, 1, 1, 1 of five: no half, but the most."""
    features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.4], [0.5]])
    labels = torch.tensor([0, 0, 0, 1, 2, 3])
    four = dataclasses.replace(SERVICES, classes=4)
    half, most = (make_defense(name, k=5).kept(features, labels, four) for name in ("deepknn", "deepknn-plurality"))
    assert not half[0] and most[0]


def test_k_is_twice_the_number_of_poisons() -> None:
    """Of 100 samples, at a declared rate of 0.1; in mixed-up classes every k keeps other samples."""
    stream = torch.Generator().manual_seed(0)
    features, labels = torch.randn(100, 4, generator=stream), torch.arange(100) % 2
    of_k = {k: make_defense("deepknn", k=k).kept(features, labels, SERVICES) for k in range(8, 23)}
    for declared, twice in (({}, 20), ({"rate": 0.05}, 10)):
        kept = make_defense("deepknn", **declared).kept(features, labels, SERVICES)
        assert [k for k, of in of_k.items() if torch.equal(of, kept)] == [twice]


def test_without_a_rate_the_error_names_the_fix() -> None:
    features, labels, _ = planted()
    unknown = dataclasses.replace(SERVICES, poison_rate=None)
    with pytest.raises(TrialFailed, match="defense.rate"):
        make_defense("spectral").kept(features, labels, unknown)


def test_a_class_that_is_filtered_away_fails_the_trial_with_its_cause(
    lend: Callable[..., Services], make_images: Callable[..., Images]
) -> None:
    class Everything(type(make_defense("spectral"))):  # type: ignore[misc]
        def kept(self, features: Tensor, labels: Tensor, services: Services) -> Tensor:
            return labels != 1

    with pytest.raises(TrialFailed, match="no training sample of class 1"):
        list(Everything(make_defense("spectral").settings, "all").jobs(make_images(12), lend()))


def test_features_that_are_not_finite_fail_the_trial(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model = make_model()
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(TrialFailed, match="not finite"):
        features_of(model, make_images(6).images)


def test_all_filters_share_one_warm_up(
    services: Services, make_model: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    asked = []

    def fit(data: Images, model: str, epochs: int, *who: str | int) -> Classifier:
        asked.append((data.digest, model, epochs, who))
        return make_model()

    lent = dataclasses.replace(services, fit=fit, model="convnet", poison_rate=0.1)
    for name in NAMES:
        list(make_defense(name).jobs(make_images(45), lent))
    assert len(set(asked)) == 1


def test_filter_quality_counts() -> None:
    quality = filter_quality(torch.arange(10), torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([5, 6, 7]))
    assert (quality.dropped, quality.poisons_dropped) == (4, 2)
    assert (quality.precision, quality.recall) == (0.5, pytest.approx(2 / 3))
    nothing = filter_quality(torch.arange(3), torch.arange(3), torch.tensor([], dtype=torch.long))
    assert (nothing.precision, nothing.recall) == (None, None)


def test_images_are_a_plain_subset(lend: Callable[..., Services], make_images: Callable[..., Images]) -> None:
    data = make_images(45)
    (job,) = make_defense("spectral").jobs(data, lend())
    assert isinstance(job.data, Images)
    rows = data.rows_of(job.data.ids)
    assert torch.equal(job.data.images, data.images[rows]) and torch.equal(job.data.labels, data.labels[rows])
