"""Noisy SGD: clipping of the batch's gradient and the size of its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.defenses.noisy_sgd import NoisySgd, NoisySgdSettings
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.training import Run, train


def disturbed(
    make_run: Callable[..., Run],
    make_small: Callable[..., Classifier],
    make_images: Callable[..., Images],
    scale: float = 1.0,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """The gradients that reach the optimizer, and those that were taken."""
    run = make_run(make_small(), make_images(12), lr=0.1)
    defense = NoisySgd(NoisySgdSettings(**settings), "noisy-sgd")
    defense.setup(run)
    defense.epoch(run, 0)
    rows = torch.arange(12)
    (scale * F.cross_entropy(run.model(run.pixels(rows)), run.data.labels[rows])).backward()
    before = torch.cat([p.grad.flatten().clone() for p in run.model.parameters()])  # type: ignore[union-attr]
    run.optimizer.step()
    return torch.cat([p.grad.flatten() for p in run.model.parameters()]), before  # type: ignore[union-attr]


def test_the_gradient_of_the_batch_is_clipped_over_all_weights_together(
    make_run: Callable[..., Run], make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    after, before = disturbed(make_run, make_small, make_images, scale=100.0, clip=1.0, noise=0.0)
    assert before.norm() > 1
    torch.testing.assert_close(after, before / before.norm(), rtol=1e-4, atol=1e-7)


def test_a_short_gradient_is_left_alone(
    make_run: Callable[..., Run], make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    after, before = disturbed(make_run, make_small, make_images, scale=0.01, clip=1.0, noise=0.0)
    assert torch.equal(after, before)


def test_the_noise_has_the_deviation_clip_times_n(
    make_run: Callable[..., Run], make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    differences = []
    for clip, noise in [(1.0, 0.5), (4.0, 0.125)]:
        after, before = disturbed(make_run, make_small, make_images, scale=1e-3, clip=clip, noise=noise)
        differences.append(after - before)
    for difference in differences:
        assert difference.std() == pytest.approx(0.5, rel=0.15)
        assert difference.mean().abs() < 0.1


def test_the_noise_is_redrawn_at_every_step_and_follows_the_seed(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    from bench.science.training import Recipe

    recipe = Recipe(epochs=2, batch=6, lr=0.01, drops=(), augment="none", flip=False)

    def trained(seed: int, noise: float) -> Tensor:
        defense = NoisySgd(NoisySgdSettings(noise=noise), "noisy-sgd")
        return weights_of(train(make_small(), make_images(12), recipe, seed=seed, hooks=defense).model)

    assert torch.equal(trained(1, 0.01), trained(1, 0.01))
    assert not torch.equal(trained(1, 0.01), trained(1, 0.02))
