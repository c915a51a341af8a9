"""The commands that make records again, read from the records: what differs from today's protocol file and defaults is
said with `--set` and in brackets."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.foundation import commands
from bench.foundation.errors import BadInput
from bench.foundation.settings import literal
from bench.request.protocol_file import protocol_names, resolve
from bench.science.attack import CONTROL
from bench.science.protocol import Protocol
from bench.science.selection import SelectedAttack, SelectedDefense, select_attacks, select_defenses
from bench.storage.record import Record
from bench.views.cells import by_cell

PROTOCOL, DEVICE, THREADS = "quick", "cpu", 1  # what a command need not say
SECTIONS = (
    "",
    "threat",
    "train",
    "surrogate",
    "pretrain",
    "dataset",
    "pretrain_dataset",
)  # one is the default of the next
NONE = "none"


@dataclass(frozen=True)
class Asked:
    """What commands differ in besides attacks and defenses; options: of the protocol and the machine."""

    options: tuple[str, ...]
    extent: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass
class Grid:
    """The defenses of every attack, as they are written on a command line; controls: those attacks among them that the
    others' commands run too."""

    defenses: dict[str, list[str]] = field(default_factory=dict)
    controls: set[str] = field(default_factory=set)
    implied: set[str] = field(default_factory=set)


def commands_of(records: Iterable[Record]) -> list[str]:
    """One line per command; several seeds as a loop of the shell. records: whole cells."""
    cells = by_cell(records)
    precisions = {cell[0]["settings"]["protocol"]["train"].get("precision") for cell in cells}
    seeds: dict[tuple[Any, ...], list[int]] = {}
    for cell in cells:
        place = (*_options(cell[0], len(precisions) > 1), _extent(cell), *_references(cell[0]))
        seeds.setdefault(place, []).append(cell[0]["seed"])
    grids: dict[Asked, Grid] = {}
    for (protocol, sets, extent, attack, defense, control), numbers in seeds.items():
        asked = Asked(("--protocol", protocol, *sets), extent, tuple(sorted(numbers)))
        grid = grids.setdefault(asked, Grid())
        grid.defenses.setdefault(attack, []).append(defense)
        if attack in CONTROL.values():
            grid.controls.add(attack)
        else:
            grid.implied.add(control)
    return [line for asked, grid in grids.items() for line in _lines(asked, grid, _has_controls(asked, grids))]


def _has_controls(asked: Asked, grids: Mapping[Asked, Grid]) -> bool:
    """Whether the records hold the controls that the commands of a grid run of themselves, with as many trials or
    more."""
    there = {name for other, grid in grids.items() if other.options == asked.options for name in grid.controls}
    return grids[asked].implied <= there


def _lines(asked: Asked, grid: Grid, has_controls: bool) -> list[str]:
    """The commands of a grid: attacks with the same defenses in one."""
    together: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for attack, defenses in grid.defenses.items():
        only = not has_controls or NONE not in defenses
        named = tuple(name for name in sorted(defenses, key=lambda name: name != NONE) if only or name != NONE)
        if attack in grid.controls and not named and attack in grid.implied:
            continue
        together.setdefault((named, only), []).append(attack)
    return [_line(asked, attacks, *what) for what, attacks in together.items()]


def _line(asked: Asked, attacks: Sequence[str], defenses: Sequence[str], only: bool) -> str:
    words = ["run", *asked.options, "--attack", ",".join(attacks)]
    if defenses:
        words += ["--defense", ",".join(defenses)]
    words += [*asked.extent, *(["--only"] if only else [])]
    if words[1:3] == ["--protocol", PROTOCOL]:
        del words[1:3]
    if len(asked.seeds) > 1:
        seeds = " ".join(map(str, asked.seeds))
        return f"for seed in {seeds}; do {commands.bench(*words)} --seed $seed; done"
    (seed,) = asked.seeds
    return commands.bench(*words, *(["--seed", seed] if seed else []))


def _extent(cell: Sequence[Record]) -> tuple[str, ...]:
    trials, victims = (1 + max(record[name] for record in cell) for name in ("trial", "victim"))
    usual = resolve(cell[0]["protocol"], [])[0].victims if _is_preset(cell[0]) else 1
    return ("--trials", str(trials), *(["--victims", str(victims)] if victims != usual else []))


def _options(record: Record, several_precisions: bool) -> tuple[str, tuple[str, ...]]:
    """The protocol's name, and what a command must say of the protocol's settings and the machine."""
    settings = json.dumps(record["settings"]["protocol"], sort_keys=True)
    machine = record["environment"]
    device, threads = machine.get("device", DEVICE), machine.get("threads", THREADS)
    options = [*_sets(record["protocol"], settings, several_precisions)] if _is_preset(record) else []
    options += ["--device", device] if device != DEVICE else []
    options += ["--threads", str(threads)] if device == DEVICE and threads != THREADS else []
    return record["protocol"], tuple(options)


def _is_preset(record: Record) -> bool:
    return record["protocol"] in protocol_names()


@functools.cache
def _sets(preset: str, settings: str, several_precisions: bool) -> tuple[str, ...]:
    """`--set` and `--dataset` for what differs from the protocol file of today, as far as that knows it. Images of a
    folder are left to the reader, who has them elsewhere or takes those of the protocol."""
    was = json.loads(settings)
    by_itself = was["train"].get("precision") == "bfloat16" and not several_precisions  # where a processor has units
    leave_out = ("name", "precision") if by_itself else ("name",)
    written = was.get("dataset", {}).get("name", "")
    ours = resolve(preset, [])[0].dataset
    other = f"{written.partition(':')[0]}:PATH" if ":" in written else written
    other = "" if other == str(ours) else other
    sets: list[str] = []
    for section in SECTIONS:
        protocol, _ = resolve(preset, sets, other or None)
        data = {name: getattr(protocol, name).as_dict("") for name in ("dataset", "pretrain_dataset")}
        shape = {**protocol.as_dict(), **data}
        here, there = (values.get(section, {}) if section else {"model": values["model"]} for values in (shape, was))
        prefix = f"{section}." if section else ""
        sets += [f"{prefix}{name}={_text(value)}" for name, value in _other(here, there, leave_out)]
    known = ["--dataset", other] if other and ":" not in other else []
    return (*known, *(word for item in sets for word in ("--set", item)))


def _other(here: Mapping[str, Any], there: Mapping[str, Any], leave_out: Sequence[str]) -> list[tuple[str, Any]]:
    """Settings that were other than they are here; what either does not know has no say."""
    names = [name for name in here if name in there and name not in leave_out]
    return [(name, there[name]) for name in names if there[name] != here[name]]


def _references(record: Record) -> tuple[str, str, str]:
    """Attack and defense as they are written on a command line, with the settings that are not those of today, and the
    control of the attack."""
    settings = record["settings"]
    try:
        protocol = _protocol(record["protocol"], json.dumps(settings["protocol"]["threat"]))
        (attack,) = select_attacks([record["attack"]], protocol)
        (defense,) = select_defenses([record["defense"]], protocol)
    except BadInput:  # somebody's own plug-in or protocol, by its name
        return record["attack"], record["defense"], NONE
    behind = settings.get("defense") or {}
    parts = "+".join(_bracketed(part, behind.get(part.label, {})) for part in defense.parts)
    return (
        _bracketed(attack, settings.get("attack") or {}),
        parts or _bracketed(defense, behind),
        CONTROL[attack.asked.shows_trigger],
    )


@functools.cache
def _protocol(preset: str, threat: str) -> Protocol:
    """Of today, in the scenario of the record, on which defaults depend."""
    scenario = json.loads(threat).get("scenario")
    return resolve(preset, [f"threat.scenario={scenario}"] if scenario else [])[0]


def _bracketed(plugin: SelectedAttack | SelectedDefense, was: Mapping[str, Any]) -> str:
    other = [f"{name}={_text(value)}" for name, value in _other(plugin.values(), was, ())]
    return plugin.label + (f"[{','.join(other)}]" if other else "")


def _text(value: Any) -> str:
    """As `--set` reads it back."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text if literal(text) == value else json.dumps(value)
