"""Settings: bounds, types, errors in one line, and their way through JSON."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import pytest
from pydantic import Field

from bench.foundation.errors import BadInput
from bench.foundation.settings import Settings, allowed, build, literal


class Example(Settings):
    eps: int = Field(16, ge=1, le=255)
    rate: float = Field(0.1, gt=0, lt=2)
    kind: Literal["crop", "none"] = "crop"
    drops: tuple[int, ...] = (3, 5)
    flip: bool = True
    name: str = ""
    limit: int | None = None


class Required(Settings):
    count: int = Field(ge=2)


def message(values: dict[str, Any], cls: type[Any] = Example, where: Any = "train") -> str:
    with pytest.raises(BadInput) as caught:
        build(cls, values, where)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_unknown_key_offers_the_nearest_name() -> None:
    assert message({"esp": 8}) == "unknown key 'train.esp'; did you mean 'eps'?"


def test_an_unknown_key_like_no_other_lists_what_is_known() -> None:
    assert "known: drops, eps, flip, kind, limit, name, rate" in message({"zzzzzz": 8})


@pytest.mark.parametrize("value", [0, 256, -1])
def test_a_value_out_of_range_names_key_value_and_range(value: int) -> None:
    text = message({"eps": value})
    assert text == f"bad value for 'train.eps': {value}; allowed: whole number, at least 1, at most 255"


@pytest.mark.parametrize("value", [0.0, 2.0, math.nan, math.inf, -math.inf])
def test_open_bounds_and_non_finite_numbers_are_refused(value: float) -> None:
    assert "number, more than 0, less than 2" in message({"rate": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("eps", True), ("eps", 8.0), ("eps", "8"), ("rate", True), ("rate", "0.1"), ("flip", 1), ("flip", "true"),
     ("name", 3), ("drops", [1, True]), ("drops", 3), ("kind", "Crop"), ("limit", "x"), ("eps", None)],
)  # fmt: skip
def test_no_value_is_silently_converted(key: str, value: bool | float) -> None:
    assert f"'train.{key}'" in message({key: value})


def test_a_choice_lists_the_choices() -> None:
    assert "one of crop, none" in message({"kind": "cropp"})


def test_a_missing_key_says_what_it_takes() -> None:
    assert message({}, Required) == "missing key 'train.count': whole number, at least 2"


def test_a_rule_over_several_keys_reports_its_own_fix() -> None:
    from bench.science.training import Recipe

    assert message({"momentum": 0.0}, Recipe) == "train: nesterov needs momentum above 0; fix: nesterov = false"
    assert "rising epochs" in message({"drops": [5, 3]}, Recipe)


def test_an_error_stays_on_one_line_when_the_value_has_many() -> None:
    message({"kind": "a\nb"})


def test_lists_become_tuples() -> None:
    assert build(Example, {"drops": [1, 2]}, "train").drops == (1, 2)


def test_settings_round_trip_through_json() -> None:
    settings = build(Example, {"drops": [1], "rate": 0.3, "limit": 4}, "train")
    assert build(Example, json.loads(json.dumps(settings.as_dict())), "train") == settings


def test_a_whole_number_for_a_float_gives_the_same_stored_settings() -> None:
    assert json.dumps(Example(rate=1).as_dict()) == json.dumps(Example(rate=1.0).as_dict())


def test_settings_cannot_be_changed_after_they_are_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Example().eps = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("0.1", 0.1), ("1e-3", 1e-3), ("true", True), ("[30, 50]", [30, 50]), ('"8"', "8"), ("crop", "crop"),
     ("friends-b", "friends-b"), ("", ""), ("True", "True"), ("folder:/a b", "folder:/a b")],
)  # fmt: skip
def test_text_denotes_a_toml_value_or_itself(text: str, value: float) -> None:
    found = literal(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "words"),
    [("drops", "list of whole number"), ("limit", "whole number or nothing"), ("flip", "true or false"),
     ("name", "text"), ("rate", "number, more than 0, less than 2")],
)  # fmt: skip
def test_types_are_named_for_people(key: str, words: str) -> None:
    assert allowed(Example.model_fields[key]) == words
