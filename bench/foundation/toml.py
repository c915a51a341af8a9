"""TOML as a person's file or option holds it: UTF-8 whatever the locale, and one line for all that it may not be."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from bench.foundation import files
from bench.foundation.errors import BadInput

DEEPEST = 16
MOST_BYTES = 2**20
WHOLE = range(-(2**63), 2**63)  # what TOML promises of whole numbers


def parse(text: str, where: str) -> dict[str, Any]:
    """The values in `text`. BadInput, with `where` it stands, for what is not TOML, for nests deeper than any of ours,
    and for whole numbers of more than 64 bits."""
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise BadInput(f"{where} is nested too deep; allowed: up to {DEEPEST} levels") from None
    except ValueError as error:  # also of Python itself, for a number of thousands of digits
        raise BadInput(f"{where} is not TOML: {error}") from None
    level: list[Any] = [values]
    for _ in range(DEEPEST):
        if any(isinstance(value, int) and value not in WHOLE for value in level):
            raise BadInput(f"{where} holds a whole number of more than 64 bits")
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise BadInput(f"{where} is nested too deep; allowed: up to {DEEPEST} levels")
    return values


def read(path: Path, what: str) -> str:
    """The text of a file; `what` it should be. BadInput when it cannot be read, or is no text in UTF-8."""
    fix = "give the path of a .toml file"
    try:
        text = files.read_regular(path, MOST_BYTES).decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} '{path}' is not UTF-8 (byte {error.start}); fix: save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise BadInput(f"no readable {what} '{path}': {reason}; fix: {fix}") from None


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
