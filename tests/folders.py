"""Folders of images for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

VAL = {0: "n01", 1: "n02", 2: "n03", 3: "n01", 4: "n03", 10: "n02"}
"""The test images of `write_tiny_imagenet`, by number, with their class."""


def write_folder(root: Path, train: int = 4, test: int = 2, size: int = 8) -> Path:
    """Two classes of noise, as PNG."""
    chance = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                _noise(chance, size).save(root / split / name / f"{number}.png")
    return root


def write_tiny_imagenet(root: Path, size: int = 8) -> Path:
    """As the archive of TinyImageNet is, with three classes of 12 training images and `VAL`."""
    chance = np.random.default_rng(0)
    for name in ("n01", "n02", "n03"):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
        for number in range(12):
            _noise(chance, size).save(root / "train" / name / "images" / f"{name}_{number}.JPEG", quality=95)
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    _noise(chance, size).save(root / "test" / "images" / "test_0.JPEG")
    for number in VAL:
        _noise(chance, size).save(root / "val" / "images" / f"val_{number}.JPEG", quality=95)
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t62\t62\n" for number, name in VAL.items()]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def _noise(chance: np.random.Generator, size: int) -> Image.Image:
    return Image.fromarray(chance.integers(0, 256, (size, size, 3), dtype=np.uint8))
