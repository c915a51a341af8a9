"""Protocol files: a preset or a file of one's own, then what --set changes, checked before anything is run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from bench.foundation import toml
from bench.foundation.errors import BadInput, nearest
from bench.foundation.names import word
from bench.foundation.registry import find
from bench.foundation.settings import Settings, build, literal
from bench.science.protocol import Protocol, Source
from bench.science.selection import Changes
from bench.science.threat import Threat
from bench.science.training import Recipe

MOST_TRIALS = 100_000
MOST_VICTIMS = 64
PLUGINS = ("attack", "defense")
NAMED_DATASET = "name"


class ProtocolFile(Settings):
    """A protocol file as it is written. Sections hold what they change; `attack` and `defense` by plug-in."""

    name: str = Field("", description="of the protocol (default: as the file is called)")
    version: int = Field(1, ge=1, description="raised when its numbers change")
    description: str = Field("", description="one line")
    trials: int = Field(20, ge=1, le=MOST_TRIALS, description="trials of each cell")
    victims: int = Field(1, ge=1, le=MOST_VICTIMS, description="victims of each trial of a cell, with other seeds")
    model: str = Field("resnet18", description="the victim's architecture")
    dataset: dict[str, Any] = Field({}, description="name and settings of the data set")
    pretrain_dataset: dict[str, Any] = Field({}, description="what pretrained networks learn (default: the data set)")
    public_dataset: dict[str, Any] = Field({}, description="images from elsewhere, for a defender's external model")
    train: dict[str, Any] = Field({}, description="the victim's recipe")
    surrogate: dict[str, Any] = Field({}, description="what differs in the surrogates' recipe")
    pretrain: dict[str, Any] = Field({}, description="what differs in the pretrained networks' recipe")
    threat: dict[str, Any] = Field({}, description="the threat model")
    attack: dict[str, Any] = Field({}, description="by attack, what differs in its settings")
    defense: dict[str, Any] = Field({}, description="by defense, what differs in its settings")


SECTIONS = tuple(name for name, field in ProtocolFile.model_fields.items() if field.annotation == dict[str, Any])
PLAIN = ("model", "trials", "victims")  # what --set changes outside of sections


def protocol_names() -> list[str]:
    """The presets that ship with the tool."""
    entries = resources.files("bench.request.protocols").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def read_preset(name: str) -> tuple[dict[str, Any], str]:
    """The values and the text of a preset, by name or as the path of a TOML file."""
    if name.endswith(".toml"):
        text = toml.read(Path(name), "protocol file")
    elif name in protocol_names():
        text = (resources.files("bench.request.protocols") / f"{name}.toml").read_text("utf-8")
    else:
        raise BadInput(f"unknown protocol '{name}'{nearest(name, protocol_names())}")
    return toml.parse(text, f"protocol file '{name}'"), text


def resolve(preset: str, sets: Sequence[str], dataset: str | None = None) -> tuple[Protocol, Changes]:
    """The protocol of a preset with `--set` items and `--dataset`, and the items left for plug-ins (attack., defense.).

    BadInput for any unknown key or value out of bounds, naming the key, the range and the nearest known name.
    """
    values, _ = read_preset(preset)
    try:
        written = build(ProtocolFile, values, "")
        name = word(written.name or Path(preset).stem, "a protocol", "another `name` in the file")
        plugins = {kind: _of_plugins(kind, getattr(written, kind)) for kind in PLUGINS}
    except BadInput as error:
        raise BadInput(f"protocol '{preset}': {error}") from None
    changes, typed = _merge(values, sets)
    file = build(ProtocolFile, values, "")
    source = _source(file.dataset, "dataset") if dataset is None else _other(dataset, file.dataset, typed)
    threat = build(Threat, file.threat, "threat")
    for model in (file.model, *threat.architectures):
        find("model", model)
    protocol = Protocol(
        name=name,
        version=file.version,
        description=file.description,
        trials=file.trials,
        model=file.model,
        dataset=source,
        train=build(Recipe, file.train, "train"),
        surrogate=build(Recipe, {**file.train, **file.surrogate}, "surrogate"),
        pretrain=build(Recipe, {**file.train, **file.pretrain}, "pretrain"),
        pretrain_dataset=_source(file.pretrain_dataset, "pretrain_dataset") if file.pretrain_dataset else source,
        threat=threat,
        public_dataset=_source(file.public_dataset, "public_dataset") if file.public_dataset else None,
        attack_settings=plugins["attack"],
        defense_settings=plugins["defense"],
        victims=file.victims,
    )
    return protocol, changes


def _merge(values: dict[str, Any], sets: Sequence[str]) -> tuple[list[tuple[str, Any]], set[str]]:
    """Put `--set` items into the values of a file; those left for plug-ins, and which settings of the data set there
    were."""
    changes: list[tuple[str, Any]] = []
    typed: set[str] = set()
    for item in sets:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise BadInput(f"--set {item}: write key=value, as in --set threat.eps=8")
        section, dot, name = key.partition(".")
        if not dot and section in PLAIN:
            values[section] = literal(text)
        elif not dot or section not in SECTIONS:
            keys = [f"{section}." for section in SECTIONS] + list(PLAIN)
            raise BadInput(f"--set {key}: unknown key '{key}'{nearest(key if not dot else section + '.', keys)}")
        elif section in PLUGINS:
            changes.append((key, literal(text)))
        else:
            values[section] = {**values.get(section, {}), name: literal(text)}
            typed |= {name} if section == "dataset" else set()
    return changes, typed


def _of_plugins(kind: str, section: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of a section by the names of its plug-ins. BadInput for plug-ins that do not exist, or that do not
    know them."""
    by_name: dict[str, dict[str, Any]] = {}
    for written, settings in section.items():
        where = f"{kind}.{written}"
        if not isinstance(settings, dict):
            raise BadInput(f"unknown key '{where}'; write it under a plug-in, as in [{kind}.NAME]")
        try:
            plugin = find(kind, written)
            build(plugin.make.Settings, {**plugin.variant, **settings}, where)
        except BadInput as error:
            raise BadInput(f"[{where}]: {error}") from None
        if plugin.name in by_name:
            raise BadInput(f"[{where}]: '{plugin.name}' has a section already")
        by_name[plugin.name] = settings
    return by_name


def _source(section: dict[str, Any], where: str) -> Source:
    settings = {key: value for key, value in section.items() if key != NAMED_DATASET}
    written = section.get(NAMED_DATASET, "photographs")
    if not isinstance(written, str):
        raise BadInput(f"bad value for '{where}.name': {written!r}; allowed: the name of a data set")
    name, _, argument = written.partition(":")
    make = find("dataset", name).make
    if argument and getattr(make, "takes_path", False):
        argument = os.path.abspath(argument)  # a worker may be in another folder
    return Source(name, build(make.Settings, settings, where), argument)


def _other(name: str, section: dict[str, Any], typed: set[str]) -> Source:
    """The data set of --dataset: settings of the preset that it knows as well (how many images per class) still hold,
    and what was typed must be known."""
    fields = find("dataset", name.partition(":")[0]).make.Settings.model_fields
    settings = {key: value for key, value in section.items() if key in fields or key in typed}
    return _source({**settings, NAMED_DATASET: name}, "dataset")
