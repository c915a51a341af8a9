"""The folders of pickles of poisoning-benchmark (Schwarzschild et al., ICML 2021) and of FRIENDS and EPIC.

poisons.pickle: list of (RGB image, label); base_indices.pickle: their training ids, in that order. What the victim is
judged on: target.pickle, (image, true label), or for a trigger (clean image, true label, patch float [3, p, p] in
[0, 1], [x, y]); or source.pickle, a list of (image with its trigger, true label).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.exchange import unpickle
from bench.exchange.content import Content, as_image, channels_last, whole, whole_numbers
from bench.exchange.files import Refused, read_bytes
from bench.exchange.format import Format
from bench.foundation.errors import BadInput
from bench.science.dataset import Dataset
from bench.science.poisons import NOT_A_TEST_IMAGE, Poisons
from bench.science.threat import Trial
from bench.science.trigger import Trigger

PROTOCOL = 4  # the newest that Python 3.7 reads, which those projects were written for
PATCH_SIDES = {32: 5, 64: 8}
"""Side of the patch that poisoning-benchmark's evaluation wants, by side of the image."""


def write_benchmark(folder: Path, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    notes = []
    shown = poisons.shown
    targets = len(trial.target_ids) if shown is None else len(shown.images)
    if targets > 1:
        notes.append(f"this format holds one target: the first of {targets} is written")
    if shown is None:
        target: tuple[Any, ...] = (_as_image(_test_images(trial.target_ids[:1], dataset)[0]), trial.source_class)
    elif shown.patch is None or shown.places is None or int(shown.ids[0]) == NOT_A_TEST_IMAGE:
        target = (_as_image(shown.images[0]), trial.source_class)
    else:
        clean = _as_image(_test_images(shown.ids[:1], dataset)[0])
        target = (clean, trial.source_class, shown.patch.float() / 255, shown.places[0].tolist())
        side = PATCH_SIDES.get(dataset.train.images.shape[-1])
        if side not in (None, shown.patch.shape[-1]):
            notes.append(
                f"poisoning-benchmark takes patches of {side} pixels only; this one has {shown.patch.shape[-1]}"
            )
    _write_poisons(folder, poisons)
    (folder / "target.pickle").write_bytes(pickle.dumps(target, PROTOCOL))
    return notes


def write_friendly_noise(folder: Path, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    shown = poisons.shown
    if shown is None or (shown.patch is None and len(shown.images) == 1):
        return write_benchmark(folder, poisons, trial, dataset)
    _write_poisons(folder, poisons)
    sources = [(_as_image(image), trial.source_class) for image in shown.images]
    (folder / "source.pickle").write_bytes(pickle.dumps(sources, PROTOCOL))
    return []


def read(path: Path, dataset: Dataset) -> Content:
    """Either folder. A source.pickle comes before a target.pickle."""
    most = len(dataset.train)
    pairs = _load(path / "poisons.pickle")
    if not isinstance(pairs, list | tuple) or len(pairs) > most:
        raise Refused(f"'poisons.pickle' is not a list of at most {most} poisons")
    images, labels = [], []
    for row, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Refused(f"poison {row} of 'poisons.pickle' is not a pair of image and label")
        images.append(as_image(pair[0], dataset.train, f"poison {row}"))
        labels.append(whole(pair[1], f"the label of poison {row}"))
    ids = whole_numbers(_load(path / "base_indices.pickle"), "base indices", most)
    if len(ids) != len(images):
        raise Refused(f"{len(images)} poisons, but {len(ids)} base indices")
    if not images:
        raise Refused("'poisons.pickle' holds no poisons")
    of_target = _sources(path, dataset) if (path / "source.pickle").exists() else _target(path, dataset)
    return Content(path, images=torch.stack(images), ids=ids, labels=torch.tensor(labels), **of_target)


def _sources(path: Path, dataset: Dataset) -> dict[str, Any]:
    """The fields of Content that source.pickle fills."""
    sources = _load(path / "source.pickle")
    notes: tuple[str, ...] = ()
    if isinstance(sources, tuple) and len(sources) == 2:
        # The Sleeper Agent code exports its first source like this, and no list.
        sources, notes = [sources], ("source.pickle holds one image only",)
    if not isinstance(sources, list | tuple) or not 0 < len(sources) <= len(dataset.test):
        raise Refused(f"'source.pickle' is not a list of 1 to {len(dataset.test)} images")
    pairs = [_image_and_label(pair, dataset, f"source {row}") for row, pair in enumerate(sources)]
    if len({label for _, label in pairs}) > 1:
        raise Refused("'source.pickle' holds images of several classes; allowed: one")
    shown = torch.stack([image for image, _ in pairs])
    return {"format": "friendly-noise", "shown": shown, "shown_label": pairs[0][1], "notes": notes}


def _target(path: Path, dataset: Dataset) -> dict[str, Any]:
    """The fields of Content that target.pickle fills."""
    target = _load(path / "target.pickle")
    if not isinstance(target, list | tuple) or len(target) not in (2, 4):
        raise Refused("'target.pickle' is neither (image, label) nor (image, label, patch, place)")
    image, label = _image_and_label(target[:2], dataset, "the target")
    fields: dict[str, Any] = {"target_images": image[None], "target_labels": torch.tensor([label])}
    if len(target) == 4:
        patch, place = _patch(target[2]), whole_numbers(target[3], "the numbers of the patch's place", 2)
        most = image.shape[-1] - patch.shape[-1]
        if len(place) != 2 or not 0 <= int(place.min()) <= int(place.max()) <= most:
            raise Refused(f"the patch lies at {place.tolist()}; allowed: two numbers from 0 to {most}")
        shown = Trigger(patch, "corner").paste(image[None], place[None])
        fields |= {"shown": shown, "shown_label": label, "patch": patch, "places": place[None]}
    return {"format": "benchmark"} | fields


def _image_and_label(pair: Any, dataset: Dataset, name: str) -> tuple[Tensor, int]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise Refused(f"{name} is not a pair of image and label")
    return as_image(pair[0], dataset.test, name), whole(pair[1], f"the label of {name}")


def _patch(value: Any) -> Tensor:
    """uint8 [3, p, p] from floats in [0, 1]."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim != 3 or len(value) != 3:
        raise Refused("the patch is not an array of floats [3, p, p]")
    if not 0 < value.shape[1] == value.shape[2] or not ((value >= 0) & (value <= 1)).all():
        raise Refused("the patch is not square, or not in [0, 1]")
    return torch.from_numpy(np.floor(value.astype(np.float64) * 255 + 0.5).astype(np.uint8))


def _load(path: Path) -> Any:
    return unpickle.load(read_bytes(path), f"'{path}'")


def _test_images(ids: Tensor, dataset: Dataset) -> Tensor:
    if not len(ids):
        raise BadInput(f"the trial has no target image in '{dataset.name}': there is nothing to write")
    return dataset.test.images[dataset.test.rows_of(ids)]


def _as_image(image: Tensor) -> Image.Image:
    return Image.fromarray(channels_last(image[None])[0])


def _write_poisons(folder: Path, poisons: Poisons) -> None:
    pairs = [(_as_image(image), label) for image, label in zip(poisons.images, poisons.labels.tolist(), strict=True)]
    (folder / "poisons.pickle").write_bytes(pickle.dumps(pairs, PROTOCOL))
    (folder / "base_indices.pickle").write_bytes(pickle.dumps(poisons.ids.tolist(), PROTOCOL))


FRIENDLY_NOISE = Format(write_friendly_noise, read, "source.pickle")
# A folder with a source.pickle, which says it all, may hold a target.pickle too.
BENCHMARK = Format(write_benchmark, read, "target.pickle", unless="source.pickle")
