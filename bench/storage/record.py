"""The record of a trial: its type, its digest, and the one way from text to a record.

Every value that a view computes with is checked, and the content against the digest that it carries. What older
versions wrote otherwise is brought up to date here, and only here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

SCHEMA = 1

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


def _time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


Time = Annotated[str, AfterValidator(_time)]
_with_more = with_config(ConfigDict(extra="allow"))


@_with_more
class Draw(TypedDict):
    target_ids: list[int]
    source_class: int
    target_class: int
    index: NotRequired[int]
    base_ids: NotRequired[list[int]]


class Amounts(TypedDict, total=False):
    """Of the poisons of a trial; a failed trial may have none."""

    key: str
    n: Count
    eps: Positive
    max_change: Positive
    final_losses: list[Any]
    retrained_at: list[int]


class PoisonFigures(Amounts, total=False):
    """With what the attack tells of its crafting; attacks add entries of their own."""

    losses: list[Any]


@_with_more
class Dropped(TypedDict, total=False):
    dropped: Count


@_with_more
class Data(TypedDict, total=False):
    fingerprint: str
    train: Count


@_with_more
class Seeds(TypedDict, total=False):
    surrogates: list[int]


class Summary(TypedDict):
    """A trial, finished or failed, without its curves. `success` and `clean_accuracy` are None only when it failed;
    `seconds` is by stage, as if nothing had been cached; `cached` (of a run's results, never on disk): it was there
    before the run; `digest`: of the content, see `sealed`; older records have none."""

    schema: Literal[1]
    key: Name
    cell: Name
    attack: Name
    defense: Name
    protocol: Name
    trial: Count
    seed: int
    status: Literal["done", "failed"]
    error: str | None
    success: Share | None
    clean_accuracy: Share | None
    seconds: dict[str, Positive]
    settings: dict[str, dict[str, Any]]
    started: Time
    finished: Time
    outcome: dict[str, Any] | None
    variants: dict[str, Any]
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
    environment: dict[str, Any]
    reused: dict[str, Any]
    memory_peak_mib: float | None
    places: dict[str, str]
    cached: NotRequired[bool]
    digest: NotRequired[str | None]


class Record(Summary):
    """All of it."""

    poisons: PoisonFigures  # type: ignore[misc]
    history: list[Any]


assert SCHEMA == 1  # what Record describes
_WHOLE, _SUMMARY = TypeAdapter(Record), TypeAdapter(Summary)

# What older versions did not write, with what then held.
_RENAMED = {"true_class": "source_class", "adversarial_class": "target_class"}
_LATER_SETTINGS = {"holdout": 0.05, "per_class": 0, "white_box": True}  # of the threat model
_LATER_FIELDS = {
    **dict.fromkeys(("error", "outcome", "filter", "revision", "memory_peak_mib"), "null"),
    **dict.fromkeys(("history", "knowledge", "adapted_to"), "[]"),
    **dict.fromkeys(("variants", "seeds", "poisons", "surrogates", "notes", "external"), "{}"),
    **dict.fromkeys(("data", "code", "environment", "reused", "places"), "{}"),
}
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
    return checked(from_json(text, allow_inf_nan=False))


def parse_summary(text: bytes) -> Record:
    """As `parse`, with empty curves, of which nothing is kept: four times as fast on a record as it is written."""
    try:
        if not as_written(text):
            return without_curves(parse(text))
        record = finished(_SUMMARY.validate_json(text, strict=True))
    except ValidationError:  # perhaps of an older version, which `parse` brings up to date
        return without_curves(parse(text))
    record["history"] = []
    _bring_up_to_date(cast("dict[str, Any]", record))
    return record


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
    elif value["digest"] != _digest(_content(value)):
        raise ValueError("its content is not what its digest says")


def checked(record: Any) -> Record:
    """The record in the parsed JSON of one, brought up to date; ValueError when it is none."""
    if isinstance(record, dict):
        _bring_up_to_date(record)
    _WHOLE.validate_python(record, strict=True)
    return finished(record)


def why(error: OSError | ValueError) -> str:
    """Why a record cannot be read, in one printable line."""
    if isinstance(error, OSError):
        return str(error.strerror)
    text = str(error)
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        text = f"{where}: {fault['msg']}" if where else fault["msg"]
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


def bring_settings_up_to_date(settings: Any) -> None:
    """Fill in what the threat model of an older version did not say."""
    threat = settings
    for level in ("protocol", "threat"):
        threat = threat.get(level) if isinstance(threat, dict) else None
    if isinstance(threat, dict):
        for name, default in _LATER_SETTINGS.items():
            threat.setdefault(name, default)


def finished(record: Any) -> Record:
    if record["status"] == "done" and None in (record["success"], record["clean_accuracy"]):
        raise ValueError("done, but without success or clean accuracy")
    return cast("Record", record)


def _bring_up_to_date(record: dict[str, Any]) -> None:
    """Fill in what an older version left out. Values of the wrong kind are left for the check to find."""
    for name, value in _LATER_FIELDS.items():
        if name not in record:
            record[name] = json.loads(value)
    record.setdefault("started", record.get("finished"))
    draw, poisons = record.get("draw"), record["poisons"]
    if isinstance(draw, dict):
        for old, new in _RENAMED.items():
            if old in draw:
                draw[new] = draw.pop(old)
    bring_settings_up_to_date(record.get("settings"))
    if isinstance(poisons, dict) and poisons.get("adapted_to") and not record["adapted_to"]:
        record["adapted_to"] = [poisons["adapted_to"]]
