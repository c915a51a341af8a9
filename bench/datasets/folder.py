"""Any folder of images in class sub-folders: PATH/train/<class>/* and PATH/test/<class>/*."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.datasets.cifar10 import SubsetSettings
from bench.plugin import BadInput, Dataset, Images, Place, register

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm"}
MAX_PIXELS = 512 * 512


def _image(path: Path) -> np.ndarray:
    """One image as uint8 [h, w, 3]; BadInput when it cannot be read or is too large."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadInput(f"image '{path}' has {image.width}x{image.height} pixels; allowed: up to 512x512")
            return np.asarray(image.convert("RGB"))
    except BadInput:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise BadInput(f"image '{path}' cannot be read: {type(error).__name__}: {error}") from None


def _split(folder: Path, classes: tuple[str, ...], count: int) -> Images:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(
            p for p in (folder / name).iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith(".")
        )
        if not files:
            raise BadInput(f"class folder '{folder / name}' holds no image ({', '.join(sorted(ENDINGS))})")
        files = files[:count] if count else files
        paths += files
        labels += [label] * len(files)
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(_image, paths))
    shape = arrays[0].shape
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != shape:
            raise BadInput(
                f"images differ in size: '{paths[0]}' is {shape[1]}x{shape[0]}, '{path}' is "
                f"{array.shape[1]}x{array.shape[0]}; fix: scale all images to one size"
            )
    if shape[0] != shape[1]:
        raise BadInput(f"images are {shape[1]}x{shape[0]}; allowed: squares")
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(labels), torch.arange(len(images)))


@register("dataset", "folder")
def load(settings: SubsetSettings, place: Place) -> Dataset:
    """A user's own images. Classes are the sub-folders of train/, sorted by name; test/ must have the same ones."""
    root = Path(place.argument)
    if not place.argument:
        raise BadInput("data set 'folder' needs a path: --dataset folder:PATH")
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise BadInput(f"data folder '{root}' has no readable sub-folder '{split}/'")
    try:
        classes = tuple(sorted(p.name for p in (root / "train").iterdir() if p.is_dir()))
        tested = tuple(sorted(p.name for p in (root / "test").iterdir() if p.is_dir()))
        if classes != tested:
            unmatched = sorted(set(classes) ^ set(tested))
            raise BadInput(f"data folder '{root}': train/ and test/ differ in class '{unmatched[0]}'")
        if len(classes) < 2:
            raise BadInput(f"data folder '{root}' has {len(classes)} class folder in train/; allowed: at least two")
        splits = [
            _split(root / "train", classes, settings.train_per_class),
            _split(root / "test", classes, settings.test_per_class),
        ]
    except OSError as error:
        raise BadInput(f"data folder '{root}' cannot be read: {error.strerror or error}") from None
    if splits[0].images.shape[2:] != splits[1].images.shape[2:]:
        raise BadInput(f"data folder '{root}': train/ and test/ images differ in size")
    return Dataset("folder", classes, *splits)


load.Settings = SubsetSettings  # type: ignore[attr-defined]
load.takes_path = True  # type: ignore[attr-defined]
