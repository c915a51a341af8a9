"""Neural Cleanse: a planted trigger is found, flagged and unlearned; the schedule of the cost; the outlier test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from bench.defenses import neural_cleanse
from bench.defenses.neural_cleanse import Costs, Stamping, Triggers, anomalies, flag, search, stamp, successes
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.evaluation import ModelPredictor
from bench.science.training import Batch, Recipe, Run, Trained, to_pixels
from tests.defenses import planted
from tests.plugins import make_defense

QUICK: dict[str, Any] = {
    "epochs": 30,
    "steps": 8,
    "batch": 30,
    "patience": 2,
    "stop": 8,
    "repair_epochs": 80,
    "repair_lr": 0.2,
}


@pytest.fixture(scope="module")
def holdout() -> Images:
    return planted.noise(30, 2)


@pytest.fixture(scope="module")
def found(holdout: Images) -> dict[float, Triggers]:
    """What is found in the network with the backdoor, and in the one without."""

    def look(backdoor: float, seed: Any = 0) -> Triggers:
        chance = torch.Generator().manual_seed(seed)
        model = planted.network(backdoor)
        return search(
            model, to_pixels(holdout.images), planted.CLASSES, make_defense("neural-cleanse", **QUICK).settings, chance
        )

    return {backdoor: look(backdoor) for backdoor in (16.0, 0.0)}


def test_the_planted_class_has_the_smallest_mask_and_is_flagged(found: dict[float, Triggers]) -> None:
    triggers = found[16.0]
    assert triggers.norms.argmin() == planted.TARGET and triggers.met[planted.TARGET]
    assert flag(triggers, anomalies(triggers.norms), 2.0).tolist() == [planted.TARGET]
    corner = triggers.masks[planted.TARGET, 0, -planted.SIDE :, -planted.SIDE :]
    assert corner.sum() > 0.5 * triggers.norms[planted.TARGET]  # it is where the patch was


def test_a_clean_network_is_not_flagged(found: dict[float, Triggers]) -> None:
    triggers = found[0.0]
    assert flag(triggers, anomalies(triggers.norms), 2.0).tolist() == []
    assert triggers.norms.min() > 2 * found[16.0].norms.min()


def test_what_is_found_meets_the_threshold_with_mask_and_pattern_in_range(
    found: dict[float, Triggers], holdout: Images
) -> None:
    for backdoor, triggers in found.items():
        for part in (triggers.masks, triggers.patterns):
            assert part.min() >= 0 and part.max() <= 1
        torch.testing.assert_close(triggers.norms, triggers.masks.abs().sum((1, 2, 3)))
        model, pixels = planted.network(backdoor), to_pixels(holdout.images)
        stamped = stamp(pixels, triggers.masks[planted.TARGET], triggers.patterns[planted.TARGET])
        assert stamped.min() >= 0 and stamped.max() <= 1
        rates = [
            (model((1 - m) * pixels + m * p).argmax(1) == t).float().mean().item()
            for t, (m, p) in enumerate(zip(triggers.masks, triggers.patterns, strict=True))
        ]
        assert successes(model, pixels, triggers.masks, triggers.patterns).tolist() == pytest.approx(rates)
        assert triggers.met.tolist() == [rate >= 0.99 for rate in rates]


def test_the_classes_are_sought_as_if_each_were_alone(holdout: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, pixels = make_defense("neural-cleanse", **{**QUICK, "epochs": 3}).settings, to_pixels(holdout.images)
    model = planted.network(16.0)
    together = search(model, pixels, planted.CLASSES, settings, torch.Generator().manual_seed(0))
    # The module itself, because how many images fit is no setting: it must not change a result.
    monkeypatch.setattr(neural_cleanse, "images_at_once", lambda device: 1)  # one class at a time
    alone = search(model, pixels, planted.CLASSES, settings, torch.Generator().manual_seed(0))
    torch.testing.assert_close(together.masks, alone.masks, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("images", "of"), [(30, [3] * 10), (19, [2] * 9 + [1]), (4, [1] * 8), (90, [5] * 18)], ids=str)
def test_an_epoch_is_one_pass_in_batches_small_enough_for_its_steps(
    images: int, of: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(neural_cleanse, "_step", lambda model, pixels, *_: seen.append(len(pixels)))
    settings = make_defense("neural-cleanse", **{**QUICK, "epochs": 1, "batch": 5}).settings
    pixels, chance = to_pixels(planted.noise(images).images), torch.Generator().manual_seed(0)
    search(planted.network(0.0), pixels, planted.CLASSES, settings, chance)
    assert seen == of


def test_the_cost_follows_good_and_bad_epochs() -> None:
    costs = Costs(3, 1.0, patience=2)
    met = torch.tensor([True, False, True])
    costs.epoch(met)
    assert costs.values.tolist() == [1, 1, 1]
    costs.epoch(torch.tensor([True, False, False]))  # the third was good once, then bad once
    assert costs.values.tolist() == pytest.approx([2, 2**-1.5, 1])
    costs.epoch(met)
    assert costs.values.tolist() == pytest.approx([2, 2**-1.5, 1])  # the counts began anew
    costs.epoch(~met)
    costs.epoch(~met)
    assert costs.values.tolist() == pytest.approx([2 * 2**-1.5, 2 * 2**-1.5, 2**-1.5])
    assert costs.turned.tolist() == [True, True, False]


def test_the_anomaly_index_is_the_distance_in_deviations() -> None:
    norms = np.random.default_rng(0).normal(50, 5, 10)
    expected = np.abs(norms - np.median(norms)) / stats.median_abs_deviation(norms, scale="normal")
    np.testing.assert_allclose(anomalies(torch.tensor(norms)), expected, rtol=1e-3)
    assert torch.isfinite(anomalies(torch.tensor([3.0, 3.0, 3.0, 9.0]))).all()


def test_only_small_masks_that_work_are_flagged() -> None:
    norms = torch.tensor([2.0, 3.0, 50.0, 51.0, 52.0, 53.0, 54.0, 116.0])
    met = torch.tensor([True, False, *[True] * 6])
    empty = torch.zeros(8, 1, 2, 2)
    assert flag(Triggers(empty, empty, norms, met, 1), anomalies(norms), 2.0).tolist() == [0]


def finish(guard: Any, model: Classifier, services: Services, clean: Images, notes: dict[Any, Any]) -> ModelPredictor:
    lent = dataclasses.replace(
        services, classes=planted.CLASSES, clean_holdout=clean, seed=3, note=notes.__setitem__,
        recipe=Recipe(batch=30, augment="none", flip=False, lr=0.1, weight_decay=0),
    )  # fmt: skip
    return guard.finish([Trained(model, [], 0.0, torch.zeros(0, dtype=torch.long))], lent)


def rate(model: Classifier, n: Any = 120) -> tuple[float, float]:
    """How often the patch opens the backdoor, and how often fresh images without it are classified right."""
    fresh = planted.noise(n, 9)
    pixels, others = to_pixels(fresh.images), fresh.labels != planted.TARGET
    hits = model(planted.triggered(pixels[others])).argmax(1) == planted.TARGET
    return hits.float().mean().item(), (model(pixels).argmax(1) == fresh.labels).float().mean().item()


def test_the_repair_unlearns_the_planted_trigger(
    services: Services, holdout: Images, weights_of: Callable[[nn.Module], Tensor]
) -> None:
    model = planted.network(16.0)
    notes: dict[str, Any] = {}
    before = rate(model)
    state = torch.random.get_rng_state()
    predictor = finish(make_defense("neural-cleanse", **QUICK), model, services, holdout, notes)
    assert torch.equal(state, torch.random.get_rng_state())
    after = rate(predictor.model)  # type: ignore[arg-type]
    assert before[0] > 0.9 and after[0] < 0.75 * before[0]
    assert after[1] > before[1] - 0.1
    noted = notes["neural_cleanse"]
    assert noted["flagged"] == [planted.TARGET]
    assert noted["success before repair"][0] >= 0.99 and noted["success after repair"][0] < 0.4
    again = planted.network(16.0)
    finish(make_defense("neural-cleanse", **QUICK), again, services, holdout, {})
    assert torch.equal(weights_of(model), weights_of(again))


def test_nothing_flagged_leaves_the_network_as_it_is(
    services: Services,
    holdout: Images,
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
    snapshot: Callable[[nn.Module], dict[str, Any]],
) -> None:
    model = planted.network(0.0)
    notes: dict[str, Any] = {}
    before = snapshot(model)
    predictor = finish(make_defense("neural-cleanse", **QUICK), model, services, holdout, notes)
    assert predictor.model is model and notes["neural_cleanse"]["flagged"] == []
    assert_untouched(model, before)


def test_frozen_features_stay_frozen_in_the_repair(
    services: Services, holdout: Images, make_small: Callable[..., Classifier]
) -> None:
    """As in `transfer`: the head alone is trained, BatchNorm keeps its statistics."""
    model = make_small(classes=planted.CLASSES).freeze_features()
    body = {name: value.clone() for name, value in model.body.state_dict().items()}
    head = model.head.weight.detach().clone()
    short = make_defense(
        "neural-cleanse", **{**QUICK, "epochs": 2, "threshold": 0.01, "index": 1e-6, "repair_epochs": 2}
    )
    notes: dict[Any, Any] = {}
    finish(short, model, services, holdout, notes)
    assert notes["neural_cleanse"]["flagged"]
    assert not torch.equal(head, model.head.weight)
    for name, value in model.body.state_dict().items():
        assert torch.equal(value, body[name]), name
    assert not any(parameter.requires_grad for parameter in model.body.parameters())
    assert model.features_frozen and not model.training


def test_a_share_of_the_images_is_stamped_after_augmentation_with_their_own_labels(
    make_small: Callable[..., Classifier], make_run: Callable[..., Run]
) -> None:
    data = planted.noise(400)
    masks = torch.zeros(2, 1, planted.SIZE, planted.SIZE)
    masks[0, :, 0, 0], masks[1, :, -1, -1] = 1, 0.5
    patterns = torch.ones(2, 3, planted.SIZE, planted.SIZE)
    hooks = Stamping(masks, patterns, 0.2)
    run = make_run(make_small(classes=planted.CLASSES), data)
    hooks.epoch(run, 0)

    def batch() -> Batch:
        return Batch(to_pixels(data.images), data.labels, torch.arange(400), data.ids)

    assert torch.equal(hooks.batch(batch(), run, "pixel").pixels, to_pixels(data.images))
    seen = hooks.batch(batch(), run, "view")
    changed = (seen.pixels != to_pixels(data.images)).any(1)
    first, second = changed[:, 0, 0], changed[:, -1, -1]
    assert 0.05 < first.float().mean() < 0.15 and 0.05 < second.float().mean() < 0.15
    assert not (first & second).any() and not changed[:, 1:-1].any()
    assert torch.equal(seen.labels, data.labels)
    assert (seen.pixels[first][:, :, 0, 0] == 1).all()
    half = (to_pixels(data.images)[second][:, :, -1, -1] + 1) / 2
    torch.testing.assert_close(seen.pixels[second][:, :, -1, -1], half)
