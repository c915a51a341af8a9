"""Poisons: rounding within eps, and every rule that `check` holds them to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.science.dataset import Images
from bench.science.poisons import Poisons, Shown


def grey(levels: list[int] | range) -> Images:
    """One single-coloured image for each grey level."""
    images = torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Images(images, torch.zeros(len(levels), dtype=torch.long), torch.arange(len(levels)))


def levels_of(poisons: Poisons) -> list[int]:
    assert (poisons.images == poisons.images[:, :1, :1, :1]).all()
    return poisons.images[:, 0, 0, 0].tolist()


def constant(bases: Images, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(bases.images.shape, value, dtype=dtype)


@pytest.fixture
def scene(make_images: Callable[..., Images]) -> tuple[Images, Poisons, Tensor]:
    """A training set, three poisons for rows 1, 4, 7 (class 1), and the ids that may be poisoned."""
    train = make_images(12)
    bases = train.subset(torch.tensor([4, 1, 7]))
    poisons = Poisons.from_perturbation(bases, constant(bases, 8 / 255), 8)
    return train, poisons, train.ids[train.labels == 1]


@pytest.mark.parametrize("eps", [8, 16])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_full_step_is_kept_to_the_level_for_every_grey(eps: int, sign: int, dtype: torch.dtype) -> None:
    bases = grey(range(256))
    delta = constant(bases, sign * eps / 255, dtype)
    assert levels_of(Poisons.from_perturbation(bases, delta, eps)) == [
        min(max(level + sign * eps, 0), 255) for level in range(256)
    ]


@pytest.mark.parametrize("eps", [8, 16])
@pytest.mark.parametrize("sign", [-1, 1])
def test_pixels_moved_in_float32_keep_the_full_step(eps: int, sign: int) -> None:
    bases = grey(range(256))
    pixels = bases.images.float() / 255
    moved = (pixels + sign * eps / 255).clamp(0, 1)
    assert levels_of(Poisons.from_perturbation(bases, moved - pixels, eps)) == [
        min(max(level + sign * eps, 0), 255) for level in range(256)
    ]


@pytest.mark.parametrize(
    ("step", "result"), [(0.49, 100), (0.5, 101), (1.5, 102), (-0.5, 100), (-0.51, 99), (-1.5, 99)]
)
def test_halves_are_rounded_up(step: float, result: int) -> None:
    bases = grey([100])
    assert levels_of(Poisons.from_perturbation(bases, constant(bases, step / 255, torch.float64), 8)) == [result]


@pytest.mark.parametrize(("value", "result"), [(1.0, [8, 108, 255]), (-1.0, [0, 92, 247])])
def test_a_perturbation_beyond_eps_is_clipped_to_ball_and_range(value: float, result: list[int]) -> None:
    bases = grey([0, 100, 255])
    assert levels_of(Poisons.from_perturbation(bases, constant(bases, value), 8)) == result


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_perturbation_that_is_not_finite_is_refused(bad: float) -> None:
    bases = grey([0, 100])
    delta = constant(bases, 0.0)
    delta[1, 2, 0, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        Poisons.from_perturbation(bases, delta, 8)


def test_poisons_keep_ids_labels_and_provenance_of_their_bases(make_images: Callable[..., Images]) -> None:
    bases = make_images(5)
    poisons = Poisons.from_perturbation(bases, torch.zeros(bases.images.shape), 8, {"attack": "x"})
    assert torch.equal(poisons.images, bases.images)
    assert torch.equal(poisons.ids, bases.ids)
    assert torch.equal(poisons.labels, bases.labels)
    assert poisons.provenance == {"attack": "x"}


def test_check_accepts_poisons_within_eps(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, allowed = scene
    poisons.check(train, 8, allowed)


def test_distance_is_the_largest_change_of_any_pixel(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, _ = scene
    images = train.images[train.rows_of(poisons.ids)].clone()
    assert dataclasses.replace(poisons, images=images).distance(train) == 0
    for new, old in ((0, 200), (255, 245)):
        train.images[4, 1, 3, 3] = old
        changed = train.images[train.rows_of(poisons.ids)].clone()
        changed[0, 1, 3, 3] = new
        assert dataclasses.replace(poisons, images=changed).distance(train) == abs(new - old)


def test_check_refuses_a_pixel_one_level_beyond_eps(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, allowed = scene
    with pytest.raises(ValueError, match="8/255, more than eps = 7/255"):
        poisons.check(train, 7, allowed)


def test_check_refuses_an_image_poisoned_twice(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, allowed = scene
    with pytest.raises(ValueError, match="twice"):
        dataclasses.replace(poisons, ids=poisons.ids[[0, 1, 1]]).check(train, 255, allowed)


def test_check_refuses_an_image_that_was_not_given(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, _ = scene
    with pytest.raises(ValueError, match="not given"):
        poisons.check(train, 8, poisons.ids[:2])


def test_check_refuses_a_changed_label(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, allowed = scene
    labels = poisons.labels.clone()
    labels[2] = 0
    with pytest.raises(ValueError, match="not clean-label"):
        dataclasses.replace(poisons, labels=labels).check(train, 8, allowed)


@pytest.mark.parametrize(
    "change", [lambda images: images.float(), lambda images: images[..., :4], lambda images: images[:, :1]]
)
def test_check_refuses_images_unlike_the_training_set(
    scene: tuple[Images, Poisons, Tensor], change: Callable[..., Any]
) -> None:
    train, poisons, allowed = scene
    with pytest.raises(ValueError, match="not like the training set"):
        dataclasses.replace(poisons, images=change(poisons.images)).check(train, 8, allowed)


def test_applied_to_changes_exactly_the_given_rows_of_a_copy(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, _ = scene
    before = train.images.clone()
    poisoned = poisons.applied_to(train)
    assert torch.equal(train.images, before)
    for place, row in enumerate((4, 1, 7)):
        assert torch.equal(poisoned.images[row], poisons.images[place])
    rest = torch.tensor([row for row in range(12) if row not in (1, 4, 7)])
    assert torch.equal(poisoned.images[rest], before[rest])
    assert torch.equal(poisoned.labels, train.labels)
    assert torch.equal(poisoned.ids, train.ids)


def test_applying_twice_is_applying_once(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, _ = scene
    once = poisons.applied_to(train)
    assert torch.equal(poisons.applied_to(once).images, once.images)


def test_no_poisons_change_nothing(make_images: Callable[..., Images]) -> None:
    train = make_images(6)
    none = Poisons(train.images[:0], train.ids[:0], train.labels[:0])
    none.check(train, 1, train.ids)
    assert none.distance(train) == 0
    assert torch.equal(none.applied_to(train).images, train.images)


def test_check_refuses_more_poisons_than_the_budget(scene: tuple[Images, Poisons, Tensor]) -> None:
    train, poisons, allowed = scene
    poisons.check(train, 8, allowed, 3)
    poisons.check(train, 8, allowed, 4)
    with pytest.raises(ValueError, match="3 poisons, more than the 2 of the budget"):
        poisons.check(train, 8, allowed, 2)


def shown(parts: tuple[str, ...]) -> Shown:
    chance = torch.Generator().manual_seed(0)
    everything = {
        "images": torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=chance),
        "ids": torch.tensor([5, -1, 7, 2]),
        "patch": torch.randint(0, 256, (3, 2, 2), dtype=torch.uint8, generator=chance),
        "places": torch.tensor([[0, 1], [2, 3], [4, 5], [6, 0]]),
    }
    return Shown(**{name: everything[name] for name in parts})


@pytest.mark.parametrize("parts", [("images", "ids"), ("images", "ids", "patch", "places"), ("images", "ids", "patch")])
def test_what_is_shown_survives_the_way_through_tensors(
    scene: tuple[Images, Poisons, Tensor], parts: tuple[str, ...]
) -> None:
    poisons = dataclasses.replace(scene[1], shown=shown(parts), provenance={"losses": [1.0]})
    tensors = poisons.tensors()
    assert set(tensors) == {"images", "ids", "labels", *(f"shown.{name}" for name in parts)}
    again = Poisons.of_tensors(tensors, poisons.provenance)
    assert again.provenance == {"losses": [1.0]}
    for name in ("images", "ids", "labels"):
        assert torch.equal(getattr(again, name), getattr(poisons, name))
    for name in ("images", "ids", "patch", "places"):
        one, other = getattr(again.shown, name), getattr(poisons.shown, name)
        assert (one is None and other is None) or torch.equal(one, other)
        assert (one is not None) == (name in parts)


def test_poisons_that_show_nothing_come_back_showing_nothing(scene: tuple[Images, Poisons, Tensor]) -> None:
    tensors = scene[1].tensors()
    assert set(tensors) == {"images", "ids", "labels"}
    assert Poisons.of_tensors(tensors, {}).shown is None


@pytest.mark.parametrize("missing", ["images", "ids", "labels", "shown.images", "shown.ids"])
def test_a_missing_part_is_an_error(scene: tuple[Images, Poisons, Tensor], missing: str) -> None:
    tensors = dataclasses.replace(scene[1], shown=shown(("images", "ids", "patch", "places"))).tensors()
    del tensors[missing]
    with pytest.raises(KeyError, match=missing.rpartition(".")[2]):
        Poisons.of_tensors(tensors, {})
