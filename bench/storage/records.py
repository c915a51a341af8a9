"""Trial records: one JSON file a trial, the truth of which MLflow and leaderboards are views."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.foundation import files

SCHEMA = 1
NEEDED = (
    *("schema", "key", "cell", "attack", "defense", "protocol", "trial", "seed", "status", "error"),
    *("success", "clean_accuracy", "seconds", "poisons", "history", "settings", "started", "finished"),
)
DEPENDS_ON_THE_DAY = (
    "seconds",
    "reused",
    "memory_peak_mib",
    "started",
    "finished",
    "environment",
    "revision",
    "cached",
)
"""What may differ between two runs of the same trial. All else must be equal, bit for bit on one kind of CPU."""


class Records:
    """Records below `root`: root/protocol/attack/defense/<trial>-<key>.json. say: tells a person one line."""

    def __init__(self, root: Path, say: Callable[[str], None] = print) -> None:
        self.root = root
        self.say = say

    def path(self, record: dict[str, Any]) -> Path:
        folder = self.root / record["protocol"] / record["attack"] / record["defense"]
        return folder / f"{record['trial']:04d}-{record['key'][:16]}.json"

    def write(self, record: dict[str, Any]) -> None:
        """Put the record in place, whole or not at all; an older one of the same key is replaced."""
        path = self.path(record)
        files.write_bytes(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())

    def find(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """The finished record with the key of `wanted` (attack, defense, protocol, trial, key), or None.

        A damaged one is said, removed, and counts as not there; a failed one counts as not there.
        """
        record = self._read(self.path(wanted))
        return record if record and record["key"] == wanted["key"] and record["status"] == "done" else None

    def all(self) -> Iterator[dict[str, Any]]:
        """Every readable record, finished or failed, in the order of the file names."""
        for path in sorted(self.root.glob("*/*/*/*.json")):
            record = self._read(path)
            if record:
                yield record

    def of_cell(self, cell: str) -> list[dict[str, Any]]:
        """All records of a cell."""
        return [record for record in self.all() if record["cell"] == cell]

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            record = json.loads(path.read_bytes())
            if not isinstance(record, dict) or any(name not in record for name in NEEDED):
                raise ValueError("not a trial record")
            if record["schema"] != SCHEMA:
                raise ValueError(f"schema {record['schema']}, this version reads {SCHEMA}")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            aside = path.with_suffix(".damaged")
            self.say(f"record {path} is damaged ({error}); moved to {aside.name}, the trial will be run again")
            with contextlib.suppress(FileNotFoundError):  # another process has done it
                path.replace(aside)
            return None
        return record


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that must be equal between two runs of the same trial on one kind of machine."""
    return {name: value for name, value in record.items() if name not in DEPENDS_ON_THE_DAY}
