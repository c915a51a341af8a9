"""A person's own arrays as `Images`: checked, and refused in one line with the repair."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.datasets.image_files import as_rgb
from bench.foundation.errors import BadInput
from bench.science.dataset import Images


def as_uint8(images: Any, name: str = "images") -> Tensor:
    """uint8 [n, 3, h, w] on the CPU.

    images: numpy array or tensor, [n, 3, h, w] or [n, h, w, 3], square; uint8, or float in [0, 1], which is rounded to
    levels of 255. BadInput for anything else.
    """
    pixels = _tensor(images, name)
    if pixels.ndim != 4 or len(pixels) == 0 or 3 not in (pixels.shape[1], pixels.shape[3]):
        raise BadInput(
            f"{name}: shape {list(pixels.shape)}; allowed: [n, 3, h, w] or [n, h, w, 3]; fix: repeat the channel of "
            "grey images three times"
        )
    if pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.shape[2] != pixels.shape[3]:
        raise BadInput(
            f"{name}: {pixels.shape[2]} by {pixels.shape[3]} pixels; allowed: square images; fix: crop or resize"
        )
    if pixels.dtype != torch.uint8:
        if not pixels.is_floating_point():
            raise BadInput(
                f"{name}: {pixels.dtype}; allowed: uint8, or float in [0, 1]; fix: divide by 255, or give uint8"
            )
        low, high = pixels.min().item(), pixels.max().item()
        if not (low >= 0 and high <= 1):  # false for NaN, too
            raise BadInput(
                f"{name}: floats from {low:g} to {high:g}; allowed: 0 to 1; fix: divide by 255, or give uint8"
            )
        pixels = (pixels * 255).round().to(torch.uint8)
    return pixels.contiguous()


def as_labels(labels: Any, count: int, name: str = "labels") -> Tensor:
    """int64 [count] on the CPU, from whole numbers >= 0. BadInput for anything else."""
    numbers = _tensor(labels, name)
    if numbers.shape != (count,):
        raise BadInput(f"{name}: shape {list(numbers.shape)}; allowed: one whole number per image, [{count}]")
    if numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise BadInput(f"{name}: {numbers.dtype}; allowed: whole numbers; fix: convert them to int64")
    if int(numbers.min()) < 0:
        raise BadInput(f"{name}: {int(numbers.min())}; allowed: 0 and more")
    return numbers.long()


def as_images(pair: Any, name: str, first_id: int, classes: int | None = None) -> Images:
    """(images, labels) as Images numbered from `first_id`; classes: labels are below it. BadInput for anything else."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise BadInput(f"{name}: {type(pair).__name__}; allowed: a pair (images, labels)")
    images = as_uint8(pair[0], f"{name}: images")
    labels = as_labels(pair[1], len(images), f"{name}: labels")
    if classes is not None and int(labels.max()) >= classes:
        raise BadInput(f"{name}: labels: {int(labels.max())}; allowed: 0 to {classes - 1}")
    return Images(images, labels, torch.arange(first_id, first_id + len(images)))


def of_dataset(dataset: Any) -> tuple[Tensor, list[int]]:
    """All images and labels of a data set of pairs (PIL image, array or tensor; label). BadInput for anything else.

    PIL images are converted as those of a folder are."""
    try:
        pairs = [dataset[row] for row in range(len(dataset))]
        images = [as_rgb(image)[0] if isinstance(image, Image.Image) else image for image, _ in pairs]
        return torch.stack([_tensor(np.array(image), "images") for image in images]), [int(label) for _, label in pairs]
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        kind = type(dataset).__name__
        raise BadInput(f"images: {kind} without labels; allowed: a data set of pairs (image, label): {error}") from None


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.ascontiguousarray(values))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}: not an array of numbers: {error}") from None
