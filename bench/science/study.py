"""A study: protocol, attack and defenses resolved, the data loaded; and the identity of all that will be made in it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.foundation import fingerprint
from bench.foundation.errors import BadInput
from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.request.setups import TrialList
from bench.science.classifier import build_model
from bench.science.dataset import Dataset, Images, Place, check
from bench.science.poisons import Shown
from bench.science.protocol import Chosen, Protocol, choose
from bench.science.seeds import derive, torch_stream
from bench.science.threat import Trial, check_budget, draw_trial, victim_data
from bench.storage.store import key_of


@dataclass(frozen=True)
class Study:
    """What is run, small enough to be sent to a worker process. data: where data sets look for files; device: cpu or
    cuda[:i]; seed: of the whole study; listed: where the trials come from, unless they are drawn."""

    protocol: Protocol
    seed: int
    data: Path | None
    device: str
    listed: TrialList | None = None

    @property
    def dataset(self) -> Dataset:
        """The data set, loaded once a process."""
        return _load(self.protocol.dataset, self.protocol.dataset_settings, self.data)

    @property
    def pretrain_dataset(self) -> Dataset:
        """What pretrained networks were trained on: the data set itself unless the protocol names another."""
        return _load(self.protocol.pretrain_dataset, self.protocol.pretrain_dataset_settings, self.data)

    @property
    def public_dataset(self) -> Dataset:
        """Images from elsewhere, for a defender's external model: those that the protocol names, or patches of
        photographs. BadInput when they are not of the study's size."""
        name, settings = self.protocol.public_dataset, self.protocol.public_dataset_settings
        if name is None:
            name = "photographs"
            settings = build(find("dataset", name).make.Settings, {"size": self.size, "colour": "plain"}, name)
        found = check(_load(name, settings, self.data))
        if (size := found.train.images.shape[2]) != self.size:
            raise BadInput(
                f"public_dataset '{name}' has images of {size} pixels, '{self.dataset.name}' of {self.size}; "
                "fix: a data set of the same size"
            )
        return found

    def holdout(self, index: int, poison_ids: torch.Tensor) -> Images:
        """The clean images that a defender knows as such in a trial: a share of every class (at least one) of the
        training set, drawn among what the attacker left alone."""
        data = self.victim_data(index)
        chance = torch_stream("cpu", self.seed, "holdout", index)
        order = torch.randperm(len(data), generator=chance)
        order = order[~torch.isin(data.ids[order], poison_ids)]
        chosen = []
        for label in range(len(self.dataset.classes)):
            of_class = int((data.labels == label).sum())
            count = max(round(self.protocol.threat.holdout * of_class), 1)
            chosen.append(order[data.labels[order] == label][:count])
        return data.subset(torch.cat(chosen).sort().values)

    @property
    def size(self) -> int:
        return int(self.dataset.train.images.shape[2])

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the channels that the networks of this study normalise with."""
        return (self.pretrain_dataset if self.protocol.pretrained else self.dataset).normalisation

    def validate(self) -> None:
        """Everything that can be wrong before long work starts. BadInput in one line."""
        dataset = check(self.dataset)
        check_budget(dataset, self.protocol.threat)
        if self.protocol.pretrained:
            pretraining = check(self.pretrain_dataset)
            if pretraining.train.images.shape[2] != self.size:
                raise BadInput(
                    f"pretrain_dataset '{pretraining.name}' has images of {pretraining.train.images.shape[2]} "
                    f"pixels, '{dataset.name}' of {self.size}; fix: data sets of one size"
                )
        for model in {self.protocol.model, *self.protocol.threat.architectures}:
            build_model(
                model, classes=len(dataset.classes), size=self.size, normalisation=dataset.normalisation, seed=0
            )
        if self.protocol.train.shift >= self.size:
            raise BadInput(f"train.shift: {self.protocol.train.shift} pixels on images of {self.size}")

    def trial(self, index: int) -> Trial:
        if self.listed is not None:
            return self.listed.trial(index, self.dataset)
        return draw_trial(self.dataset, self.protocol.threat, self.seed, index)

    def shown(self, index: int) -> Shown | None:
        """What victims of a listed trial are judged on instead of the target images, where the list says so."""
        return self.listed.shown(index, self.dataset) if self.listed is not None else None

    def triggered(self, trial: Trial) -> Shown:
        """All test images of the source class with the trigger; places depend on study and trial, not on the attack."""
        index, trigger = trial.index, self.protocol.threat.trigger(self.size)
        test = self.dataset.test.subset(self.dataset.test.labels == trial.source_class)
        places = trigger.places(len(test), self.size, self.seed, "trigger", index)
        return Shown(trigger.paste(test.images, places), test.ids, trigger.patch, places)

    def victim_data(self, index: int) -> Images:
        """The clean training set of a trial's victim."""
        return victim_data(self.dataset, self.protocol.threat, self.trial(index))

    @property
    def attacker_data(self) -> Images:
        """The clean training set of the attacker's networks, which all trials share."""
        return victim_data(self.dataset, self.protocol.threat, None)

    def may_poison(self, attack: Chosen, index: int) -> torch.Tensor:
        """Training ids that an attack may change in a trial: the bases that were drawn, or, for an attack that selects
        its bases itself, all images of the target class."""
        trial = self.trial(index)
        if not attack.plugin.make.selects_bases:
            return trial.base_ids
        data = self.victim_data(index)
        return data.ids[data.labels == trial.target_class]

    # Identities: JSON descriptions of everything that shapes an artefact; their hash is its key in the store.

    def _common(self) -> dict[str, Any]:
        numerics = {"torch": torch.__version__, "device": torch.device(self.device).type}
        return {"data": self.dataset.fingerprint, "numerics": numerics}

    def pretrained_identity(self, model: str, j: int) -> dict[str, Any]:
        """The j-th pretrained network of an architecture; the victim starts from number 0 of its own."""
        return {
            "kind": "pretrained",
            **self._common(),
            "data": self.pretrain_dataset.fingerprint,
            "model": model,
            "recipe": self.protocol.pretrain.as_dict(),
            "seed": derive(self.seed, "pretrained", model, j),
            "code": fingerprint.code(find("model", model).make),
        }

    def start_identity(self, model: str, j: int) -> dict[str, Any]:
        """From what a training of `model` starts in this scenario, and how."""
        threat = self.protocol.threat
        if not self.protocol.pretrained:
            return {"scenario": threat.scenario, "model": model}
        return {
            "scenario": threat.scenario,
            "model": model,
            "pretrained": key_of(self.pretrained_identity(model, j)),
        }

    def surrogate_identity(self, k: int, epochs: Sequence[int] = ()) -> dict[str, Any]:
        """The k-th surrogate depends on data, architecture, recipe, scenario and seed: all trials and attacks share
        it. epochs: after which its weights are kept (as `networks.snapshots` keeps them)."""
        model, j = self.protocol.surrogate_model(k)
        snapshots = {"epochs": list(epochs)} if epochs else {}
        return {
            "kind": "snapshots" if epochs else "surrogate",
            **snapshots,
            **self._common(),
            "per_class": self.protocol.threat.per_class,
            "start": self.start_identity(model, j),
            "recipe": self.protocol.surrogate.as_dict(),
            "seed": self.surrogate_seed(k),
            "code": fingerprint.code(find("model", model).make),
        }

    def kept_identity(self, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Something that a defense keeps: the rest of what shapes it is in `inputs`."""
        return {"kind": f"kept by a defense: {name}", "inputs": inputs, "numerics": self._common()["numerics"]}

    def poisons_identity(self, attack: Chosen, index: int) -> dict[str, Any]:
        make, threat = attack.plugin.make, self.protocol.threat
        shapes = ["eps", "per_class", *(("patch", "patch_seed", "placement") if attack.shows_trigger else ())]
        surrogates = range(self.protocol.threat.surrogates) if make.uses_surrogates else ()
        augmentation = {name: getattr(self.protocol.train, name) for name in ("augment", "shift", "flip")}
        return {
            "kind": "poisons",
            **self._common(),
            "attack": attack.identity(),
            "trial": self.trial(index).as_dict(),
            "threat": {name: getattr(threat, name) for name in shapes},
            "surrogates": [key_of(self.surrogate_identity(k)) for k in surrogates],
            "builds_on": [self._part(kind, name) for kind, name in attack.attack().builds_on],
            "surrogate_recipe": self.protocol.surrogate.as_dict() if make.uses_surrogates else {},
            "augmentation": augmentation,
            "seed": self.attack_seed(attack, index),
            "code": fingerprint.code(make),
        }

    def _part(self, kind: str, name: str) -> dict[str, Any]:
        """A plug-in that an attack builds on, with the protocol's settings for it."""
        (chosen,) = choose(kind, [name], self.protocol, [])
        return {"kind": kind, **chosen.identity(), "code": fingerprint.code(chosen.plugin.make)}

    def cell_identity(self, attack: Chosen, defense: Chosen) -> dict[str, Any]:
        code = fingerprint.code(*attack.makers, *defense.makers, find("model", self.protocol.model).make)
        return {
            "kind": "cell",
            **self._common(),
            "protocol": self.protocol.as_dict(),
            "attack": attack.identity(),
            "defense": defense.identity(),
            "seed": self.seed,
            "trials": self.listed.digest if self.listed is not None else "drawn",
            "code": code,
            **({"public": self.public_dataset.fingerprint} if defense.wants_public else {}),
        }

    def surrogate_seed(self, k: int) -> int:
        return derive(self.seed, "surrogate", k)

    def attack_seed(self, attack: Chosen, index: int) -> int:
        return derive(self.seed, "attack", attack.label, index)

    def victim_seed(self, index: int) -> int:
        """The same for every attack and defense, so that cells are compared in pairs."""
        return derive(self.seed, "victim", index)

    def wanted(self, attack: Chosen, defense: Chosen, index: int) -> dict[str, Any]:
        """What a record must say to be the record of this trial: names and keys."""
        cell = key_of(self.cell_identity(attack, defense))
        return {
            "key": key_of({"cell": cell, "trial": index}),
            "cell": cell,
            "attack": attack.label,
            "defense": defense.label,
            "protocol": self.protocol.name,
            "trial": index,
            "seed": self.seed,
        }


@functools.lru_cache(maxsize=4)
def _load(name: str, settings: Any, data: Path | None) -> Dataset:
    base, _, argument = name.partition(":")
    return find("dataset", base).make(settings, Place(data, argument))
