"""The trigger: where it is pasted, what it leaves alone, and which one it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.science.threat import Threat
from bench.science.trigger import Trigger, colour_patch


def random_images(n: int = 5, size: int = 9, seed: Any = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=chance)


def pasted_by_hand(images: Tensor, patch: Tensor, places: Tensor) -> Tensor:
    result = images.clone()
    side = patch.shape[-1]
    for image, (x, y) in zip(result, places.tolist(), strict=True):
        image[:, y : y + side, x : x + side] = patch
    return result


@pytest.mark.parametrize("side", [1, 3, 9])
def test_the_patch_stands_exactly_at_its_place_and_all_else_is_left_alone(side: int) -> None:
    images, trigger = random_images(20), Trigger(colour_patch(side, 0), "random")
    before, places = images.clone(), trigger.places(20, 9, 0)
    assert torch.equal(trigger.paste(images, places), pasted_by_hand(images, trigger.patch, places))
    assert torch.equal(images, before)


def test_a_place_is_column_then_row() -> None:
    trigger = Trigger(colour_patch(2, 0), "random")
    patched = trigger.paste(torch.zeros(1, 3, 6, 6, dtype=torch.uint8), torch.tensor([[4, 1]]))
    assert torch.equal(patched[0, :, 1:3, 4:6], trigger.patch)
    assert torch.equal(torch.nonzero(patched.sum((0, 1))).min(0).values, torch.tensor([1, 4]))


def test_the_same_holds_for_images_in_other_memory_order() -> None:
    images = random_images(4).to(memory_format=torch.channels_last)
    trigger = Trigger(colour_patch(4, 0), "random")
    places = trigger.places(4, 9, 0)
    assert torch.equal(trigger.paste(images, places), pasted_by_hand(images, trigger.patch, places))


def test_no_images_are_no_images() -> None:
    trigger = Trigger(colour_patch(3, 0), "random")
    assert trigger.paste(random_images(0), trigger.places(0, 9, 0)).shape == (0, 3, 9, 9)


@pytest.mark.parametrize(("side", "size"), [(1, 4), (3, 4), (4, 4), (8, 32)])
def test_random_places_reach_every_place_where_the_patch_fits_and_no_other(side: int, size: int) -> None:
    places = Trigger(colour_patch(side, 0), "random").places(6000, size, 0, "places")
    assert places.shape == (6000, 2)
    assert places.dtype == torch.int64
    every = {(x, y) for x in range(size - side + 1) for y in range(size - side + 1)}
    assert set(map(tuple, places.tolist())) == every


def test_places_depend_on_seed_and_names_alone() -> None:
    trigger, other = Trigger(colour_patch(3, 0), "random"), Trigger(colour_patch(3, 1), "random")
    torch.manual_seed(1)
    first = trigger.places(9, 32, 5, "trigger", 2)
    torch.manual_seed(2)
    assert torch.equal(first, other.places(9, 32, 5, "trigger", 2))
    for seed, *names in ((6, "trigger", 2), (5, "trigger", 3), (5, "places", 2)):
        assert not torch.equal(first, trigger.places(9, 32, seed, *names))  # type: ignore[arg-type]


def test_the_first_places_do_not_depend_on_how_many_there_are() -> None:
    trigger = Trigger(colour_patch(3, 0), "random")
    assert torch.equal(trigger.places(9, 32, 0)[:4], trigger.places(4, 32, 0))


@pytest.mark.parametrize(("side", "size"), [(1, 4), (4, 4), (5, 32)])
def test_in_the_corner_the_patch_ends_where_the_image_does(side: int, size: int) -> None:
    images, trigger = random_images(3, size), Trigger(colour_patch(side, 0), "corner")
    patched = trigger.paste(images, trigger.places(3, size, 0))
    assert torch.equal(patched[..., size - side :, size - side :], trigger.patch.expand(3, -1, -1, -1))
    assert torch.equal(trigger.places(3, size, 0), trigger.places(3, size, 1))


@pytest.mark.parametrize("placement", ["random", "corner"])
def test_a_patch_larger_than_the_image_is_an_error(placement: str) -> None:
    with pytest.raises(ValueError, match="a patch of 10 pixels does not fit on images of 9"):
        Trigger(colour_patch(10, 0), placement).places(3, 9, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1, 2, 4, 8, 30])
def test_a_patch_is_made_of_colours_and_differs_by_seed(side: int) -> None:
    patch = colour_patch(side, 0)
    assert patch.shape == (3, side, side)
    assert patch.dtype == torch.uint8
    assert torch.equal(patch, colour_patch(side, 0))
    assert not torch.equal(patch, colour_patch(side, 1))
    assert not torch.equal(patch[0], patch[1])
    assert side < 4 or patch.float().std() > 20


def test_the_threat_makes_the_trigger_of_a_quarter_unless_told() -> None:
    assert Threat().trigger(32).patch.shape == (3, 8, 8)
    assert Threat(patch=5).trigger(32).patch.shape == (3, 5, 5)
    assert Threat().trigger(3).patch.shape == (3, 1, 1)
    assert torch.equal(Threat(patch_seed=7).trigger(16).patch, colour_patch(4, 7))
    assert Threat(placement="corner").trigger(16).placement == "corner"
