"""Any folder of images: PATH/train/<class>/** and PATH/test/<class>/**, or as TinyImageNet's archive has them."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.datasets.cifar10 import SubsetSettings, of_each_class
from bench.datasets.image_files import ENDINGS, read_image
from bench.plugin import BadInput, Dataset, Images, Place, read_regular, register

ANNOTATIONS = Path("val", "val_annotations.txt")
"""In the archive of TinyImageNet: lines of file name, class and more, with tabs between them."""


@dataclass(frozen=True)
class Files:
    """The image files of a split in the order of their ids, with their labels; other: what else lies there, by kind;
    files: how many there are in all, hidden ones apart."""

    paths: Sequence[Path]
    labels: Sequence[int]
    other: Counter[str]

    def of_each_class(self, count: int, skip: int) -> Files:
        """`count` images of each class after its first `skip`; all of them for 0."""
        keep = of_each_class(self.labels, count, skip)
        return Files([self.paths[row] for row in keep], [self.labels[row] for row in keep], self.other)


def _entries(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The image files in `folder` and its sub-folders, sorted, and a count of what else lies there, by ending. What is
    hidden is no part of it; links to folders are not followed, for they may lead round in a circle."""

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    other = Counter[str]()
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        other["links to folders"] += sum(os.path.islink(os.path.join(place, name)) for name in folders)
        for path in (Path(place, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in ENDINGS:
                found.append(path)
            else:
                other[path.suffix.lower() or "without an ending"] += 1
    return sorted(found), +other


def _classes(split: Path) -> tuple[str, ...]:
    """The names of the class folders, sorted; hidden folders are none."""
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise BadInput(
                f"class folder {ascii(str(split / name))}: its name holds control characters or is not UTF-8; fix: "
                "rename it"
            )
    return tuple(names)


def _by_class(split: Path, classes: Sequence[str]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    other = Counter[str]()
    for label, name in enumerate(classes):
        found, more = _entries(split / name)
        if not found:
            raise BadInput(f"class folder '{split / name}' holds no image ({', '.join(sorted(ENDINGS))})")
        paths += found
        labels += [label] * len(found)
        other += more
    return Files(paths, labels, other)


def _annotated(root: Path, classes: Sequence[str]) -> Files:
    """TinyImageNet's labelled test images, by file name over all classes, which is how its setups count them."""
    text = read_regular(root / ANNOTATIONS).decode("utf-8", "replace")
    of_file = dict(line.split("\t")[:2] for line in text.splitlines() if "\t" in line)
    found, other = _entries(root / ANNOTATIONS.parent)
    labels = {name: label for label, name in enumerate(classes)}
    kept = sorted((path for path in found if of_file.get(path.name) in labels), key=lambda path: path.name)
    other[f"not of these classes in {ANNOTATIONS.name}"] += len(found) - len(kept)
    if not kept:
        raise BadInput(
            f"'{root / ANNOTATIONS}' names no image of these classes; fix: put the images into test/<class>/"
        )
    return Files(kept, [labels[of_file[path.name]] for path in kept], +other)


def _read(files: Files) -> tuple[Images, Counter[str]]:
    """The images, and how often what was converted."""
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:  # in this order: the pool ends its work first
        warnings.simplefilter("ignore")  # what Pillow remarks about a file is not for whoever reads a table
        read = list(pool.map(read_image, files.paths))
    arrays = [array for array, _ in read]
    shape = arrays[0].shape
    for path, array in zip(files.paths, arrays, strict=True):
        if array.shape != shape:
            raise BadInput(
                f"images differ in size: '{files.paths[0]}' is {shape[1]}x{shape[0]}, '{path}' is "
                f"{array.shape[1]}x{array.shape[0]}; fix: scale all images to one size"
            )
    if shape[0] != shape[1]:
        raise BadInput(f"images are {shape[1]}x{shape[0]}; allowed: squares; fix: crop or scale them")
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    converted = Counter(kind for _, kinds in read for kind in kinds)
    return Images(images, torch.tensor(files.labels), torch.arange(len(images))), converted


@register("dataset", "folder")
def load(settings: SubsetSettings, place: Place) -> Dataset:
    """A user's own images. Classes are the sub-folders of train/, sorted by name; test/ must have the same ones.

    An image is any .png, .jpg, .tif, .webp and the like in a class's folder or below it. TinyImageNet's archive is read
    as it is, with val/ as the test images.
    """
    if not place.argument:
        raise BadInput("data set 'folder' needs a path: --dataset folder:PATH")
    root = Path(place.argument)
    try:
        place.argument.encode()  # it is written into records
        classes = _classes(_split(root, "train"))
        if len(classes) < 2:
            raise BadInput(f"data folder '{root}' has {len(classes)} class folder in train/; allowed: at least two")
        found = {"train": _by_class(root / "train", classes), "test": _test(root, classes)}
        limits = {"train": settings.train_per_class, "test": settings.test_per_class}
        skipped = {"train": settings.train_skip, "test": 0}
        taken = {split: files.of_each_class(limits[split], skipped[split]) for split, files in found.items()}
        (train, changed), (test, changed_too) = (_read(files) for files in taken.values())
    except UnicodeEncodeError:
        raise BadInput(f"data folder {ascii(str(root))}: its name is not UTF-8; fix: rename it") from None
    except OSError as error:
        raise BadInput(f"data folder '{root}' cannot be read: {error.strerror or error}") from None
    if train.images.shape[2:] != test.images.shape[2:]:
        raise BadInput(f"data folder '{root}': train/ and test/ images differ in size; fix: scale all to one size")
    parts = [_summary(split, found[split], len(taken[split].paths), limits[split], skipped[split]) for split in found]
    parts += _listed("left out", found["train"].other + found["test"].other)
    parts += _listed("converted", changed + changed_too)
    summary = f"data set '{root.name}', {len(classes)} classes: {'; '.join(parts)}"
    names = tuple(path.name for path in taken["test"].paths)
    return Dataset("folder", classes, train, test, summary=summary, test_files=names)


def _split(root: Path, name: str) -> Path:
    """The folder of a split; BadInput when it is not there."""
    if not (root / name).is_dir():
        raise BadInput(f"data folder '{root}' has no readable sub-folder '{name}/'")
    return root / name


def _test(root: Path, classes: tuple[str, ...]) -> Files:
    """The test images: of test/, or, where that has other classes, of an archive like TinyImageNet's."""
    annotated = (root / ANNOTATIONS).is_file()
    tested = _classes(root / "test") if annotated and (root / "test").is_dir() else ()
    if annotated and tested != classes:
        return _annotated(root, classes)
    tested = _classes(_split(root, "test"))
    if tested != classes:
        unmatched = sorted(set(classes) ^ set(tested))
        raise BadInput(f"data folder '{root}': train/ and test/ differ in class '{unmatched[0]}'")
    return _by_class(root / "test", classes)


def _summary(split: str, found: Files, taken: int, limit: int, skipped: int) -> str:
    """How many images of how many files, and why not of all."""
    files = len(found.paths) + found.other.total()
    text = f"{split} {taken} image{'s' * (taken != 1)} of {files} file{'s' * (files != 1)}"
    if taken < len(found.paths):
        which = [f"without the first {skipped} of each class"] if skipped else []
        which += [f"the {'next' if skipped else 'first'} {limit}{'' if skipped else ' of each class'}"] if limit else []
        text += f" ({', '.join(which)}; all: {split}_per_class=0{', train_skip=0' * bool(skipped)})"
    return text


def _listed(title: str, counts: Counter[str]) -> list[str]:
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f"{title}: " + ", ".join(f"{kind} ({count})" for kind, count in kinds)] if kinds else []


load.Settings = SubsetSettings  # type: ignore[attr-defined]
load.takes_path = True  # type: ignore[attr-defined]
