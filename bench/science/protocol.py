"""Protocols: what is being compared. A preset file, then what the user sets, checked before anything is run.

Precedence: default of the plug-in < variant (`friends-b`) < protocol file < --set.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from bench.foundation.errors import BadInput, nearest
from bench.foundation.registry import Plugin, find
from bench.foundation.settings import Settings, build, literal
from bench.science.threat import Threat
from bench.science.training import Recipe

SECTIONS = (
    *("dataset", "pretrain_dataset", "public_dataset"),
    *("train", "surrogate", "pretrain", "threat", "attack", "defense"),
)
PLAIN = ("name", "version", "description", "trials", "model")
MOST_TRIALS = 100_000


@dataclass(frozen=True)
class Protocol:
    """Data, model, threat and training of a study, resolved and checked.

    surrogate: how the attacker's networks are trained (the victim's recipe unless a [surrogate] section changes it);
    pretrain, pretrain_dataset: how and on what the networks are trained that `transfer` and `finetune` start from (the
    victim's recipe unless a [pretrain] section changes it; the study's own data unless [pretrain_dataset] names
    others); public_dataset, public_dataset_settings: images from elsewhere that a defender may train an external
    model on (None: patches of photographs, of the study's size); attack_settings, defense_settings: by plug-in name,
    what the protocol changes for that plug-in.
    """

    name: str
    version: int
    description: str
    trials: int
    model: str
    dataset: str
    dataset_settings: Settings
    train: Recipe
    surrogate: Recipe
    pretrain: Recipe
    pretrain_dataset: str
    pretrain_dataset_settings: Settings
    threat: Threat
    public_dataset: str | None = None
    public_dataset_settings: Settings | None = None
    attack_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    defense_settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def pretrained(self) -> bool:
        """Whether victims start from a pretrained network."""
        return self.threat.scenario != "from-scratch"

    def surrogate_model(self, k: int) -> tuple[str, int]:
        """Architecture of the attacker's k-th network, and which of the networks of that architecture it is."""
        names = self.threat.architectures or (self.model,)
        before = [names[i % len(names)] for i in range(k)]
        name = names[k % len(names)]
        victims_own = self.pretrained and name == self.model and not self.threat.white_box
        return name, before.count(name) + victims_own

    def as_dict(self) -> dict[str, Any]:
        """What shapes the numbers of every cell (the number of trials and the plug-ins' own settings do not)."""
        shapes = {
            "name": self.name,
            "version": self.version,
            "model": self.model,
            "dataset": {"name": self.dataset, **self.dataset_settings.as_dict()},
            "train": self.train.as_dict(),
            "surrogate": self.surrogate.as_dict(),
            "threat": self.threat.as_dict(),
        }
        if self.pretrained:
            source = {"name": self.pretrain_dataset, **self.pretrain_dataset_settings.as_dict()}
            shapes |= {"pretrain": self.pretrain.as_dict(), "pretrain_dataset": source}
        return shapes


@dataclass(frozen=True)
class Chosen:
    """A plug-in with its settings. reference: the name or file by which it is found, in any process; label: the name
    under which it is registered, as records call it; parts: of a composition `a+b`, whose own settings are empty."""

    kind: str
    reference: str
    label: str
    settings: Settings
    parts: tuple[Chosen, ...] = ()

    @property
    def plugin(self) -> Plugin:
        return find(self.kind, self.reference)

    @property
    def shows_trigger(self) -> bool:
        """For attacks: whether victims are judged on images with the trigger of the threat model."""
        return bool(self.attack().shows_trigger)

    @property
    def makers(self) -> tuple[Any, ...]:
        """The classes behind it, whose code shapes its numbers."""
        return (self.plugin.make, *(maker for part in self.parts for maker in part.makers))

    @property
    def needs(self) -> tuple[str, ...]:
        """For defenses: knowledge beyond the training set."""
        return tuple(dict.fromkeys([*self.plugin.make.needs, *(need for part in self.parts for need in part.needs)]))

    @property
    def wants_public(self) -> bool:
        """For defenses: whether images from elsewhere are used."""
        return bool(self.defense().wants_public)

    def attack(self) -> Any:
        """For attacks: a new instance."""
        return self.plugin.make(self.settings)

    def defense(self) -> Any:
        """For defenses: a new instance, called by its label."""
        if self.parts:
            return self.plugin.make([part.defense() for part in self.parts], self.label)
        return self.plugin.make(self.settings, self.label)

    def values(self) -> dict[str, Any]:
        """All settings, those of parts under their labels."""
        return {part.label: part.values() for part in self.parts} if self.parts else self.settings.as_dict()

    def external(self) -> dict[str, Any]:
        """For defenses: what is used from outside this tool. BadInput when it is missing."""
        return self.defense().external() if self.kind == "defense" else {}

    def identity(self) -> dict[str, Any]:
        found = self.external()
        return {"name": self.label, "settings": self.values(), **({"external": found} if found else {})}


def protocol_names() -> list[str]:
    """The presets that ship with the tool."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in resources.files("bench.request.protocols").iterdir()
        if entry.name.endswith(".toml")
    )


def read_preset(name: str) -> tuple[dict[str, Any], str]:
    """The values and the text of a preset, by name or as the path of a TOML file."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise BadInput(f"no protocol file '{name}'")
        text = path.read_text()
    elif name in protocol_names():
        text = (resources.files("bench.request.protocols") / f"{name}.toml").read_text()
    else:
        raise BadInput(f"unknown protocol '{name}'{nearest(name, protocol_names())}")
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"protocol file '{name}' is not TOML: {error}") from None


def resolve(preset: str, sets: Sequence[str], dataset: str | None = None) -> tuple[Protocol, list[tuple[str, Any]]]:
    """The protocol of a preset with `--set` items and `--dataset`, and the items left for plug-ins (attack., defense.).

    BadInput for any unknown key or value out of bounds, naming the key, the range and the nearest known name.
    """
    values, _ = read_preset(preset)
    for key in values:
        if key not in (*SECTIONS, *PLAIN):
            raise BadInput(f"protocol '{preset}': unknown key '{key}'{nearest(key, (*SECTIONS, *PLAIN))}")
    sections: dict[str, dict[str, Any]] = {name: dict(values.get(name, {})) for name in SECTIONS}
    rest: list[tuple[str, Any]] = []
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise BadInput(f"--set {item}: write key=value, as in --set threat.eps=8")
        section, dot, name = key.partition(".")
        value = literal(text)
        if not dot and section in ("model", "trials"):
            values[section] = value
        elif not dot or section not in SECTIONS:
            known = [f"{other}." for other in SECTIONS] + ["model", "trials"]
            raise BadInput(f"--set {key}: unknown key '{key}'{nearest(key if not dot else section + '.', known)}")
        elif section in ("attack", "defense"):
            rest.append((key, value))
        else:
            sections[section][name] = value
    dataset_name, settings = _dataset(sections["dataset"], dataset, sets)
    train = build(Recipe, sections["train"], "train")
    model, trials = values.get("model", "resnet18"), values.get("trials", 20)
    if not isinstance(model, str):
        raise BadInput(f"bad value for 'model': {model!r}; allowed: the name of a model")
    if not isinstance(trials, int) or isinstance(trials, bool) or not 1 <= trials <= MOST_TRIALS:
        raise BadInput(f"bad value for 'trials': {trials!r}; allowed: whole number, 1 to {MOST_TRIALS}")
    threat = build(Threat, sections["threat"], "threat")
    for name in (model, *threat.architectures):
        find("model", name)
    pretrain_name, pretrain_settings = dataset_name, settings
    if sections["pretrain_dataset"]:
        pretrain_name, pretrain_settings = _dataset(sections["pretrain_dataset"], None, sets, "pretrain_dataset")
    public_name, public_settings = None, None
    if sections["public_dataset"]:
        public_name, public_settings = _dataset(sections["public_dataset"], None, sets, "public_dataset")
    protocol = Protocol(
        name=str(values.get("name", preset)),
        version=int(values.get("version", 1)),
        description=str(values.get("description", "")),
        trials=trials,
        model=model,
        dataset=dataset_name,
        dataset_settings=settings,
        train=train,
        surrogate=build(Recipe, {**sections["train"], **sections["surrogate"]}, "surrogate"),
        pretrain=build(Recipe, {**sections["train"], **sections["pretrain"]}, "pretrain"),
        pretrain_dataset=pretrain_name,
        pretrain_dataset_settings=pretrain_settings,
        threat=threat,
        public_dataset=public_name,
        public_dataset_settings=public_settings,
        attack_settings=sections["attack"],
        defense_settings=sections["defense"],
    )
    return protocol, rest


def _dataset(
    section: dict[str, Any], asked: str | None, sets: Sequence[str], where: str = "dataset"
) -> tuple[str, Settings]:
    """Name (with argument) and settings of the data set: the protocol's, or the one asked for on the command line."""
    name = str(section.pop("name", "photographs"))
    if asked is not None:
        # Settings of the preset that the other data set knows as well (how many images a class) still hold.
        known = find("dataset", asked.partition(":")[0]).make.Settings.model_fields
        typed = {item.partition("=")[0].partition(".")[2] for item in sets if item.startswith("dataset.")}
        section = {key: value for key, value in section.items() if key in known or key in typed}
        name = asked
    return name, build(find("dataset", name.partition(":")[0]).make.Settings, section, where)


def choose(kind: str, references: Sequence[str], protocol: Protocol, rest: Sequence[tuple[str, Any]]) -> list[Chosen]:
    """The plug-ins of one kind with their settings.

    `attack.eps=..` or `defense.mu=..` goes to every plug-in that is named; `defense.friends-b.mu=..` to that one.
    """
    of_protocol = protocol.attack_settings if kind == "attack" else protocol.defense_settings
    composed = {reference: _parts(reference) for reference in references if kind == "defense"}
    plugins = {
        reference: find(kind, "composition" if composed.get(reference) else reference)
        for reference in dict.fromkeys(references)
    }
    labels = {plugin.name for plugin in plugins.values()}
    labels |= {find(kind, part).name for parts in composed.values() for part in parts}
    chosen = []
    for reference, plugin in plugins.items():
        if composed.get(reference):
            chosen.append(_compose(composed[reference], protocol, rest))
            continue
        values = {**plugin.variant, **of_protocol.get(plugin.name, {})}
        for key, value in rest:
            section, _, name = key.partition(".")
            if section != kind:
                continue
            owner, dot, inner = name.rpartition(".")
            if dot and owner not in labels:
                raise BadInput(f"--set {key}: no {kind} '{owner}' in this run{nearest(owner, labels)}")
            if not dot or owner == plugin.name:
                values[inner if dot else name] = value
        chosen.append(Chosen(kind, reference, plugin.name, build(plugin.make.Settings, values, f"{kind}")))
    for key, _ in rest:
        if key.startswith(f"{kind}.") and not chosen:
            raise BadInput(f"--set {key}: no {kind} is named in this run")
    return chosen


def _parts(reference: str) -> list[str]:
    """The defenses of `a+b`; none for a single one."""
    return reference.split("+") if "+" in reference and not Path(reference).is_file() else []


def _compose(references: Sequence[str], protocol: Protocol, rest: Sequence[tuple[str, Any]]) -> Chosen:
    """Several defenses as one, in that order. BadInput with the reason where their hooks do not go together.

    A setting without an owner goes to the parts that know it.
    """
    fields = {find("defense", name).name: find("defense", name).make.Settings.model_fields for name in references}
    own: list[tuple[str, Any]] = []
    for key, value in rest:
        section, _, name = key.partition(".")
        if section != "defense" or "." in name:
            own += [(key, value)] if section != "defense" or name.rpartition(".")[0] in fields else []
            continue
        knowing = [label for label, known in fields.items() if name in known]
        if not knowing:
            every = {known for one in fields.values() for known in one}
            raise BadInput(f"unknown key '{key}'{nearest(name, every)}")
        own += [(f"defense.{label}.{name}", value) for label in knowing]
    parts = tuple(choose("defense", references, protocol, own))
    composition = find("defense", "composition")
    composition.make.check([part.plugin.make for part in parts], [part.label for part in parts])
    label = "+".join(part.label for part in parts)
    return Chosen("defense", "composition", label, composition.make.Settings(), parts)
