"""One run, step by step: what is wanted, what the store already holds, and the stages that make the rest.

cells = clean control, undefended, defended
pretrained networks once a study, in the scenarios `transfer` and `finetune`
surrogates          once a study
poisons             once a trial, shared by all defenses
victims             one for every cell and trial, each with its record
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attacks.base import CONTROL
from bench import atomic
from bench.errors import BadInput, TrialFailed
from bench.poisons import Poisons
from bench.progress import Heartbeat, Say
from bench.protocol import Chosen, Protocol, choose, resolve
from bench.records import Records
from bench.registry import find
from bench.settings import build
from bench.stages import Bench
from bench.study import Study
from bench.threat import Trial
from bench.trial_lists import TrialList
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


def plan(
    study: Study, attack: str | Chosen, defenses: Sequence[str], rest: Sequence[tuple[str, Any]], only: bool
) -> Plan:
    """The cells of `run --attack A --defense D`: also the undefended one and the clean control, unless `only`.

    BadInput for unknown plug-ins and settings.
    """
    protocol = study.protocol
    chosen_attack = attack if isinstance(attack, Chosen) else choose("attack", [attack], protocol, rest)[0]
    if isinstance(attack, str) and not chosen_attack.plugin.make.crafts:
        raise BadInput(
            f"attack '{attack}' brings poisons that were made elsewhere; repair: --poisons DIR, see `import`"
        )
    _check_snapshots(chosen_attack, protocol)
    chosen_defenses = choose("defense", defenses, protocol, rest)
    for defense in chosen_defenses:
        if not defense.plugin.make.on_its_own and not defense.parts:
            raise BadInput(
                f"defense '{defense.label}': write its parts with a plus, as in --defense spectral+friends-b"
            )
        defense.external()
        if defense.wants_public:
            study.public_dataset  # noqa: B018  (BadInput now rather than in every trial)
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
    setups: Path | None = None,
    setup: str | None = None,
    poisons: Path | None = None,
) -> Plan:
    """Resolve and check everything of a run before anything is made; BadInput in one line.

    setups: a list of trials to take instead of drawing them, setup: which of them (`3`, `0..99`); poisons: a folder of
    imported poisons, which then are the attack and bring their own trials.
    """
    protocol, rest = resolve(preset, sets, dataset)
    listed = TrialList.at(path) if (path := poisons or setups) is not None else None
    study = Study(protocol, seed, data, device, listed)
    study.validate()
    chosen = _imported(poisons, listed) if poisons is not None and listed is not None else None
    wanted = plan(study, chosen or attack, defenses, rest, only)
    unlimited = poisons is not None and not any(item.startswith("trials=") for item in sets)
    wanted = replace(wanted, trials=_indices(study, setup, unlimited))
    for index in wanted.trials if listed is not None else ():
        changed = listed.poisons(index, study.dataset) if poisons is not None and listed is not None else None
        if changed is not None and (found := changed.distance(study.dataset.train)) > protocol.threat.eps:
            raise BadInput(
                f"'{poisons}', trial {index}: a poison moves a pixel by {found}/255, more than eps = "
                f"{protocol.threat.eps}/255; repair: --set threat.eps={found}"
            )
    return wanted


def _check_snapshots(attack: Chosen, protocol: Protocol) -> None:
    """BadInput when an attack wants surrogates older than they get."""
    wanted = max(attack.attack().snapshots, default=0)
    if wanted > protocol.surrogate.epochs:
        raise BadInput(
            f"attack '{attack.label}' uses its surrogates after {wanted} epochs, but they are trained for "
            f"{protocol.surrogate.epochs}; repair: --set attack.ages with smaller epochs"
        )


def _imported(folder: Path, listed: TrialList) -> Chosen:
    """The poisons of a folder as an attack, called after it."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", folder.resolve().name)[:60]
    values = {"folder": str(listed.path), "digest": listed.digest}
    settings = build(find("attack", "imported").make.Settings, values, "attack")
    return Chosen("attack", "imported", f"imported-{name}", settings)


def _indices(study: Study, setup: str | None, unlimited: bool) -> tuple[int, ...]:
    """The trials that are run: the first of the list (`unlimited`: all) or of all draws, or what `setup` names."""
    if study.listed is None:
        if setup is not None:
            raise BadInput("--setup chooses from a list of trials; repair: give --setups FILE too")
        return tuple(range(study.protocol.trials))
    known = study.listed.indices(study.dataset)
    if setup is None:
        return tuple(known if unlimited else known[: study.protocol.trials])
    first, dots, last = setup.partition("..")
    if not first.isascii() or not first.isdigit() or (dots and not (last.isascii() and last.isdigit())):
        raise BadInput(f"--setup {setup}: write one number, or a range such as 0..99")
    chosen = tuple(range(int(first), int(last or first) + 1)) if len(first + last) < 12 else ()
    missing = [index for index in chosen if index not in known]
    if missing or not chosen:
        raise BadInput(f"--setup {setup}: '{study.listed.path}' has the trials {known[0]} to {known[-1]}")
    return chosen


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

        def keep(unit: _Unit, record: dict[str, Any]) -> None:
            assert unit.cell is not None
            found[wanted.cells.index(unit.cell), unit.index] = {**record, "cached": False}
            on_record(record)

        return _stage(title, units, out, effort, say, keep)

    if missing:
        say(f"{len(missing)} of {len(missing) + len(found)} trials to run, {effort.jobs} at a time")
    crafting = {
        (cell.attack.label, index): _Unit(study, out, "poisons", index, cell)
        for cell, index in ((wanted.cells[c], index) for c, index in missing)
        if cell.attack.plugin.make.poisons_data
    }
    if missing and not crafting:
        stage("pretrained networks", _pretrained(study, out, attacked=False))
    uncrafted = _craft(study, out, list(crafting.values()), stage)
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


def craft(wanted: Plan, out: Path, effort: Effort, say: Say) -> list[tuple[Poisons, Trial]]:
    """The poisons of the plan's last attack, from the store or crafted, with their trials. TrialFailed when one
    cannot be made."""
    attack = wanted.cells[-1].attack
    units = [_Unit(wanted.study, out, "poisons", index, wanted.cells[-1]) for index in wanted.trials]
    failed = _craft(wanted.study, out, units, lambda title, some: _stage(title, some, out, effort, say))
    for unit, cause in failed.items():
        raise TrialFailed(f"{unit}: {cause}")
    bench = Bench.at(wanted.study, out, lambda *_: None, say)
    return [(bench.poisons(attack, index)[0], wanted.study.trial(index)) for index in wanted.trials]


def _craft(
    study: Study, out: Path, units: list[_Unit], stage: Callable[[str, list[_Unit]], dict[str, str]]
) -> dict[str, str]:
    """Run units of crafting, after the networks that they share; return what failed, by name, with the cause."""
    if not units:
        return {}
    attacks = [unit.cell.attack for unit in units if unit.cell]
    stage("pretrained networks", _pretrained(study, out, any(attack.plugin.make.uses_surrogates for attack in attacks)))
    stage("surrogates", _surrogates(study, out, attacks))
    return stage("poisons", units)


def _stage(
    title: str,
    units: list[_Unit],
    out: Path,
    effort: Effort,
    say: Say,
    on_result: Callable[[_Unit, dict[str, Any]], None] | None = None,
) -> dict[str, str]:
    """Run the units in worker processes; return what failed, by name, with the cause."""
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
        if record is not None and on_result is not None:
            on_result(done.unit, record)
    return failed


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
    kinds = {attack.attack().snapshots: None for attack in using}
    count = range(study.protocol.threat.surrogates)
    return [_Unit(study, out, "surrogate", k, epochs=epochs) for epochs in kinds for k in count]
