"""What a data set is: uint8 images with labels and stable ids, train and test apart, and a fingerprint."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.foundation.errors import BadInput


@dataclass(frozen=True)
class Images:
    """Labelled images.

    images: uint8 [n, 3, height, width]; labels: int64 [n]; ids: int64 [n], stable names of the samples.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images must be uint8 [n, 3, h, w], not {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.shape != (n,) or self.ids.shape != (n,):
            raise ValueError("labels and ids must have one entry an image")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Tensor) -> Images:
        """The samples at `rows` (indices or a mask), in that order."""
        return Images(self.images[rows], self.labels[rows], self.ids[rows])

    def to(self, device: torch.device | str) -> Images:
        return Images(self.images.to(device), self.labels.to(device), self.ids.to(device))

    def with_images(self, images: Tensor) -> Images:
        return replace(self, images=images)

    def rows_of(self, ids: Tensor) -> Tensor:
        """The row of each id. KeyError if an id is not here."""
        order = torch.argsort(self.ids)
        place = torch.searchsorted(self.ids[order], ids).clamp(max=len(self) - 1)
        rows = order[place]
        if not torch.equal(self.ids[rows], ids):
            raise KeyError("some ids are not in this set")
        return rows

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the content: shape, pixels, labels, ids."""
        total = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in (self.images, self.labels, self.ids):
            total.update(part.cpu().contiguous().numpy().tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A classification problem: class names, a training set, a test set. Ids number each split from 0.

    summary: a line on what was taken of a person's files and how it was converted; test_files: the file names of the
    test images, in their order; both empty where they would tell nothing.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    summary: str = field(default="", kw_only=True)
    test_files: tuple[str, ...] = field(default=(), kw_only=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over class names and both splits: two data sets with one fingerprint hold the same bytes."""
        text = "\n".join((*self.classes, self.train.digest, self.test.digest))
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training pixels, in [0, 1]."""
        # Histograms are exact and need no float copy of the pixels.
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, deviations = [], []
        for channel in range(3):
            counts = torch.bincount(self.train.images[:, channel].reshape(-1).long(), minlength=256).double()
            mean = (counts * levels).sum() / counts.sum()
            means.append(mean.item())
            deviations.append(((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt().clamp(min=1e-3).item())
        return tuple(means), tuple(deviations)


def check(dataset: Dataset) -> Dataset:
    """The data set itself, or BadInput when nothing can be learned from it."""
    count = len(dataset.classes)
    if count < 2:
        raise BadInput(f"data set '{dataset.name}' has {count} class: a classifier needs at least two")
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        present = torch.bincount(images.labels, minlength=count)
        for label, found in enumerate(present.tolist()):
            if found == 0:
                raise BadInput(f"data set '{dataset.name}': class '{dataset.classes[label]}' has no {split} image")
    return dataset


@dataclass(frozen=True)
class Place:
    """Where a data set may look for its files, and what it was asked for after the colon (`folder:PATH`)."""

    data: Path | None = None
    argument: str = ""
