"""my_defense keeps the contract, and does what its card says."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.authoring.contract import check, tiny_dataset
from bench.foundation.registry import find
from bench.science.training import Batch, to_pixels

PLUGIN = str(Path(__file__).with_name("my_defense.py"))  # "my-defense" once the file stands in defenses/


def test_it_keeps_the_contract() -> None:
    assert [result for result in check(PLUGIN) if not result.passed] == []


def test_only_so_many_brightness_levels_are_left() -> None:
    """To be replaced: hold the mathematics of your defense against something that you can work out by hand."""
    make, data = find("defense", PLUGIN).make, tiny_dataset().train
    defense = make(make.Settings(levels=3))
    batch = Batch(to_pixels(data.images), data.labels, torch.arange(len(data)), data.ids)
    left = defense.batch(batch, None, "pixel").pixels.unique()
    assert left.tolist() == [0.0, 0.5, 1.0]
