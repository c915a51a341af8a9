"""Trial records: one JSON file per trial, the source of truth; MLflow, tables, figures and data frames are views of it.

There is one reader and one type. Reading imports no torch, checks every value that a view computes with, and takes
about a second for 10,000 records. What older versions wrote otherwise is brought up to date here, and only here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from bench.foundation import files
from bench.foundation.errors import BadInput

SCHEMA = 1
DEPENDS_ON_THE_DAY = (
    *("seconds", "reused", "memory_peak_mib", "places", "started", "finished", "environment", "revision", "cached"),
)
"""What may differ between two runs of the same trial. All else must be equal, bit for bit on one kind of CPU."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


def _time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


Time = Annotated[str, AfterValidator(_time)]


class Draw(TypedDict):
    target_ids: list[int]
    source_class: int
    target_class: int
    index: NotRequired[int]
    base_ids: NotRequired[list[int]]


class PoisonFigures(TypedDict, total=False):
    """Of the poisons of a trial; a failed trial may have none. Attacks add entries of their own."""

    key: str
    n: Count
    eps: Positive
    max_change: Positive
    losses: list[Any]
    final_losses: list[Any]
    retrained_at: list[int]


class Dropped(TypedDict, total=False):
    dropped: Count


class Data(TypedDict, total=False):
    fingerprint: str
    train: Count


class Record(TypedDict):
    """A trial, finished or failed. `success` and `clean_accuracy` are None only when it failed; `seconds` is by stage,
    as if nothing had been cached; `cached` (of a run's results, never on disk): it was there before the run."""

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
    seeds: dict[str, Any]
    poisons: PoisonFigures
    surrogates: dict[str, Any]
    history: list[Any]
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


assert SCHEMA == 1  # what Record describes
_CHECK = TypeAdapter(Record)

# What older versions did not write, with what then held.
_RENAMED = {"true_class": "source_class", "adversarial_class": "target_class"}
_LATER_SETTINGS = {"holdout": 0.05, "per_class": 0, "white_box": True}  # of the threat model
_LATER_FIELDS = {
    **dict.fromkeys(("error", "outcome", "filter", "revision", "memory_peak_mib"), "null"),
    **dict.fromkeys(("history", "knowledge", "adapted_to"), "[]"),
    **dict.fromkeys(("variants", "seeds", "poisons", "surrogates", "notes", "external"), "{}"),
    **dict.fromkeys(("data", "code", "environment", "reused", "places"), "{}"),
}


def parse(text: bytes) -> Record:
    """The record in `text`, brought up to date; ValueError when it is none. Fields that `Record` does not name stay."""
    return _checked(from_json(text, allow_inf_nan=False))


def _checked(record: Any) -> Record:
    if isinstance(record, dict):
        _bring_up_to_date(record)
    _CHECK.validate_python(record, strict=True)
    if record["status"] == "done" and None in (record["success"], record["clean_accuracy"]):
        raise ValueError("done, but without success or clean accuracy")
    return cast("Record", record)


def _bring_up_to_date(record: dict[str, Any]) -> None:
    """Fill in what an older version left out. Values of the wrong kind are left for the check to find."""
    for name, value in _LATER_FIELDS.items():
        if name not in record:
            record[name] = json.loads(value)
    record.setdefault("started", record.get("finished"))
    draw, poisons, threat = record.get("draw"), record["poisons"], record.get("settings")
    if isinstance(draw, dict):
        for old, new in _RENAMED.items():
            if old in draw:
                draw[new] = draw.pop(old)
    for level in ("protocol", "threat"):
        threat = threat.get(level) if isinstance(threat, dict) else None
    if isinstance(threat, dict):
        for name, default in _LATER_SETTINGS.items():
            threat.setdefault(name, default)
    if isinstance(poisons, dict) and poisons.get("adapted_to") and not record["adapted_to"]:
        record["adapted_to"] = [poisons["adapted_to"]]


def read(
    folder: Path | None, paths: Iterable[Path], say: Callable[[str], None], *, curves: bool = True
) -> list[Record]:
    """All records below `folder`, as `Records` lays them out, and of files: JSON lines, or one JSON array as `run
    --json` prints it. Nothing on disk is changed.

    curves: with the losses of every step and epoch, nine tenths of a record. A damaged file is skipped and reported in
    one line, so are all damaged records of a file together. BadInput when a place cannot be read at all.
    """

    def skip(path: Path, error: OSError | ValueError) -> None:
        say(f"record {path} is skipped: {_why(error)}")

    records: list[Record] = []
    for part in (
        *([_parsed(_paths(folder), skip)] if folder is not None else []),
        *(_of_file(path, say) for path in paths),
    ):
        for record in part:
            if not curves:
                record["history"] = []
                record["poisons"].pop("losses", None)
            records.append(record)
    return records


class Records:
    """Records below `root`: root/protocol/attack/defense/<trial>-<key>.json. say: takes one line for a person.

    A damaged record is reported, set aside and counts as missing, so that its trial is run again.
    """

    def __init__(self, root: Path, say: Callable[[str], None] = print) -> None:
        self.root = root
        self.say = say

    def path(self, record: Mapping[str, Any]) -> Path:
        folder = self.root / record["protocol"] / record["attack"] / record["defense"]
        return folder / f"{record['trial']:04d}-{record['key'][:16]}.json"

    def write(self, record: Mapping[str, Any]) -> Record:
        """Put the record in place, whole or not at all, and return it as it will be read; an older one of the same key
        is replaced. ValueError for what no reader would take."""
        text = (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
        readable = parse(text)
        files.write_bytes(self.path(record), text)
        return readable

    def find(self, trial: Mapping[str, Any]) -> Record | None:
        """The finished record of a trial (attack, defense, protocol, trial, key), or None; a failed one counts as
        missing."""
        path = self.path(trial)
        record = next(_parsed([os.fspath(path)], self._set_aside), None)
        return record if record and record["key"] == trial["key"] and record["status"] == "done" else None

    def all(self) -> Iterator[Record]:
        """Every readable record, finished or failed, in the order of the file names."""
        if self.root.is_dir():
            yield from _parsed(_paths(self.root), self._set_aside)

    def _set_aside(self, path: Path, error: OSError | ValueError) -> None:
        if isinstance(error, OSError):
            raise error  # the record may be sound
        aside = path.with_suffix(".damaged")
        self.say(f"record {path} is damaged ({_why(error)}); moved to {aside.name}, the trial will be run again")
        with contextlib.suppress(FileNotFoundError):  # another process has moved it
            path.replace(aside)


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that must be equal between two runs of the same trial on one kind of machine."""
    return {name: value for name, value in record.items() if name not in DEPENDS_ON_THE_DAY}


def _parsed(paths: Iterable[str], on_damage: Callable[[Path, Any], None]) -> Iterator[Record]:
    """The records in the files that are there and not damaged."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                record = parse(file.read())
        except FileNotFoundError:
            continue  # replaced while we were looking
        except (OSError, ValueError) as error:
            on_damage(Path(path), error)
        else:
            yield record


def _paths(root: Path) -> list[str]:
    """Paths root/protocol/attack/defense/*.json, sorted. BadInput when the folder cannot be read."""
    folders = [os.fspath(root)]
    try:
        for _ in range(3):
            folders = [entry.path for folder in folders for entry in os.scandir(folder) if entry.is_dir()]
        names = [entry for folder in folders for entry in os.scandir(folder)]
    except OSError as error:
        raise BadInput(f"records: '{error.filename}' cannot be read: {error.strerror}; fix: give --out DIR") from None
    return sorted(e.path for e in names if e.name.endswith(".json") and not e.name.startswith("."))


def _of_file(path: Path, say: Callable[[str], None]) -> Iterator[Record]:
    """Records of a file with one, or an array of them, per line, or with one or an array over many lines."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"--records: '{path}' cannot be read: {error.strerror}; fix: give a file of records, one per line"
        ) from None
    lines, damaged = text.splitlines(), []
    with contextlib.suppress(ValueError):
        from_json(text)
        lines = [text]  # one value over many lines
    for number, line in enumerate(lines, 1):
        try:
            values = from_json(line, allow_inf_nan=False) if line.strip() else []
        except ValueError as error:
            damaged.append(f"line {number}, {_why(error)}")
            continue
        for value in values if isinstance(values, list) else [values]:
            try:
                yield _checked(value)
            except ValueError as error:
                damaged.append(f"line {number}, {_why(error)}")
    if damaged:
        say(f"records {path}: {len(damaged)} damaged record{'s' * (len(damaged) > 1)} skipped: {damaged[0]}")


def _why(error: OSError | ValueError) -> str:
    """The cause, in one printable line."""
    if isinstance(error, OSError):
        return str(error.strerror)
    text = str(error)
    if isinstance(error, ValidationError):
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        text = f"{where}: {fault['msg']}" if where else fault["msg"]
    return "".join(character if character.isprintable() else " " for character in text)[:200]
