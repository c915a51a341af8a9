"""`packed` of the Witches' Brew code: torch.save([delta, ids]), delta in the units of normalised pixels, float32.

It holds neither labels nor the target: the trial must be known from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.exchange import unpickle
from bench.exchange.content import Content, known_rows, whole_numbers
from bench.exchange.files import Refused, read_bytes
from bench.exchange.format import Format
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons
from bench.science.threat import Trial

FILE = "poisons_packed.pth"


def write(folder: Path, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    base = dataset.train.images[dataset.train.rows_of(poisons.ids)]
    delta = (poisons.images.float() - base.float()) / (255 * _standard_deviations(dataset))
    torch.save([delta.float(), poisons.ids], folder / FILE)
    notes = ["this format holds no target: keep the list of trials with it"]
    if poisons.shown is not None:
        notes.append("this format holds no trigger: `import --trigger` adds the protocol's again")
    return notes


def read(path: Path, dataset: Dataset) -> Content:
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.pth"))), path / FILE)
    content = unpickle.load_torch(read_bytes(path), f"'{path}'")
    if not isinstance(content, list | tuple) or len(content) != 2:
        raise Refused("it is not a list of a tensor and ids")
    delta, ids = (part.detach().numpy() if isinstance(part, Tensor) else part for part in content)
    ids = whole_numbers(ids, "ids", len(dataset.train))
    size = (len(ids), *dataset.train.images.shape[1:])
    if not isinstance(delta, np.ndarray) or delta.dtype.kind != "f" or delta.shape != size:
        kind = f"{delta.dtype} {delta.shape}" if isinstance(delta, np.ndarray) else type(delta).__name__
        raise Refused(f"delta is {kind}, not floats {size}")
    if not np.isfinite(delta).all():
        raise Refused("delta holds NaN or infinity")
    bases = dataset.train.subset(known_rows(ids, dataset.train, "id"))
    change = torch.from_numpy(delta.astype(np.float64)) * 255 * _standard_deviations(dataset)
    values = torch.floor(bases.images.double() + change + 0.5)
    outside = int(((values < 0) | (values > 255)).sum())
    images = values.clamp(0, 255).to(torch.uint8)
    return Content(path, "packed", images, ids, bases.labels, pixels_clipped=outside)


def _standard_deviations(dataset: Dataset) -> Tensor:
    """Standard deviations of the channels, [3, 1, 1]."""
    return torch.tensor(dataset.normalisation[1], dtype=torch.float64).view(3, 1, 1)


FORMAT = Format(write, read, "*.pth", suffixes=(".pth", ".pt"), holds_target=False)
