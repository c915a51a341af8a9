"""An attack at work on one trial: its poisons, and the workshop in which more is made for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from bench.foundation.errors import TrialFailed
from bench.science.attack import Scene
from bench.science.checkpoint import clock, remember
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.defense import Defense, Services
from bench.science.identity import identities
from bench.science.networks import Fit
from bench.science.poisons import Poisons
from bench.science.seeds import derive, torch_stream
from bench.science.selection import SelectedAttack, SelectedDefense
from bench.science.study import Case
from bench.science.workshop import Transform, Workshop
from bench.science.workspace import Ledger, Workspace, seconds
from bench.storage.store import Artefact, Made, key_of


def poisons_of(space: Workspace, case: Case, attack: SelectedAttack) -> tuple[Poisons, Artefact]:
    """The poisons of a trial, from the store or crafted; checked against the threat model either way."""
    identity = identities(space.study).poisons(attack, case)
    attacker = Attacker(space, case, attack)
    make = functools.partial(attacker.craft, identity)
    artefact = space.store.get_or_make("poisons", key_of(identity), make)
    poisons = Poisons.of_tensors(artefact.tensors, artefact.meta["provenance"])
    allowed = case.may_poison(attacker.clean, attack.make.selects_bases)
    poisons.check(attacker.clean, space.study.protocol.threat.eps, allowed, len(case.trial.base_ids))
    return poisons, artefact


@dataclass
class Attacker:
    """Crafts the poisons of one attack for one trial. The methods from `surrogates` on are what the plug-in may call:
    `scene` hands them over as the Scene and its Workshop."""

    space: Workspace
    case: Case
    attack: SelectedAttack
    ledger: Ledger = field(default_factory=Ledger)
    borrowed: list[Classifier] = field(default_factory=list)

    @functools.cached_property
    def clean(self) -> Images:
        return self.case.clean

    @property
    def seed(self) -> int:
        return self.case.attack_seed(self.attack)

    @property
    def count(self) -> int:
        return self.space.study.protocol.threat.surrogates

    def craft(self, identity: dict[str, Any]) -> Made:
        remember(self.ledger)
        started = clock()
        poisons = self.attack.new().craft(self.scene())
        took = clock() - started
        if self.attack.asked.shows_trigger:
            poisons = replace(poisons, shown=self.case.triggered())
        networks = self.ledger.networks
        return poisons.tensors(), {
            "identity": identity,
            "provenance": poisons.provenance,
            # What the surrogates took is theirs, whether they were trained just now or long ago.
            "seconds": max(took - seconds(networks, only_new=True), 0.0),
            "parts": self.ledger.parts,
            "surrogate_seconds": seconds(networks),
            "surrogates_reused": bool(networks) and all(network.reused for network in networks),
            "kept_reused": self.ledger.cached,
        }

    def scene(self) -> Scene:
        study, trial, test = self.space.study, self.case.trial, self.space.study.dataset.test
        data = self.clean.to(study.device)
        title = f"{self.attack.label} trial {self.case.index}"
        return Scene(
            train=data,
            bases=data.subset(data.rows_of(trial.base_ids.to(study.device))),
            targets=test.images[test.rows_of(trial.target_ids)].to(study.device),
            trial=trial,
            threat=study.protocol.threat,
            augmentation=study.protocol.train.augmentation(study.normalisation[0]),
            surrogates=self.surrogates,
            seed=self.seed,
            report=lambda step, steps, _: self.space.report(title, step, steps),
            workshop=Workshop(
                self.retrain, self.snapshots, self.keep, self.ledger.timed, self.transform, self.poisons_of
            ),
        )

    def surrogates(self) -> list[Classifier]:
        for k in range(len(self.borrowed), self.count):
            network, artefact = self.space.networks.surrogate(k)
            self.borrowed.append(network)
            self.ledger.networks.append(artefact)
        return self.borrowed

    def snapshots(self) -> list[list[Classifier]]:
        epochs = self.attack.asked.snapshots
        snapshots = [self.space.networks.snapshots(k, epochs) for k in range(self.count)]
        self.ledger.networks += [artefact for _, artefact in snapshots]
        return [networks for networks, _ in snapshots]

    def retrain(
        self, data: Images, *names: str | int, which: Sequence[int], behind: str = "", **settings: Any
    ) -> list[Classifier]:
        defense = self.defense(behind, settings) if behind else None
        return [self.space.networks.retrained(k, data, names, self.seed, defense) for k in which]

    def keep(self, name: str, inputs: dict[str, Any], make: Callable[[], Tensor]) -> Tensor:
        identity = identities(self.space.study).cached_by_attack(name, inputs, make)
        artefact = self.space.store.get_or_make("kept", key_of(identity), lambda: ({name: make()}, {}))
        self.ledger.cached[name] = artefact.reused
        return artefact.tensors[name].to(self.space.study.device)

    def transform(self, defense: str, data: Images, ids: Tensor, **settings: Any) -> Transform:
        study, protocol = self.space.study, self.space.study.protocol
        seed, instance = derive(self.seed, "transform"), self.defense(defense, settings)
        services = Services(
            protocol.surrogate,
            len(study.dataset.classes),
            Fit(self.space.networks, seed, protocol.surrogate),
            self.space.report,
            protocol.surrogate_model(0)[0],
        )
        return instance.attacker_view(data, ids, services, torch_stream(study.device, seed, instance.name))

    def poisons_of(self, name: str, **settings: Any) -> Poisons:
        attack = self._declared("attack", name)
        assert isinstance(attack, SelectedAttack)
        return poisons_of(self.space, self.case, attack.changed(**settings))[0]

    def defense(self, name: str, settings: dict[str, Any]) -> Defense:
        """A defense that the attacker knows and uses himself."""
        defense = self._declared("defense", name)
        assert isinstance(defense, SelectedDefense)
        return defense.changed(**settings).new()

    def _declared(self, kind: str, name: str) -> SelectedAttack | SelectedDefense:
        """Another plug-in; TrialFailed unless declared: poisons are kept under the identity of all they build on."""
        builds_on = identities(self.space.study).builds_on(self.attack)
        if (kind, name) not in builds_on:
            raise TrialFailed(f"attack '{self.attack.label}' uses {kind} '{name}'; fix: declare it in `builds_on`")
        return builds_on[kind, name]
