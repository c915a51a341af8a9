"""Units of work, as they are sent to worker processes: a network, the poisons of a trial, a victim.

Units of one key are one unit, whichever attacks, defenses and studies ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.execution.stages import Bench
from bench.foundation.errors import TrialFailed
from bench.foundation.progress import Heartbeat
from bench.science.protocol import Chosen
from bench.science.study import Study
from bench.storage.records import Record
from bench.storage.store import Store, key_of


@dataclass(frozen=True)
class Unit:
    """index: of the trial, or of the network; model: of a pretrained network; epochs: after which a surrogate's weights
    are kept too; key: of what is made, in the store or, for a victim, among the records."""

    study: Study
    out: Path
    stage: str
    index: int
    attack: Chosen | None = None
    defense: Chosen | None = None
    model: str = ""
    epochs: tuple[int, ...] = ()
    key: str = field(default="", compare=False)

    def __str__(self) -> str:
        if self.attack is None:
            return " ".join(part for part in (self.stage, self.model, str(self.index)) if part)
        behind = f" x {self.defense.label}" if self.defense else ""
        return f"{self.stage} of {self.attack.label}{behind} trial {self.index}"

    def keyed(self) -> Unit:
        """The same with its key."""
        return replace(self, key=self._key())

    def _key(self) -> str:
        if self.stage == "pretrained":
            return key_of(self.study.pretrained_identity(self.model, self.index))
        if self.stage == "surrogate":
            return key_of(self.study.surrogate_identity(self.index, self.epochs))
        assert self.attack is not None
        if self.defense is None:
            return key_of(self.study.poisons_identity(self.attack, self.index))
        return str(self.wanted["key"])

    @property
    def wanted(self) -> dict[str, Any]:
        """What the record of a victim must say."""
        assert self.attack is not None and self.defense is not None
        return self.study.wanted(self.attack, self.defense, self.index)

    @property
    def stored(self) -> bool:
        """Whether the store has it. What it holds is verified when it is read."""
        kind = "poisons" if self.stage == "poisons" else "networks"
        return Store(self.out / "store").path(kind, self.key).exists()


def work(unit: Unit, heartbeat: Heartbeat) -> tuple[Record | None, list[str]]:
    """Do the unit; return the record if it makes one, and what is to be said."""
    if unit.keyed().key != unit.key:
        raise TrialFailed(f"{unit}: the worker's code, libraries or data are not those of the command that sent it")
    said: list[str] = []
    bench = Bench.at(unit.study, unit.out, heartbeat, said.append)
    if unit.stage == "pretrained":
        bench.networks.pretrained(unit.model, unit.index)
    elif unit.stage == "surrogate" and unit.epochs:
        bench.networks.snapshots(unit.index, unit.epochs)
    elif unit.stage == "surrogate":
        bench.networks.surrogate(unit.index)
    elif unit.attack is not None and unit.defense is not None:
        return bench.victim(unit.attack, unit.defense, unit.index), said
    elif unit.attack is not None:
        bench.poisons(unit.attack, unit.index)
    return None, said


@dataclass(frozen=True)
class Work:
    """What is to be made before and for some victims, by stage; each stage stands on those before it."""

    pretrained: tuple[Unit, ...]
    surrogates: tuple[Unit, ...]
    poisons: tuple[Unit, ...]
    victims: tuple[Unit, ...]
    crafted: dict[str, Unit]  # by the key of a victim, the poisons that it trains on

    @property
    def stages(self) -> tuple[tuple[str, tuple[Unit, ...]], ...]:
        return (
            ("pretrained networks", self.pretrained),
            ("surrogates", self.surrogates),
            ("poisons", self.poisons),
            ("victims", self.victims),
        )


def poisons_unit(study: Study, out: Path, attack: Chosen, index: int) -> Unit:
    return Unit(study, out, "poisons", index, attack).keyed()


def work_for(victims: Iterable[Unit], crafting: Iterable[Unit] = ()) -> Work:
    """All that some victims (and `crafting`, poisons that are wanted for themselves) need and the store does not hold
    yet; every artefact once."""
    victims = tuple(victims)
    crafted = {
        victim.key: poisons_unit(victim.study, victim.out, victim.attack, victim.index)
        for victim in victims
        if victim.attack is not None and victim.attack.plugin.make.poisons_data
    }
    poisons = _missing((*crafted.values(), *crafting))
    attackers = [unit for unit in poisons if unit.attack is not None and unit.attack.plugin.make.uses_surrogates]
    pretrained = _missing(unit for victim in victims for unit in _pretrained(victim, attacked=False))
    pretrained += _missing(unit for attacker in attackers for unit in _pretrained(attacker, attacked=True))
    return Work(
        tuple({unit.key: unit for unit in pretrained}.values()),
        _missing(unit for attacker in attackers for unit in _surrogates(attacker)),
        poisons,
        victims,
        crafted,
    )


def _missing(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Those that the store does not hold, each key once; keys are computed once for equal units."""
    seen: dict[Any, Unit] = {}
    for unit in units:
        seen.setdefault(unit.key or _place(unit), unit)
    keyed = {unit.key: unit for unit in (unit if unit.key else unit.keyed() for unit in seen.values())}
    return tuple(unit for unit in keyed.values() if not unit.stored)


def _place(unit: Unit) -> tuple[Any, ...]:
    return (id(unit.study), unit.stage, unit.index, unit.model, unit.epochs)


def _pretrained(unit: Unit, attacked: bool) -> Iterator[Unit]:
    """The pretrained network that a victim starts from, or with `attacked` those of the attacker."""
    protocol = unit.study.protocol
    if protocol.pretrained:
        attackers = [protocol.surrogate_model(k) for k in range(protocol.threat.surrogates)] if attacked else []
        for model, j in attackers or [(protocol.model, 0)]:
            yield Unit(unit.study, unit.out, "pretrained", j, model=model)


def _surrogates(unit: Unit) -> Iterator[Unit]:
    """The attacker's networks, with the snapshots that the attack wants."""
    assert unit.attack is not None
    epochs = unit.attack.attack().snapshots
    for k in range(unit.study.protocol.threat.surrogates):
        yield Unit(unit.study, unit.out, "surrogate", k, epochs=epochs)
