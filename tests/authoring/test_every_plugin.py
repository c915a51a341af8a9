"""What holds for every plug-in alike: its fast settings, and that whatever else is set is refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.authoring.tiny import FAST, FAST_OF, fast_settings
from bench.foundation.errors import BadInput
from bench.foundation.registry import Plugin, find, names
from bench.foundation.settings import Settings, build

PLUGINS = [(kind, name) for kind in ("attack", "defense", "dataset") for name in names(kind)]
BOUNDS = {"minimum": -1, "exclusiveMinimum": 0, "maximum": 1, "exclusiveMaximum": 0}
"""How far beyond each bound of a JSON schema the nearest number lies that is out."""


@pytest.fixture(params=PLUGINS, ids=lambda plugin: " ".join(plugin))
def plugin(request: pytest.FixtureRequest) -> Plugin:
    return find(*request.param)


def settings_of(plugin: Plugin, **settings: Any) -> Settings:
    made: Settings = build(plugin.make.Settings, {**plugin.variant, **settings}, plugin.kind)
    return made


def refused(plugin: Plugin, **settings: Any) -> str:
    with pytest.raises(BadInput) as error:
        settings_of(plugin, **settings)
    return str(error.value)


def out_of_bounds(plugin: Plugin) -> Iterator[tuple[str, Any]]:
    """Every bound of every number that can be set, as the setting and a value just beyond."""
    for name, schema in plugin.make.Settings.model_json_schema().get("properties", {}).items():
        for bound, step in BOUNDS.items():
            if bound in schema:
                yield name, schema[bound] + step


def test_fast_settings_are_the_variant_but_for_what_the_table_says(plugin: Plugin) -> None:
    plain, fast = (settings.as_dict() for settings in (settings_of(plugin), fast_settings(plugin)))
    table = {**FAST, **FAST_OF.get(plugin.name, {})}
    assert {name: value for name, value in fast.items() if value != plain[name]}.items() <= table.items()


def test_a_setting_that_it_does_not_have_is_refused_in_one_line(plugin: Plugin) -> None:
    message = refused(plugin, no_such_setting=1)
    assert message.startswith(f"unknown key '{plugin.kind}.no_such_setting'") and "\n" not in message


def test_numbers_beyond_a_bound_are_refused_in_one_line_that_names_them(plugin: Plugin) -> None:
    for name, value in out_of_bounds(plugin):
        message = refused(plugin, **{name: value})
        assert f"{plugin.kind}.{name}" in message and "\n" not in message


def test_the_table_of_fast_settings_holds_nothing_that_is_gone() -> None:
    fields = {name: set(find(kind, name).make.Settings.model_fields) for kind, name in PLUGINS}
    assert set(FAST) <= set().union(*fields.values())
    assert all(set(settings) <= fields[name] for name, settings in FAST_OF.items())
