"""Identities: JSON descriptions of everything that shapes an artefact or a record. Their hash is its key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from bench.foundation import fingerprint
from bench.science.seeds import derive
from bench.science.selection import SelectedAttack, SelectedDefense, select_attacks, select_defenses
from bench.science.study import Case, Study
from bench.storage.store import key_of

P = ParamSpec("P")
T = TypeVar("T")
Identity = dict[str, Any]


def _once(method: Callable[Concatenate[Identities, P], T]) -> Callable[Concatenate[Identities, P], T]:
    """Each identity is made once in a study and process."""

    @functools.wraps(method)
    def remembered(self: Identities, *arguments: P.args, **named: P.kwargs) -> T:
        place = (method.__name__, *arguments)
        if place not in self.memo:
            self.memo[place] = method(self, *arguments, **named)
        return self.memo[place]

    return remembered


class Identities:
    """Of what one study makes."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.memo: dict[Any, Any] = {}

    @_once
    def common(self) -> Identity:
        numerics = fingerprint.numerics(torch.device(self.study.device), self.study.threads)
        return {"data": self.study.dataset.fingerprint, "numerics": numerics}

    @_once
    def model_code(self, model: str) -> str:
        return fingerprint.code(self.study.architecture(model))

    @_once
    def pretrained(self, model: str, j: int) -> Identity:
        """The j-th pretrained network of an architecture; the victim starts from number 0 of its own."""
        return {
            "kind": "pretrained",
            **self.common(),
            "data": self.study.pretrain_dataset.fingerprint,
            "model": model,
            "recipe": self.study.protocol.pretrain.as_dict(),
            "seed": derive(self.study.seed, "pretrained", model, j),
            "code": self.model_code(model),
        }

    @_once
    def start(self, model: str, j: int) -> Identity:
        """From what a training of `model` starts in this scenario, and how."""
        scenario = {"scenario": self.study.protocol.threat.scenario, "model": model}
        if not self.study.protocol.pretrained:
            return scenario
        return {**scenario, "pretrained": key_of(self.pretrained(model, j))}

    @_once
    def surrogate(self, k: int) -> Identity:
        """The k-th surrogate depends on data, architecture, recipe, scenario and seed: trials and attacks share it."""
        model, j = self.study.protocol.surrogate_model(k)
        return {
            "kind": "surrogate",
            **self.common(),
            "per_class": self.study.protocol.threat.per_class,
            "start": self.start(model, j),
            "recipe": self.study.protocol.surrogate.as_dict(),
            "seed": self.study.surrogate_seed(k),
            "code": self.model_code(model),
        }

    def snapshots(self, k: int, epochs: tuple[int, ...]) -> Identity:
        """The k-th surrogate with its weights after each of `epochs`."""
        return {**self.surrogate(k), "kind": "snapshots", "epochs": list(epochs)}

    @_once
    def surrogate_keys(self) -> list[str]:
        return [key_of(self.surrogate(k)) for k in range(self.study.protocol.threat.surrogates)]

    @_once
    def reference(self) -> Identity:
        """The clean network that tells what may be a target: the victim's own training, with a seed of its own."""
        model = self.study.protocol.model
        return {
            "kind": "reference",
            **self.common(),
            "per_class": self.study.protocol.threat.per_class,
            "start": self.start(model, 0),
            "recipe": self.study.protocol.train.as_dict(),
            "seed": derive(self.study.seed, "reference"),
            "code": self.model_code(model),
        }

    def right(self) -> Identity:
        """What the reference network classifies right."""
        return {"kind": "right", "network": key_of(self.reference())}

    def draw(self, case: Case) -> Identity:
        """A trial, or what it is drawn by where a network has a say in that."""
        threat = self.study.protocol.threat
        if self.study.listed is not None or threat.eligible == "any":
            return case.trial.as_dict()
        shapes = {name: getattr(threat, name) for name in ("pair", "targets", "budget")}
        return {"index": case.index, "seed": self.study.seed, **shapes, "among": key_of(self.right())}

    def cached_by_defense(self, name: str, inputs: Identity) -> Identity:
        """Something that a defense keeps: the rest of what shapes it is in `inputs`."""
        return {"kind": f"cached by a defense: {name}", "inputs": inputs, "numerics": self.common()["numerics"]}

    def cached_by_attack(self, name: str, inputs: Identity, make: Callable[..., Any]) -> Identity:
        return {
            "kind": f"cached by an attack: {name}",
            "inputs": inputs,
            "data": self.study.attacker_data.digest,
            "surrogates": self.surrogate_keys(),
            "code": fingerprint.code(make),
        }

    @_once
    def builds_on(self, attack: SelectedAttack) -> dict[tuple[str, str], SelectedAttack | SelectedDefense]:
        """The plug-ins that an attack builds on, with the protocol's settings for them."""
        select: dict[str, Callable[..., Any]] = {"attack": select_attacks, "defense": select_defenses}
        return {(kind, name): select[kind]([name], self.study.protocol)[0] for kind, name in attack.asked.builds_on}

    @_once
    def _attack(self, attack: SelectedAttack) -> Identity:
        """What all poisons of an attack share."""
        study, asked = self.study, attack.asked
        names = ["eps", "per_class", *(("patch", "patch_seed", "placement") if asked.shows_trigger else ())]
        return {
            "kind": "poisons",
            **self.common(),
            "attack": attack.identity(),
            "threat": {name: getattr(study.protocol.threat, name) for name in names},
            "surrogates": self.surrogate_keys() if attack.make.uses_surrogates else [],
            "builds_on": [
                {"kind": kind, **selected.identity(), "code": fingerprint.code(selected.make)}
                for (kind, _), selected in self.builds_on(attack).items()
            ],
            "surrogate_recipe": study.protocol.surrogate.as_dict() if attack.make.uses_surrogates else {},
            "augmentation": {name: getattr(study.protocol.train, name) for name in ("augment", "shift", "flip")},
            "code": fingerprint.code(attack.make),
        }

    @_once
    def poisons(self, attack: SelectedAttack, case: Case) -> Identity:
        return {**self._attack(attack), "trial": self.draw(case), "seed": case.attack_seed(attack)}

    @_once
    def cell(self, attack: SelectedAttack, defense: SelectedDefense) -> Identity:
        study = self.study
        makers = (*attack.makers, *defense.makers, study.architecture(study.protocol.model))
        others = {"public": study.public_dataset.fingerprint} if defense.asked.wants_public else {}
        if study.protocol.pretrained:
            others["pretrain_data"] = study.pretrain_dataset.fingerprint
        return {
            "kind": "cell",
            **self.common(),
            "protocol": study.protocol.as_dict(),
            "attack": attack.identity(),
            "defense": defense.identity(),
            "seed": study.seed,
            "trials": study.listed.digest if study.listed is not None else "drawn",
            "code": fingerprint.code(*makers),
            **others,
        }

    @_once
    def cell_key(self, attack: SelectedAttack, defense: SelectedDefense) -> str:
        return key_of(self.cell(attack, defense))

    def record(self, attack: SelectedAttack, defense: SelectedDefense, index: int, victim: int = 0) -> Identity:
        """What a record must say to be the record of this trial's victim: names and keys."""
        cell = self.cell_key(attack, defense)
        return {
            "key": key_of({"cell": cell, "trial": index, **({"victim": victim} if victim else {})}),
            "cell": cell,
            "attack": attack.label,
            "defense": defense.label,
            "protocol": self.study.protocol.name,
            "trial": index,
            "victim": victim,
            "seed": self.study.seed,
        }


@functools.lru_cache(maxsize=256)
def identities(study: Study) -> Identities:
    """Those of a study, which are kept as long as it is in use."""
    return Identities(study)
