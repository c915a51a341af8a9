"""What the papers printed for a cell: the nearest row of results/published, and in what its setting differs from ours.

Rows are found by name and scenario; nothing is computed from them. Names in the tables are this tool's, except as
said in `SETTINGS` and `_plugin`. Not mapped: `friends` of the diffusion paper (which noise is not said).
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from bench.storage.record import Record

SOURCES = {"FRIENDS": "friends.csv", "Diffusion Denoising": "diffusion_denoising.csv"}

# Both papers: CIFAR-10, ResNet-18, 1 % of all training images. FRIENDS' transfer features are CIFAR-10's own.
COMMON = {"dataset.name": "cifar10", "threat.per_class": 0, "model": "resnet18", "threat.budget": 0.01}
TRANSFER = {"FRIENDS": {"pretrain_dataset.name": "cifar10"}, "Diffusion Denoising": {}}

# Settings of defenses that the tables do not print, from results/published/README.md, by the start of the name.
SETTINGS: dict[str, dict[str, Any]] = {
    "friends-": {"mu": 16, "zeta": 16},
    "friendly": {"zeta": 32},
    "noise-": {"mu": 32},
    "dp-sgd": {"noise_multiplier": 0.05, "clip": 1},
}

TAMPERED = "cifar10-tampered"  # first epochs on the attacked data as they are: a warm start

# Columns of a row and what they are called in a protocol.
COLUMNS = {"eps": "threat.eps", "epochs": "train.epochs", "surrogates": "threat.surrogates"}


@dataclass(frozen=True)
class Published:
    """A row of a paper's table. line: in the file; rates in [0, 1]; differs: settings of the row that are not those of
    the cell, in words; empty when all that is printed agrees."""

    source: str
    file: str
    table: str
    line: int
    success_rate: float
    clean_accuracy: float | None
    trials: int | None
    differs: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "differs": list(self.differs)}

    @property
    def place(self) -> str:
        """Where it stands, for a reader."""
        return f"{self.source}, Table {self.table} ({self.file}, line {self.line})"


def published(record: Record) -> Published | None:
    """The row for a record's attack and defense in its scenario, or None.

    FRIENDS comes first, so that the cells of a protocol are held against one paper where it has them; within a paper
    the row that differs least, then the one with the nearest eps, then the first.
    """
    protocol, defense = record["settings"].get("protocol") or {}, record["settings"].get("defense") or {}
    threat = protocol.get("threat") or {}
    eps = threat.get("eps")
    rows = []
    for source, line, row in _rows().get((record["attack"], record["defense"]), ()):
        if row["scenario"] != threat.get("scenario"):
            continue
        network = row["defense"].partition(" (source: ")[2]
        differs = (*_protocol(source, row, protocol), *_defense(row, network.rstrip(")"), defense, protocol))
        distance = abs(float(row["eps"]) - eps) if isinstance(eps, int | float) else 0.0
        value = Published(
            source=source,
            file=SOURCES[source],
            table=row["table"],
            line=line,
            success_rate=float(row["success"]) / 100,
            clean_accuracy=float(row["clean_accuracy"]) / 100 if row["clean_accuracy"] else None,
            trials=int(row["trials"]) if row["trials"] else None,
            differs=differs,
        )
        rows.append((list(SOURCES).index(source), len(differs), distance, line, value))
    return min(rows)[-1] if rows else None


@functools.cache
def _rows() -> dict[tuple[str, str], list[tuple[str, int, dict[str, str]]]]:
    """By attack and defense, as this tool names them: (source, line, row) of all rows with a success rate whose victims
    saw no data but the attacked ones."""
    rows: dict[tuple[str, str], list[tuple[str, int, dict[str, str]]]] = {}
    for source, line, row in _read():
        defense = _plugin(source, row["defense"].partition(" (source: ")[0], row)
        rows.setdefault((row["attack"], defense), []).append((source, line, row))
    return rows


def _read() -> Iterator[tuple[str, int, dict[str, str]]]:
    for source, name in SOURCES.items():
        rows = csv.DictReader((resources.files("bench.published") / name).read_text("utf-8").splitlines())
        for row in rows:
            if row["success"] and row.get("pretraining", "") in ("", "none", TAMPERED):
                yield source, rows.line_num, row


def _plugin(source: str, name: str, row: Mapping[str, str]) -> str:
    """This tool's name for a defense of a table."""
    if name == "diffusion":
        return f"denoise-{row['sigma']}" + ("-warm" if row["pretraining"] == TAMPERED else "")
    return "dp-sgd-0.05" if source == "Diffusion Denoising" and name == "dp-sgd" else name


def _protocol(source: str, row: Mapping[str, str], protocol: Mapping[str, Any]) -> Iterator[str]:
    facts: dict[str, Any] = dict(COMMON)
    if row["scenario"] == "transfer":
        facts |= TRANSFER[source]
    facts |= {place: float(row[column]) for column, place in COLUMNS.items() if row.get(column)}
    for place, printed in facts.items():
        here: Any = protocol
        for name in place.split("."):
            here = here.get(name) if isinstance(here, Mapping) else None
        yield from _differs(place, printed, here)
    if row.get("knowledge"):
        victim, threat = str(protocol.get("model")), protocol.get("threat") or {}
        architectures = {name for name in re.split(r"[,\s]+", str(threat.get("surrogate") or "")) if name} or {victim}
        white = architectures == {victim} and threat.get("white_box", True)
        yield from _differs("knowledge", row["knowledge"], "white-box" if white else "black-box")


def _defense(
    row: Mapping[str, str], network: str, defense: Mapping[str, Any], protocol: Mapping[str, Any]
) -> Iterator[str]:
    expected = next((values for start, values in SETTINGS.items() if row["defense"].startswith(start)), {})
    if row.get("sigma") and row["defense"] != "none":
        expected = {**expected, "sigma": float(row["sigma"])}
    for name, printed in expected.items():
        yield from _differs(name, printed, defense.get(name))
    if network or defense.get("source_model"):  # of the friendly noise; elsewhere the victim's own architecture
        yield from _differs("source_model", network or "resnet18", defense.get("source_model") or protocol.get("model"))


def _differs(name: str, printed: Any, here: Any) -> Iterator[str]:
    if isinstance(printed, float) and printed.is_integer() and name != "sigma":
        printed = int(printed)
    if here != printed:
        yield f"{name} {printed}, here {'unknown' if here is None else str(here)[:60]}"
