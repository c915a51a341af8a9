"""Poisons in a format by its name: written, read, and the format recognised."""

from __future__ import annotations

from pathlib import Path

from bench.exchange.content import Content
from bench.exchange.files import new_folder, numbered_folders, refusing
from bench.exchange.format import Format
from bench.foundation.errors import BadInput
from bench.foundation.registry import find, names
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons
from bench.science.threat import Trial


def write(folder: Path, format: str, poisons: Poisons, trial: Trial, dataset: Dataset) -> list[str]:
    """Write one trial as `folder`, which must not exist yet, in one step; returns notes for the user."""
    with new_folder(folder) as temporary:
        return named(format).write(temporary, poisons, trial, dataset)


def read(path: Path, format: str, dataset: Dataset) -> Content:
    """One trial's folder or file. format: a name, or `auto`. BadInput for anything wrong with it."""
    name = format if format != "auto" else detect(path)
    if name is None:
        marks = ", ".join(f"{named(name).mark} ({name})" for name in names("format"))
        raise BadInput(f"'{path}' holds no known format; looked for {marks}; fix: give the folder of one trial")
    with refusing(f"'{path}'"):
        return named(name).read(path, dataset)


def read_any(path: Path, format: str, dataset: Dataset) -> dict[int, Content]:
    """What a trial's folder or file (number 0), or a folder with sub-folders 0, 1, 2..., holds, by number."""
    if not path.exists():
        raise BadInput(f"'{path}' does not exist")
    path = path.resolve()  # a link that the user gives is meant; one inside the folder is not followed
    if path.is_dir() and detect(path) is None:
        with refusing(f"'{path}'"):
            folders = numbered_folders(path)
        if folders:
            return {number: read(folder, format, dataset) for number, folder in folders.items()}
    return {0: read(path, format, dataset)}


def detect(path: Path) -> str | None:
    """The name of the format, by the names of the files; None where there is none."""
    if path.is_dir():
        return next((name for name in names("format") if named(name).marks(path)), None)
    return next((name for name in names("format") if path.suffix in named(name).suffixes), None)


def named(format: str) -> Format:
    make: Format = find("format", format).make
    return make
