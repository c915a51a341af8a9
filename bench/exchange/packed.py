"""`packed` of the Witches' Brew code: torch.save([delta, ids]), delta in the units of normalised pixels, float32.

It holds neither labels nor the target: the trial must be known from elsewhere.
"""

from __future__ import annotations

from pathlib import Path

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
    if not isinstance(content, list | tuple) or len(content) != 2 or not isinstance(content[0], Tensor):
        raise Refused("it is not a list of a tensor and ids")
    delta, ids = content
    if isinstance(ids, Tensor):
        if ids.ndim != 1 or ids.layout != torch.strided or len(ids) > len(dataset.train):
            raise Refused("its ids are not a list of whole numbers")
        ids = ids.numpy()
    ids = whole_numbers(ids, "ids", len(dataset.train))
    size = (len(ids), *dataset.train.images.shape[1:])
    if not delta.is_floating_point() or delta.layout != torch.strided or tuple(delta.shape) != size:
        raise Refused(f"delta is {delta.dtype} {tuple(delta.shape)}, not floats {size}")
    if not torch.isfinite(delta).all():
        raise Refused("delta holds NaN or infinity")
    bases = dataset.train.subset(known_rows(ids, dataset.train, "id"))
    change = delta.detach().double() * 255 * _standard_deviations(dataset)
    values = torch.floor(bases.images.double() + change + 0.5)
    outside = int(((values < 0) | (values > 255)).sum())
    images = values.clamp(0, 255).to(torch.uint8)
    return Content(path, "packed", images, ids, bases.labels, pixels_clipped=outside)


def _standard_deviations(dataset: Dataset) -> Tensor:
    """Standard deviations of the channels, [3, 1, 1]."""
    return torch.tensor(dataset.normalisation[1], dtype=torch.float64).view(3, 1, 1)


FORMAT = Format(write, read, "*.pth", suffixes=(".pth", ".pt"), holds_target=False)
