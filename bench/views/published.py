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


def published(record: Mapping[str, Any]) -> Published | None:
    """The row for a record's attack and defense in its scenario, or None.

    FRIENDS comes first, so that the cells of a protocol are held against one paper where it has them; within a paper
    the row that differs least, then the one with the nearest eps, then the first.
    """
    settings = record.get("settings") or {}
    protocol, defense = settings.get("protocol") or {}, settings.get("defense") or {}
    scenario = (protocol.get("threat") or {}).get("scenario")
    eps = (protocol.get("threat") or {}).get("eps")
    found = []
    for source, line, row in _rows():
        name, _, network = row["defense"].partition(" (source: ")
        if (row["attack"], _plugin(source, name, row), row["scenario"]) != (
            record["attack"],
            record["defense"],
            scenario,
        ):
            continue
        differs = [*_protocol(source, row, protocol), *_defense(row, network.rstrip(")"), defense, protocol)]
        far = abs(float(row["eps"]) - eps) if isinstance(eps, int | float) else 0.0
        one = Published(
                source, SOURCES[source], row["table"], line, float(row["success"]) / 100,
                float(row["clean_accuracy"]) / 100 if row["clean_accuracy"] else None,
                int(row["trials"]) if row["trials"] else None, tuple(differs),
        )  # fmt: skip
        found.append((list(SOURCES).index(source), len(differs), far, line, one))
    return min(found)[-1] if found else None


@functools.cache
def _rows() -> tuple[tuple[str, int, dict[str, str]], ...]:
    """(source, line, row) of all rows with a success rate whose victims saw no data but the attacked ones."""
    return tuple(_read())


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
    for place, theirs in facts.items():
        ours: Any = protocol
        for part in place.split("."):
            ours = ours.get(part) if isinstance(ours, Mapping) else None
        if place == "threat.per_class" and ours is None:
            ours = 0  # records from before there was such a setting
        yield from _differs(place, theirs, ours)
    if row.get("knowledge"):
        own, threat = str(protocol.get("model")), protocol.get("threat") or {}
        architectures = {name for name in re.split(r"[,\s]+", str(threat.get("surrogate") or "")) if name} or {own}
        white = architectures == {own} and threat.get("white_box", True)
        yield from _differs("knowledge", row["knowledge"], "white-box" if white else "black-box")


def _defense(
    row: Mapping[str, str], network: str, defense: Mapping[str, Any], protocol: Mapping[str, Any]
) -> Iterator[str]:
    expected = next((one for start, one in SETTINGS.items() if row["defense"].startswith(start)), {})
    if row.get("sigma") and row["defense"] != "none":
        expected = {**expected, "sigma": float(row["sigma"])}
    for name, theirs in expected.items():
        yield from _differs(name, theirs, defense.get(name))
    if network or defense.get("source_model"):  # of the friendly noise; elsewhere the victim's own architecture
        yield from _differs("source_model", network or "resnet18", defense.get("source_model") or protocol.get("model"))


def _differs(name: str, theirs: Any, ours: Any) -> Iterator[str]:
    if isinstance(theirs, float) and theirs.is_integer() and name != "sigma":
        theirs = int(theirs)
    if ours != theirs:
        yield f"{name} {theirs}, here {'unknown' if ours is None else str(ours)[:60]}"
