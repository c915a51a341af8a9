"""Trials that are listed instead of drawn: the setups of the poisoning benchmark, or those of imported poisons."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bench.exchange import formats
from bench.exchange.files import numbered_folders, read_bytes
from bench.exchange.importing import interpret
from bench.exchange.native import FILE
from bench.exchange.setups import read_setups
from bench.foundation.errors import BadInput
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons, Shown
from bench.science.threat import Trial

MOST_EPS = 255


@dataclass(frozen=True)
class TrialList:
    """path: a setups pickle, or a folder that `import` wrote; digest: sha256 of its content."""

    path: Path
    digest: str

    @classmethod
    def at(cls, path: Path) -> TrialList:
        """BadInput when there is no such file or folder."""
        path = path.resolve()
        if not path.exists():
            raise BadInput(f"'{path}' is not there")
        files = [folder / FILE for folder in numbered_folders(path).values()] if path.is_dir() else [path]
        if not files:
            raise BadInput(f"'{path}' holds no imported poisons; fix: python -m bench import SOURCE FOLDER")
        total = hashlib.sha256()
        for file in files:
            total.update(f"{file.parent.name if path.is_dir() else ''}\n".encode())
            total.update(hashlib.sha256(read_bytes(file)).digest())
        return cls(path, total.hexdigest())

    def indices(self, dataset: Dataset) -> list[int]:
        return sorted(_trials(self, dataset.fingerprint, dataset))

    def trial(self, index: int, dataset: Dataset) -> Trial:
        """BadInput when the list has no such trial."""
        return self._entry(index, dataset)[0]

    def shown(self, index: int, dataset: Dataset) -> Shown | None:
        poisons = self._entry(index, dataset)[1]
        return poisons.shown if poisons is not None else None

    def poisons(self, index: int, dataset: Dataset) -> Poisons | None:
        return self._entry(index, dataset)[1]

    def _entry(self, index: int, dataset: Dataset) -> tuple[Trial, Poisons | None]:
        entries = _trials(self, dataset.fingerprint, dataset)
        if index not in entries:
            raise BadInput(f"'{self.path}' has no trial {index}; it has {min(entries)} to {max(entries)}")
        return entries[index]


_cache: dict[tuple[str, str], dict[int, tuple[Trial, Poisons | None]]] = {}


def _trials(listed: TrialList, fingerprint: str, dataset: Dataset) -> dict[int, tuple[Trial, Poisons | None]]:
    """Read once per process; checked against the data set."""
    key = (listed.digest, fingerprint)
    if key not in _cache:
        if listed.path.is_dir():
            imported = formats.read_any(listed.path, "native", dataset)
            entries = {i: interpret(files, dataset, i, MOST_EPS) for i, files in imported.items()}
            _cache[key] = {i: (trial, poisons) for i, (poisons, trial, _) in entries.items()}
        else:
            _cache[key] = {trial.index: (trial, None) for trial in read_setups(listed.path, dataset, lambda _: None)}
    return _cache[key]
