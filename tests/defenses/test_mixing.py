"""mixup, CutMix, Cutout, MaxUp, InstaHide: on one batch, against what they are by definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import Tensor

from bench.defenses.shared.mixing import box, cut_out, permutations, simplex_weights
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.training import Batch, Run
from tests.plugins import make_defense


@pytest.fixture
def world(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> tuple[Run, Callable[..., Batch]]:
    """A run on 24 images of three classes, and a batch of the first 12 of them."""
    run = make_run(make_small(), make_images(24))
    rows = torch.arange(12)

    def batch() -> Batch:
        return Batch(run.pixels(rows), run.data.labels[rows], rows, run.data.ids[rows])

    return run, batch


def at_view(defense: Any, run: Run, batch: Batch, epoch: int = 9) -> Batch:
    run.current_epoch = epoch
    defense.epoch(run, epoch)
    return defense.batch(batch, run, "view")


def loss_of(run: Run, batch: Batch) -> Tensor:
    return F.cross_entropy(run.model(batch.pixels), batch.labels, reduction="none")


@pytest.mark.parametrize("name", ["mixup", "cutmix", "instahide"])
def test_labels_stay_probabilities_and_nothing_is_done_before_augmentation(
    world: tuple[Run, Callable[..., Batch]], name: str
) -> None:
    run, batch = world
    defense = make_defense(name)
    defense.epoch(run, 0)
    assert torch.equal(defense.batch(batch(), run, "pixel").pixels, batch().pixels)
    for epoch in range(20):
        mixed = at_view(defense, run, batch(), epoch)
        if name == "cutmix" and mixed.labels.ndim == 1:  # a batch that is left alone
            assert torch.equal(mixed.pixels, batch().pixels)
            continue
        assert mixed.labels.shape == (12, 3)
        torch.testing.assert_close(mixed.labels.sum(1), torch.ones(12))
        assert mixed.labels.min() >= 0


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_mixup_finds_its_own_weights_back(world: tuple[Run, Callable[..., Batch]], ways: int) -> None:
    """Every mixed image is the combination of images that its label says it is."""
    run, batch = world
    run.model.eval()
    one_hot = torch.eye(3)
    data = batch()
    data.pixels = one_hot[data.labels][:, :, None, None].expand(-1, -1, 4, 4)  # the image spells its class
    mixed = at_view(make_defense("mixup", ways=ways), run, data)
    torch.testing.assert_close(mixed.pixels.mean((2, 3)), mixed.labels)


def test_the_loss_on_mixed_labels_is_the_weighted_sum_of_losses(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    run.model.eval()
    mixed = at_view(make_defense("mixup"), run, batch())
    each = torch.stack(
        [F.cross_entropy(run.model(mixed.pixels), torch.full((12,), c), reduction="none") for c in range(3)]
    )
    torch.testing.assert_close(loss_of(run, mixed), (mixed.labels.T * each).sum(0))


@pytest.mark.parametrize("ways", [2, 4])
def test_mixup_minimises_the_weighted_sum_of_its_partners_losses(
    world: tuple[Run, Callable[..., Batch]], ways: int
) -> None:
    """As mixup is written: sum_i w_i CE(f(x), y_i), with scipy's logarithms and the draws of the same stream."""
    run, batch = world
    run.model.eval()
    mixed = at_view(make_defense("mixup", ways=ways), run, batch())
    stream = run.stream("mixing")
    weights, orders = simplex_weights(ways, stream), permutations(ways, 12, stream)
    logs = log_softmax(run.model(mixed.pixels).detach().double().numpy(), axis=1)
    labels = batch().labels.numpy()
    expected = sum(-w.item() * logs[np.arange(12), labels[o]] for w, o in zip(weights, orders, strict=True))
    np.testing.assert_allclose(loss_of(run, mixed).detach().numpy(), expected, rtol=1e-5)
    assert len({tuple(order.tolist()) for order in orders}) == ways


def test_simplex_weights_are_uniform_on_the_simplex() -> None:
    stream = torch.Generator().manual_seed(0)
    weights = torch.stack([simplex_weights(3, stream) for _ in range(20_000)])
    torch.testing.assert_close(weights.sum(1), torch.ones(20_000))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18.
    assert weights.mean(0) == pytest.approx([1 / 3] * 3, abs=0.01)
    assert weights.var(0) == pytest.approx([1 / 18] * 3, abs=0.003)


def test_cutmix_takes_a_box_of_one_other_image_and_labels_by_area(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    changed = 0
    for epoch in range(30):
        data = batch()
        data.pixels = torch.arange(12.0).view(-1, 1, 1, 1).expand(12, 3, 8, 8).contiguous()  # the image spells its row
        mixed = at_view(make_defense("cutmix"), run, data, epoch)
        if mixed.labels.ndim == 1:
            continue
        changed += 1
        for row in range(12):
            here = mixed.pixels[row, 0]
            other = here[here != row].unique()
            assert len(other) <= 1
            area = (here != row).float().mean()
            expected = (1 - area) * F.one_hot(run.data.labels[row], 3).float()
            if len(other):
                expected = expected + area * F.one_hot(run.data.labels[int(other)], 3).float()
                inside = torch.nonzero(here != row)
                height, width = (inside.max(0).values - inside.min(0).values + 1).tolist()
                assert height * width == len(inside)  # a box
                torch.testing.assert_close(mixed.labels[row], expected)
    assert 5 < changed < 25  # half of the batches


def test_boxes_are_whole_inside_and_cut_at_the_border() -> None:
    stream = torch.Generator().manual_seed(1)
    masks = box(4, 6, 16, 16, stream, 2000)
    sizes = masks.flatten(1).sum(1)
    assert sizes.max() == 24 and sizes.min() >= 2 * 3
    assert (masks.float().mean(0) > 0).all()  # every pixel is reached


def test_cutout_blanks_one_box_per_image_with_the_mean_colour(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    out = at_view(make_defense("cutout"), run, batch())
    fill = torch.tensor(run.augmentation.fill).view(1, 3, 1, 1)
    gone = (out.pixels != batch().pixels).any(1)
    assert (gone.flatten(1).sum(1) > 0).all() and (gone.flatten(1).sum(1) <= 16).all()
    assert torch.equal(out.pixels[gone[:, None].expand(-1, 3, -1, -1)].view(-1).unique(), fill.flatten().sort().values)
    assert len({tuple(mask.flatten().tolist()) for mask in gone}) > 3  # places differ
    assert torch.equal(out.labels, batch().labels)


def test_cut_out_leaves_its_input_alone(world: tuple[Run, Callable[..., Batch]]) -> None:
    pixels = world[1]().pixels
    before = pixels.clone()
    cut_out(pixels, (0.5, 0.5, 0.5), 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(pixels, before)


def test_maxup_learns_the_worst_copy_of_every_image(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    defense = make_defense("maxup", trials=3)
    run.current_epoch = 5
    defense.epoch(run, 5)
    copies = defense.batch(batch(), run, "pixel")
    assert len(copies.pixels) == len(copies.labels) == len(copies.rows) == len(copies.ids) == 36
    assert torch.equal(copies.labels.view(3, 12), batch().labels.expand(3, 12))
    losses = torch.rand(36, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([max(losses[i + 12 * t] for t in range(3)) for i in range(12)]).mean()
    torch.testing.assert_close(defense.loss(losses, copies, run), expected)
    turned = losses.view(3, 12)[[2, 0, 1]].flatten()
    torch.testing.assert_close(defense.loss(turned, copies, run), expected)


def test_maxup_waits_for_its_start(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    defense = make_defense("maxup", start=2)
    run.current_epoch = 1
    defense.epoch(run, 1)
    assert len(defense.batch(batch(), run, "pixel").pixels) == 12
    losses = torch.arange(12.0)
    assert defense.loss(losses, batch(), run) == losses.mean()


def test_instahide_adds_laplace_noise_within_the_range(world: tuple[Run, Callable[..., Batch]]) -> None:
    run, batch = world
    data = batch()
    data.pixels = torch.full((12, 3, 64, 64), 0.5)
    out = at_view(make_defense("instahide", scale=0.03), run, data)
    noise = (out.pixels - 0.5).flatten()
    assert out.pixels.min() >= 0 and out.pixels.max() <= 1
    assert noise.abs().mean() == pytest.approx(0.03, rel=0.02)  # Laplace: E|x| = scale
    assert noise.square().mean().sqrt() == pytest.approx(0.03 * 2**0.5, rel=0.02)
