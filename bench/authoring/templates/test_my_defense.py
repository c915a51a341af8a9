"""my_defense keeps the contract, and does what its card says."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.authoring.contract import check
from bench.authoring.tiny import tiny_dataset
from bench.plugin import Batch, find, to_pixels

PLUGIN = str(Path(__file__).with_name("my_defense.py"))  # "my-defense" once the file is in defenses/


def test_it_keeps_the_contract() -> None:
    assert [result for result in check(PLUGIN) if not result.passed] == []


def test_only_so_many_brightness_levels_remain() -> None:
    """Replace it: compare the mathematics of your defense with something that you can work out by hand."""
    made, data = find("defense", PLUGIN).make, tiny_dataset().train
    defense = made(made.Settings(levels=3))
    batch = Batch(to_pixels(data.images), data.labels, torch.arange(len(data)), data.ids)
    levels = defense.batch(batch, None, "pixel").pixels.unique()
    assert levels.tolist() == [0.0, 0.5, 1.0]
