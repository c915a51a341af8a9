"""The crafting engine: its three rules against Adam, the projection, restarts and what is an error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.attacks.crafting.descent import DescentSettings, craft
from bench.science.attack import Scene
from bench.science.dataset import Images

STD = torch.tensor([0.25, 0.2, 0.3])


def run(
    scene: Scene, gradient: Callable[..., Any] | Moving, score: Callable[..., Any] = lambda pixels: 0.0, **settings: Any
) -> tuple[Tensor, list[list[float]], list[float]]:
    built = DescentSettings(**{"steps": 5, "restarts": 1, "decay": False, **settings})
    return craft(scene, built, STD, gradient, score)


class Moving:
    """A gradient whose signs change from pixel to pixel and from step to step; keeps the pixels that it was shown."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, pixels: Tensor, step: int) -> tuple[float, Tensor]:
        self.seen.append(pixels.clone())
        chance = torch.Generator().manual_seed(step)
        return float(step), torch.randn(pixels.shape, generator=chance) + 0.5


def signed_adam(scene: Scene, start: Tensor, steps: int, lr: float) -> tuple[list[Tensor], Tensor]:
    """torch's Adam on the signs of Moving's gradients, in the normalised image, with projection after each step."""
    std = STD.view(1, 3, 1, 1).double()
    base = scene.base_pixels().double()
    delta = ((start.double() - base) / std).requires_grad_(True)
    adam = torch.optim.Adam([delta], lr=lr)
    positions = []
    for step in range(steps):
        positions.append(base + delta.detach() * std)
        delta.grad = Moving()(base, step)[1].sign().double()
        adam.step()
        with torch.no_grad():
            inside = (delta * std).clamp(-scene.eps, scene.eps)
            delta.copy_(((base + inside).clamp(0, 1) - base) / std)
    return positions, delta.detach() * std


def test_the_rule_is_adam_on_signs_with_projection(make_scene: Callable[..., Scene]) -> None:
    scene, gradient = make_scene(n=4), Moving()
    delta, _, _ = run(scene, gradient, steps=50)
    positions, expected = signed_adam(scene, gradient.seen[0], 50, 0.1)
    for found, wanted in zip(gradient.seen, positions, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(delta.double(), expected, rtol=0, atol=1e-5)


def plain_adam(scene: Scene, start: Tensor, steps: int, lr: float) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """torch's Adam on Moving's gradients as they are, in the normalised image, with projection after each step; the
    positions before each step, and the steps."""
    std = STD.view(1, 3, 1, 1).double()
    base = scene.base_pixels().double()
    delta = ((start.double() - base) / std).requires_grad_(True)
    adam = torch.optim.Adam([delta], lr=lr)
    positions, moves = [], []
    for step in range(steps):
        before = delta.detach().clone()
        positions.append(base + before * std)
        delta.grad = Moving()(base, step)[1].double() * std
        adam.step()
        moves.append(delta.detach() - before)
        with torch.no_grad():
            inside = (delta * std).clamp(-scene.eps, scene.eps)
            delta.copy_(((base + inside).clamp(0, 1) - base) / std)
    return positions, moves, delta.detach() * std


@pytest.mark.parametrize("init", ["noise", "base"])
def test_the_rule_adam_is_that_of_torch_with_projection(make_scene: Callable[..., Scene], init: str) -> None:
    scene, gradient = make_scene(n=4), Moving()
    delta, _, _ = run(scene, gradient, steps=50, rule="adam", lr=0.04, init=init)
    positions, _, expected = plain_adam(scene, gradient.seen[0], 50, 0.04)
    for found, wanted in zip(gradient.seen, positions, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(delta.double(), expected, rtol=0, atol=1e-5)


def test_the_rule_adam_takes_small_gradients_as_seriously_as_large_ones(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene]
) -> None:
    ends = []
    for size in (1.0, 0.03):
        grey = make_images(30, low=100, high=150)
        moving = Moving()
        delta, _, _ = run(
            make_scene(train=grey, eps=100), lambda pixels, step, s=size, m=moving: (0.0, s * m(pixels, step)[1]),
            rule="adam", init="base", lr=0.02,
        )  # fmt: skip
        ends.append(delta)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-4)


def test_the_rule_signed_adam_moves_every_pixel_by_the_rate_in_the_direction_of_adam(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene]
) -> None:
    scene, gradient = make_scene(train=make_images(30, low=110, high=140), n=4, eps=100), Moving()
    run(scene, gradient, steps=12, rule="signed-adam", lr=0.05, init="base")
    _, moves, _ = plain_adam(scene, gradient.seen[0], 12, 1e-6)
    for step in range(11):
        moved = (gradient.seen[step + 1] - gradient.seen[step]).double() / STD.view(1, 3, 1, 1)
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.05), rtol=0, atol=1e-5)
        assert torch.equal(moved.sign(), moves[step].sign())


@pytest.mark.parametrize("rule", ["sign-adam", "adam", "signed-adam"])
def test_from_the_base_every_restart_begins_at_the_clean_images(make_scene: Callable[..., Scene], rule: str) -> None:
    scene, gradient = make_scene(), Moving()
    run(scene, gradient, steps=3, restarts=2, init="base", rule=rule)
    assert torch.equal(gradient.seen[0], scene.base_pixels())
    assert torch.equal(gradient.seen[3], scene.base_pixels())
    assert not torch.equal(gradient.seen[1], scene.base_pixels())


@pytest.mark.parametrize("rule", ["adam", "signed-adam"])
def test_restarts_do_not_inherit_the_state_of_the_optimiser(make_scene: Callable[..., Scene], rule: str) -> None:
    seen = []

    def same_again(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        seen.append(pixels.clone())
        return 0.0, Moving()(pixels, step % 4)[1]

    run(make_scene(), same_again, steps=4, restarts=2, init="base", rule=rule)
    for first, second in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("rule", ["adam", "signed-adam"])
def test_the_rate_of_every_rule_falls_with_decay(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene], rule: str
) -> None:
    white, seen = make_images(30, low=255, high=255), []

    def downwards(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        seen.append(pixels[0, 0].max().item())
        return 0.0, torch.ones_like(pixels)

    run(make_scene(train=white, eps=255), downwards, steps=80, decay=True, lr=0.02, rule=rule)
    moved = [before - after for before, after in zip(seen, seen[1:], strict=False)]
    rates = [0.02 * STD[0].item() * 0.1 ** sum(step >= drop for drop in [29, 49, 70]) for step in range(79)]
    assert moved == pytest.approx(rates, rel=0.05, abs=2e-7)


@pytest.mark.parametrize("rule", ["adam", "signed-adam"])
def test_every_rule_stays_in_the_ball_and_leaves_pixels_without_gradient_alone(
    make_scene: Callable[..., Scene], rule: str
) -> None:
    scene, gradient = make_scene(eps=8), Moving()

    def left_half(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        loss, slope = gradient(pixels, step)
        slope[..., 4:] = 0
        return loss, slope

    delta, _, _ = run(scene, left_half, steps=20, lr=1.0, rule=rule, init="base")
    assert not delta[..., 4:].any()
    assert delta[..., :4].any()
    for pixels in [*gradient.seen, scene.base_pixels() + delta]:
        assert (pixels - scene.base_pixels()).abs().max() <= 8 / 255 + 1e-6
        assert pixels.min() >= 0 and pixels.max() <= 1


def test_every_step_stays_in_the_ball_and_in_the_range_of_images(make_scene: Callable[..., Scene]) -> None:
    scene, gradient = make_scene(eps=8), Moving()
    delta, _, _ = run(scene, gradient, steps=20, lr=1.0)
    base = scene.base_pixels()
    for pixels in [*gradient.seen, base + delta]:
        assert (pixels - base).abs().max() <= 8 / 255 + 1e-6
        assert pixels.min() >= 0
        assert pixels.max() <= 1


@pytest.mark.parametrize("eps", [1, 8, 16])
@pytest.mark.parametrize("sign", [-1, 1])
def test_saturated_perturbations_are_exactly_eps_after_rounding(
    make_scene: Callable[..., Scene], eps: int, sign: int
) -> None:
    scene = make_scene(eps=eps)
    delta, _, _ = run(scene, lambda pixels, step: (0.0, torch.full_like(pixels, -sign)), lr=10.0)
    poisons = scene.poisons(delta)
    poisons.check(scene.train, eps, scene.bases.ids)
    assert torch.equal(poisons.images.long(), (scene.bases.images.long() + sign * eps).clamp(0, 255))


def test_the_start_is_clamped_gaussian_noise_of_deviation_eps(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene]
) -> None:
    train = make_images(60, 16, low=60, high=190)
    scene, gradient = make_scene(train=train, n=20), Moving()
    run(scene, gradient, steps=1)
    noise = (gradient.seen[0] - scene.base_pixels()) / scene.eps
    on_bound = (noise.abs() > 1 - 1e-4).float().mean().item()
    assert on_bound == pytest.approx(math.erfc(1 / math.sqrt(2)), abs=0.02)
    middle = (noise.abs() < 0.5).float().mean().item()
    assert middle == pytest.approx(math.erf(0.5 / math.sqrt(2)), abs=0.02)


def test_a_scene_seed_fixes_the_start_and_each_restart_has_its_own(make_scene: Callable[..., Scene]) -> None:
    starts = []
    for seed in (0, 0, 1):
        gradient = Moving()
        run(make_scene(seed=seed), gradient, steps=1, restarts=2)
        starts.append(gradient.seen)
    assert torch.equal(starts[0][0], starts[1][0])
    assert not torch.equal(starts[0][0], starts[2][0])
    assert not torch.equal(starts[0][0], starts[0][1])


@pytest.mark.parametrize(("steps", "drops"), [(250, [93, 156, 218]), (80, [29, 49, 70]), (40, [14, 24, 35])])
def test_the_rate_falls_to_a_tenth_at_the_published_steps(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene], steps: int, drops: list[int]
) -> None:
    white = make_images(30, low=255, high=255)
    seen = []

    def downwards(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        seen.append(pixels[0, 0].max().item())
        return 0.0, torch.ones_like(pixels)

    run(make_scene(train=white, eps=255), downwards, steps=steps, decay=True, lr=0.02)
    moved = [before - after for before, after in zip(seen, seen[1:], strict=False)]
    rates = [0.02 * STD[0].item() * 0.1 ** sum(step >= drop for drop in drops) for step in range(steps - 1)]
    assert moved == pytest.approx(rates, rel=0.05, abs=2e-7)


def test_without_decay_every_step_is_as_long(
    make_images: Callable[..., Images], make_scene: Callable[..., Scene]
) -> None:
    seen = []

    def downwards(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        seen.append(pixels[0, 2].max().item())
        return 0.0, torch.ones_like(pixels)

    run(make_scene(train=make_images(30, low=255, high=255), eps=255), downwards, steps=100, lr=0.02)
    moved = [before - after for before, after in zip(seen, seen[1:], strict=False)]
    assert moved == pytest.approx([0.02 * STD[2].item()] * 99, rel=1e-3)


def test_pixels_without_gradient_do_not_move(make_scene: Callable[..., Scene]) -> None:
    scene, gradient = make_scene(), Moving()

    def left_half(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        loss, slope = gradient(pixels, step)
        slope[..., 4:] = 0
        return loss, slope

    delta, _, _ = run(scene, left_half, steps=10)
    start = gradient.seen[0] - scene.base_pixels()
    assert torch.equal(delta[..., 4:], start[..., 4:])
    assert ((delta - start)[..., :4] != 0).float().mean() > 0.5


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [3.0, 2.0, -1.0]])
def test_the_restart_with_the_lowest_score_is_kept(make_scene: Callable[..., Scene], values: list[float]) -> None:
    scene, rounded = make_scene(), []

    def score(pixels: Tensor) -> float:
        rounded.append(pixels)
        return values[len(rounded) - 1]

    delta, losses, scores = run(scene, Moving(), score, restarts=3)
    assert scores == values
    best = rounded[values.index(min(values))]
    torch.testing.assert_close(scene.poisons(delta).images / 255, best)
    assert losses == [[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0], [10.0, 11.0, 12.0, 13.0, 14.0]]


def test_restarts_are_judged_on_the_very_images_that_are_stored(make_scene: Callable[..., Scene]) -> None:
    scene, rounded = make_scene(), []
    delta, _, _ = run(scene, Moving(), lambda pixels: rounded.append(pixels * 255) or 0.0, steps=9)  # type: ignore[func-returns-value]
    assert torch.equal(rounded[0].round().to(torch.uint8), scene.poisons(delta).images)
    torch.testing.assert_close(rounded[0], rounded[0].round(), rtol=0, atol=1e-4)


def test_a_score_that_is_not_a_number_is_an_error(make_scene: Callable[..., Scene]) -> None:
    with pytest.raises(FloatingPointError, match="restart 1"):
        run(make_scene(), Moving(), nan_at_second(), restarts=3)


def nan_at_second() -> Callable[..., Any]:
    values = iter([0.5, math.nan, 0.4])
    return lambda pixels: next(values)


@pytest.mark.parametrize("broken", [(math.nan, 1.0), (0.5, math.nan), (math.nan, math.nan)])
def test_a_loss_or_gradient_that_is_not_a_number_is_an_error(
    make_scene: Callable[..., Scene], broken: tuple[float, float]
) -> None:
    loss, slope = broken
    with pytest.raises(FloatingPointError):
        run(make_scene(), lambda pixels, step: (loss, torch.full_like(pixels, slope)))


def test_progress_is_reported_over_all_restarts(make_scene: Callable[..., Scene]) -> None:
    seen = []
    scene = dataclasses.replace(make_scene(), report=lambda done, of, figures: seen.append((done, of, figures["loss"])))
    run(scene, Moving(), steps=3, restarts=2)
    assert seen == [(i + 1, 6, float(i)) for i in range(6)]
