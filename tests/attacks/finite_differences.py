"""Central finite differences, the oracle of every gradient, and how to get at the gradient of an attack."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.attacks.crafting import feature_matching
from bench.science.attack import Scene


def assert_slope(
    function: Callable[..., Any], pixels: Tensor, slope: Tensor, rel: float = 1e-6, step: float = 1e-5, seed: Any = 0
) -> None:
    """`slope` is the gradient of the float `function` at float64 `pixels`: along single pixels and random ways."""
    chance = torch.Generator().manual_seed(seed)
    assert slope.abs().max() > 0
    ways = [torch.randn(pixels.shape, dtype=torch.float64, generator=chance) for _ in range(3)]
    for place in torch.randint(pixels.numel(), (3,), generator=chance).tolist():
        ways.append(torch.zeros(pixels.shape, dtype=torch.float64))
        ways[-1].view(-1)[place] = 1.0
    ways.append(slope / slope.norm())
    for way in ways:
        up, down = function(pixels + step * way), function(pixels - step * way)
        tolerance = rel * slope.norm().item() * way.norm().item()
        assert (slope * way).sum().item() == pytest.approx((up - down) / (2 * step), rel=rel, abs=tolerance)


def objective_of(
    attack: Any,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    caller: ModuleType = feature_matching,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The (gradient, score) that an attack hands to the crafting engine in the module `caller`.

    The module is patched, because an attack is handed a scene and settings, and makes its objective itself."""
    handed = []

    def engine(
        scene: Scene,
        settings: Any,
        std: Tensor,
        gradient: Callable[..., Any],
        score: Callable[..., Any],
        memory: Any = None,
    ) -> tuple[Tensor, list[list[float]], list[float]]:
        handed.append((gradient, score))
        return torch.zeros_like(scene.base_pixels()), [[0.0]], [0.0]

    monkeypatch.setattr(caller, "craft", engine)
    attack.craft(scene)
    return handed[0]
