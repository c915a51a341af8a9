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
from bench.request.request import Request as PlanRequest
from bench.science.dataset import Dataset, Place
from bench.storage.records import Record
from bench.storage.records import read as read_records

Row = tuple[str | int | float, ...]


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None where it leaves the choice to the figure.

    out: the output folder of runs; records: a .jsonl file to read instead of its records; data: where data sets look
    for files.
    """

    out: Path
    records: Path | None = None
    protocol: str | None = None
    sets: tuple[str, ...] = ()
    dataset: str | None = None
    data: Path | None = None
    seed: int | None = None
    device: str = "auto"
    attack: str | None = None
    defenses: tuple[str, ...] = ()
    trial: int | None = None


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


def read(request: Request) -> list[Record]:
    """The trial records that a request means, all of one protocol. BadInput when there are none, or of several."""
    if request.sets or request.dataset is not None:
        raise BadInput("this figure shows records as they are: --set and --dataset have no place here")
    if request.records is not None:
        found, where = read_records(None, [request.records], say), request.records
    else:
        where = request.out / "records"
        found = read_records(where, [], say) if where.is_dir() else []
    if not found:
        raise BadInput(f"no trial records in '{where}'; fix: run something first, or --out DIR or --records FILE")
    wanted = {"protocol": request.protocol, "attack": request.attack, "seed": request.seed, "trial": request.trial}
    for name, value in wanted.items():
        found = _only(found, name, [] if value is None else [value])
    found = _only(found, "defense", list(request.defenses))
    protocols = sorted({str(record["protocol"]) for record in found})
    if len(protocols) > 1:
        raise BadInput(f"these are records of {', '.join(protocols)}; choose one with --protocol")
    return found


def _only(records: list[Record], name: str, values: list[Any]) -> list[Record]:
    of_each: list[Any] = [record.get(name) for record in records]
    known = sorted(set(map(str, of_each)))
    for value in values:
        if str(value) not in known:
            raise BadInput(f"no records with {name} '{value}'{nearest(str(value), known)}")
    return [record for record, value in zip(records, of_each, strict=True) if not values or value in values]


def dataset_of(record: Record, data: Path | None) -> Dataset:
    """The data set that a record was made with; BadInput when it comes out otherwise today."""
    values = dict(record["settings"]["protocol"]["dataset"])
    base, _, argument = str(values.pop("name")).partition(":")
    make = find("dataset", base).make
    dataset: Dataset = make(build(make.Settings, values, "dataset"), Place(data, argument))
    if dataset.fingerprint != record["data"]["fingerprint"]:
        raise BadInput(f"data set '{base}' is not the one that the records were made with: its fingerprint differs")
    return dataset


def seeds_of(records: Iterable[Record]) -> str:
    """`seed 0` or `seeds 0, 1`, for a caption."""
    seeds = sorted({int(record["seed"]) for record in records})
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def plan_of(request: Request, attack: str, defenses: tuple[str, ...]) -> Part:
    """The study to train in, with one cell for each defense and the one trial that is asked for (default: 0); checked
    as a run is. attack, defenses: unless the request names others."""
    if request.records is not None:
        raise BadInput("this figure trains networks and reads no records: --records has no place here")
    asked = PlanRequest(
        protocols=(request.protocol or "quick",),
        attacks=(request.attack or attack,),
        defenses=request.defenses or defenses,
        only=True,
        seed=request.seed or 0,
        set=request.sets,
        dataset=request.dataset,
        data=request.data,
    )
    (part,) = plan([asked], choose_devices(request.device)[0]).parts
    return part.on_trials((request.trial or 0,))
