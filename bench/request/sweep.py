"""Sweeps: many attacks x many defenses, of one or several protocols, from the command line or from a TOML file.

    description = "..."
    protocols = ["cifar10-scratch"]     # what stands here holds for every [[block]] that does not say otherwise
    attacks = ["gm"]
    trials = 20
    [[block]]
    defenses = ["none", "friends-b"]
    [[block]]
    defenses = ["epic-0.1"]
    set = ["train.epochs=85"]           # on top of the `set` above

Without a [[block]] the file is one block. A sweep is a plan for the runner like any other, with a table for every block
and protocol.
"""

from __future__ import annotations

import json
import statistics
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from bench.execution import runner
from bench.execution.tasks import Unit, work_for
from bench.foundation.errors import BadInput, nearest
from bench.foundation.settings import Settings, build
from bench.science.protocol import MOST_TRIALS
from bench.storage.records import Record
from bench.storage.records import read as read_records
from bench.views import text
from bench.views.leaderboard import leaderboard


class Block(Settings):
    """Every attack against every defense in every protocol."""

    protocols: tuple[str, ...] = Field(("quick",), min_length=1, description="presets, or files")
    attacks: tuple[str, ...] = Field(("gm",), min_length=1, description="attacks, by name or file")
    defenses: tuple[str, ...] = Field(("none",), min_length=1, description="defenses; a+b composes them")
    trials: int | None = Field(None, ge=1, le=MOST_TRIALS, description="trials of each cell (none: the protocol's)")
    seed: int = Field(0, description="of the whole study")
    set: tuple[str, ...] = Field((), description="key=value, as of --set")
    only: bool = Field(False, description="without the undefended cells and the clean controls")

    def sets(self) -> list[str]:
        return [*([f"trials={self.trials}"] if self.trials is not None else []), *self.set]


@dataclass(frozen=True)
class Part:
    """A block in one of its protocols: what gets a table of its own."""

    title: str
    plan: runner.Plan


def names() -> list[str]:
    """The sweep files that ship with the tool."""
    folder = resources.files("bench.request.sweeps")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read(name: str) -> tuple[list[Block], str, str]:
    """The blocks, the description and the text of a sweep file, by name or path. BadInput in one line."""
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"no readable sweep file '{name}': {error}") from None
    elif name in names():
        text = (resources.files("bench.request.sweeps") / f"{name}.toml").read_text()
    else:
        raise BadInput(f"unknown sweep '{name}'{nearest(name, names())}; or give the path of a .toml file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"sweep file '{name}' is not TOML: {error}") from None
    description, blocks = values.pop("description", ""), values.pop("block", [{}])
    if not isinstance(description, str):
        raise BadInput(f"sweep file '{name}': bad value for 'description': {description!r}; allowed: text")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise BadInput(f"sweep file '{name}': write each block under a line [[block]]")
    common = build(Block, values, "")
    found = []
    for number, block in enumerate(blocks, 1):
        own = build(Block, block, f"block {number}")
        found.append(own.model_copy(update=_inherited(common, own)))
    return found, description, text


def _inherited(common: Block, own: Block) -> dict[str, Any]:
    """What a block takes from the top of its file: what it does not say itself, and the settings before its own."""
    taken = {key: getattr(common, key) for key in common.model_fields_set - own.model_fields_set}
    return {**taken, "set": (*common.set, *own.set)}


def parts(blocks: Sequence[Block], **options: Any) -> list[Part]:
    """Every block in every one of its protocols, resolved and checked. options: of `runner.prepare`."""
    found = []
    for block in blocks:
        for protocol in block.protocols:
            plan = runner.prepare(
                protocol, block.sets(), attack=block.attacks, defenses=block.defenses, only=block.only, seed=block.seed,
                **options,
            )  # fmt: skip
            title = ", ".join([f"protocol {plan.study.protocol.name}", f"seed {block.seed}", *block.set])
            found.append(Part(title, plan))
    return found


def outline(found: Sequence[Part], out: Path, width: int, say: Callable[[str], None]) -> str:
    """The plan as text: the cells with what the records hold, what is to be made, and how long that may take."""
    folder = out / "records"
    records = read_records(folder, [], say, curves=False) if folder.is_dir() else []
    there = {record["key"]: record for record in records}
    done = {key for key, record in there.items() if record["status"] == "done"}
    past = Past(list(there.values()))
    blocks, missing = [], {}
    for part in found:
        cells: dict[tuple[str, str], list[Unit]] = {}
        for unit in part.plan.victims(out).values():
            assert unit.attack is not None and unit.defense is not None
            cells.setdefault((unit.attack.label, unit.defense.label), []).append(unit)
        rows = [("attack", "defense", "trials", "done", "to run", "s each")]
        for (attack, defense), units in cells.items():
            to_run = [unit for unit in units if unit.key not in done]
            missing.update({unit.key: unit for unit in to_run})
            seconds = past.seconds(units[0])
            each = f"{seconds:.1f}" if seconds is not None else "?"
            count = (str(len(units)), str(len(units) - len(to_run)), str(len(to_run)))
            rows.append((attack, defense, *count, each))
        blocks.append(f"{part.title}\n{text.draw(rows[0], rows[1:])}")
    return "\n\n".join([*blocks, _effort(list(missing.values()), past, width, out)])


def _effort(missing: Sequence[Unit], past: Past, width: int, out: Path) -> str:
    """What is to be made, and how long it may take."""
    if not missing:
        return "to make: nothing; every trial has its record"
    stages = work_for(missing).stages
    counts = ", ".join(f"{len(units)} {title}" for title, units in stages)
    total, unknown = 0.0, dict[str, int]()
    for _, units in stages:
        known = [(unit, past.seconds(unit)) for unit in units]
        seconds = [each for _, each in known if each is not None]
        total += sum(seconds) / min(width, max(len(seconds), 1))
        for unit, each in known:
            if each is None:
                unknown[_kind(unit)] = unknown.get(_kind(unit), 0) + 1
    lines = [f"to make: {counts} (what the store under {out} holds is not counted)"]
    lacking = ", ".join(f"{kind} ({count})" for kind, count in unknown.items())
    if total:
        lines.append(f"estimate: {_duration(total)} with {width} at a time, from {past.count} records under {out}")
        lines += [f"not in it, for want of records: {lacking}"] if lacking else []
    else:
        lines.append(f"no estimate: no record under {out} of the same settings and device")
    return "\n".join(lines)


def _kind(unit: Unit) -> str:
    if unit.attack is None:
        return f"{unit.stage} networks"
    return f"victims behind {unit.defense.label}" if unit.defense else f"poisons of {unit.attack.label}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


class Past:
    """Mean seconds of a unit in past records of the same data, networks, training, plug-in settings and device. What
    differs only in seed, trial or the other side's plug-in counts as the same work."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.count = 0
        self._victims: dict[str, list[float]] = {}
        self._poisons: dict[str, dict[str, float]] = {}
        self._surrogates: dict[str, list[float]] = {}
        for record in records:
            if record["status"] != "done":
                continue
            self.count += 1
            settings, seconds = record["settings"], record["seconds"]
            shared = _shared(settings["protocol"], record["environment"]["device"])
            train = seconds.get("train", 0.0) + seconds.get("evaluate", 0.0)
            victim = _text("victim", shared, record["defense"], settings["defense"])
            self._victims.setdefault(victim, []).append(train)
            crafted = _text("poisons", shared, record["attack"], settings["attack"])
            self._poisons.setdefault(crafted, {})[record["poisons"].get("key", "")] = seconds.get("craft", 0.0)
            networks = len(record.get("seeds", {}).get("surrogates", []))
            if networks and seconds.get("surrogates"):
                self._surrogates.setdefault(_text(shared), []).append(seconds["surrogates"] / networks)

    def seconds(self, unit: Unit) -> float | None:
        """None where nothing is known, as of pretrained networks."""
        shared = _shared(unit.study.protocol.as_dict(), unit.study.device.partition(":")[0])
        found: list[float] = []
        if unit.defense is not None:
            found = self._victims.get(_text("victim", shared, unit.defense.label, unit.defense.values()), [])
        elif unit.attack is not None:
            known = self._poisons.get(_text("poisons", shared, unit.attack.label, unit.attack.values()), {})
            found = list(known.values())
        elif unit.stage == "surrogate":
            found = self._surrogates.get(_text(shared), [])
        return statistics.fmean(found) if found else None


def _shared(protocol: dict[str, Any], device: str) -> dict[str, Any]:
    return {"device": device, **{name: protocol.get(name) for name in ("dataset", "model", "train", "threat")}}


def _text(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def report(found: Sequence[Part], results: Sequence[Record], out: Path) -> str:
    """A leaderboard for every part, then what failed and why."""
    by_key = {record["key"]: record for record in results}
    blocks = []
    for part in found:
        own = [by_key[key] for key in part.plan.victims(out)]
        blocks.append("\n".join([part.title, text.table(leaderboard(own), "none").rstrip()]))
    failed = [record for record in results if record["status"] != "done"]
    if failed:
        causes = [f"  {r['protocol']}: {r['attack']} x {r['defense']} trial {r['trial']}: {r['error']}" for r in failed]
        blocks.append("\n".join([f"{len(failed)} trials failed (the same command tries them again):", *causes]))
    return "\n\n".join(blocks)
