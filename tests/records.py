"""Trial records made up for tests of views, whole as the reader gives them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.storage.record import Record, parse, sealed

HOSTILE = "<script>alert(1)</script>\"'|`*[x](http://e.vil)\x1b[31m\n& =cmd"

SETTINGS: dict[str, Any] = {
    "protocol": {
        "name": "cifar10-scratch", "model": "resnet18", "dataset": {"name": "cifar10"},
        "train": {"epochs": 80, "precision": "float32"},
        "threat": {"scenario": "from-scratch", "eps": 16, "budget": 0.01, "per_class": 0, "surrogate": "",
                   "surrogates": 1, "white_box": True},
    },
    "attack": {"steps": 250},
    "defense": {},
}  # fmt: skip


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def record(
    attack: str, defense: str, trial: int, success: float | None, accuracy: float | None = 0.9, **changes: Any
) -> Record:
    """A record with all that views read. changes: top-level fields, or "settings.defense.mu" written with "__"."""
    status = "done" if success is not None else "failed"
    made: dict[str, Any] = {
        "schema": 1, "attack": attack, "defense": defense, "protocol": "cifar10-scratch", "trial": trial, "seed": 0,
        "status": status, "error": None, "success": success, "clean_accuracy": accuracy if status == "done" else None,
        "draw": {"index": trial, "target_ids": [100 + trial], "source_class": 0, "target_class": 1,
                 "base_ids": [1, 2]},
        "poisons": {"key": digest(attack, trial), "n": 0 if attack == "none" else 500, "eps": 16, "max_change": 16},
        "filter": {"dropped": 0, "poisons_dropped": 0, "precision": None, "recall": 0.0},
        "history": [], "settings": copy.deepcopy(SETTINGS), "knowledge": [], "adapted_to": [],
        "data": {"name": "cifar10", "fingerprint": "d" * 64, "train": 50000, "test": 10000},
        "code": {"version": "0.1.0", "fingerprint": digest("code", defense)}, "revision": "a" * 40,
        "environment": {"torch": "2.15.0", "device": "cpu", "device_name": "a processor"},
        "seconds": {"craft": 1.0, "train": 2.0, "evaluate": 0.1}, "reused": {},
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00",
    }  # fmt: skip
    for name, value in changes.items():
        *path, last = name.split("__")
        inner = made
        for part in path:
            inner = inner[part]
        inner[last] = value
    place = [attack, defense, made["settings"], made["seed"], made["code"], made["data"], made["protocol"]]
    cell = made.setdefault("cell", digest(json.dumps(place)))
    made.setdefault("key", digest(cell, trial))
    return parse(sealed(parse(json.dumps(made).encode())))


def cell(attack: str, defense: str, successes: Sequence[float | None], **changes: Any) -> list[Record]:
    """One trial for each success; None: it failed. changes: a function of the trial, or a value."""
    return [
        record(attack, defense, i, s, **{k: v(i) if callable(v) else v for k, v in changes.items()})
        for i, s in enumerate(successes)
    ]


def write(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """As `run` leaves them under `out`."""
    for one in records:
        folder = out / "records" / one["protocol"] / one["attack"] / one["defense"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{one['trial']:04d}-{one['key'][:16]}.json").write_bytes(sealed(one))


def lines(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(sealed(one).decode() for one in records))
    return path
