"""CIFAR-10 (Krizhevsky 2009) through torchvision: downloaded on first use, MD5 sums checked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch

from bench.plugin import BadInput, Dataset, Field, Images, Place, Settings, register


class SubsetSettings(Settings):
    train_per_class: int = Field(0, ge=0, description="training images per class, the first of each; 0: all")
    train_skip: int = Field(0, ge=0, description="training images of each class that are passed over before those")
    test_per_class: int = Field(0, ge=0, description="test images per class, the first of each; 0: all")


def of_each_class(labels: Sequence[int], count: int, skip: int) -> list[int]:
    """The places of `count` images of every class after its first `skip`, in the order of the data set; all of them
    for 0. BadInput where a class has no image after those that are skipped."""
    smallest = min(Counter(labels).values())
    if skip >= smallest:
        raise BadInput(f"train_skip {skip}: the smallest class has {smallest} images; allowed: at most {smallest - 1}")
    seen = Counter[int]()
    keep = []
    for place, label in enumerate(labels):
        if skip <= seen[label] and (not count or seen[label] < skip + count):
            keep.append(place)
        seen[label] += 1
    return keep


def default_folder() -> Path:
    """Where downloads are kept; BadInput for a user that has no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user that the system does not know
        raise BadInput("there is no home folder to keep CIFAR in; fix: --data DIR, or set HOME") from None
    return cache / "poisoning-bench"


def through_torchvision(name: str, archive: str, folder: str, settings: SubsetSettings, place: Place) -> Dataset:
    """CIFAR-10 or CIFAR-100, by the name of torchvision's class in lower case. Looks where --data says, else in the
    cache, to which it downloads. BadInput, with a fix, when it is unavailable."""
    import torchvision.datasets

    load = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    root = place.data or default_folder()
    splits = []
    classes: tuple[str, ...] = ()
    for training in (True, False):
        count = settings.train_per_class if training else settings.test_per_class
        skip = settings.train_skip if training else 0
        try:
            source = load(str(root), train=training, download=place.data is None)
        except (RuntimeError, OSError, URLError) as error:
            raise BadInput(
                f"data set '{name}': not found under '{root}' and could not be downloaded ({error}); fix: put "
                f"{archive}, unpacked as {folder}, in a folder and give --data FOLDER"
            ) from None
        classes = tuple(source.classes)
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        keep = torch.tensor(of_each_class(source.targets, count, skip))
        splits.append(Images(images[keep], torch.tensor(source.targets)[keep], torch.arange(len(keep))))
    return Dataset(name, classes, *splits)


@register("dataset", "cifar10")
def load(settings: SubsetSettings, place: Place) -> Dataset:
    """50,000 training and 10,000 test images of 32x32 in ten classes. Looks where --data says, else in the cache."""
    return through_torchvision("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py", settings, place)


load.Settings = SubsetSettings  # type: ignore[attr-defined]
