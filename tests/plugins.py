"""A plug-in by its name and some of its settings, as a run would make it."""

from __future__ import annotations

from typing import Any

from bench.foundation.registry import find
from bench.foundation.settings import Settings, build


def settings_of(kind: str, name: str, **settings: Any) -> Settings:
    """The settings of a variant, with these over them."""
    plugin = find(kind, name)
    made: Settings = build(plugin.make.Settings, {**plugin.variant, **settings}, kind)
    return made


def make_attack(name: str, **settings: Any) -> Any:
    """Any, not Attack: tests call what only that class has."""
    return find("attack", name).make(settings_of("attack", name, **settings))


def make_defense(name: str, **settings: Any) -> Any:
    """Any, not Defense: tests call what only that class has."""
    return find("defense", name).make(settings_of("defense", name, **settings), name)
