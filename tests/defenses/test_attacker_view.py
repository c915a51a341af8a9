"""What an adaptive attacker who knows the defense can compute: the transform of the training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.defenses.friends import friendly_noise
from bench.foundation.errors import TrialFailed
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.defense import Defense, Services
from bench.science.seeds import torch_stream
from bench.science.training import Batch, Run, to_pixels
from tests.plugins import make_defense


@pytest.fixture
def case(
    make_images: Callable[..., Images], make_small: Callable[..., Classifier], services: Services
) -> tuple[Images, Tensor, Services, list[Any], Classifier]:
    """Images, some of their ids in another order, services whose `fit` lends a network, what it was asked, it."""
    data, asked, model = make_images(20, low=70, high=180), [], make_small().eval()

    def fit(*what: Any) -> Classifier:
        asked.append(what)
        return model

    return data, data.ids[[7, 2, 11]], dataclasses.replace(services, fit=fit, model="convnet"), asked, model


def stream(seed: int) -> torch.Generator:
    return torch_stream("cpu", seed)


@pytest.mark.parametrize("name", ["noise-u", "noise-b", "noise-g"])
def test_random_noise_is_fresh_at_every_call_and_of_its_stream(
    case: tuple[Images, Tensor, Services, list[Any], Classifier], name: str
) -> None:
    data, ids, services, asked, _ = case
    transform = make_defense(name, mu=16).attacker_view(data, ids, services, stream(0))
    pixels = to_pixels(data.images[data.rows_of(ids)])
    first, again, other = (transform(pixels, stream(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert asked == []
    if name == "noise-b":
        torch.testing.assert_close((first - pixels).abs(), torch.full_like(pixels, 16 / 255))


def test_random_noise_is_what_the_victim_sees(
    case: tuple[Images, Tensor, Services, list[Any], Classifier],
    make_run: Callable[..., Run],
    make_small: Callable[..., Classifier],
) -> None:
    data, ids, services, _, _ = case
    guard, run = make_defense("noise-b", mu=16), make_run(make_small(), data)
    rows = data.rows_of(ids)
    batch = Batch(to_pixels(data.images[rows]), data.labels[rows], rows, ids)
    guard.epoch(run, 0)
    seen = guard.batch(batch, run, "pixel").pixels
    transform = guard.attacker_view(data, ids, services, stream(0))
    assert torch.equal(transform(to_pixels(data.images[rows]), run.stream("noise")), seen)


@pytest.mark.parametrize("noise", ["friends-b", "friends-u", "friendly"])
def test_friendly_noise_is_fixed_and_made_for_the_asked_images_in_their_order(
    case: tuple[Images, Tensor, Services, list[Any], Classifier], noise: str
) -> None:
    data, ids, services, asked, model = case
    guard = make_defense(noise, mu=16, zeta=16, steps=3, start=4)
    transform = guard.attacker_view(data, ids, services, stream(5))
    assert [(what[0] is data, *what[1:3]) for what in asked] == [(True, "convnet", 4)]
    mine = data.subset(data.rows_of(ids))
    fixed = friendly_noise(model, mine, guard.settings, stream(5)).float() / 255
    assert fixed.abs().max() > 0
    pixels = to_pixels(mine.images)
    quiet = (pixels + fixed).clamp(0, 1)
    for seed in (1, 2):
        torch.testing.assert_close(transform(pixels, stream(seed)), guard._noisy(quiet, stream(seed)))
    assert (noise == "friendly") == torch.equal(transform(pixels, stream(1)), transform(pixels, stream(2)))


def test_friendly_noise_can_come_from_another_architecture_and_needs_an_epoch(
    case: tuple[Images, Tensor, Services, list[Any], Classifier],
) -> None:
    data, ids, services, asked, _ = case
    make_defense("friends-b", source_model="lenet", start=0, steps=1).attacker_view(data, ids, services, stream(0))
    assert asked[0][1:3] == ("lenet", 1)


def test_friendly_noise_is_clipped_before_the_random_noise(
    case: tuple[Images, Tensor, Services, list[Any], Classifier],
) -> None:
    data, ids, services, _, _ = case
    guard = make_defense("friends-b", mu=16, zeta=100, steps=2)
    transform = guard.attacker_view(data, ids, services, stream(0))
    white = torch.ones(3, 3, 8, 8)
    found = transform(white, stream(1))
    assert found.max().item() == pytest.approx(1 + 16 / 255, abs=1e-6)
    assert found.max() > 1


def test_the_transform_is_differentiable(case: tuple[Images, Tensor, Services, list[Any], Classifier]) -> None:
    data, ids, services, _, _ = case
    transform = make_defense("friends-b", steps=1).attacker_view(data, ids, services, stream(0))
    leaf = torch.full((3, 3, 8, 8), 0.5, requires_grad=True)
    slope = torch.autograd.grad(transform(leaf, stream(1)).sum(), leaf)[0]
    assert torch.equal(slope, torch.ones_like(leaf))


def test_the_lent_network_and_the_data_are_left_as_they_were(
    case: tuple[Images, Tensor, Services, list[Any], Classifier],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    data, ids, services, _, model = case
    before, images = snapshot(model), data.images.clone()
    make_defense("friends-b", steps=1).attacker_view(data, ids, services, stream(0))
    assert_untouched(model, before)
    assert torch.equal(data.images, images)


def test_a_defense_without_a_transform_says_so_in_one_line(
    case: tuple[Images, Tensor, Services, list[Any], Classifier],
) -> None:
    data, ids, services, _, _ = case
    with pytest.raises(TrialFailed, match="defense 'mine' has no transform of the training images to adapt to"):
        Defense(Defense.Settings(), "mine").attacker_view(data, ids, services, stream(0))
