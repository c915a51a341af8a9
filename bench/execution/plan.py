"""What is to be done for some requests: cells and their trials, resolved and checked before anything is made."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.execution.schedule import ANY_TIME
from bench.execution.tasks import VictimTraining
from bench.foundation.errors import BadInput
from bench.foundation.guests import guest
from bench.foundation.names import LONGEST, word
from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.request.protocol_file import resolve
from bench.request.request import Request
from bench.request.setups import TrialList
from bench.science.attack import CONTROL
from bench.science.identity import identities
from bench.science.selection import (
    Changes,
    SelectedAttack,
    SelectedDefense,
    load_files,
    select_attacks,
    select_defenses,
)
from bench.science.study import Study


@dataclass(frozen=True)
class Cell:
    """One attack against one defense in a study, on some trials, each with the victims of the protocol."""

    study: Study
    attack: SelectedAttack
    defense: SelectedDefense
    trials: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A request in one of its protocols: what gets a table of its own. place: among the parts, where its trials are to
    be made one after another and before those of later parts."""

    title: str
    study: Study
    cells: tuple[Cell, ...]
    place: int | None = None

    def victims(self, out: Path) -> dict[str, VictimTraining]:
        """One task for every cell, trial and victim, by the key of its record, in order. Of equal cells the first
        counts."""
        tasks: dict[str, VictimTraining] = {}
        for cell in self.cells:
            for index, victim in itertools.product(cell.trials, range(cell.study.protocol.victims)):
                turn = (self.place, index) if self.place is not None else ANY_TIME
                task = VictimTraining.of(cell.study, out, cell.attack, cell.defense, index, victim, turn)
                tasks.setdefault(task.key, task)
        return tasks

    def on_trials(self, trials: Sequence[int]) -> Part:
        """The same cells on other trials."""
        return replace(self, cells=tuple(replace(cell, trials=tuple(trials)) for cell in self.cells))


@dataclass(frozen=True)
class Plan:
    """Everything that a command does."""

    parts: tuple[Part, ...]

    @property
    def study(self) -> Study:
        """Of the first part."""
        return self.parts[0].study

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for part in self.parts for cell in part.cells)

    def victims(self, out: Path) -> dict[str, VictimTraining]:
        """As of a part, each key once."""
        tasks: dict[str, VictimTraining] = {}
        for part in self.parts:
            for key, task in part.victims(out).items():
                tasks.setdefault(key, task)
        return tasks


def plan(requests: Sequence[Request], device: str = "cpu", threads: int = 1) -> Plan:
    """Every request in every one of its protocols. BadInput in one line."""
    asked = [(request, protocol) for request in requests for protocol in request.protocols]
    with guest():  # settings of plug-ins are checked by their code
        return Plan(tuple(_part(*each, place, device, threads) for place, each in enumerate(asked)))


def prepare_study(request: Request, protocol_name: str, device: str = "cpu", threads: int = 1) -> tuple[Study, Changes]:
    """The study of a request, loaded and checked, and the settings that are left for plug-ins."""
    for kind, references in (("attack", request.attacks), ("defense", request.defenses)):
        load_files(kind, references)  # a protocol may have settings for them
    protocol, changes = resolve(protocol_name, request.sets(), request.dataset)
    path = request.poisons or request.setups
    data = Path(os.path.abspath(request.data)) if request.data is not None else None  # a worker may be elsewhere
    trials = TrialList.at(path) if path is not None else None
    study = Study(protocol, request.seed, data, device, trials, threads)
    study.validate()
    return study, changes


def _part(request: Request, protocol_name: str, place: int, device: str, threads: int) -> Part:
    study, changes = prepare_study(request, protocol_name, device, threads)
    if request.poisons is not None:
        attacks = [_imported(request.poisons, study)]
        select_attacks([], study.protocol, changes)  # BadInput where a setting is meant for an attack
    else:
        attacks = select_attacks(request.attacks, study.protocol, changes)
    defenses = select_defenses(request.defenses, study.protocol, changes)
    _check(study, attacks, defenses)
    trials = _indices(study, request)
    if request.poisons is not None:
        _check_distance(study, request.poisons, trials)
    pairs = _pairs(attacks, defenses, study, request.only)
    title = ", ".join([f"protocol {study.protocol.name}", f"seed {request.seed}", *request.set])
    cells = tuple(Cell(study, attack, defense, trials) for attack, defense in pairs)
    return Part(title, study, cells, place if request.order == "trials" else None)


def _pairs(
    attacks: Sequence[SelectedAttack], defenses: Sequence[SelectedDefense], study: Study, only: bool
) -> list[tuple[SelectedAttack, SelectedDefense]]:
    """Every attack against every defense; also the undefended ones and the clean controls, unless `only`."""
    if only:
        pairs = [(attack, defense) for attack in attacks for defense in defenses]
    else:
        (undefended,) = select_defenses(["none"], study.protocol)
        controls = select_attacks([CONTROL[attack.asked.shows_trigger] for attack in attacks], study.protocol)
        behind = [undefended, *(defense for defense in defenses if defense.label != "none")]
        pairs = [(control, undefended) for control in controls]
        pairs += [(attack, defense) for attack in attacks for defense in behind]
    # A control that is also asked for as an attack stands once.
    cells: dict[str, tuple[SelectedAttack, SelectedDefense]] = {}
    for pair in pairs:
        cells.setdefault(identities(study).cell_key(*pair), pair)
    return list(cells.values())


def _check(study: Study, attacks: Sequence[SelectedAttack], defenses: Sequence[SelectedDefense]) -> None:
    """What these plug-ins need is there."""
    epochs = study.protocol.surrogate.epochs
    for attack in attacks:
        if not attack.make.crafts and study.listed is None:
            raise BadInput(
                f"attack '{attack.label}' brings poisons that were made elsewhere; fix: --poisons DIR, see `import`"
            )
        if (oldest := max(attack.asked.snapshots, default=0)) > epochs:
            raise BadInput(
                f"attack '{attack.label}' uses its surrogates after {oldest} epochs, but they are trained for "
                f"{epochs}; fix: --set attack.ages with smaller epochs"
            )
    for defense in defenses:
        defense.external  # noqa: B018  (BadInput now rather than in every trial)
        defense.asked.must_take(study.size)
        if defense.asked.wants_public:
            study.public_dataset  # noqa: B018


def _imported(folder: Path, study: Study) -> SelectedAttack:
    """The poisons of a folder as an attack, called after it."""
    listed = study.listed
    assert isinstance(listed, TrialList)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", f"imported-{folder.resolve().name}")[:LONGEST]
    make = find("attack", "imported").make
    settings = build(make.Settings, {"folder": str(listed.path), "digest": listed.digest}, "attack")
    return SelectedAttack("imported", word(name, "imported poisons"), make, settings)


def _check_distance(study: Study, folder: Path, trials: Sequence[int]) -> None:
    eps = study.protocol.threat.eps
    assert isinstance(study.listed, TrialList)
    for index in trials:
        poisons = study.listed.poisons(index, study.dataset)
        if poisons is not None and (distance := poisons.distance(study.dataset.train)) > eps:
            raise BadInput(
                f"'{folder}', trial {index}: a poison moves a pixel by {distance}/255, more than eps = {eps}/255; "
                f"fix: --set threat.eps={distance}"
            )


def _indices(study: Study, request: Request) -> tuple[int, ...]:
    """The trials that are run: the first of the list (of imported poisons: all, unless a number is asked for) or of
    all draws, or what --setup names."""
    setup, listed = request.setup, study.listed
    if listed is None:
        if setup is not None:
            raise BadInput("--setup chooses from a list of trials; fix: give --setups FILE too")
        return tuple(range(study.protocol.trials))
    indices = listed.indices(study.dataset)
    if setup is None:
        every = request.poisons is not None and not any(item.startswith("trials=") for item in request.sets())
        return tuple(indices if every else indices[: study.protocol.trials])
    first, dots, last = setup.partition("..")
    if not first.isascii() or not first.isdigit() or (dots and not (last.isascii() and last.isdigit())):
        raise BadInput(f"--setup {setup}: write one number, or a range such as 0..99")
    chosen = tuple(range(int(first), int(last or first) + 1)) if len(first + last) < 12 else ()
    if not chosen or not set(chosen) <= set(indices):
        path = request.poisons or request.setups
        raise BadInput(f"--setup {setup}: '{path}' has the trials {indices[0]} to {indices[-1]}")
    return chosen
