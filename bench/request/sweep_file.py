"""Sweep files: many attacks x many defenses, of one or several protocols.

    description = "..."
    protocols = ["cifar10-scratch"]     # what stands here holds for every [[block]] that does not say otherwise
    attacks = ["gm"]
    trials = 20
    order = "trials"                    # trial 0 behind all defenses, then trial 1, ...; then the next block
    [[block]]
    defenses = ["none", "friends-b"]
    [[block]]
    defenses = ["epic-0.1"]
    set = ["train.epochs=85"]           # on top of the `set` above

Without a [[block]] the file is one block.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from bench.foundation import toml
from bench.foundation.errors import BadInput, nearest
from bench.foundation.settings import build
from bench.request.request import Request


class SweepFile(Request):
    """A sweep file as it is written: what holds for every block, and the blocks."""

    description: str = Field("", description="one line")
    block: tuple[dict[str, Any], ...] = Field(({},), min_length=1, description="each under a line [[block]]")


def names() -> list[str]:
    """The sweep files that ship with the tool."""
    folder = resources.files("bench.request.sweeps")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read(name: str) -> tuple[list[Request], str, str]:
    """The blocks, the description and the text of a sweep file, by name or path. BadInput in one line."""
    if name.endswith(".toml"):
        text = toml.read(Path(name), "sweep file")
    elif name in names():
        text = (resources.files("bench.request.sweeps") / f"{name}.toml").read_text("utf-8")
    else:
        raise BadInput(f"unknown sweep '{name}'{nearest(name, names())}; or give the path of a .toml file")
    where = f"sweep file '{name}'"
    values = toml.parse(text, where)
    try:
        return _requests(values), values.get("description", ""), text
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def _requests(values: dict[str, Any]) -> list[Request]:
    blocks = values.get("block", [{}])
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise BadInput("write each block under a line [[block]]")
    file = build(SweepFile, values, "")
    common = build(Request, {name: value for name, value in values.items() if name in Request.model_fields}, "")
    requests = []
    for number, block in enumerate(file.block, 1):
        checked = build(Request, block, f"block {number}")
        given = {name: getattr(checked, name) for name in checked.model_fields_set}
        requests.append(common.changed(**{**given, "set": (*common.set, *checked.set)}))
    return requests
