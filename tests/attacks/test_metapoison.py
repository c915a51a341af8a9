"""MetaPoison: the gradient through unrolled training steps, the adjoint, the CW loss, and whose age it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench.attacks import metapoison
from bench.attacks.metapoison import Unrolled, carlini_wagner
from bench.foundation.errors import BadInput
from bench.science.attack import Scene
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.gradients import ParameterGradients
from bench.science.poisons import Poisons
from bench.science.training import Recipe, to_pixels, train
from bench.science.workshop import Workshop
from tests.attacks.finite_differences import assert_slope, objective_of
from tests.plugins import make_attack

LR = 0.3


def with_snapshots(scene: Scene, histories: list[list[Classifier]]) -> Scene:
    return replace(scene, workshop=Workshop(snapshots=lambda: histories))


def batches(steps: int, poisons: Any = 3, clean: int = 4, seed: Any = 0) -> list[tuple[Tensor, Tensor]]:
    """The unrolled batches, float64: the first begins with the poisons."""
    chance = torch.Generator().manual_seed(seed)
    sizes = [poisons + clean, *([clean] * (steps - 1))]
    return [(torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=chance), torch.arange(n) % 3) for n in sizes]


def aim(n: Any = 2) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(9)
    return torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=chance), torch.full((n,), 1)


def plain_losses(
    model: Classifier, weights: dict[str, Tensor], parts: list[tuple[Tensor, Tensor]], target: Tensor, wanted: Tensor
) -> Tensor:
    """The mean CW loss after each step of plain SGD, with its graph back to `weights` and the images."""
    total = 0.0
    for pixels, labels in parts:
        loss = F.cross_entropy(functional_call(model, weights, (pixels,)), labels)
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - LR * s for (name, w), s in zip(weights.items(), slopes, strict=True)}
        logits = functional_call(model, weights, (target,))
        for row, label in zip(logits, wanted.tolist(), strict=True):
            best = max(value for c, value in enumerate(row) if c != label)
            total = total + (best - row[label]) / len(target) / len(parts)
    return total  # type: ignore[return-value]


def weights_of(model: Classifier) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_(True) for name, p in model.named_parameters()}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_loss_is_that_of_plain_training_steps(make_smooth: Callable[..., Classifier], steps: int) -> None:
    model, parts, (target, wanted) = make_smooth(), batches(steps), aim()
    expected = plain_losses(model, weights_of(model), parts, target, wanted)
    found = Unrolled(ParameterGradients(model), parts, LR).loss(target, wanted)
    assert found == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_adjoint_is_the_derivative_after_the_first_step(make_smooth: Callable[..., Classifier], steps: int) -> None:
    """By plain autograd through the later steps, from the weights after the first one."""
    model, parts, (target, wanted) = make_smooth(), batches(steps), aim()
    source = ParameterGradients(model)
    unrolled = Unrolled(source, parts, LR)
    after = {name: value.clone().requires_grad_(True) for name, value in unrolled.after[0].weights.items()}
    now = (functional_call(model, after, (target,)), wanted)
    first = carlini_wagner(*now) / len(target) / steps
    later = plain_losses(model, after, parts[1:], target, wanted) * (steps - 1) / steps if steps > 1 else 0.0
    expected = torch.autograd.grad(first + later, list(after.values()))
    found = unrolled.direction(target, wanted)
    assert list(found) == list(after)
    for name, value in zip(after, expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("clean", [0, 4])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_the_attack_composes_is_the_gradient_in_the_poisons(
    make_smooth: Callable[..., Classifier], steps: int, clean: int
) -> None:
    model, (target, wanted) = make_smooth(), aim()
    parts = batches(steps, clean=max(clean, 2))
    poisons, labels = parts[0][0][:3], parts[0][1]
    rest = parts[0][0][3 : 3 + clean]
    source = ParameterGradients(model)

    def unrolled(at: Tensor) -> Unrolled:
        return Unrolled(source, [(torch.cat([at, rest]), labels[: 3 + clean]), *parts[1:]], LR)

    share, direction = 3 / (3 + clean), unrolled(poisons).direction(target, wanted)
    slope = -LR * share * source.pixel_gradient(poisons, labels[:3], direction)
    assert_slope(lambda at: unrolled(at).loss(target, wanted), poisons, slope)
    leaf = poisons.clone().requires_grad_(True)
    whole = [(torch.cat([leaf, rest]), labels[: 3 + clean]), *parts[1:]]
    plain = torch.autograd.grad(plain_losses(model, weights_of(model), whole, target, wanted), leaf)[0]
    torch.testing.assert_close(slope, plain, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("unroll", [1, 2, 3])
def test_the_gradient_of_the_attack_is_that_of_finite_differences(
    make_scene: Callable[..., Scene],
    make_smooth: Callable[..., Classifier],
    monkeypatch: pytest.MonkeyPatch,
    unroll: int,
    augment: bool,
) -> None:
    histories = [[make_smooth(2 * k + age) for age in range(2)] for k in range(2)]
    scene = with_snapshots(make_scene(n=4, k=2), histories)
    attack = make_attack("metapoison", unroll=unroll, clean=5, inner_lr=LR, ages=(1, 2), augment=augment)
    gradient, _ = objective_of(attack, scene, monkeypatch, metapoison)
    pixels = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in (0, 3):
        assert_slope(lambda at, step=step: gradient(at, step)[0], pixels, gradient(pixels, step)[1])


def test_the_score_is_the_mean_over_surrogates_and_ages(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = [[make_smooth(2 * k + age) for age in range(2)] for k in range(2)]
    scene, attack = make_scene(n=4, k=2), make_attack("metapoison", unroll=1, clean=0, inner_lr=LR, ages=(1, 2))
    _, score = objective_of(attack, with_snapshots(scene, histories), monkeypatch, metapoison)
    pixels, target = scene.base_pixels(), to_pixels(scene.targets)
    wanted = torch.tensor([scene.trial.target_class])
    parts = [(pixels.double(), scene.bases.labels)]
    each = [
        plain_losses(model, weights_of(model), parts, target.double(), wanted).item()
        for history in histories
        for model in history
    ]
    assert score(pixels) == pytest.approx(sum(each) / 4, rel=1e-6)


@pytest.mark.parametrize("clean", [0, 1])
def test_batches_of_few_or_no_clean_images_are_crafted_with(
    make_scene: Callable[..., Scene], make_small: Callable[..., Classifier], clean: int
) -> None:
    scene = with_snapshots(make_scene(n=4), [[make_small()]])
    poisons = make_attack("metapoison", clean=clean, steps=2, ages=(1,)).craft(scene)
    assert poisons.distance(scene.train) > 0


# The CW loss.


def by_definition(logits: Tensor, wanted: Tensor) -> float:
    total = 0.0
    for row, label in zip(logits.tolist(), wanted.tolist(), strict=True):
        total += max(max(value for c, value in enumerate(row) if c != label) - row[label], -100.0)
    return total


@pytest.mark.parametrize("shift", [-50.0, 0.0, 50.0])
def test_the_wanted_class_is_left_out_and_not_set_to_0(shift: float) -> None:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + shift
    wanted = torch.arange(40) % 5
    assert carlini_wagner(logits, wanted).item() == pytest.approx(by_definition(logits, wanted), rel=1e-5)


def test_all_logits_negative_and_the_wanted_one_largest_is_below_0() -> None:
    assert carlini_wagner(torch.tensor([[-5.0, -3.0, -9.0]]), torch.tensor([1])).item() == -2.0


def test_the_loss_is_bounded_below_and_flat_there() -> None:
    logits = torch.tensor([[0.0, 400.0, 1.0]], requires_grad=True)
    loss = carlini_wagner(logits, torch.tensor([1]))
    assert loss.item() == -100.0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_two_classes_are_enough() -> None:
    assert carlini_wagner(torch.tensor([[2.0, 5.0]]), torch.tensor([0])).item() == 3.0


# Ages.


@pytest.mark.parametrize("ages", [[], [2, 2], [4, 2], [0, 1], [-1]])
def test_ages_must_be_rising_epochs(ages: list[Any]) -> None:
    with pytest.raises(BadInput, match="ages must be rising epochs from 1 on") as caught:
        make_attack("metapoison", ages=ages)
    assert "\n" not in str(caught.value)


def test_the_snapshots_wanted_are_the_ages() -> None:
    assert make_attack("metapoison", ages=(1, 3)).snapshots == (1, 3)
    assert make_attack("metapoison").snapshots == (2, 4, 8, 12, 16, 20, 24, 28)


def test_ages_move_on_at_every_step_and_are_staggered_over_surrogates(
    make_scene: Callable[..., Scene], make_small: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = [[make_small(3 * k + age) for age in range(3)] for k in range(2)]
    whose = {model.head.bias.data_ptr(): (k, age) for k, h in enumerate(histories) for age, model in enumerate(h)}
    seen = []

    class Watched(Unrolled):
        def __init__(
            self, source: ParameterGradients, parts: list[tuple[Tensor, Tensor]], lr: float, chunk: int = 256
        ) -> None:
            seen.append((whose[source.weights["head.bias"].data_ptr()], [len(labels) for _, labels in parts]))
            super().__init__(source, parts, lr, chunk)

    monkeypatch.setattr(metapoison, "Unrolled", Watched)  # the module: what is unrolled is shown to nobody
    scene = with_snapshots(make_scene(n=4, k=2), histories)
    make_attack("metapoison", steps=4, clean=5, unroll=3, ages=(1, 2, 3)).craft(scene)
    every = [(k, age) for k in range(2) for age in range(3)]
    assert [who for who, _ in seen[:6]] == every  # the bases are judged
    staggered = [(k, (step + k) % 3) for step in range(4) for k in range(2)]
    assert [who for who, _ in seen[6:-6]] == staggered
    assert [who for who, _ in seen[-6:]] == every
    assert all(sizes == [9, 5, 5] for _, sizes in seen)


def test_clean_images_are_never_bases_and_change_with_the_step(
    make_scene: Callable[..., Scene], make_small: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, seen = with_snapshots(make_scene(n=4), [[make_small()]]), []

    class Watched(Unrolled):
        def __init__(
            self, source: ParameterGradients, parts: list[tuple[Tensor, Tensor]], lr: float, chunk: int = 256
        ) -> None:
            seen.append(parts)
            super().__init__(source, parts, lr, chunk)

    monkeypatch.setattr(metapoison, "Unrolled", Watched)  # the module: what is unrolled is shown to nobody
    make_attack("metapoison", steps=3, clean=12, ages=(1,), augment=False).craft(scene)
    train_pixels = to_pixels(scene.train.images)
    draws = []
    for parts in seen:
        (first, labels), (second, more) = parts
        assert torch.equal(labels[:4], scene.bases.labels)
        for pixels, own in ((first[4:], labels[4:]), (second, more)):
            rows = (pixels[:, None] == train_pixels[None]).flatten(2).all(2).int().argmax(1)
            assert torch.equal(train_pixels[rows], pixels)
            assert torch.equal(scene.train.labels[rows], own)
            assert not torch.isin(scene.train.ids[rows], scene.bases.ids).any()
            draws.append(tuple(rows.tolist()))
    assert draws[0:2] == draws[-2:]  # bases and poisons are judged by the same steps
    assert len(set(draws)) == 2 + 2 * 3


# Crafting.


@pytest.fixture
def histories(make_images: Callable[..., Images], make_small: Callable[..., Classifier]) -> list[list[Classifier]]:
    """Two surrogates after 2, 4 and 6 epochs of their training on the scene's training set."""

    def history(seed: int) -> list[Classifier]:
        network, kept = make_small(seed), []
        recipe = Recipe(epochs=6, batch=10, lr=0.05, drops=(), augment="none", flip=False)

        def look(epoch: int, of: int, figures: dict[str, float]) -> None:
            if epoch % 2 == 0:
                kept.append(copy.deepcopy(network).eval())

        train(network, make_images(30), recipe, seed=seed, report=look)
        return kept

    return [history(0), history(1)]


def test_crafting_lowers_its_own_objective(
    make_scene: Callable[..., Scene],
    histories: list[list[Classifier]],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    scene = with_snapshots(make_scene(n=8, k=2), histories)
    before = snapshot(histories[1][2])
    poisons = make_attack("metapoison", steps=30, ages=(2, 4, 6), clean=8, inner_lr=0.2, augment=False).craft(scene)
    poisons.check(scene.train, scene.threat.eps, scene.bases.ids)
    assert_untouched(histories[1][2], before)
    assert poisons.provenance["final_losses"][0] < poisons.provenance["loss_of_bases"] - 0.02
    assert len(poisons.provenance["losses"][0]) == 30


def test_poisons_depend_on_the_seed_alone(make_scene: Callable[..., Scene], histories: list[list[Classifier]]) -> None:
    def craft(seed: int) -> Poisons:
        scene = with_snapshots(make_scene(n=4, k=2, seed=seed), histories)
        return make_attack("metapoison", steps=3, ages=(2, 4, 6), clean=4).craft(scene)

    torch.manual_seed(1)
    first = craft(0)
    torch.manual_seed(2)
    again = craft(0)
    assert torch.equal(first.images, again.images)
    assert first.provenance == again.provenance
    assert not torch.equal(first.images, craft(1).images)


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_chunk_does_not_change_the_gradient(
    make_scene: Callable[..., Scene],
    make_smooth: Callable[..., Classifier],
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
) -> None:
    scene = with_snapshots(make_scene(n=4), [[make_smooth()]])
    pixels = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for size in (chunk, 256):
        gradient, _ = objective_of(
            make_attack("metapoison", ages=(1,), clean=5, chunk=size), scene, monkeypatch, metapoison
        )
        found.append(gradient(pixels, 0))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)
