"""What a file of poisons holds, in tensors, before it is compared with a data set; and the checks of single values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.exchange.files import Refused
from bench.science.dataset import Images

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Content:
    """What one trial's files hold.

    images: uint8 [n, 3, h, w]; ids: int64 [n], training ids as the file says; labels: int64 [n].
    target_images: uint8 [t, 3, h, w], target images before any trigger, with true labels target_labels: int64 [t];
    both None where the format does not hold them. target_ids: int64 [t], test ids, in our own format only.
    shown: uint8 [m, 3, h, w], images that carry a trigger, with source class shown_label, and as `Shown`
    patch: uint8 [3, p, p], places: int64 [m, 2] (x, y), shown_ids: int64 [m].
    target_class: as the file says; None: the class of the poisons. pixels_clipped: values outside 0..255.
    """

    path: Path
    format: str
    images: Tensor
    ids: Tensor
    labels: Tensor
    target_images: Tensor | None = None
    target_labels: Tensor | None = None
    target_ids: Tensor | None = None
    shown: Tensor | None = None
    shown_label: int | None = None
    shown_ids: Tensor | None = None
    patch: Tensor | None = None
    places: Tensor | None = None
    target_class: int | None = None
    pixels_clipped: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def whole(value: Any, name: str) -> int:
    """A whole number that fits in 32 bits; Refused otherwise, with `name` as what the value is called."""
    if isinstance(value, np.ndarray) and value.shape in ((), (1,)):
        value = value.reshape(()).item()
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(f"{name} is {ascii(value)[:30]}, not a whole number")
    if not -(2**31) <= value < 2**31:
        raise Refused(f"{name} is out of range")
    return value


def whole_numbers(value: Any, name: str, most: int) -> Tensor:
    """int64 [n] from a list of whole numbers or an integer array [n] or [n, 1]; n at most `most`."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu" or value.ndim not in (1, 2) or value.size != len(value):
            raise Refused(f"{name} are {value.dtype} {value.shape}, not one whole number each")
        value = value.reshape(-1)[: most + 1].tolist()
    if not isinstance(value, list | tuple) or len(value) > most:
        raise Refused(f"{name} are not a list of at most {most} whole numbers")
    return torch.tensor(
        [whole(number, f"number {row} of {name}") for row, number in enumerate(value)], dtype=torch.int64
    )


def as_image(value: Any, like: Images, name: str) -> Tensor:
    """uint8 [3, h, w] from uint8 [h, w, 3] of the size of the data set's images."""
    height, width = like.images.shape[2:]
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.shape != (height, width, 3):
        size = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise Refused(f"{name} is {size}, not an RGB image of {width}x{height} like the data set's")
    return torch.from_numpy(value.copy()).permute(2, 0, 1).contiguous()


def levels(values: np.ndarray, name: str) -> tuple[Tensor, int]:
    """uint8 [n, 3, h, w] from numbers [n, h, w, 3], rounded half up and clipped to 0..255; and how many were outside.

    Refused for NaN and infinity."""
    images = torch.empty((len(values), 3, *values.shape[1:3]), dtype=torch.uint8)
    outside = 0
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = np.floor(np.asarray(values[start : start + ROWS_AT_ONCE], dtype=np.float64) + 0.5)
        if not np.isfinite(rows).all():
            raise Refused(f"{name} holds NaN or infinity")
        outside += int(((rows < 0) | (rows > 255)).sum())
        images[start : start + ROWS_AT_ONCE] = torch.from_numpy(rows.clip(0, 255)).permute(0, 3, 1, 2)
    return images, outside


def channels_last(images: Tensor) -> np.ndarray:
    """uint8 [n, h, w, 3] from uint8 [n, 3, h, w]."""
    return images.cpu().permute(0, 2, 3, 1).contiguous().numpy()


def known_rows(ids: Tensor, images: Images, name: str) -> Tensor:
    """The rows of `ids` in the training set; Refused for an id that is not there."""
    for place in torch.nonzero(~torch.isin(ids, images.ids)).flatten().tolist()[:1]:
        low, high = int(images.ids.min()), int(images.ids.max())
        raise Refused(f"{name} {place} is {int(ids[place])}; allowed: the training ids from {low} to {high}")
    return images.rows_of(ids)
