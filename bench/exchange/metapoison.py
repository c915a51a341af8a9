"""The data set of MetaPoison (Huang et al., NeurIPS 2020): one pickled dictionary with the whole training set, by
class. It does not say which rows are poisons, and of which image: rows are matched with the clean images.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bench.exchange import unpickle
from bench.exchange.content import Content, channels_last, levels, whole_numbers
from bench.exchange.files import Refused, read_bytes
from bench.exchange.format import Format
from bench.foundation.errors import BadInput
from bench.science.dataset import Dataset, Images
from bench.science.poisons import Poisons
from bench.science.threat import Trial

FILE = "poisondataset.pkl"


def write(folder: Path, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    train = poisons.applied_to(dataset.train)
    # The loader of FRIENDS takes the first rows of the target class to be the poisons.
    place = torch.full((len(train),), len(train))
    place[train.rows_of(poisons.ids)] = torch.arange(len(poisons.ids))
    train = train.subset(torch.from_numpy(np.lexsort((place.numpy(), train.labels.numpy()))))
    targets = poisons.shown.images if poisons.shown else dataset.test.images[dataset.test.rows_of(trial.target_ids)]
    if not len(targets):
        raise BadInput(f"the trial has no target image in '{dataset.name}': there is nothing to write")
    content = {
        "xtrain": channels_last(train.images).astype(np.float32),
        "ytrain": train.labels.numpy(),
        "xtarget": channels_last(targets).astype(np.float32),
        "ytarget": np.full(len(targets), trial.source_class),
        "ytargetadv": np.full(len(targets), trial.target_class),
        "xvalid": channels_last(dataset.test.images).astype(np.float32),
        "yvalid": dataset.test.labels.numpy(),
    }
    with (folder / FILE).open("wb") as file:
        pickle.dump(content, file, protocol=4)
    return []


def read(path: Path, dataset: Dataset) -> Content:
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.pkl"))), path / FILE)
    content = unpickle.load(read_bytes(path), f"'{path}'")
    needed = ("xtrain", "ytrain", "xtarget", "ytarget", "ytargetadv")
    missing = [name for name in needed if not isinstance(content, dict) or name not in content]
    if missing:
        raise Refused(f"'{missing[0]}' is missing; needed: {', '.join(needed)}")
    train, size = dataset.train, (*dataset.train.images.shape[2:], 3)
    for name in ("xtrain", "xtarget"):
        array = content[name]
        if not isinstance(array, np.ndarray) or array.shape[1:] != size or array.dtype.kind not in "fiu":
            raise Refused(f"{name} is not an array of images {size}")
    labels = whole_numbers(content["ytrain"], "ytrain", len(train))
    if not len(labels) == len(content["xtrain"]) == len(train) or not torch.equal(
        labels.sort().values, train.labels.sort().values
    ):
        raise Refused(f"xtrain and ytrain do not hold the {len(train)} images of '{dataset.name}' in their classes")
    images, outside = levels(content["xtrain"], "xtrain")
    targets, outside_targets = levels(content["xtarget"], "xtarget")
    source_labels = whole_numbers(content["ytarget"], "ytarget", len(dataset.test))
    target_labels = whole_numbers(content["ytargetadv"], "ytargetadv", len(dataset.test))
    if not 0 < len(targets) == len(source_labels) == len(target_labels) or len(set(target_labels.tolist())) > 1:
        raise Refused("xtarget, ytarget and ytargetadv differ in length, or ytargetadv holds several classes")
    rows, clean = _match(images, labels, train, int(target_labels[0]))
    return Content(
        path, "metapoison", images[rows], train.ids[clean], labels[rows],
        target_images=targets, target_labels=source_labels,
        target_class=int(target_labels[0]), pixels_clipped=outside + outside_targets,
    )  # fmt: skip


def _match(images: Tensor, labels: Tensor, train: Images, target_class: int) -> tuple[Tensor, Tensor]:
    """Rows of `images` that are no clean image, and the rows of `train` that they were made from.

    What remains of the target class on both sides is paired so that the sum of L-infinity distances is smallest.
    """
    unused: dict[tuple[int, bytes], list[int]] = {}
    for row, (image, label) in enumerate(zip(train.images.numpy(), train.labels.tolist(), strict=True)):
        unused.setdefault((label, image.tobytes()), []).append(row)
    changed = []
    for row, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
        same = unused.get((label, image.tobytes()))
        if same:
            same.pop(0)
        elif label == target_class:
            changed.append(row)
        else:
            raise Refused(f"image {row} of class {label} is not a clean image and not of class {target_class}")
    clean = sorted(row for (label, _), rows in unused.items() if label == target_class for row in rows)
    bases = train.images[clean].flatten(1).short()
    far = [(bases - images[row].flatten().short()).abs().amax(1) for row in changed]
    pairs = linear_sum_assignment(torch.stack(far).numpy())[1] if far else []
    return torch.tensor(changed, dtype=torch.int64), torch.tensor([clean[i] for i in pairs], dtype=torch.int64)


FORMAT = Format(write, read, "*.pkl", suffixes=(".pkl", ".pickle"))
