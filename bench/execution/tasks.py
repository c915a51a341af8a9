"""Tasks, as they are sent to worker processes: a network, the poisons of a trial, a victim.

Tasks of one key are one task, whichever attacks, defenses and studies ask for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bench.execution.poison_image import save
from bench.execution.recording import record_of
from bench.execution.schedule import ANY_TIME, Schedule, Step, Turn
from bench.foundation.errors import TrialFailed
from bench.foundation.progress import Heartbeat
from bench.science.crafting import poisons_of
from bench.science.identity import identities
from bench.science.selection import SelectedAttack, SelectedDefense
from bench.science.study import Case, Study
from bench.science.workspace import Workspace
from bench.storage.record import Record
from bench.storage.records import Records
from bench.storage.store import Store, key_of


@dataclass(frozen=True, eq=False)
class Task(ABC):
    """study, out: where it is done; key: of what is made, in the store or, for a victim, among the records."""

    study: Study
    out: Path
    key: str
    kind: ClassVar[str] = "networks"
    plural: ClassVar[str] = "tasks"  # of many, as progress and plans call them

    @property
    def called(self) -> str:
        """As what fails when it does."""
        return str(self)

    @abstractmethod
    def expected_key(self) -> str:
        """The key by the code, the libraries and the data of this process."""

    @abstractmethod
    def run(self, space: Workspace) -> Record | None:
        """Do it; the record if it makes one."""

    def needs(self) -> Iterator[Task]:
        """What it stands on directly, whether or not that is there already."""
        yield from ()

    @property
    def stored(self) -> bool:
        """Whether the store has it. What it holds is verified when it is read."""
        return Store(self.out / "store").path(self.kind, self.key).exists()


@dataclass(frozen=True, eq=False)
class Pretraining(Task):
    """The j-th pretrained network of an architecture."""

    model: str
    j: int
    plural = "pretrained networks"

    @classmethod
    def of(cls, study: Study, out: Path, model: str, j: int) -> Pretraining:
        return cls(study, out, key_of(identities(study).pretrained(model, j)), model, j)

    def __str__(self) -> str:
        return f"pretrained {self.model} {self.j}"

    def expected_key(self) -> str:
        return self.of(self.study, self.out, self.model, self.j).key

    def run(self, space: Workspace) -> None:
        space.networks.pretrained(self.model, self.j)


@dataclass(frozen=True, eq=False)
class SurrogateTraining(Task):
    """The attacker's k-th network; epochs: after which its weights are kept too."""

    k: int
    epochs: tuple[int, ...]
    plural = "surrogates"

    @classmethod
    def of(cls, study: Study, out: Path, k: int, epochs: tuple[int, ...] = ()) -> SurrogateTraining:
        of_study = identities(study)
        return cls(study, out, key_of(of_study.snapshots(k, epochs) if epochs else of_study.surrogate(k)), k, epochs)

    def __str__(self) -> str:
        return f"surrogate {self.k}"

    def expected_key(self) -> str:
        return self.of(self.study, self.out, self.k, self.epochs).key

    def run(self, space: Workspace) -> None:
        if self.epochs:
            space.networks.snapshots(self.k, self.epochs)
        else:
            space.networks.surrogate(self.k)

    def needs(self) -> Iterator[Task]:
        if self.study.protocol.pretrained:
            yield Pretraining.of(self.study, self.out, *self.study.protocol.surrogate_model(self.k))


@dataclass(frozen=True, eq=False)
class Reference(Task):
    """What a clean network classifies right, which alone may be targets."""

    kind = "kept"
    plural = "reference networks"

    @classmethod
    def of(cls, study: Study, out: Path) -> Reference:
        return cls(study, out, key_of(identities(study).right()))

    @classmethod
    def wanted(cls, study: Study, out: Path) -> Iterator[Task]:
        """For the draw of a trial."""
        if study.protocol.threat.eligible == "correct":
            yield cls.of(study, out)

    def __str__(self) -> str:
        return "reference network"

    def expected_key(self) -> str:
        return self.of(self.study, self.out).key

    def run(self, space: Workspace) -> None:
        space.networks.right()

    def needs(self) -> Iterator[Task]:
        if self.study.protocol.pretrained:
            yield Pretraining.of(self.study, self.out, self.study.protocol.model, 0)


@dataclass(frozen=True, eq=False)
class Crafting(Task):
    """The poisons of an attack in a trial."""

    attack: SelectedAttack
    index: int
    kind = plural = "poisons"
    called = "crafting"

    @classmethod
    def of(cls, study: Study, out: Path, attack: SelectedAttack, index: int) -> Crafting:
        return cls(study, out, key_of(identities(study).poisons(attack, study.case(index))), attack, index)

    def __str__(self) -> str:
        return f"poisons of {self.attack.label} trial {self.index}"

    def expected_key(self) -> str:
        return self.of(self.study, self.out, self.attack, self.index).key

    def run(self, space: Workspace) -> None:
        case = self.study.case(self.index)
        poisons, crafted = poisons_of(space, case, self.attack)
        save(self.out, crafted, poisons, case.clean, space.store.say)

    def needs(self) -> Iterator[Task]:
        yield from Reference.wanted(self.study, self.out)
        if self.attack.make.uses_surrogates:
            for k in range(self.study.protocol.threat.surrogates):
                yield SurrogateTraining.of(self.study, self.out, k, self.attack.asked.snapshots)


@dataclass(frozen=True, eq=False)
class VictimTraining(Task):
    """A victim of a trial behind a defense, and its record. turn: see `schedule`."""

    attack: SelectedAttack
    defense: SelectedDefense
    index: int
    victim: int = 0
    turn: Turn = ANY_TIME
    plural = "victims"
    stored = False  # what it makes is a record; whether that is there its caller knows

    @classmethod
    def of(
        cls, study: Study, out: Path, attack: SelectedAttack, defense: SelectedDefense, index: int, victim: int = 0,
        turn: Turn = ANY_TIME,
    ) -> VictimTraining:  # fmt: skip
        key = identities(study).record(attack, defense, index, victim)["key"]
        return cls(study, out, key, attack, defense, index, victim, turn)

    @property
    def case(self) -> Case:
        return self.study.case(self.index, self.victim)

    def __str__(self) -> str:
        return f"victim of {self.attack.label} x {self.defense.label} {self.case}"

    @property
    def expected(self) -> dict[str, Any]:
        """What its record must say."""
        return identities(self.study).record(self.attack, self.defense, self.index, self.victim)

    def expected_key(self) -> str:
        return str(self.expected["key"])

    def run(self, space: Workspace) -> Record:
        records = Records(self.out / "records", space.store.say)
        return record_of(space, records, self.case, self.attack, self.defense)

    def needs(self) -> Iterator[Task]:
        if self.study.protocol.pretrained:
            yield Pretraining.of(self.study, self.out, self.study.protocol.model, 0)
        yield from Reference.wanted(self.study, self.out)
        if self.attack.make.poisons_data:
            yield Crafting.of(self.study, self.out, self.attack, self.index)


KINDS: tuple[type[Task], ...] = (Pretraining, Reference, SurrogateTraining, Crafting, VictimTraining)


def work(task: Task, heartbeat: Heartbeat) -> tuple[Record | None, list[str]]:
    """Do the task; return the record if it makes one, and the lines for the user."""
    if task.expected_key() != task.key:
        raise TrialFailed(
            f"{task}: the worker's code, libraries or data are not those of the command that sent it, or its processor "
            "computes other bits; fix: one version, and one kind of processor, for all"
        )
    lines: list[str] = []
    return task.run(Workspace.at(task.study, task.out, heartbeat, lines.append)), lines


def missing(tasks: Iterable[Task], found: dict[str, Task] | None = None) -> dict[str, Task]:
    """Those of the tasks, and of all that they need, that the store does not hold yet: once each, by key, and after
    what they stand on. found: is added to."""
    found = {} if found is None else found
    for task in tasks:
        if task.key not in found and not task.stored:
            missing(task.needs(), found)
            found[task.key] = task
    return found


def scheduled(tasks: Mapping[str, Task], seconds: Iterable[float]) -> Schedule:
    """Of `missing` tasks, each with the seconds that it may take."""
    places = {key: place for place, key in enumerate(tasks)}
    steps = []
    for task, each in zip(tasks.values(), seconds, strict=True):
        needs = tuple(places[need.key] for need in task.needs() if need.key in places)
        turn = task.turn if isinstance(task, VictimTraining) else ANY_TIME
        steps.append(Step(task, task.plural, needs, each, turn))
    return Schedule(steps)
