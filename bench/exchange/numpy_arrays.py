"""`numpy` of the Witches' Brew code: the whole poisoned training set, in order, pixels float64 [n, h, w, 3] in 0..255.

Poisons are the rows that differ from the clean set. It does not hold the target: the trial is known from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bench.exchange.content import Content, channels_last, levels
from bench.exchange.files import Refused, check_file
from bench.exchange.format import Format
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons
from bench.science.threat import Trial

DATA, LABELS = "poisoned_training_data.npy", "poisoned_training_labels.npy"


def write(folder: Path, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    train = poisons.applied_to(dataset.train)
    np.save(folder / DATA, channels_last(train.images).astype(np.float64))
    np.save(folder / LABELS, train.labels.cpu().numpy().astype(np.float64))
    notes = ["this format holds no target: keep the list of trials with it"]
    if poisons.shown is not None:
        notes.append("this format holds no trigger: `import --trigger` adds the protocol's again")
    return notes


def read(path: Path, dataset: Dataset) -> Content:
    train = dataset.train
    n, _, height, width = train.images.shape
    data = _array(path / DATA, (n, height, width, 3))
    labels = _array(path / LABELS, (n,))
    if not np.array_equal(labels, train.labels.numpy()):
        raise Refused(f"the labels of '{LABELS}' are not those of '{dataset.name}' in its order")
    images, outside = levels(data, f"'{DATA}'")
    rows = torch.nonzero((images != train.images).flatten(1).any(1)).flatten()
    return Content(path, "numpy", images[rows], train.ids[rows], train.labels[rows], pixels_clipped=outside)


def _array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Plain numbers of that shape. A memory map, so that a header cannot ask for memory that the file does not fill."""
    check_file(path)
    with np.errstate(over="ignore"):  # of a shape whose product is no size; numpy refuses it a little later
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or values.shape != shape:
        kind = f"{values.dtype} {values.shape}"[:80] if isinstance(values, np.ndarray) else "an archive"
        raise Refused(f"'{path.name}' holds {kind}, not numbers {shape}: one row for each training image")
    return values


FORMAT = Format(write, read, DATA, holds_target=False)
