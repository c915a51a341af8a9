"""One run, step by step: what is wanted, what the store already holds, and the stages that make the rest.

cells = clean control, undefended, defended; a sweep is a run with the cells of several attacks and studies
pretrained networks once a study, in the scenarios `transfer` and `finetune`
surrogates          once a study, shared by all attacks
poisons             once an attack and trial, shared by all defenses
victims             one for every cell and trial, each with its record
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.execution.engines.base import Engine
from bench.execution.stages import Bench
from bench.execution.tasks import Unit, poisons_unit, work, work_for
from bench.foundation import files
from bench.foundation.errors import BadInput, DiskFull, TrialFailed
from bench.foundation.progress import Say
from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.request.setups import TrialList
from bench.science.attack import CONTROL
from bench.science.poisons import Poisons
from bench.science.protocol import Chosen, Protocol, choose, resolve
from bench.science.study import Study
from bench.science.threat import Trial
from bench.storage.records import Record, Records


@dataclass(frozen=True)
class Cell:
    """One attack against one defense in a study, on some trials."""

    study: Study
    attack: Chosen
    defense: Chosen
    trials: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The cells of a run, or of a sweep."""

    cells: tuple[Cell, ...]

    @property
    def study(self) -> Study:
        """The study of the first cell: of all, unless plans were joined."""
        return self.cells[0].study

    def victims(self, out: Path) -> dict[str, Unit]:
        """One unit for every cell and trial, by the key of its record, in order. Of equal cells the first counts."""
        units: dict[str, Unit] = {}
        for cell in self.cells:
            for index in cell.trials:
                unit = Unit(cell.study, out, "victim", index, cell.attack, cell.defense).keyed()
                units.setdefault(unit.key, unit)
        return units


def joined(plans: Sequence[Plan]) -> Plan:
    """Several plans as one."""
    return Plan(tuple(cell for each in plans for cell in each.cells))


def plan(
    study: Study,
    attacks: Sequence[str | Chosen],
    defenses: Sequence[str],
    rest: Sequence[tuple[str, Any]],
    only: bool,
    trials: Sequence[int],
) -> Plan:
    """The cells of `run --attack A --defense D`: also the undefended ones and the clean controls, unless `only`.

    BadInput for unknown plug-ins and settings.
    """
    protocol = study.protocol
    named = {one.label: one for one in choose("attack", [a for a in attacks if isinstance(a, str)], protocol, rest)}
    for attack in named.values():
        if not attack.plugin.make.crafts:
            raise BadInput(
                f"attack '{attack.label}' brings poisons that were made elsewhere; fix: --poisons DIR, see `import`"
            )
    chosen_attacks = [*named.values(), *(attack for attack in attacks if isinstance(attack, Chosen))]
    for attack in chosen_attacks:
        _check_snapshots(attack, protocol)
    chosen_defenses = choose("defense", defenses, protocol, rest)
    for defense in chosen_defenses:
        if not defense.plugin.make.on_its_own and not defense.parts:
            raise BadInput(
                f"defense '{defense.label}': write its parts with a plus, as in --defense spectral+friends-b"
            )
        defense.external()
        if defense.wants_public:
            study.public_dataset  # noqa: B018  (BadInput now rather than in every trial)
    pairs = [(attack, defense) for attack in chosen_attacks for defense in chosen_defenses]
    if not only:
        (undefended,) = choose("defense", ["none"], protocol, [])
        controls = choose("attack", [CONTROL[attack.shows_trigger] for attack in chosen_attacks], protocol, [])
        behind = [undefended, *(defense for defense in chosen_defenses if defense.label != "none")]
        pairs = [(control, undefended) for control in controls]
        pairs += [(attack, defense) for attack in chosen_attacks for defense in behind]
    # A control that is also asked for as an attack stands once.
    cells = {(attack.label, defense.label): Cell(study, attack, defense, tuple(trials)) for attack, defense in pairs}
    return Plan(tuple(cells.values()))


def prepare(
    preset: str,
    sets: Sequence[str],
    *,
    attack: str | Sequence[str],
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

    attack: one or several; setups: a list of trials to take instead of drawing them, setup: which of them (`3`,
    `0..99`); poisons: a folder of imported poisons, which then are the attack and bring their own trials.
    """
    protocol, rest = resolve(preset, sets, dataset)
    listed = TrialList.at(path) if (path := poisons or setups) is not None else None
    study = Study(protocol, seed, data, device, listed)
    study.validate()
    chosen = _imported(poisons, listed) if poisons is not None and listed is not None else None
    attacks = [chosen] if chosen is not None else [attack] if isinstance(attack, str) else attack
    unlimited = poisons is not None and not any(item.startswith("trials=") for item in sets)
    trials = _indices(study, setup, unlimited)
    wanted = plan(study, attacks, defenses, rest, only, trials)
    for index in trials if listed is not None else ():
        changed = listed.poisons(index, study.dataset) if poisons is not None and listed is not None else None
        if changed is not None and (found := changed.distance(study.dataset.train)) > protocol.threat.eps:
            raise BadInput(
                f"'{poisons}', trial {index}: a poison moves a pixel by {found}/255, more than eps = "
                f"{protocol.threat.eps}/255; fix: --set threat.eps={found}"
            )
    return wanted


def _check_snapshots(attack: Chosen, protocol: Protocol) -> None:
    """BadInput when an attack wants surrogates older than they get."""
    wanted = max(attack.attack().snapshots, default=0)
    if wanted > protocol.surrogate.epochs:
        raise BadInput(
            f"attack '{attack.label}' uses its surrogates after {wanted} epochs, but they are trained for "
            f"{protocol.surrogate.epochs}; fix: --set attack.ages with smaller epochs"
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
            raise BadInput("--setup chooses from a list of trials; fix: give --setups FILE too")
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


def execute(wanted: Plan, out: Path, engine: Engine, say: Say, on_record: Callable[[Record], None]) -> list[Record]:
    """Run what is missing; return the records of all cells and trials, in plan order, each with `cached`.

    on_record: called with every record, old or new, as soon as it is there. A trial that fails gets a failed record
    (and is tried again by the next run); the others go on.
    """
    records = Records(out / "records", say)
    victims = wanted.victims(out)
    found: dict[str, Record] = {}

    def keep(record: Record, cached: bool) -> None:
        found[record["key"]] = {**record, "cached": cached}
        on_record(record)

    for unit in victims.values():
        if (record := records.find(unit.wanted)) is not None:
            keep(record, cached=True)
    missing = [unit for key, unit in victims.items() if key not in found]
    if not missing:
        return [found[key] for key in victims]
    say(f"{len(missing)} of {len(victims)} trials to run, {engine}")
    failed: dict[str, str] = {}
    causes: dict[str, str] = {}
    with engine.open(out):
        todo = work_for(missing)
        for title, units in todo.stages:
            if units is todo.victims:
                causes = {
                    victim: f"crafting failed: {failed[poisons.key]}"
                    for victim, poisons in todo.crafted.items()
                    if poisons.key in failed
                }
                units = tuple(unit for unit in units if unit.key not in causes)
            failed |= _stage(title, units, out, engine, say, lambda record: keep(record, cached=False))
    for unit in missing:
        if unit.key in found:
            continue
        done = records.find(unit.wanted)  # by another command on the same output folder
        keep(done or _failure(unit, causes.get(unit.key) or failed[unit.key], say), cached=done is not None)
    return [found[key] for key in victims]


def _failure(unit: Unit, cause: str, say: Say) -> Record:
    assert unit.attack is not None and unit.defense is not None
    writer = Bench.at(unit.study, unit.out, lambda *_: None, say)
    return writer.failure(unit.attack, unit.defense, unit.index, cause)


def craft(wanted: Plan, out: Path, engine: Engine, say: Say) -> list[tuple[Poisons, Trial]]:
    """The poisons of the plan's last attack, from the store or crafted, with their trials. TrialFailed when one
    cannot be made."""
    cell = wanted.cells[-1]
    todo = work_for((), [poisons_unit(cell.study, out, cell.attack, index) for index in cell.trials])
    with engine.open(out):
        for title, units in todo.stages:
            failed = _stage(title, units, out, engine, say)
            for unit in todo.poisons:
                if unit.key in failed:
                    raise TrialFailed(f"{unit}: {failed[unit.key]}")
    bench = Bench.at(cell.study, out, lambda *_: None, say)
    return [(bench.poisons(cell.attack, index)[0], cell.study.trial(index)) for index in cell.trials]


def _stage(
    title: str,
    units: Sequence[Unit],
    out: Path,
    engine: Engine,
    say: Say,
    on_record: Callable[[Record], None] = lambda record: None,
) -> dict[str, str]:
    """Have the units done; return what failed, by key, with the cause. DiskFull from any of them ends them all."""
    failed: dict[str, str] = {}
    if not units:
        return failed
    with contextlib.closing(engine.run(title, units, work)) as ended:
        for done in ended:
            if done.disk_full:
                raise DiskFull(str(done.error))
            if done.error is not None:
                failed[done.unit.key] = done.error
                log = out / "logs" / f"{str(done.unit).replace(' ', '_')}-{done.unit.key[:8]}.log"
                files.write_bytes(log, (done.trace or done.error).encode())
                say(f"failed: {done.unit}: {done.error} (see {log})")
                continue
            record, said = done.result
            for line in said:
                say(line)
            if record is not None:
                on_record(record)
    return failed
