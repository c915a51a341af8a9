"""How plug-ins are written: `name`, `file.py`, `name[setting=value,...]`, and for defenses `a+b`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.foundation.errors import BadInput
from bench.foundation.settings import literal


def split(text: str, separator: str = ",") -> list[str]:
    """The parts of `text` between separators that stand outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if sign == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def parse(reference: str) -> tuple[str, dict[str, Any]]:
    """`friends-b[mu=8]` as ("friends-b", {"mu": 8}). BadInput where the brackets are not understood."""
    name, bracket, inside = reference.partition("[")
    if not bracket or Path(reference).is_file():
        return reference, {}
    if not name or not inside.endswith("]") or "[" in inside.replace("=[", "=").replace(",[", ","):
        raise BadInput(f"'{reference}': write settings as in {name or 'friends-b'}[mu=8]")
    settings: dict[str, Any] = {}
    for item in split(inside[:-1]):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"'{reference}': write '{item}' as setting=value, as in friends-b[mu=8]")
        if key.strip() in settings:
            raise BadInput(f"'{reference}': '{key.strip()}' is given twice")
        settings[key.strip()] = literal(value.strip())
    return name.strip(), settings


def composed(reference: str) -> list[str]:
    """The defenses of `a+b`, in order; empty for a single one."""
    parts = split(reference, "+")
    return parts if len(parts) > 1 and not Path(reference).is_file() else []
