"""CIFAR-10 (Krizhevsky 2009) through torchvision: downloaded on first use, checked against its MD5 sums."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.error import URLError

import torch
from pydantic import Field
from torch import Tensor

from bench.datasets.base import Dataset, Images, Place
from bench.errors import BadInput
from bench.registry import register
from bench.settings import Settings


class SubsetSettings(Settings):
    train_per_class: int = Field(0, ge=0, description="training pictures a class, the first of each; 0: all")
    test_per_class: int = Field(0, ge=0, description="test pictures a class, the first of each; 0: all")


def first_of_each_class(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` samples of every class in the order of the set; 0 keeps all."""
    if count == 0:
        return images, labels
    rank = torch.zeros_like(labels)
    for label in labels.unique():
        mine = labels == label
        rank[mine] = torch.arange(int(mine.sum()))
    keep = rank < count
    return images[keep], labels[keep]


@register("dataset", "cifar10")
def load(settings: SubsetSettings, place: Place) -> Dataset:
    """50,000 training and 10,000 test pictures of 32x32 in ten classes. Looks where --data says, else in the cache."""
    from torchvision.datasets import CIFAR10

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "poisoning-bench"
    root = place.data or cache
    splits = []
    classes: tuple[str, ...] = ()
    for training in (True, False):
        count = settings.train_per_class if training else settings.test_per_class
        try:
            source = CIFAR10(str(root), train=training, download=place.data is None)
        except (RuntimeError, OSError, URLError) as error:
            raise BadInput(
                f"data set 'cifar10': not found under '{root}' and could not be downloaded ({error}); repair: put "
                "cifar-10-python.tar.gz, unpacked as cifar-10-batches-py, in a folder and give --data FOLDER"
            ) from None
        classes = tuple(source.classes)
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        images, labels = first_of_each_class(images, torch.tensor(source.targets), count)
        splits.append(Images(images, labels, torch.arange(len(images))))
    return Dataset("cifar10", classes, *splits)


load.Settings = SubsetSettings  # type: ignore[attr-defined]
