"""my_attack keeps the contract, and does what its card says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from bench.authoring.contract import check
from bench.plugin import find

PLUGIN = str(Path(__file__).with_name("my_attack.py"))  # "my-attack" once the file is in attacks/


def test_it_keeps_the_contract() -> None:
    assert [result for result in check(PLUGIN) if not result.passed] == []


def test_every_pixel_moves_towards_the_target_but_no_further_than_eps() -> None:
    """Replace it: compare the mathematics of your attack with something that you can work out by hand."""
    attack = find("attack", PLUGIN).make
    scene = SimpleNamespace(
        targets=torch.full((1, 3, 2, 2), 100, dtype=torch.uint8),
        base_pixels=lambda: torch.tensor([0, 96, 104, 255]).div(255).view(1, 1, 2, 2).expand(2, 3, 2, 2),
        eps=8 / 255,
        poisons=lambda delta, **facts: delta,
    )
    levels = (attack(attack.Settings(strength=1.0)).craft(scene) * 255).round()
    assert levels[0, 0].flatten().tolist() == [8, 4, -4, -8]
