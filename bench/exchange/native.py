"""Our own format: one safetensors file per trial, checksummed, with the trial and its data set in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bench.exchange.content import Content, whole, whole_numbers
from bench.exchange.files import Refused, read_bytes
from bench.exchange.format import Format
from bench.foundation import files
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons
from bench.science.threat import Trial
from bench.storage import store

FILE = "poisons.safetensors"
KIND = "poisoning-bench poisons 1"
OLDER_NAMES = {"true_class": "source_class", "adversarial_class": "target_class"}


def write(folder: Path, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    meta = {
        "kind": KIND,
        "trial": trial.as_dict(),
        "max_change": poisons.distance(dataset.train),
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "provenance": poisons.provenance,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in poisons.tensors().items()}
    files.write_bytes(folder / FILE, store.encode(tensors, meta))
    return []


def load(path: Path) -> store.Made:
    """Tensors and meta-data of a trial's folder or file, as written; Damaged or Refused when it is another file."""
    tensors, meta = store.decode(read_bytes(path / FILE if path.is_dir() else path))
    if not isinstance(meta, dict) or meta.get("kind") != KIND:
        raise Refused(f"it is not a file of '{KIND}'")
    return tensors, meta


def read(path: Path, dataset: Dataset) -> Content:
    path = path / FILE if path.is_dir() else path
    tensors, meta = load(path)
    json.dumps(meta, allow_nan=False)  # ValueError for numbers that could not be written again
    made_for: Any = meta["dataset"]
    if made_for["fingerprint"] != dataset.fingerprint:
        raise Refused(
            f"its poisons are of data set {ascii(made_for['name'])[:30]}, and not of these images of "
            f"'{dataset.name}'; fix: choose the data set and its settings as they were then"
        )
    size = tuple(dataset.train.images.shape[1:])
    for name, tensor in tensors.items():
        images = name.endswith("images")
        if tensor.dtype != (torch.uint8 if images or name == "shown.patch" else torch.int64):
            raise Refused(f"{ascii(name)[:20]} is {tensor.dtype}")
        if images and tuple(tensor.shape[1:]) != size:
            raise Refused(f"{ascii(name)[:20]} has images of {tuple(tensor.shape[1:])}, not of {size}")
        if not images and tensor.ndim != {"shown.patch": 3, "shown.places": 2}.get(name, 1):
            raise Refused(f"{ascii(name)[:20]} has the shape {tuple(tensor.shape)}")
    poisons = Poisons.of_tensors(tensors, dict(meta["provenance"]))
    shown, trial = poisons.shown, {OLDER_NAMES.get(name, name): value for name, value in meta["trial"].items()}
    if shown is not None:
        m, side = len(shown.images), dataset.train.images.shape[-1]
        if shown.ids.shape != (m,) or (shown.patch is None) != (shown.places is None):
            raise Refused("the shown images are incomplete")
        if shown.patch is not None and shown.places is not None:
            patch, places = tuple(shown.patch.shape), shown.places
            if places.shape != (m, 2) or patch[0] != 3 or not 0 < patch[1] == patch[2]:
                raise Refused(f"a patch of {patch} at places of {tuple(places.shape)}")
            if m and not 0 <= int(places.min()) <= int(places.max()) <= side - patch[1]:
                raise Refused("the patch lies outside the images")
    return Content(
        path, "native", poisons.images, poisons.ids, poisons.labels,
        target_ids=whole_numbers(trial["target_ids"], "target ids", len(dataset.test)),
        target_labels=torch.tensor([whole(trial["source_class"], "source class")]),
        shown=shown.images if shown else None,
        shown_ids=shown.ids if shown else None,
        patch=shown.patch if shown else None,
        places=shown.places if shown else None,
        target_class=whole(trial["target_class"], "target class"),
        provenance=poisons.provenance,
    )  # fmt: skip


FORMAT = Format(write, read, FILE, suffixes=(".safetensors",))
