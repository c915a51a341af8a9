"""Sweep files: many attacks x many defenses, of one or several protocols.

    description = "..."
    protocols = ["cifar10-scratch"]     # what stands here holds for every [[block]] that does not say otherwise
    attacks = ["gm"]
    trials = 20
    [[block]]
    defenses = ["none", "friends-b"]
    [[block]]
    defenses = ["epic-0.1"]
    set = ["train.epochs=85"]           # on top of the `set` above

Without a [[block]] the file is one block.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

from bench.foundation.errors import BadInput, nearest
from bench.foundation.settings import build
from bench.request.request import Request


def names() -> list[str]:
    """The sweep files that ship with the tool."""
    folder = resources.files("bench.request.sweeps")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read(name: str) -> tuple[list[Request], str, str]:
    """The blocks, the description and the text of a sweep file, by name or path. BadInput in one line."""
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"no readable sweep file '{name}': {error}") from None
    elif name in names():
        text = (resources.files("bench.request.sweeps") / f"{name}.toml").read_text("utf-8")
    else:
        raise BadInput(f"unknown sweep '{name}'{nearest(name, names())}; or give the path of a .toml file")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"sweep file '{name}' is not TOML: {error}") from None
    description, blocks = values.pop("description", ""), values.pop("block", [{}])
    if not isinstance(description, str):
        raise BadInput(f"sweep file '{name}': bad value for 'description': {description!r}; allowed: text")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise BadInput(f"sweep file '{name}': write each block under a line [[block]]")
    common = build(Request, values, "")
    requests = []
    for number, block in enumerate(blocks, 1):
        checked = build(Request, block, f"block {number}")
        requests.append(common.changed(**dict(_given(checked), set=(*common.set, *checked.set))))
    return requests, description, text


def _given(request: Request) -> dict[str, object]:
    return {name: getattr(request, name) for name in request.model_fields_set}
