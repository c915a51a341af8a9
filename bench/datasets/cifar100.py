"""CIFAR-100 (Krizhevsky 2009) through torchvision: what the poisoning benchmark's transfer networks are trained on."""

from __future__ import annotations

from bench.datasets.cifar10 import SubsetSettings, through_torchvision
from bench.plugin import Dataset, Place, register


@register("dataset", "cifar100")
def load(settings: SubsetSettings, place: Place) -> Dataset:
    """50,000 training and 10,000 test images of 32x32 in a hundred classes. Looks where --data says, else in the
    cache."""
    return through_torchvision("cifar100", "cifar-100-python.tar.gz", "cifar-100-python", settings, place)


load.Settings = SubsetSettings  # type: ignore[attr-defined]
