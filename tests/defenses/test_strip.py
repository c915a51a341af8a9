"""STRIP: its entropy against scipy, a planted backdoor, the false-rejection rate, and who is blended with whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bench.defenses.strip import BLENDS_AT_ONCE, Blends, prepare
from bench.foundation.errors import TrialFailed
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.training import Trained, to_pixels
from tests.defenses import planted
from tests.plugins import make_defense


@pytest.fixture
def lend(services: Services) -> Callable[..., Services]:
    def make(clean: Images | None, model: Classifier | None = None, **changes: Any) -> Services:
        fit = lambda data, name, epochs, *who: model  # noqa: E731
        return dataclasses.replace(
            services,
            classes=planted.CLASSES,
            fit=fit,  # type: ignore[arg-type]
            clean_holdout=clean,
            seed=3,
            model="planted",
            **changes,
        )

    return make


def by_scipy(model: Classifier, x: Tensor, partners: Tensor, weight: float, skip: tuple[int, ...] = ()) -> float:
    """H of one image, partner by partner."""
    found = []
    for j, partner in enumerate(partners):
        if j not in skip:
            logits = model((weight * x + (1 - weight) * partner)[None]).detach().double().numpy()[0]
            found.append(stats.entropy(np.exp(logits - logits.max())))  # scipy normalises
    return np.mean(found)


@pytest.mark.parametrize("weight", [0.5, 0.8])
def test_the_entropy_is_scipys_over_classes_of_blends_in_pixel_space(weight: float) -> None:
    model, data = planted.network(0.0), planted.noise(BLENDS_AT_ONCE // 7 + 8)  # more than are blended at a time
    pixels, partners = to_pixels(data.images), to_pixels(data.images[5:12])
    entropy = Blends(model, partners, data.ids[5:12], weight).entropy(pixels)
    for rows in (slice(8), slice(-12, None)):
        expected = [by_scipy(model, x, partners, weight) for x in pixels[rows]]
        np.testing.assert_allclose(entropy[rows], expected, rtol=1e-5)


def test_an_image_is_not_blended_with_itself() -> None:
    model, data = planted.network(0.0), planted.noise(9)
    pixels = to_pixels(data.images)
    blends = Blends(model, pixels[3:], data.ids[3:], 0.5)
    expected = [by_scipy(model, pixels[i], pixels[3:], 0.5, skip=(i - 3,)) for i in range(9)]
    np.testing.assert_allclose(blends.entropy(pixels, data.ids), expected, rtol=1e-5)
    assert not np.allclose(blends.entropy(pixels)[3:], expected[3:], rtol=1e-3)


def test_a_sure_network_has_no_entropy_and_none_that_is_not_a_number(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model = make_small().eval()
    torch.nn.init.constant_(model.head.weight, 0.0)
    model.head.bias.data = torch.tensor([1e4, 0.0, -1e4])
    pixels = to_pixels(make_images(4).images)
    assert Blends(model, pixels, torch.arange(4), 0.5).entropy(pixels).tolist() == [0.0] * 4


def test_the_threshold_gives_the_false_rejections_that_are_set(lend: Callable[..., Services]) -> None:
    """Over several hold-outs, because one of 120 images scatters."""
    model, fresh = planted.network(0.0), to_pixels(planted.noise(300, 1).images)
    for fpr in (0.05, 0.2):
        rates = []
        for seed in range(6):
            settings = make_defense("strip", fpr=fpr, pictures=40).settings
            blends, threshold = prepare(model, settings, lend(planted.noise(120, 100 + seed)))
            rates.append(float((blends.entropy(fresh) < threshold).double().mean()))
        assert fpr / 2 < np.mean(rates) < 1.6 * fpr


def finish(guard: Any, model: Classifier, services: Services) -> Any:
    return guard.finish([Trained(model, [], 0.0, torch.zeros(0, dtype=torch.long))], services)


def test_a_planted_backdoor_is_rejected_and_clean_images_are_not(lend: Callable[..., Services]) -> None:
    model, fresh = planted.network(16.0), to_pixels(planted.noise(200, 1).images)
    assert (model(planted.triggered(fresh)).argmax(1) == planted.TARGET).float().mean() > 0.9
    predictor = finish(make_defense("strip"), model, lend(planted.noise(60, 2)))
    assert predictor.rejects(planted.triggered(fresh)).float().mean() > 0.95
    assert predictor.rejects(fresh).float().mean() < 0.2


def test_an_image_is_rejected_or_not_whatever_else_is_in_the_batch(lend: Callable[..., Services]) -> None:
    predictor = finish(make_defense("strip", fpr=0.3), planted.network(5.0), lend(planted.noise(60, 2)))
    pixels = to_pixels(planted.noise(40, 1).images)
    whole = predictor.rejects(pixels)
    assert 0 < whole.sum() < 40
    assert torch.equal(whole, torch.cat([predictor.rejects(pixels[i : i + 1]) for i in range(40)]))
    assert torch.equal(whole.flip(0), predictor.rejects(pixels.flip(0)))


def test_partners_are_drawn_once_from_the_holdout_in_no_order_but_that_of_ids(lend: Callable[..., Services]) -> None:
    clean = planted.noise(60, 2)
    shuffled = clean.subset(torch.randperm(60, generator=torch.Generator().manual_seed(0)))
    settings, model = make_defense("strip", pictures=20).settings, planted.network(5.0)
    (one, at), (other, too) = (prepare(model, settings, lend(data)) for data in (clean, shuffled))
    assert torch.equal(one.ids, other.ids) and len(set(one.ids.tolist())) == 20 and at == too
    assert set(one.ids.tolist()) <= set(clean.ids.tolist())


@pytest.mark.parametrize(("size", "pictures", "capped"), [(30, 100, True), (30, 30, False), (30, 10, False)])
def test_the_notes_say_with_how_many_images_it_was_blended(
    lend: Callable[..., Services], size: int, pictures: int, capped: bool
) -> None:
    notes: dict[Any, Any] = {}
    services = lend(planted.noise(size), note=notes.__setitem__)
    prepare(planted.network(5.0), make_defense("strip", pictures=pictures).settings, services)
    assert notes["strip"]["blended with"] == min(size, pictures)
    assert notes["strip"]["capped by the hold-out"] is capped


def test_the_filter_drops_what_carries_the_trigger(lend: Callable[..., Services]) -> None:
    data = planted.noise(180, 5)
    bad = torch.arange(0, 180, 20) + 1
    images = data.images.clone()
    images[bad] = (planted.triggered(to_pixels(images[bad])) * 255).round().to(torch.uint8)
    data = data.with_images(images)
    clean = data.subset(torch.tensor([i for i in range(0, 180, 3) if i not in bad.tolist()]))
    reports = []
    model = planted.network(16.0)
    guard = make_defense("strip-filter")
    services = lend(clean, model, report=lambda what, done, of: reports.append((done, of)))
    (job,) = guard.jobs(data, services)
    kept = torch.isin(data.ids, job.data.ids)
    assert not kept[bad].any()
    assert 0.75 < kept.sum() / (180 - len(bad)) < 0.98
    assert reports[-1] == (180, 180)
    shuffled = data.subset(torch.randperm(180, generator=torch.Generator().manual_seed(0)))
    (again,) = guard.jobs(shuffled, services)
    assert set(again.data.ids.tolist()) == set(job.data.ids.tolist())


def test_the_filter_keeps_its_own_holdout_from_blending_with_itself(lend: Callable[..., Services]) -> None:
    """With two clean images each is blended with the other alone."""
    data, model = planted.noise(30, 5), planted.network(5.0)
    clean = data.subset(torch.tensor([0, 1]))
    kept = make_defense("strip-filter", fpr=0.5).kept_by(model, data, lend(clean))
    pixels = to_pixels(data.images)
    lower = np.mean([by_scipy(model, pixels[0], pixels[1:2], 0.5), by_scipy(model, pixels[1], pixels[:1], 0.5)])
    expected = [by_scipy(model, pixels[i], pixels[:2], 0.5, skip=(i,)) >= lower - 1e-9 for i in range(30)]
    assert kept.tolist() == expected


def test_the_filter_shares_the_warm_up_of_the_others(lend: Callable[..., Services]) -> None:
    asked = []

    def fit(data: Images, model: str, epochs: int, *who: str | int) -> Classifier:
        asked.append((data.digest, model, epochs, who))
        return planted.network(5.0)

    data = planted.noise(60)
    for name in ("strip-filter", "spectral-percentile"):
        list(make_defense(name).jobs(data, dataclasses.replace(lend(planted.noise(30, 2)), fit=fit)))
    assert len(asked) == 2 and len(set(asked)) == 1


@pytest.mark.parametrize("clean", [None, planted.noise(1)])
def test_without_a_holdout_the_error_names_the_fix(lend: Callable[..., Services], clean: Images | None) -> None:
    with pytest.raises(TrialFailed, match="threat.holdout"):
        finish(make_defense("strip"), planted.network(0.0), lend(clean))
