"""The record of a trial: its type, its digest, and the one way from text to a record.

Every value that a view computes with is checked, and the content against the digest that it carries. What older
versions wrote otherwise is brought up to date (see `older`) by this reader, and only by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from bench.storage.older import bring_up_to_date
from bench.storage.parts import (
    Amounts,
    Count,
    Data,
    Digest,
    Draw,
    Dropped,
    Environment,
    Judged,
    Name,
    PoisonFigures,
    Positive,
    Seconds,
    Seeds,
    Settings,
    Share,
    Time,
    Variant,
    Whole,
    checked_as,
    first_fault,
)

SCHEMA = 1


class Summary(TypedDict):
    """A victim of a trial, finished or failed, without its curves; victim: which of the trial's, from 0. `success` and
    `clean_accuracy` are None only when it failed; `seconds` is by stage, as if nothing had been cached; `cached` (of a
    run's results, never on disk): it was there before the run; `digest`: of the content, see `sealed`; older records
    have none."""

    schema: Literal[1]
    key: Digest
    cell: Digest
    attack: Name
    defense: Name
    protocol: Name
    trial: Count
    victim: Count
    seed: Whole
    status: Literal["done", "failed"]
    error: str | None
    success: Share | None
    clean_accuracy: Share | None
    seconds: dict[str, Seconds]
    settings: Annotated[dict[str, dict[str, Any]], checked_as(Settings)]
    started: Time
    finished: Time
    outcome: Annotated[dict[str, Any], checked_as(Judged)] | None
    variants: dict[str, Annotated[dict[str, Any], checked_as(Variant)]]
    filter: Dropped | None
    draw: NotRequired[Draw]
    seeds: Seeds
    poisons: Amounts
    surrogates: dict[str, Any]
    notes: dict[str, Any]
    knowledge: list[str]
    external: dict[str, Any]
    adapted_to: list[str]
    data: Data
    code: dict[str, str]
    revision: str | None
    environment: Annotated[dict[str, Any], checked_as(Environment)]
    reused: dict[str, Any]
    memory_peak_mib: Positive | None
    places: dict[str, str]
    cached: NotRequired[bool]
    digest: NotRequired[str | None]


class Record(Summary):
    """All of it."""

    poisons: PoisonFigures  # type: ignore[misc]
    history: list[Any]


assert SCHEMA == 1  # what Record describes
_WHOLE, _SUMMARY = TypeAdapter(Record), TypeAdapter(Summary)

_HEAD, _HEX = b'{"digest":"', 64
_BEGUN = hashlib.sha256(b"{")
_UNSEALED = ("digest", "cached")  # what the digest does not cover


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as it is written: JSON on one line, first of all the sha256 of the rest. ValueError for NaN."""
    content = _content(record)
    return _HEAD + _digest(content).encode() + b'",' + content[1:] + b"\n"


def parse(text: bytes) -> Record:
    """The record in `text`, brought up to date; ValueError when it is none, or not what was written. Fields that
    `Record` does not name stay."""
    value = from_json(text, allow_inf_nan=False)
    if not as_written(text):
        verify(value)
    return checked(value)


def parse_unsealed(text: bytes) -> Record:
    """As `parse`, of a record from which parts were left out: its digest is taken as it stands."""
    return checked(from_json(text, allow_inf_nan=False), seal=False)


def parse_summary(text: bytes) -> Record:
    """As `parse`, with empty curves, of which nothing is kept: four times as fast on a record as it is written."""
    try:
        if not as_written(text):
            return without_curves(parse(text))
        record = finished(_SUMMARY.validate_json(text, strict=True))
    except ValidationError:  # perhaps of an older version, which `parse` brings up to date
        return without_curves(parse(text))
    record["history"] = []
    return without_curves(parse(text)) if bring_up_to_date(cast("dict[str, Any]", record)) else record


def without_curves(record: Record) -> Record:
    """Without the losses of every step and epoch, nine tenths of a record."""
    record["history"] = []
    record["poisons"].pop("losses", None)
    return record


def verify(value: Any) -> None:
    """ValueError when the parsed JSON of a record has a digest, and it is not that of its content. A record without
    one has no other fields than ours: it may be the digest's name that is damaged."""
    if not isinstance(value, dict):
        return
    if value.get("digest") is None:
        if unknown := value.keys() - Record.__annotations__.keys() - Summary.__annotations__.keys():
            raise ValueError(f"no digest, and an unknown field '{min(unknown)}'")
        _content(value)  # 1e999 is read as infinity, which nothing that is written may hold
    elif value["digest"] != _digest(_content(value)):
        raise ValueError("its content is not what its digest says")


def checked(record: Any, *, seal: bool = True) -> Record:
    """The record in the parsed JSON of one, brought up to date; ValueError when it is none. seal: a digest that it has
    is made anew where its content was changed, so that whoever prints the record prints one that can be read."""
    changed = isinstance(record, dict) and bring_up_to_date(record)
    _WHOLE.validate_python(record, strict=True)
    if seal and changed and record.get("digest") is not None:
        record["digest"] = _digest(_content(record))
    return finished(record)


def why(error: Exception) -> str:
    """Why a record cannot be read, in one printable line."""
    if isinstance(error, OSError):
        return str(error.strerror)
    text = first_fault(error) if isinstance(error, ValidationError) else str(error)
    return "".join(character if character.isprintable() else " " for character in text)[:200]


def as_written(text: bytes) -> bool:
    """Whether `text` is what `sealed` wrote, by its digest; text that was laid out anew may be a sound record too."""
    begin = len(_HEAD) + _HEX + 2
    if not text.startswith(_HEAD):
        return False
    total = _BEGUN.copy()
    total.update(memoryview(text.rstrip(b"\n"))[begin:])
    return total.hexdigest().encode() == text[len(_HEAD) : len(_HEAD) + _HEX]


def _content(record: Mapping[str, Any]) -> bytes:
    content = {name: value for name, value in record.items() if name not in _UNSEALED}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def finished(record: Any) -> Record:
    if record["status"] == "done" and None in (record["success"], record["clean_accuracy"]):
        raise ValueError("done, but without success or clean accuracy")
    return cast("Record", record)
