"""Typed, bounded settings: what a user may set, checked at once, with one-line errors that name the repair."""

from __future__ import annotations

import functools
import json
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from bench.foundation import toml
from bench.foundation.errors import BadInput, nearest

S = TypeVar("S", bound="Settings")

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Settings(BaseModel):
    """Base of every settings class: keyword-only, immutable, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values (JSON types only), in field order."""
        return self.model_dump(mode="json")


@functools.lru_cache(maxsize=4096)
def literal(text: str) -> Any:
    """The value that `text` denotes in TOML (`8`, `0.1`, `true`, `[30, 50]`), else the text itself."""
    try:
        values = toml.parse(f"value = {text}", "")
    except BadInput:
        return text
    return values["value"] if len(values) == 1 else text


def build(cls: type[S], values: dict[str, Any], where: str) -> S:
    """`cls(**values)`, or BadInput in one line: which key, under which prefix `where`, what is allowed."""
    try:
        return cls(**{name: _tuples(value) for name, value in values.items()})
    except ValidationError as error:
        raise BadInput(_one_line(cls, error, where)) from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _one_line(cls: type[Settings], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    key = f"{where}.{name}" if where and name else (name or where)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(name, cls.model_fields)}"
    if first["type"] == "missing":
        return f"missing key '{key}': {allowed(cls.model_fields[name])}"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    return f"bad value for '{key}': {_SHORT.repr(first['input'])}; allowed: {allowed(cls.model_fields[name])}"


def allowed(field: FieldInfo) -> str:
    """The type and the bounds of a field, for people: `whole number, 1 to 255`."""
    return _with_limits(field.annotation, field.metadata)


def _with_limits(kind: Any, rules: Iterable[Any]) -> str:
    bounds = {}
    for rule in rules:
        for bound in ("ge", "gt", "le", "lt", "min_length"):
            if getattr(rule, bound, None) is not None:
                bounds[bound] = getattr(rule, bound)
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "min_length": "length at least"}
    limits = ", ".join(f"{words[name]} {value:g}" for name, value in bounds.items())
    return ", ".join(part for part in (_type_name(kind), limits) if part)


def describe(cls: type[Settings], variant: dict[str, Any]) -> str:
    """One line a setting: name, default (of the variant), what is allowed, what it means."""
    lines = []
    for name, field in cls.model_fields.items():
        value = variant.get(name, field.default)
        shown = list(value) if isinstance(value, tuple) else value
        lines.append(f"  {name} = {json.dumps(shown)}  ({allowed(field)}) {field.description or ''}".rstrip())
    return "\n".join(lines)


def _type_name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        bare, *fields = get_args(kind)
        return _with_limits(bare, [rule for field in fields for rule in field.metadata])
    if origin is Literal and len(get_args(kind)) == 1:
        return str(get_args(kind)[0])
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if origin in (typing.Union, types.UnionType):
        names = [_type_name(choice) for choice in get_args(kind)]
        return (", or " if any("," in name for name in names) else " or ").join(names)
    if origin is tuple:
        return f"list of {_type_name(get_args(kind)[0])}"
    plain = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "nothing"}
    return plain.get(kind, getattr(kind, "__name__", str(kind)))
