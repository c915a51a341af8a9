"""Attacks and defenses as they are asked for: found once, with their settings, and handed on.

Precedence of settings: default of the plug-in, which may depend on the scenario < variant (`friends-b`) < protocol file
< --set < `name[setting=value]`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from bench.foundation.errors import BadInput, nearest
from bench.foundation.names import LONGEST_COMPOSED
from bench.foundation.registry import Plugin, find
from bench.foundation.settings import Settings, build
from bench.science.attack import Attack
from bench.science.composition import Composition
from bench.science.defense import Defense
from bench.science.protocol import Protocol
from bench.science.references import composed, parse
from bench.science.threat import Threat

SCENARIOS: tuple[str, ...] = get_args(Threat.model_fields["scenario"].annotation)

Changes = Sequence[tuple[str, Any]]
"""Items of --set for plug-ins: ("defense.mu", 8) goes to every defense, ("defense.friends-b.mu", 8) to that one."""


@dataclass(frozen=True, eq=False)
class SelectedAttack:
    """reference: the name or file by which any process finds it; label: its name in records."""

    reference: str
    label: str
    make: type[Attack]
    settings: Settings

    def new(self) -> Attack:
        return self.make(self.settings)

    @functools.cached_property
    def asked(self) -> Attack:
        """An instance to ask what the attack needs; it never crafts."""
        return self.new()

    @property
    def makers(self) -> tuple[type, ...]:
        """The classes whose code shapes its numbers."""
        return (self.make,)

    def values(self) -> dict[str, Any]:
        return self.settings.as_dict()

    def changed(self, **settings: Any) -> SelectedAttack:
        """The same with other settings. BadInput for those that it does not know."""
        return replace(self, settings=_changed(self.settings, settings, "attack"))

    def identity(self) -> dict[str, Any]:
        return {"name": self.label, "settings": self.values()}

    def __reduce__(self) -> tuple[Any, ...]:
        # By name, so that a worker process imports a plug-in file again; the class of a file cannot be sent.
        return _attack_again, (self.reference, self.label, json.dumps(dict(self.settings)))


@dataclass(frozen=True, eq=False)
class SelectedDefense:
    """reference: the name or file by which any process finds it; label: its name in records; parts: of a composition
    `a+b`, whose own settings are empty."""

    reference: str
    label: str
    make: type[Defense]
    settings: Settings
    parts: tuple[SelectedDefense, ...] = ()

    def new(self) -> Defense:
        if self.parts:
            return Composition([part.new() for part in self.parts], self.label)
        return self.make(self.settings, self.label)

    @functools.cached_property
    def asked(self) -> Defense:
        """An instance to ask what the defense needs; it never trains."""
        return self.new()

    @property
    def makers(self) -> tuple[type, ...]:
        """The classes whose code shapes its numbers."""
        return (self.make, *(maker for part in self.parts for maker in part.makers))

    @property
    def needs(self) -> tuple[str, ...]:
        """Knowledge beyond the training set."""
        return tuple(dict.fromkeys([*self.make.needs, *(need for part in self.parts for need in part.needs)]))

    def values(self) -> dict[str, Any]:
        """All settings, those of parts under their labels; those that lead to files by content."""
        if self.parts:
            return {part.label: part.values() for part in self.parts}
        return {**self.settings.as_dict(), **self._by_content}

    @functools.cached_property
    def _by_content(self) -> dict[str, str]:
        return self.asked.by_content()

    def places(self) -> dict[str, str]:
        """Where the files of such settings were, as asked for."""
        return {
            f"defense.{part.label}.{name}": str(getattr(part.settings, name))
            for part in self.parts or (self,)
            for name in part._by_content
        }

    def changed(self, **settings: Any) -> SelectedDefense:
        """The same with other settings. BadInput for those that it does not know."""
        return replace(self, settings=_changed(self.settings, settings, "defense"))

    @functools.cached_property
    def external(self) -> dict[str, Any]:
        """What is used from outside this tool. BadInput when it is missing."""
        return self.asked.external()

    def identity(self) -> dict[str, Any]:
        outside = {"external": self.external} if self.external else {}
        return {"name": self.label, "settings": self.values(), **outside}

    def __reduce__(self) -> tuple[Any, ...]:
        if self.parts:
            return _composition, (self.parts,)
        return _defense_again, (self.reference, self.label, json.dumps(dict(self.settings)))


def select_attacks(references: Sequence[str], protocol: Protocol, changes: Changes = ()) -> list[SelectedAttack]:
    """The attacks with their settings. BadInput for unknown names, settings and values out of bounds."""
    asked = [(reference, *_found("attack", reference)) for reference in dict.fromkeys(references)]
    _check_owners("attack", changes, [plugin.name for _, plugin, _ in asked])
    return [
        SelectedAttack(
            parse(reference)[0], plugin.name, plugin.make,
            build(plugin.make.Settings, _values(plugin, protocol, changes, bracketed), "attack"),
        )
        for reference, plugin, bracketed in asked
    ]  # fmt: skip


def select_defenses(
    references: Sequence[str], protocol: Protocol | None, changes: Changes = ()
) -> list[SelectedDefense]:
    """The defenses with their settings, compositions as one. BadInput as for attacks, and with the reason where the
    hooks of several do not go together. protocol: None outside a study."""
    references = list(dict.fromkeys(references))
    singles = [single for reference in references for single in composed(reference) or [reference]]
    plugins = {single: _found("defense", single) for single in singles}
    _check_owners("defense", changes, [plugin.name for plugin, _ in plugins.values()])
    selected = []
    for reference in references:
        parts = composed(reference)
        if parts:
            selected.append(_composition([_part(part, plugins, parts, protocol, changes) for part in parts]))
            continue
        plugin, bracketed = plugins[reference]
        values = _values(plugin, protocol, changes, bracketed)
        settings = build(plugin.make.Settings, values, "defense")
        selected.append(SelectedDefense(parse(reference)[0], plugin.name, plugin.make, settings))
    return selected


def _part(
    reference: str,
    plugins: dict[str, tuple[Plugin, dict[str, Any]]],
    parts: Sequence[str],
    protocol: Protocol | None,
    changes: Changes,
) -> SelectedDefense:
    """A part of a composition. A setting without an owner goes to the parts that know it."""
    plugin, bracketed = plugins[reference]
    fields = plugin.make.Settings.model_fields
    all_fields = {name for part in parts for name in plugins[part][0].make.Settings.model_fields}
    for key, _ in changes:
        kind, _, name = key.partition(".")
        if kind == "defense" and "." not in name and name not in all_fields:
            raise BadInput(f"unknown key '{key}'{nearest(name, all_fields)}")
    of_part = [(key, value) for key, value in changes if key.count(".") > 1 or key.partition(".")[2] in fields]
    values = _values(plugin, protocol, of_part, bracketed)
    return SelectedDefense(
        parse(reference)[0], plugin.name, plugin.make, build(plugin.make.Settings, values, "defense")
    )


def _composition(parts: Sequence[SelectedDefense]) -> SelectedDefense:
    Composition.check([part.make for part in parts], [part.label for part in parts])
    label = "+".join(part.label for part in parts)
    if len(label) > LONGEST_COMPOSED:
        raise BadInput(f"defense '{label[:40]}...' has {len(label)} letters; allowed: up to {LONGEST_COMPOSED}")
    return SelectedDefense(label, label, Composition, Settings(), tuple(parts))


def load_files(kind: str, references: Sequence[str]) -> None:
    """Make known the plug-ins of the files among some references."""
    for reference in references:
        for single in composed(reference) or [reference]:
            if parse(single)[0].endswith(".py"):
                _found(kind, single)


def _found(kind: str, reference: str) -> tuple[Plugin, dict[str, Any]]:
    name, bracketed = parse(reference)
    plugin = find(kind, name)
    check_scenarios(plugin)
    return plugin, bracketed


def check_scenarios(plugin: Plugin) -> None:
    """BadInput for a scenario in the plug-in's `by_scenario` that does not exist, or a setting there that the plug-in
    does not know: in another scenario nobody would notice."""
    for scenario, values in plugin.make.by_scenario.items():
        where = f"{plugin.kind} '{plugin.name}', by_scenario"
        if scenario not in SCENARIOS:
            raise BadInput(f"{where}: unknown scenario '{scenario}'{nearest(scenario, SCENARIOS)}")
        try:
            build(plugin.make.Settings, {**values, **plugin.variant}, scenario)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from None


def _check_owners(kind: str, changes: Changes, labels: Sequence[str]) -> None:
    for key, _ in changes:
        section, _, name = key.partition(".")
        owner = name.rpartition(".")[0]
        if section == kind and not labels:
            raise BadInput(f"--set {key}: no {kind} is named in this run")
        if section == kind and owner and owner not in labels:
            raise BadInput(f"--set {key}: no {kind} '{owner}' in this run{nearest(owner, labels)}")


def _in_study(plugin: Plugin, protocol: Protocol | None) -> dict[str, Any]:
    """What differs from the defaults before a user changes anything; protocol: None outside a study."""
    if protocol is None:
        return plugin.variant
    of_kind = {"attack": protocol.attack_settings, "defense": protocol.defense_settings}[plugin.kind]
    in_scenario = plugin.make.by_scenario.get(protocol.threat.scenario, {})
    return {**in_scenario, **plugin.variant, **of_kind.get(plugin.name, {})}


def _values(plugin: Plugin, protocol: Protocol | None, changes: Changes, bracketed: dict[str, Any]) -> dict[str, Any]:
    values = dict(_in_study(plugin, protocol))
    for key, value in changes:
        section, _, name = key.partition(".")
        owner, _, setting = name.rpartition(".")
        if section == plugin.kind and owner in ("", plugin.name):
            values[setting] = value
    return values | bracketed


def _changed(settings: Settings, changes: dict[str, Any], where: str) -> Settings:
    return build(type(settings), {**dict(settings), **changes}, where) if changes else settings


@functools.lru_cache(maxsize=1024)
def _attack_again(reference: str, label: str, values: str) -> SelectedAttack:
    """An attack that another process has sent, found once in this one."""
    make = find("attack", reference).make
    return SelectedAttack(reference, label, make, build(make.Settings, json.loads(values), "attack"))


@functools.lru_cache(maxsize=1024)
def _defense_again(reference: str, label: str, values: str) -> SelectedDefense:
    make = find("defense", reference).make
    return SelectedDefense(reference, label, make, build(make.Settings, json.loads(values), "defense"))
