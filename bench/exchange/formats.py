"""The formats by name: how each is told from the others, read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.exchange import metapoison, native, numpy_arrays, packed, pickled
from bench.exchange.files import new_folder, numbered_folders, refusing
from bench.exchange.found import Found
from bench.foundation.errors import BadInput, nearest
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons
from bench.science.threat import Trial


@dataclass(frozen=True)
class Format:
    """write(empty folder, poisons, trial, dataset) -> notes; read(folder or file, dataset) -> what it holds.

    mark: the pattern of a file that only this format has, in a trial's folder. holds_target: it says who is attacked.
    """

    write: Callable[[Path, Poisons, Trial, Dataset], list[str]]
    read: Callable[[Path, Dataset], Found]
    mark: str
    holds_target: bool = True


# In this order: a folder with a source.pickle may hold a target.pickle too.
FORMATS = {
    "native": Format(native.write, native.read, native.FILE),
    "friendly-noise": Format(pickled.write_friendly_noise, pickled.read, "source.pickle"),
    "benchmark": Format(pickled.write_benchmark, pickled.read, "target.pickle"),
    "numpy": Format(numpy_arrays.write, numpy_arrays.read, numpy_arrays.DATA, holds_target=False),
    "packed": Format(packed.write, packed.read, "*.pth", holds_target=False),
    "metapoison": Format(metapoison.write, metapoison.read, "*.pkl"),
}


def write(folder: Path, format: str, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    """Write one trial as `folder`, which must not be there yet, in one step; returns what a person should know."""
    with new_folder(folder) as temporary:
        return named(format).write(temporary, poisons, trial, dataset)


def read(path: Path, format: str, dataset: Dataset) -> Found:
    """One trial's folder or file. format: a name, or `auto`. BadInput for all that is wrong with it."""
    name = format if format != "auto" else detect(path)
    if name is None:
        marks = ", ".join(f"{known.mark} ({name})" for name, known in FORMATS.items())
        raise BadInput(f"'{path}' holds no known format; looked for {marks}; fix: give the folder of one trial")
    with refusing(f"'{path}'"):
        return named(name).read(path, dataset)


def read_any(path: Path, format: str, dataset: Dataset) -> dict[int, Found]:
    """What a trial's folder or file (number 0), or a folder with sub-folders 0, 1, 2..., holds, by number."""
    if not path.exists():
        raise BadInput(f"'{path}' is not there")
    path = path.resolve()  # a link that the user gives is meant; one that was found in the folder is not followed
    if path.is_dir() and detect(path) is None:
        with refusing(f"'{path}'"):
            folders = numbered_folders(path)
        if folders:
            return {number: read(folder, format, dataset) for number, folder in folders.items()}
    return {0: read(path, format, dataset)}


def detect(path: Path) -> str | None:
    """The name of the format, by the names of the files; None where there is none."""
    if path.is_dir():
        return next((name for name, known in FORMATS.items() if any(path.glob(known.mark))), None)
    endings = {
        ".safetensors": "native",
        ".pth": "packed",
        ".pt": "packed",
        ".pkl": "metapoison",
        ".pickle": "metapoison",
    }
    return endings.get(path.suffix)


def named(format: str) -> Format:
    if format not in FORMATS:
        raise BadInput(f"format '{format}' is not known{nearest(format, FORMATS)}")
    return FORMATS[format]
