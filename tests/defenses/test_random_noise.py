"""Random noise, as a defense and as an attack: distributions, when it is added, seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks.random_noise import RandomNoise as NoiseAttack
from bench.attacks.random_noise import RandomNoiseSettings as NoiseAttackSettings
from bench.defenses.random_noise import RandomNoise, RandomNoiseSettings, draw_noise
from bench.science.attack import Scene
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.poisons import Poisons
from bench.science.seeds import torch_stream
from bench.science.training import Batch, Recipe, Run, train
from tests.plugins import make_attack, make_defense

MU = 16 / 255


def drawn(distribution: Any, shape: tuple[int, ...] = (40, 3, 16, 16), mu: Any = MU, stream: int = 0) -> Tensor:
    return draw_noise(torch.zeros(shape), distribution, mu, torch_stream("cpu", stream))


def test_bernoulli_noise_is_plus_or_minus_mu_with_equal_chance() -> None:
    noise = drawn("bernoulli")
    assert set(noise.unique().tolist()) == {torch.tensor(MU).item(), -torch.tensor(MU).item()}
    assert abs((noise > 0).float().mean().item() - 0.5) < 4 * 0.5 / math.sqrt(noise.numel())


def test_bernoulli_noise_is_never_zero() -> None:
    """Number 158694 of this stream is exactly the middle of the interval, as one in 16.8 million is."""
    noise = drawn("bernoulli", (158_695,), stream=195)
    assert (noise == 0).sum() == 0


def test_uniform_noise_fills_its_range_evenly() -> None:
    noise = drawn("uniform")
    assert noise.abs().max() <= MU
    counts = torch.histc(noise, bins=10, min=-MU, max=MU)
    assert ((counts / noise.numel()) - 0.1).abs().max() < 0.01


def test_gaussian_noise_has_deviation_mu() -> None:
    noise = drawn("gaussian")
    assert noise.std().item() == pytest.approx(MU, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=4 * MU / math.sqrt(noise.numel()))
    assert (noise.abs() < MU).float().mean().item() == pytest.approx(0.6827, abs=0.01)


@pytest.mark.parametrize("distribution", ["uniform", "bernoulli", "gaussian"])
def test_noise_is_independent_across_pixels_channels_and_images(distribution: Any) -> None:
    noise = drawn(distribution)
    for pair in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[..., 1:], noise[..., :-1])):
        both = torch.stack([part.flatten() for part in pair])
        assert torch.corrcoef(both)[0, 1].abs() < 0.03


@pytest.mark.parametrize("distribution", ["uniform", "bernoulli", "gaussian"])
def test_noise_repeats_with_its_stream_and_leaves_its_model_alone(distribution: Any) -> None:
    like = torch.ones(2, 3, 4, 4)
    first, again = (draw_noise(like, distribution, MU, torch_stream("cpu", 3)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(like, torch.ones(2, 3, 4, 4))


@pytest.fixture
def hooked(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> Callable[..., tuple[RandomNoise, Run, Callable[..., Any]]]:
    """A defense, its run at epoch 0 and a function that makes a fresh batch."""

    def make(**settings: Any) -> tuple[RandomNoise, Run, Callable[..., Any]]:
        defense, data = RandomNoise(RandomNoiseSettings(**settings), "noise"), make_images(12)
        run = make_run(make_small(), data, owner="noise")
        defense.setup(run)
        defense.epoch(run, 0)
        rows = torch.arange(12)
        return defense, run, lambda: Batch(run.pixels(rows), data.labels, rows, data.ids)

    return make


def test_noise_is_added_before_augmentation_and_only_there(
    hooked: Callable[..., tuple[RandomNoise, Run, Callable[..., Any]]],
) -> None:
    defense, run, batch = hooked(noise="bernoulli", mu=32)
    pixel, view = defense.batch(batch(), run, "pixel").pixels, defense.batch(batch(), run, "view").pixels
    assert torch.equal(view, batch().pixels)
    torch.testing.assert_close((pixel - batch().pixels).abs(), torch.full_like(pixel, 32 / 255), rtol=0, atol=1e-6)


def test_noise_is_not_clipped(hooked: Callable[..., tuple[RandomNoise, Run, Callable[..., Any]]]) -> None:
    defense, run, batch = hooked(noise="bernoulli", mu=255)
    pixels = defense.batch(batch(), run, "pixel").pixels
    assert pixels.max() > 1
    assert pixels.min() < 0


def test_noise_is_redrawn_at_every_step_and_epoch(
    hooked: Callable[..., tuple[RandomNoise, Run, Callable[..., Any]]],
) -> None:
    defense, run, batch = hooked()
    seen = [defense.batch(batch(), run, "pixel").pixels for _ in range(2)]
    run.current_epoch = 1
    defense.epoch(run, 1)
    seen += [defense.batch(batch(), run, "pixel").pixels for _ in range(2)]
    assert all(not torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))


def test_labels_rows_ids_and_the_data_are_left_alone(
    hooked: Callable[..., tuple[RandomNoise, Run, Callable[..., Any]]],
) -> None:
    defense, run, batch = hooked()
    before, images = batch(), run.data.images.clone()
    after = defense.batch(batch(), run, "pixel")
    for name in ("labels", "rows", "ids"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert torch.equal(run.data.images, images)


def test_training_with_noise_repeats_and_differs_from_training_without(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    def trained(seed: Any = 0, **settings: Any) -> Tensor:
        hooks = RandomNoise(RandomNoiseSettings(**settings), "noise") if settings else None
        recipe = Recipe(epochs=2, batch=8, lr=0.05, drops=(), shift=1)
        return weights_of(train(make_small(), make_images(), recipe, seed=seed, hooks=hooks).model)

    assert torch.equal(trained(mu=32), trained(mu=32))
    assert not torch.equal(trained(mu=32), trained())
    assert not torch.equal(trained(mu=32), trained(mu=16))
    assert not torch.equal(trained(noise="gaussian", mu=32), trained(noise="uniform", mu=32))


@pytest.mark.parametrize(
    ("name", "distribution"), [("noise-u", "uniform"), ("noise-b", "bernoulli"), ("noise-g", "gaussian")]
)
def test_the_published_variants_have_mu_32(name: str, distribution: Any) -> None:
    settings = make_defense(name).settings
    assert (settings.noise, settings.mu) == (distribution, 32)


def noisy_poisons(scene: Scene, distribution: Any = "bernoulli") -> Poisons:
    return NoiseAttack(NoiseAttackSettings(distribution=distribution)).craft(scene)


def test_the_bernoulli_attack_moves_every_pixel_by_eps(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene]
) -> None:
    scene = make_scene(train=make_images(30, low=20, high=230), eps=8)
    poisons = noisy_poisons(scene)
    moved = poisons.images.long() - scene.bases.images.long()
    assert set(moved.unique().tolist()) == {-8, 8}
    poisons.check(scene.train, 8, scene.bases.ids)


def test_the_bernoulli_attack_leaves_no_pixel_in_place(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene]
) -> None:
    """In this stream the number for image 5, red, row 13, column 25 is exactly the middle of the interval."""
    scene = make_scene(train=make_images(18, 64, low=20, high=230), seed=19)
    assert (noisy_poisons(scene).images != scene.bases.images).all()


def test_the_uniform_attack_fills_the_ball(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene]
) -> None:
    scene = make_scene(train=make_images(60, 16, low=20, high=230), n=20, eps=8)
    moved = noisy_poisons(scene, "uniform").images.long() - scene.bases.images.long()
    counts = torch.bincount(moved.flatten() + 8, minlength=17) / moved.numel()
    expected = torch.tensor([1 / 32] + [1 / 16] * 15 + [1 / 32])
    assert (counts - expected).abs().max() < 0.01


@pytest.mark.parametrize("distribution", ["bernoulli", "uniform"])
def test_the_attack_depends_on_the_seed_alone(make_scene: Callable[..., Scene], distribution: Any) -> None:
    first, again, other = (noisy_poisons(make_scene(seed=seed), distribution).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_clean_control_poisons_nothing(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    poisons = make_attack("none").craft(scene)
    poisons.check(scene.train, 1, scene.bases.ids)
    assert len(poisons.ids) == 0
    assert torch.equal(poisons.applied_to(scene.train).images, scene.train.images)
