"""What a file format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.exchange.content import Content
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons
from bench.science.threat import Trial


@dataclass(frozen=True)
class Format:
    """write(empty folder, poisons, trial, dataset) -> notes; read(folder or file, dataset) -> what it holds.

    mark: the pattern of a file that tells this format, in a trial's folder without a file `unless`; suffixes: of a
    single file of this format. holds_target: it says who is attacked.
    """

    write: Callable[[Path, Poisons, Trial, Dataset], list[str]]
    read: Callable[[Path, Dataset], Content]
    mark: str
    unless: str = ""
    suffixes: tuple[str, ...] = ()
    holds_target: bool = True

    def marks(self, folder: Path) -> bool:
        return any(folder.glob(self.mark)) and not (self.unless and (folder / self.unless).exists())
