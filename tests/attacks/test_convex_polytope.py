"""Convex Polytope: the inner solver against other solvers, and the envelope gradient against finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from bench.attacks.convex_polytope import ConvexPolytope, hull_coefficients, onto_simplex
from bench.science.attack import Scene
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.training import to_pixels
from tests.attacks.finite_differences import assert_slope, objective_of
from tests.plugins import make_attack


def draw(n: int, d: int, seed: int) -> tuple[Tensor, torch.Generator]:
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, dtype=torch.float64, generator=chance), chance


def value(c: Tensor, points: Tensor, goal: Tensor) -> float:
    return (goal.double() - c @ points.double()).square().sum().item()


def assert_on_simplex(c: Tensor) -> None:
    assert c.dtype == torch.float64
    assert (c >= 0).all()
    assert c.sum().item() == pytest.approx(1, abs=1e-9)


def gap(c: Tensor, points: Tensor, goal: Tensor) -> float:
    """Frank and Wolfe's duality gap: an upper bound of how far the value is above the minimum."""
    slope = 2 * points @ (c @ points - goal)
    return (c @ slope - slope.min()).item()


def by_active_sets(points: np.ndarray, goal: np.ndarray) -> float:
    """The minimum by trying every set of points: the nearest point of each affine hull that is a convex combination."""
    best = np.inf
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(range(len(points)), size):
            some = points[list(chosen)]
            gram = np.block([[some @ some.T, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            c = np.linalg.lstsq(gram, np.append(some @ goal, 1.0), rcond=None)[0][:size]
            if (c > -1e-9).all() and abs(c.sum() - 1) < 1e-9:
                best = min(best, float(((goal - c @ some) ** 2).sum()))
    return best


def by_scipy(points: np.ndarray, goal: np.ndarray) -> float:
    def f(c: np.ndarray) -> float:
        return float(((goal - c @ points) ** 2).sum())

    n = len(points)
    found = minimize(
        f, np.full(n, 1 / n), jac=lambda c: 2 * points @ (c @ points - goal), method="SLSQP", bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda c: c.sum() - 1, "jac": lambda c: np.ones(n)},
        options={"maxiter": 1000, "ftol": 1e-15},
    )  # fmt: skip
    return f(np.clip(found.x, 0, None) / np.clip(found.x, 0, None).sum())


SHAPES = [(2, 1), (3, 8), (6, 3), (7, 7), (12, 4), (4, 128), (30, 10)]


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_solver_finds_the_minimum_for_a_goal_outside_the_hull(n: int, d: int, seed: int, scale: float) -> None:
    points, chance = draw(n, d, seed)
    goal = 3 * torch.randn(d, dtype=torch.float64, generator=chance) + points.mean(0)
    points, goal = scale * points, scale * goal
    c = hull_coefficients(points, goal)
    assert_on_simplex(c)
    found, size = value(c, points, goal), goal.square().sum().item()
    expected = by_scipy(points.numpy() / scale, goal.numpy() / scale) * scale**2
    assert found <= expected + 1e-6 * max(expected, 1e-3 * size)
    if n <= 7:
        assert found == pytest.approx(by_active_sets(points.numpy(), goal.numpy()), rel=1e-5, abs=1e-6 * size)
    assert gap(c, points, goal) <= 1e-3 * size


@pytest.mark.parametrize(("n", "d"), [(6, 3), (12, 4), (30, 10), (5, 40), (80, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_a_goal_inside_the_hull_is_reached(n: int, d: int, seed: int) -> None:
    points, chance = draw(n, d, seed)
    shares = torch.rand(n, dtype=torch.float64, generator=chance)
    goal = (shares / shares.sum()) @ points
    c = hull_coefficients(points, goal)
    assert_on_simplex(c)
    assert value(c, points, goal) < 1e-6 * points.square().sum(1).mean().item()


def test_more_points_than_the_exact_bound_of_the_step_is_made_for(make_images: Callable[..., Images]) -> None:
    points, chance = draw(100, 12, 0)
    goal = 2 * torch.randn(12, dtype=torch.float64, generator=chance)
    c = hull_coefficients(points, goal)
    assert_on_simplex(c)
    assert value(c, points, goal) <= by_scipy(points.numpy(), goal.numpy()) * (1 + 1e-5)


def test_duplicated_points_change_nothing() -> None:
    points, chance = draw(5, 8, 1)
    goal = torch.randn(8, dtype=torch.float64, generator=chance)
    twice = torch.cat([points, points, points[:1]])
    c = hull_coefficients(twice, goal)
    assert_on_simplex(c)
    assert value(c, twice, goal) == pytest.approx(value(hull_coefficients(points, goal), points, goal), rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_points_that_are_all_one_leave_nothing_to_choose(n: int) -> None:
    points, goal = torch.ones(n, 4, dtype=torch.float64), torch.arange(4.0, dtype=torch.float64)
    c = hull_coefficients(points, goal)
    assert_on_simplex(c)
    assert value(c, points, goal) == pytest.approx((1 - goal).square().sum().item())


def test_a_goal_on_a_point_takes_that_point_and_no_other() -> None:
    points, _ = draw(6, 20, 4)
    c = hull_coefficients(points, points[2].clone())
    assert_on_simplex(c)
    assert c[2].item() == pytest.approx(1, abs=1e-4)


def test_all_points_on_the_goal_are_fine() -> None:
    points = torch.ones(3, 4)
    c = hull_coefficients(points, points[0])
    assert_on_simplex(c)


def test_far_from_the_origin_nothing_is_lost() -> None:
    points, chance = draw(6, 10, 2)
    goal = torch.randn(10, dtype=torch.float64, generator=chance)
    near = value(hull_coefficients(points, goal), points, goal)
    far = hull_coefficients(points + 1e4, goal + 1e4)
    assert value(far, points, goal) == pytest.approx(near, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_warm_start_stays_at_a_solution_and_never_makes_worse(seed: int) -> None:
    points, chance = draw(10, 6, seed)
    goal = 2 * torch.randn(6, dtype=torch.float64, generator=chance)
    solved = hull_coefficients(points, goal)
    again = hull_coefficients(points, goal, solved, steps=5)
    assert value(again, points, goal) <= value(solved, points, goal) + 1e-15
    start = onto_simplex(torch.rand(10, dtype=torch.float64, generator=chance))
    before = start.clone()
    for steps in (1, 2, 3, 10):
        c = hull_coefficients(points, goal, start, steps=steps)
        assert_on_simplex(c)
        assert value(c, points, goal) <= value(start, points, goal) + 1e-12
    assert torch.equal(start, before)


def by_bisection(vector: Tensor) -> Tensor:
    """The threshold t with sum(max(v - t, 0)) = 1, halving the interval."""
    low, high = vector.min().item() - 1, vector.max().item()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (vector - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (vector - low).clamp(min=0)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 200])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_the_projection_on_the_simplex_is_that_of_bisection(n: int, scale: float) -> None:
    for seed in range(5):
        vector = scale * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        found = onto_simplex(vector)
        assert_on_simplex(found)
        torch.testing.assert_close(found, by_bisection(vector), rtol=1e-9, atol=1e-9)


def test_the_projection_on_the_simplex_is_the_nearest_point() -> None:
    chance = torch.Generator().manual_seed(0)
    for _ in range(20):
        vector = 2 * torch.randn(3, dtype=torch.float64, generator=chance)
        found = onto_simplex(vector)
        weights = torch.rand(4000, 3, dtype=torch.float64, generator=chance)
        others = weights / weights.sum(1, keepdim=True)
        assert (vector - found).norm() <= (vector - others).norm(dim=1).min() + 1e-12


@pytest.mark.parametrize("point", [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])
def test_the_projection_leaves_the_simplex_alone(point: list[float]) -> None:
    vector = torch.tensor(point, dtype=torch.float64)
    torch.testing.assert_close(onto_simplex(vector), vector)
    torch.testing.assert_close(onto_simplex(vector + 7), vector)


# The attack.


def minimised(models: list[Classifier], pixels: Tensor, target: Tensor) -> float:
    """Mean over networks of 1/2 min_c |aim - c own|^2 / |aim|^2."""
    each = []
    with torch.no_grad():
        for model in models:
            own, aim = model.features(pixels), model.features(target)[0]
            each.append(0.5 * by_active_sets(own.numpy(), aim.numpy()) / aim.square().sum().item())
    return sum(each) / len(each)


EXACT: dict[str, Any] = {"solver_steps": 20_000, "solver_tolerance": 0.0}


@pytest.mark.parametrize("seed", range(3))
def test_the_envelope_gradient_is_that_of_the_minimised_objective(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    models = [make_smooth(seed), make_smooth(seed + 10)]
    scene = make_scene(models, k=2, n=4)
    gradient, _ = objective_of(ConvexPolytope(ConvexPolytope.Settings(**EXACT, augment=False)), scene, monkeypatch)
    chance = torch.Generator().manual_seed(seed)
    pixels = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=chance)
    target = to_pixels(scene.targets)
    loss, slope = gradient(pixels, 0)
    assert loss == pytest.approx(minimised(models, pixels, target), rel=1e-6)
    assert_slope(lambda at: minimised(models, at, target), pixels, slope, rel=1e-4, step=1e-4)


def test_the_gradient_of_several_layers_has_coefficients_for_each(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_smooth()
    scene = make_scene([model], n=4)
    settings = ConvexPolytope.Settings(**EXACT, augment=False, layers=2)
    gradient, _ = objective_of(ConvexPolytope(settings), scene, monkeypatch)
    pixels = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def both(at: Tensor) -> float:
        with torch.no_grad():
            pairs = zip(model.stages(at)[-2:], model.stages(to_pixels(scene.targets))[-2:], strict=True)
            parts = [by_active_sets(o.numpy(), a[0].numpy()) / a.square().sum().item() / 2 for o, a in pairs]
        return sum(parts) / 2

    loss, slope = gradient(pixels, 0)
    assert loss == pytest.approx(both(pixels), rel=1e-6)
    assert_slope(both, pixels, slope, rel=1e-4, step=1e-4)


def test_crafting_brings_the_target_nearer_to_the_hull(
    make_scene: Callable[..., Scene],
    make_model: Callable[..., Classifier],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    models = [make_model("convnet", seed=seed) for seed in (0, 1)]
    scene = make_scene(models, k=2, n=5)
    before = snapshot(models[1])
    poisons = make_attack("cp", steps=30).craft(scene)
    poisons.check(scene.train, scene.threat.eps, scene.bases.ids)
    assert_untouched(models[1], before)
    clean = minimised(models, scene.base_pixels(), to_pixels(scene.targets))
    crafted = minimised(models, to_pixels(poisons.images), to_pixels(scene.targets))
    assert crafted < 0.9 * clean
    assert poisons.provenance["losses"][0][0] == pytest.approx(clean, rel=1e-2)
    assert poisons.provenance["final_losses"] == pytest.approx([crafted], rel=1e-2)
    assert len(poisons.provenance["coefficients_used"]) == 2
    assert all(1 <= used <= 5 for used in poisons.provenance["coefficients_used"])


def test_an_attack_can_craft_twice_with_the_same_result(
    make_scene: Callable[..., Scene], make_model: Callable[..., Classifier]
) -> None:
    scene, attack = make_scene([make_model("convnet")], n=4), make_attack("cp", steps=5, restarts=2)
    first, again = attack.craft(scene), attack.craft(scene)
    assert torch.equal(first.images, again.images)
    assert first.provenance == again.provenance


def test_the_published_settings_are_the_defaults() -> None:
    settings = make_attack("cp").settings
    assert (settings.rule, settings.lr, settings.steps, settings.restarts, settings.init) == (
        "adam", 0.04, 1200, 1, "base",
    )  # fmt: skip
    assert not settings.augment and not settings.decay
