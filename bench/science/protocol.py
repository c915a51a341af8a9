"""A protocol: what is being compared, resolved and checked. `bench.request.protocol_file` reads it from files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from bench.foundation.settings import Settings
from bench.science.threat import Threat
from bench.science.training import Recipe


@dataclass(frozen=True)
class Source:
    """A data set by its registered name and its settings; argument: what it was asked for after the colon, as in
    `folder:PATH`. Where that leads is no part of what the data set is: its content is."""

    name: str
    settings: Settings
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name

    def as_dict(self, fingerprint: str) -> dict[str, Any]:
        """fingerprint: of its content, of which the start stands for the argument."""
        name = f"{self.name}:{fingerprint[:12]}" if self.argument else self.name
        return {"name": name, **self.settings.as_dict()}


@dataclass(frozen=True)
class Protocol:
    """Data, model, threat and training of a study.

    surrogate: how the attacker's networks are trained; pretrain, pretrain_dataset: how and on what the networks are
    trained that `transfer` and `finetune` start from; public_dataset: images from elsewhere that a defender may train
    an external model on (None: patches of photographs, of the study's size); attack_settings, defense_settings: by
    plug-in name, what the protocol changes for that plug-in.
    """

    name: str
    version: int
    description: str
    trials: int
    model: str
    dataset: Source
    train: Recipe
    surrogate: Recipe
    pretrain: Recipe
    pretrain_dataset: Source
    threat: Threat
    public_dataset: Source | None = None
    attack_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    defense_settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def pretrained(self) -> bool:
        """Whether victims start from a pretrained network."""
        return self.threat.scenario != "from-scratch"

    def on(self, device: str) -> Protocol:
        """The same with the precision in which a device trains."""
        train, surrogate, pretrain = (recipe.on(device) for recipe in (self.train, self.surrogate, self.pretrain))
        return replace(self, train=train, surrogate=surrogate, pretrain=pretrain)

    def surrogate_model(self, k: int) -> tuple[str, int]:
        """Architecture of the attacker's k-th network, and which of the networks of that architecture it is."""
        names = self.threat.architectures or (self.model,)
        before = [names[i % len(names)] for i in range(k)]
        name = names[k % len(names)]
        is_the_victims = self.pretrained and name == self.model and not self.threat.white_box
        return name, before.count(name) + is_the_victims

    def as_dict(self) -> dict[str, Any]:
        """What shapes the numbers of every cell, but the data (the number of trials and the plug-ins' own settings do
        not)."""
        shapes = {
            "name": self.name,
            "version": self.version,
            "model": self.model,
            "train": self.train.as_dict(),
            "surrogate": self.surrogate.as_dict(),
            "threat": self.threat.as_dict(),
        }
        if self.pretrained:
            shapes["pretrain"] = self.pretrain.as_dict()
        return shapes
