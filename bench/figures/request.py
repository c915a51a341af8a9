"""What a figure is asked for, and where it gets it: trial records, the data set behind them, or a study to train in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.execution.plan import Part, plan
from bench.foundation.devices import choose_devices
from bench.foundation.errors import BadInput, nearest
from bench.foundation.progress import say
from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.request.request import Request
from bench.science.dataset import Dataset, Place
from bench.storage.record import Record
from bench.storage.records import read as read_records

Row = tuple[str | int | float, ...]


@dataclass(frozen=True)
class FigureRequest:
    """asked: of which trials; what it does not set, the figure chooses. out: the output folder of runs; records: a
    .jsonl file to read instead of its records; device: to train on; trial: which one."""

    asked: Request
    out: Path
    records: Path | None = None
    device: str = "auto"
    trial: int | None = None

    def given(self, field: str) -> list[Any]:
        """The values that `asked` sets for a field."""
        value = getattr(self.asked, field)
        if field not in self.asked.model_fields_set:
            return []
        return list(value) if isinstance(value, tuple) else [value]


@dataclass(frozen=True)
class Plate:
    """The numbers of a figure: a table for people who plot it themselves, and what its `draw` needs.

    caption: protocol, n and seed, in a line; size: of the figure, inches.
    """

    columns: tuple[str, ...]
    rows: list[Row]
    caption: str
    content: Any
    size: tuple[float, float]


def read(request: FigureRequest, *, with_data: bool = False) -> list[Record]:
    """The trial records that a request means, all of one protocol; with_data: for a figure that loads their data set
    too. BadInput when there are none, or of several protocols."""
    if request.asked.set or (request.asked.dataset is not None and not with_data):
        refused = "--set does" if with_data else "--set and --dataset do"
        raise BadInput(f"this figure is drawn from records; {refused} not apply")
    if request.records is not None:
        records, where = read_records(None, [request.records], say), request.records
    else:
        where = request.out / "records"
        records = read_records(where, [], say) if where.is_dir() else []
    if not records:
        raise BadInput(f"no trial records in '{where}'; fix: run something first, or --out DIR or --records FILE")
    for name in ("protocol", "attack", "defense"):
        records = _only(records, name, request.given(f"{name}s"))
    records = _only(records, "seed", request.given("seed"))
    records = _only(records, "trial", [] if request.trial is None else [request.trial])
    protocols = sorted({record["protocol"] for record in records})
    if len(protocols) > 1:
        raise BadInput(f"these are records of {', '.join(protocols)}; choose one with --protocol")
    return records


def _only(records: list[Record], name: str, values: list[Any]) -> list[Record]:
    of_each: list[Any] = [record.get(name) for record in records]
    choices = sorted(set(map(str, of_each)))
    for value in values:
        if str(value) not in choices:
            raise BadInput(f"no records with {name} '{value}'{nearest(str(value), choices)}")
    return [record for record, value in zip(records, of_each, strict=True) if not values or value in values]


def dataset_of(record: Record, asked: Request) -> Dataset:
    """The data set that a record was made with, where `asked` says that it is now (--dataset, --data), else where it
    was then; BadInput when it comes out otherwise today."""
    known = record["settings"].get("protocol", {}).get("dataset")
    if known is None or "fingerprint" not in record["data"]:
        raise BadInput("these records do not say which data set they were made with; fix: choose others")
    values: dict[str, Any] = dict(known)
    name, _, argument = str(values.pop("name")).partition(":")
    argument = record["places"].get("dataset", argument)  # older records have the place in the name
    if asked.dataset is not None:
        name, _, argument = asked.dataset.partition(":")
    elif asked.data is not None and argument:
        argument = str(asked.data)
    make = find("dataset", name).make
    fix = f"--dataset {name}:PATH of the same images" if argument else "the data set and --data DIR as they were then"
    try:
        dataset: Dataset = make(build(make.Settings, values, "dataset"), Place(asked.data, argument))
    except BadInput as error:
        raise BadInput(f"{error}; fix: {fix}") from None
    if dataset.fingerprint != record["data"]["fingerprint"]:
        raise BadInput(
            f"data set '{name}' is not the one that the records were made with: its fingerprint differs; fix: {fix}"
        )
    return dataset


def seeds_of(records: Iterable[Record]) -> str:
    """`seed 0` or `seeds 0, 1`, for a caption."""
    seeds = sorted({int(record["seed"]) for record in records})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def plan_of(request: FigureRequest, attack: str, defense: str) -> Part:
    """The study to train in, with one cell for each defense and the one trial that is asked for (default: 0); checked
    as a run is. attack, defense: unless the request names others."""
    if request.records is not None:
        raise BadInput("this figure trains networks; --records does not apply")
    given = {name: getattr(request.asked, name) for name in request.asked.model_fields_set}
    asked = Request(attacks=(attack,), defenses=(defense,), only=True).changed(**given)
    (part,) = plan([asked], choose_devices(request.device)[0]).parts
    return part.on_trials((request.trial or 0,))
