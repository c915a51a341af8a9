"""Records as views read them: never changed or moved, only what a view needs of them, checked.

pydantic parses and checks in one go, and without torch: ten thousand records take half a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from bench.foundation.errors import BadInput
from bench.storage.records import SCHEMA

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=500)]


def _time(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return text


Time = Annotated[str, AfterValidator(_time)]


class Draw(TypedDict):
    """Older records call the classes `true_class` and `adversarial_class`."""

    target_ids: list[int]
    source_class: Annotated[int, Field(validation_alias=AliasChoices("source_class", "true_class"))]
    target_class: Annotated[int, Field(validation_alias=AliasChoices("target_class", "adversarial_class"))]


class PoisonFigures(TypedDict, total=False):
    key: str
    n: Count
    eps: Seconds
    max_change: Seconds
    adapted_to: str


class Dropped(TypedDict):
    dropped: Count


class Data(TypedDict):
    fingerprint: str
    train: Count


class Surroundings(TypedDict, total=False):
    torch: str
    device: str
    device_name: str


@with_config(ConfigDict(extra="ignore"))
class Record(TypedDict):
    """The part of a trial record (`bench.execution.stages` writes them) that views are made of."""

    schema: Literal[1]
    key: Name
    cell: Name
    attack: Name
    defense: Name
    protocol: Name
    trial: Count
    seed: int
    status: Literal["done", "failed"]
    success: Share | None
    clean_accuracy: Share | None
    seconds: dict[str, Seconds]
    settings: dict[str, dict[str, Any]]
    finished: Time
    draw: NotRequired[Draw]
    poisons: NotRequired[PoisonFigures]
    filter: NotRequired[Dropped | None]
    knowledge: NotRequired[list[str]]
    adapted_to: NotRequired[list[str]]
    data: NotRequired[Data]
    code: NotRequired[dict[str, str]]
    revision: NotRequired[str]
    environment: NotRequired[Surroundings]


def _finished(record: Record) -> Record:
    if record["status"] == "done" and (record["success"] is None or record["clean_accuracy"] is None):
        raise ValueError("done, but without success or clean accuracy")
    return record


_READER: TypeAdapter[Record] = TypeAdapter(Annotated[Record, AfterValidator(_finished)])
assert SCHEMA == 1  # what Record describes


def read(folder: Path | None, files: Iterable[Path], say: Callable[[str], None]) -> list[Record]:
    """All records below `folder` (as `bench.storage.records` lays them out) and of files with one record a line.

    A damaged file is said in one line and skipped, so are all damaged lines of a file together. BadInput when a place
    cannot be read at all.
    """
    found = list(_below(folder, say)) if folder is not None else []
    for file in files:
        found += _lines(file, say)
    return found


def _below(folder: Path, say: Callable[[str], None]) -> Iterator[Record]:
    for path in sorted(_files(os.fspath(folder), 3)):
        try:
            with open(path, "rb") as file:
                record = _READER.validate_json(file.read())
        except FileNotFoundError:
            continue  # replaced while we were looking
        except (OSError, ValidationError) as error:
            say(f"record {path} is skipped: {_why(error)}")
        else:
            yield record


def _files(folder: str, depth: int) -> Iterator[str]:
    """Paths folder/protocol/attack/defense/*.json."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise BadInput(f"records: '{folder}' cannot be read: {error.strerror}; give --out DIR") from None
    for entry in entries:
        if depth and entry.is_dir():
            yield from _files(entry.path, depth - 1)
        elif not depth and entry.name.endswith(".json") and not entry.name.startswith("."):
            yield entry.path


def _lines(path: Path, say: Callable[[str], None]) -> Iterator[Record]:
    skipped, first = 0, ""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    if line.strip():
                        yield _READER.validate_json(line)
                except ValidationError as error:
                    skipped += 1
                    first = first or f"line {number}, {_why(error)}"
    except OSError as error:
        raise BadInput(
            f"--records: '{path}' cannot be read: {error.strerror}; give a file of records, one a line"
        ) from None
    if skipped:
        say(f"records {path}: {skipped} damaged line{'s' * (skipped > 1)} skipped: {first}")


def _why(error: OSError | ValidationError) -> str:
    """What is wrong, in one printable line."""
    if isinstance(error, OSError):
        return str(error.strerror)
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    text = f"{where}: {fault['msg']}" if where else fault["msg"]
    return "".join(sign if sign.isprintable() else " " for sign in text)[:200]
