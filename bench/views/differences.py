"""What tells cells of one name apart: the settings in which they differ, in a few words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.storage.record import Record
from bench.views.cells import shape_of

LONGEST = 40  # characters of one value
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
    every = [{name: _text(value) for name, value in flat(values)} for values in settings]
    names = {name: None for values in every for name in values}
    telling = [name for name in names if len({values.get(name) for values in every}) > 1]
    last = [name.rpartition(".")[2] for name in telling]
    short = {name: part if last.count(part) == 1 else name for name, part in zip(telling, last, strict=True)}
    return [_join([f"{short[name]}={values[name]}" for name in telling if name in values]) for values in every]


def labels(records: Sequence[Record], pool: bool = False) -> list[tuple[str, str]]:
    """(attack, defense) of cells, each given by one of its records, told apart by what differs: protocol, seed (unless
    they pool seeds) and data with the attack, the defense's own settings with the defense; cells that agree in both
    differ in code or platform."""

    def of_the_attack(record: Record) -> dict[str, Any]:
        return _of_the_attack(record) | ({} if pool else {"seed": record["seed"]})

    attacks = _told_apart(records, [record["attack"] for record in records], of_the_attack)
    defenses = _told_apart(
        records, [record["defense"] for record in records], lambda record: record["settings"].get("defense") or {}
    )
    pairs = list(zip(attacks, defenses, strict=True))
    for describe in (_origin, lambda record: f"cell {record['cell'][:8]}"):
        for alike in _alike([(record["protocol"], *pair) for record, pair in zip(records, pairs, strict=True)]):
            for i in alike:
                pairs[i] = (pairs[i][0], f"{pairs[i][1]} [{describe(records[i])}]")
    return pairs


def _told_apart(
    records: Sequence[Record], names: list[str], settings: Callable[[Record], Mapping[str, Any]]
) -> list[str]:
    """The names of the records, with what differs among those of one protocol and name."""
    names = list(names)
    for alike in _alike([(record["protocol"], name) for record, name in zip(records, names, strict=True)]):
        for i, text in zip(alike, differences([settings(records[i]) for i in alike]), strict=True):
            names[i] += f" [{text}]" if text else ""
    return names


def _alike(values: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """The places of each value that is there more than once."""
    places: dict[tuple[str, ...], list[int]] = {}
    for i, value in enumerate(values):
        places.setdefault(value, []).append(i)
    return [several for several in places.values() if len(several) > 1]


def _of_the_attack(record: Record) -> dict[str, Any]:
    """What `cells.setting_of` digests besides the names and the seed."""
    return {
        **shape_of(record),
        "attack": record["settings"].get("attack") or {},
        "data": record["data"].get("fingerprint", "")[:8],
    }


def _origin(record: Record) -> str:
    surroundings = record["environment"]
    parts = {"code": record["code"].get("fingerprint", "")[:8], "torch": surroundings.get("torch")}
    parts |= {"on": surroundings.get("device")}
    if surroundings.get("device") == "cpu":  # of a GPU they change nothing
        parts |= {"threads": surroundings.get("threads"), "instructions": surroundings.get("capability")}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def _join(parts: list[str]) -> str:
    return ", ".join(parts[:MOST]) + (f" and {len(parts) - MOST} more" if len(parts) > MOST else "")


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
