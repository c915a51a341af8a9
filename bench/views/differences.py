"""What tells things of one name apart: the settings in which they differ, in a few words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LONGEST = 40  # signs of one value
MOST = 4  # settings that are named


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as ("threat.eps", 8)."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of several nested settings "eps=8, steps=100": its values where not all of them agree; "" when all do.

    A name is cut down to its last part where that is not ambiguous. A setting that is missing is left out.
    """
    every = [{name: _text(value) for name, value in flat(one)} for one in settings]
    names = {name: None for one in every for name in one}
    telling = [name for name in names if len({one.get(name) for one in every}) > 1]
    last = [name.rpartition(".")[2] for name in telling]
    short = {name: part if last.count(part) == 1 else name for name, part in zip(telling, last, strict=True)}
    return [_join([f"{short[name]}={one[name]}" for name in telling if name in one]) for one in every]


def _join(parts: list[str]) -> str:
    return ", ".join(parts[:MOST]) + (f" and {len(parts) - MOST} more" if len(parts) > MOST else "")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
