"""A study: protocol, attack and defenses resolved, the data loaded; and the identity of all that will be made in it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import fingerprint
from bench.datasets.base import Dataset, Place, check
from bench.errors import BadInput
from bench.models.base import build_model
from bench.protocol import Chosen, Protocol
from bench.registry import find
from bench.seeds import derive
from bench.store import key_of
from bench.threat import Trial, check_budget, draw_trial


@dataclass(frozen=True)
class Study:
    """What is run, small enough to be sent to a worker process. data: where data sets look for files; device: cpu or
    cuda[:i]; seed: of the whole study."""

    protocol: Protocol
    seed: int
    data: Path | None
    device: str

    @property
    def dataset(self) -> Dataset:
        """The data set, loaded once a process."""
        return _load(self.protocol.dataset, self.protocol.dataset_settings, self.data)

    @property
    def size(self) -> int:
        return int(self.dataset.train.images.shape[2])

    def validate(self) -> None:
        """Everything that can be wrong before long work starts. BadInput in one line."""
        dataset = check(self.dataset)
        check_budget(dataset, self.protocol.threat)
        for model in {self.protocol.model, self.protocol.surrogate_model}:
            build_model(
                model, classes=len(dataset.classes), size=self.size, normalisation=dataset.normalisation, seed=0
            )
        if self.protocol.train.shift >= self.size:
            raise BadInput(f"train.shift: {self.protocol.train.shift} pixels on pictures of {self.size}")

    def trial(self, index: int) -> Trial:
        return draw_trial(self.dataset, self.protocol.threat, self.seed, index)

    # Identities: JSON descriptions of everything that shapes an artefact; their hash is its key in the store.

    def _common(self) -> dict[str, Any]:
        numerics = {"torch": torch.__version__, "device": torch.device(self.device).type}
        return {"data": self.dataset.fingerprint, "numerics": numerics}

    def surrogate_identity(self, k: int) -> dict[str, Any]:
        """The k-th surrogate depends on data, architecture, recipe and seed: all trials and attacks share it."""
        model = self.protocol.surrogate_model
        return {
            "kind": "surrogate",
            **self._common(),
            "model": model,
            "recipe": self.protocol.surrogate.as_dict(),
            "seed": self.surrogate_seed(k),
            "code": fingerprint.code(find("model", model).make),
        }

    def poisons_identity(self, attack: Chosen, index: int) -> dict[str, Any]:
        make = attack.plugin.make
        surrogates = range(self.protocol.threat.surrogates) if make.uses_surrogates else ()
        augmentation = {name: getattr(self.protocol.train, name) for name in ("augment", "shift", "flip")}
        return {
            "kind": "poisons",
            **self._common(),
            "attack": attack.identity(),
            "trial": self.trial(index).as_dict(),
            "eps": self.protocol.threat.eps,
            "surrogates": [key_of(self.surrogate_identity(k)) for k in surrogates],
            "augmentation": augmentation,
            "seed": self.attack_seed(attack, index),
            "code": fingerprint.code(make),
        }

    def cell_identity(self, attack: Chosen, defense: Chosen) -> dict[str, Any]:
        code = fingerprint.code(attack.plugin.make, defense.plugin.make, find("model", self.protocol.model).make)
        return {
            "kind": "cell",
            **self._common(),
            "protocol": self.protocol.as_dict(),
            "attack": attack.identity(),
            "defense": defense.identity(),
            "seed": self.seed,
            "code": code,
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
