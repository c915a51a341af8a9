"""Patches of ten photographs that scikit-image and scikit-learn ship in their wheels: real images, no download.

One class per photograph. The photograph is cut into square blocks; some serve only for training, the others only for
testing, and no patch crosses a block's border, so that no test pixel is seen in training. Each patch gets its own
colour jitter (gain of each channel, contrast, brightness), or the mean colour would give the class away.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from bench.datasets.image_files import open_image
from bench.plugin import BadInput, Dataset, Field, Images, Place, Settings, numpy_stream, register

PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "retina": ("skimage", "data/retina.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
BLOCKS = 8  # along each side of a photograph
SEED = 20221017  # of the cut, not of a run: the data set is fixed


class PhotographsSettings(Settings):
    size: int = Field(16, ge=8, le=32, description="side of a patch, pixels")
    train_per_class: int = Field(100, ge=2, le=5000, description="training patches per photograph")
    test_per_class: int = Field(100, ge=2, le=5000, description="test patches per photograph")
    side: int = Field(320, ge=64, le=1024, description="shorter side of a photograph after downscaling, pixels")
    colour: Literal["jitter", "grey", "plain"] = Field("jitter", description="per-patch colour treatment")
    deviation: float = Field(0.22, gt=0, le=0.5, description="grey: standard deviation of every patch")
    gain: float = Field(0.3, ge=0, le=1, description="jitter: each channel is multiplied by 1 +- gain")
    contrast: float = Field(0.3, ge=0, le=0.9, description="jitter: contrast is multiplied by 1 +- contrast")
    brightness: float = Field(0.2, ge=0, le=1, description="jitter: largest amount added or subtracted")


def photograph(name: str) -> Image.Image:
    """One of the ten photographs, RGB, as its wheel ships it."""
    package, inside = PHOTOGRAPHS[name]
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.is_file():
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise BadInput(
            f"data set 'photographs': {inside} is missing from {wheel}; fix: pip install --force-reinstall {wheel}"
        )
    with open_image(path) as image:
        return image.convert("RGB")


def _recolour(patch: np.ndarray, settings: PhotographsSettings, chance: np.random.Generator) -> np.ndarray:
    """Apply the colour treatment to one patch, float [h, w, 3] in [0, 1]."""
    if settings.colour == "plain":
        return patch
    if settings.colour == "grey":
        grey = patch @ np.array([0.299, 0.587, 0.114])
        grey = 0.5 + settings.deviation * (grey - grey.mean()) / max(float(grey.std()), 0.02)
        return np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2)
    gain = 1 + settings.gain * chance.uniform(-1, 1, size=3)
    contrast = 1 + settings.contrast * chance.uniform(-1, 1)
    brightness = settings.brightness * chance.uniform(-1, 1)
    mean = patch.mean()
    return np.clip(((patch - mean) * contrast + mean) * gain + brightness, 0, 1)


def _cut(name: str, settings: PhotographsSettings) -> tuple[np.ndarray, np.ndarray]:
    """Train and test patches of one photograph, uint8 [n, h, w, 3] each, from disjoint blocks."""
    image = photograph(name)
    scale = settings.side / min(image.size)
    if scale < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    pixels = np.asarray(image, dtype=np.float64) / 255
    height, width = pixels.shape[0] // BLOCKS, pixels.shape[1] // BLOCKS
    if min(height, width) < settings.size:
        raise BadInput(
            f"dataset.size: {settings.size} does not fit into blocks of {min(height, width)} pixels of '{name}'; "
            f"fix: dataset.side at least {settings.size * BLOCKS}"
        )
    chance = numpy_stream(SEED, "photographs", name)
    # A Latin square of test blocks: the same number in every row and column of the photograph.
    is_test = (np.add.outer(np.arange(BLOCKS), 3 * np.arange(BLOCKS)) % 4) == 0
    splits = []
    for blocks, count in ((~is_test, settings.train_per_class), (is_test, settings.test_per_class)):
        places = np.argwhere(blocks)
        patches = np.empty((count, settings.size, settings.size, 3), dtype=np.uint8)
        for i in range(count):
            row, column = places[i % len(places)]
            top = row * height + chance.integers(height - settings.size + 1)
            left = column * width + chance.integers(width - settings.size + 1)
            patch = pixels[top : top + settings.size, left : left + settings.size]
            patches[i] = np.floor(_recolour(patch, settings, chance) * 255 + 0.5)
        splits.append(patches)
    return splits[0], splits[1]


@register("dataset", "photographs")
def load(settings: PhotographsSettings, place: Place) -> Dataset:
    """Ten photographs, cut into patches. The same settings give the same bytes on every machine."""
    cuts = [_cut(name, settings) for name in PHOTOGRAPHS]
    splits = []
    for split in (0, 1):
        images = torch.from_numpy(np.concatenate([cut[split] for cut in cuts])).permute(0, 3, 1, 2).contiguous()
        labels = torch.arange(len(cuts)).repeat_interleave(len(cuts[0][split]))
        splits.append(Images(images, labels, torch.arange(len(images))))
    return Dataset("photographs", tuple(PHOTOGRAPHS), *splits)


load.Settings = PhotographsSettings  # type: ignore[attr-defined]
