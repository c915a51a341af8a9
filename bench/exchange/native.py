"""Our own format: one safetensors file a trial, checksummed, with the trial and its data set in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from bench import atomic, store
from bench.datasets.base import Dataset
from bench.exchange.files import Refused, read_bytes
from bench.exchange.found import Found, whole, whole_numbers
from bench.poisons import Poisons
from bench.threat import Trial

FILE = "poisons.safetensors"
KIND = "poisoning-bench poisons 1"


def write(folder: Path, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    meta = {
        "kind": KIND,
        "trial": trial.as_dict(),
        "max_change": poisons.distance(dataset.train),
        "dataset": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "provenance": poisons.provenance,
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in poisons.tensors().items()}
    atomic.write_bytes(folder / FILE, store.encode(tensors, meta))
    return []


def load(path: Path) -> store.Made:
    """Tensors and meta-data of a trial's folder or file, as written; Damaged or Refused when it is another file."""
    tensors, meta = store.decode(read_bytes(path / FILE if path.is_dir() else path))
    if not isinstance(meta, dict) or meta.get("kind") != KIND:
        raise Refused(f"it is not a file of '{KIND}'")
    return tensors, meta


def read(path: Path, dataset: Dataset) -> Found:
    path = path / FILE if path.is_dir() else path
    tensors, meta = load(path)
    json.dumps(meta, allow_nan=False)  # ValueError for numbers that could not be written again
    made_for: Any = meta["dataset"]
    if made_for["fingerprint"] != dataset.fingerprint:
        raise Refused(
            f"its poisons are of data set {ascii(made_for['name'])[:30]}, and not of these pictures of "
            f"'{dataset.name}'; repair: choose the data set and its settings as they were then"
        )
    size = tuple(dataset.train.images.shape[1:])
    for name, tensor in tensors.items():
        pictures = name.endswith("images")
        if tensor.dtype != (torch.uint8 if pictures or name == "shown.patch" else torch.int64):
            raise Refused(f"{ascii(name)[:20]} is {tensor.dtype}")
        if pictures and tuple(tensor.shape[1:]) != size:
            raise Refused(f"{ascii(name)[:20]} has pictures of {tuple(tensor.shape[1:])}, not of {size}")
        if not pictures and tensor.ndim != {"shown.patch": 3, "shown.places": 2}.get(name, 1):
            raise Refused(f"{ascii(name)[:20]} has the shape {tuple(tensor.shape)}")
    poisons = Poisons.of_tensors(tensors, dict(meta["provenance"]))
    shown, trial = poisons.shown, meta["trial"]
    if shown is not None:
        m, side = len(shown.images), dataset.train.images.shape[-1]
        if shown.ids.shape != (m,) or (shown.patch is None) != (shown.places is None):
            raise Refused("the shown pictures are incomplete")
        if shown.patch is not None and shown.places is not None:
            patch, places = tuple(shown.patch.shape), shown.places
            if places.shape != (m, 2) or patch[0] != 3 or not 0 < patch[1] == patch[2]:
                raise Refused(f"a patch of {patch} at places of {tuple(places.shape)}")
            if m and not 0 <= int(places.min()) <= int(places.max()) <= side - patch[1]:
                raise Refused("the patch lies outside the pictures")
    return Found(
        path, "native", poisons.images, poisons.ids, poisons.labels,
        target_ids=whole_numbers(trial["target_ids"], "target ids", len(dataset.test)),
        target_labels=torch.tensor([whole(trial["true_class"], "true class")]),
        shown=shown.images if shown else None,
        shown_ids=shown.ids if shown else None,
        patch=shown.patch if shown else None,
        places=shown.places if shown else None,
        adversarial_class=whole(trial["adversarial_class"], "adversarial class"),
        provenance=poisons.provenance,
    )  # fmt: skip
