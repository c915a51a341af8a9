"""Adversarial training and adversarial poisoning: what they do to one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.science.classifier import build_model
from bench.science.dataset import Images
from bench.science.training import Batch, Recipe, Run, train
from tests.plugins import make_defense


@pytest.fixture
def world(make_images: Callable[..., Images], make_run: Callable[..., Run]) -> tuple[Run, Callable[..., Batch]]:
    """A run with BatchNorm in training mode and a network that has learned something, and a batch."""
    model = build_model("convnet", classes=3, size=8, normalisation=((0.5,) * 3, (0.25,) * 3), seed=0)
    recipe = Recipe(epochs=4, batch=8, lr=0.02, drops=(), augment="none", flip=False)
    run = make_run(train(model, make_images(24), recipe, seed=0).model, make_images(24))
    run.model.train()
    rows = torch.arange(16)

    def batch() -> Batch:
        return Batch(run.pixels(rows), run.data.labels[rows], rows, run.data.ids[rows])

    return run, batch


def at_view(defense: Any, run: Run, batch: Batch) -> Batch:
    defense.epoch(run, 0)
    return defense.batch(batch, run, "view")


NAMES = ["adv-training", "adv-training-friends", "ap-0.25", "ap-0.5", "ap-0.75"]


@pytest.mark.parametrize("name", NAMES)
def test_changes_stay_within_eps_and_range_and_the_model_is_left_alone(
    name: str,
    world: tuple[Run, Callable[..., Batch]],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    run, batch = world
    before = snapshot(run.model)
    defense = make_defense(name)
    changed = at_view(defense, run, batch())
    apart = (changed.pixels - batch().pixels).abs()
    assert 0 < apart.max() <= defense.settings.eps / 255 + 1e-6
    assert changed.pixels.min() >= 0 and changed.pixels.max() <= 1
    assert torch.equal(changed.labels, batch().labels) and torch.equal(changed.ids, batch().ids)
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert_untouched(run.model, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_comes_back_in_its_order_and_within_range_at_the_ends_of_it(
    name: str, world: tuple[Run, Callable[..., Batch]]
) -> None:
    """Black and white pixels, so that half of all steps would leave the range; images that no eps can confuse."""
    run, batch = world
    signs = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    given = batch()
    given.pixels = signs.float()
    changed = at_view(make_defense(name), run, given)
    assert changed.pixels.min() >= 0 and changed.pixels.max() <= 1
    apart = (changed.pixels[:, None] - signs.float()).abs().flatten(2).amax(2)
    eps = make_defense(name).settings.eps / 255 + 1e-6
    assert torch.equal(apart <= eps, torch.eye(16, dtype=torch.bool)) and apart.diagonal().max() > 0.5 * eps
    for one, other in (
        (changed.labels, run.data.labels),
        (changed.ids, run.data.ids),
        (changed.rows, torch.arange(24)),
    ):
        assert torch.equal(one, other[:16])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_done_before_augmentation(name: str, world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    defense = make_defense(name)
    defense.epoch(run, 0)
    assert torch.equal(defense.batch(batch(), run, "pixel").pixels, batch().pixels)


@pytest.mark.parametrize("name", NAMES[:2])
def test_adversarial_examples_raise_the_loss(name: str, world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    changed = at_view(make_defense(name), run, batch())
    run.model.eval()
    loss = [F.cross_entropy(run.model(pixels), changed.labels) for pixels in (batch().pixels, changed.pixels)]
    assert loss[1] > loss[0] + 0.02


def test_pgd_is_the_textbook_loop(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    defense = make_defense("adv-training", eps=8.0, steps=4)
    changed = at_view(defense, run, batch()).pixels
    eps, clean = 8 / 255, batch().pixels
    run.model.eval()
    delta = torch.empty_like(clean).uniform_(-eps, eps, generator=run.stream("start"))
    delta = (clean + delta).clamp(0, 1) - clean
    for _ in range(4):
        delta.requires_grad_(True)
        loss = F.cross_entropy(run.model(clean + delta), batch().labels)
        slope = torch.autograd.grad(loss, delta)[0]
        delta = (delta.detach() + 0.25 * eps * slope.sign()).clamp(-eps, eps)
        delta = (clean + delta).clamp(0, 1) - clean
    assert ((changed - clean - delta).abs() > 1e-6).float().mean() < 0.01  # signs of tiny gradients may differ


@pytest.mark.parametrize(("name", "share"), [("ap-0.25", 4), ("ap-0.5", 8), ("ap-0.75", 12)])
def test_only_the_first_part_of_the_batch_is_poisoned(
    name: str, share: int, world: tuple[Run, Callable[..., Batch]]
) -> None:
    run, batch = world
    apart = (at_view(make_defense(name), run, batch()).pixels - batch().pixels).flatten(1).abs().amax(1)
    assert (apart[:share] > 0).all() and (apart[share:] == 0).all()


def test_poisoning_brings_the_gradients_of_both_parts_together(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    changed = at_view(make_defense("ap-0.5", steps=20), run, batch()).pixels
    run.model.eval()
    labels = batch().labels
    wanted = torch.bincount(labels[:8]).argmax().expand(8)

    def gradient(pixels: Tensor, labels: Tensor) -> Tensor:
        parts = torch.autograd.grad(F.cross_entropy(run.model(pixels), labels), list(run.model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    aim = gradient(changed[8:], wanted)
    before, after = (F.cosine_similarity(gradient(x[:8], labels[:8]), aim, dim=0) for x in (batch().pixels, changed))
    assert after > before + 0.1


def test_poisoning_refuses_soft_labels(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    soft = batch()
    soft.labels = F.one_hot(soft.labels, 3).float()
    with pytest.raises(ValueError, match="hard labels"):
        at_view(make_defense("ap-0.5"), run, soft)


def test_adversarial_training_takes_soft_labels(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    soft = batch()
    soft.labels = F.one_hot(soft.labels, 3).float()
    torch.testing.assert_close(
        at_view(make_defense("adv-training"), run, soft).pixels,
        at_view(make_defense("adv-training"), run, batch()).pixels,
    )
