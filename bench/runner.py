"""One run, step by step: what is wanted, what the store already holds, and the stages that make the rest.

cells = clean control, undefended, defended
pretrained networks once a study, in the scenarios `transfer` and `finetune`
surrogates          once a study
poisons             once a trial, shared by all defenses
victims             one for every cell and trial, each with its record
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.base import CONTROL
from bench import atomic
from bench.progress import Heartbeat, Say
from bench.protocol import Chosen, choose, resolve
from bench.records import Records
from bench.stages import Bench
from bench.study import Study
from bench.workers import run_units


@dataclass(frozen=True)
class Cell:
    """One attack against one defense."""

    attack: Chosen
    defense: Chosen


@dataclass(frozen=True)
class Plan:
    """A study, its cells and its trials."""

    study: Study
    cells: tuple[Cell, ...]
    trials: tuple[int, ...]


def plan(study: Study, attack: str, defenses: Sequence[str], rest: Sequence[tuple[str, Any]], only: bool) -> Plan:
    """The cells of `run --attack A --defense D`: also the undefended one and the clean control, unless `only`.

    BadInput for unknown plug-ins and settings.
    """
    protocol = study.protocol
    (chosen_attack,) = choose("attack", [attack], protocol, rest)
    chosen_defenses = choose("defense", defenses, protocol, rest)
    cells = [Cell(chosen_attack, defense) for defense in chosen_defenses]
    if not only:
        (clean,) = choose("attack", [CONTROL[chosen_attack.shows_trigger]], protocol, [])
        (undefended,) = choose("defense", ["none"], protocol, [])
        front = [Cell(clean, undefended), Cell(chosen_attack, undefended)]
        cells = [*front, *(cell for cell in cells if cell.defense.label != "none")]
        if chosen_attack.label == clean.label:
            cells = cells[1:]
    return Plan(study, tuple(cells), tuple(range(protocol.trials)))


def prepare(
    preset: str,
    sets: Sequence[str],
    *,
    attack: str,
    defenses: Sequence[str],
    only: bool = False,
    dataset: str | None = None,
    data: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Plan:
    """Resolve and check everything of a run before anything is made; BadInput in one line."""
    protocol, rest = resolve(preset, sets, dataset)
    study = Study(protocol, seed, data, device)
    wanted = plan(study, attack, defenses, rest, only)
    study.validate()
    return wanted


@dataclass(frozen=True)
class _Unit:
    """A piece of work for a worker process: a pretrained network, a surrogate, the poisons of a trial, or a victim.

    model: of a pretrained network; epochs: after which a surrogate's weights are kept too.
    """

    study: Study
    out: Path
    stage: str
    index: int
    cell: Cell | None = None
    model: str = ""
    epochs: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.cell is None:
            return " ".join(part for part in (self.stage, self.model, str(self.index)) if part)
        behind = f" x {self.cell.defense.label}" if self.stage == "victim" else ""
        return f"{self.stage} of {self.cell.attack.label}{behind} trial {self.index}"


def _work(unit: _Unit, heartbeat: Heartbeat) -> tuple[dict[str, Any] | None, list[str]]:
    """Do the unit; return the record if it makes one, and what is to be said."""
    said: list[str] = []
    bench = Bench.at(unit.study, unit.out, heartbeat, said.append)
    if unit.stage == "pretrained":
        bench.networks.pretrained(unit.model, unit.index)
        return None, said
    if unit.stage == "surrogate":
        if unit.epochs:
            bench.networks.snapshots(unit.index, unit.epochs)
        else:
            bench.networks.surrogate(unit.index)
        return None, said
    assert unit.cell is not None
    if unit.stage == "poisons":
        bench.poisons(unit.cell.attack, unit.index)
        return None, said
    return bench.victim(unit.cell.attack, unit.cell.defense, unit.index), said


@dataclass(frozen=True)
class Effort:
    """How a run uses the machine: processes, arithmetic threads in each, whether progress is shown."""

    jobs: int
    threads: int
    quiet: bool = False


def execute(
    wanted: Plan, out: Path, effort: Effort, say: Say, on_record: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run what is missing; return the records of all cells and trials, in plan order, each with `cached`.

    on_record: called with every record, old or new, as soon as it is there. A trial that fails gets a failed record
    (and is tried again by the next run); the others go on.
    """
    study, records = wanted.study, Records(out / "records", say)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    missing: list[tuple[int, int]] = []
    for c, cell in enumerate(wanted.cells):
        for index in wanted.trials:
            record = records.find(study.wanted(cell.attack, cell.defense, index))
            if record is None:
                missing.append((c, index))
            else:
                found[c, index] = {**record, "cached": True}
                on_record(record)

    def stage(title: str, units: list[_Unit]) -> dict[str, str]:
        """Run the units; keep the records that they make; return what failed, by name, with the cause."""
        failed: dict[str, str] = {}
        if not units:
            return failed
        for done in run_units(title, units, _work, jobs=effort.jobs, threads=effort.threads, quiet=effort.quiet):
            if done.error is not None:
                failed[str(done.unit)] = done.error
                log = out / "logs" / f"{str(done.unit).replace(' ', '_')}.log"
                atomic.write_bytes(log, (done.trace or done.error).encode())
                say(f"failed: {done.unit}: {done.error} (see {log})")
                continue
            record, said = done.result
            for line in said:
                say(line)
            if record is not None:
                found[wanted.cells.index(done.unit.cell), done.unit.index] = {**record, "cached": False}
                on_record(record)
        return failed

    if missing:
        say(f"{len(missing)} of {len(missing) + len(found)} trials to run, {effort.jobs} at a time")
    crafting = {
        (cell.attack.label, index): _Unit(study, out, "poisons", index, cell)
        for cell, index in ((wanted.cells[c], index) for c, index in missing)
        if cell.attack.plugin.make.poisons_data
    }
    if missing:
        stage("pretrained networks", _pretrained(study, out, bool(crafting)))
    stage("surrogates", _surrogates(study, out, [unit.cell.attack for unit in crafting.values() if unit.cell]))
    uncrafted = stage("poisons", list(crafting.values()))
    victims = {(c, index): _Unit(study, out, "victim", index, wanted.cells[c]) for c, index in missing}
    causes = {
        place: f"crafting failed: {uncrafted[str(crafting[unit.cell.attack.label, unit.index])]}"
        for place, unit in victims.items()
        if unit.cell and str(crafting.get((unit.cell.attack.label, unit.index))) in uncrafted
    }
    untrained = stage("victims", [unit for place, unit in victims.items() if place not in causes])
    writer = Bench.at(study, out, lambda *_: None, say)
    for place in missing:
        if place in found:
            continue
        cell, index = wanted.cells[place[0]], place[1]
        cause = causes.get(place) or untrained[str(victims[place])]
        record = writer.failure(cell.attack, cell.defense, index, cause)
        found[place] = {**record, "cached": False}
        on_record(record)
    return [found[c, index] for c in range(len(wanted.cells)) for index in wanted.trials]


def _pretrained(study: Study, out: Path, attacked: bool) -> list[_Unit]:
    """The pretrained networks that victims start from, and with `attacked` those of the attacker."""
    protocol = study.protocol
    if not protocol.pretrained:
        return []
    wanted = {(protocol.model, 0): None}
    if attacked:
        wanted |= {protocol.surrogate_model(k): None for k in range(protocol.threat.surrogates)}
    return [_Unit(study, out, "pretrained", j, model=model) for model, j in wanted]


def _surrogates(study: Study, out: Path, attacks: Sequence[Chosen]) -> list[_Unit]:
    """The attacker's networks, each once, with the snapshots that an attack wants."""
    using = [attack for attack in attacks if attack.plugin.make.uses_surrogates]
    kinds = {attack.plugin.make(attack.settings).snapshots: None for attack in using}
    count = range(study.protocol.threat.surrogates)
    return [_Unit(study, out, "surrogate", k, epochs=epochs) for epochs in kinds for k in count]
