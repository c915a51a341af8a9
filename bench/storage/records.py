"""Trial records on disk: one JSON file per trial, the source of truth; MLflow, tables, figures and data frames are
views of it. Reading imports no torch.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic_core import from_json

from bench.foundation import files
from bench.foundation.errors import BadInput
from bench.storage.record import Record, checked, parse, parse_summary, sealed, verify, why, without_curves
from bench.storage.standings import Standings

DEPENDS_ON_THE_DAY = (
    *("seconds", "reused", "memory_peak_mib", "places", "started", "finished", "environment", "revision", "cached"),
    "digest",
)
"""What may differ between two runs of the same trial. All else must be equal, bit for bit on one kind of CPU."""

ALIKE = ("settings", "data", "code", "environment", "surrogates", "reused", "knowledge", "adapted_to", "external")
"""Fields in which the records of a cell tend to agree; they are kept once, which halves the memory of many records."""


class Kind(NamedTuple):
    """What is kept of every record."""

    parse: Callable[[bytes], Record]
    lighten: Callable[[Record], Record]  # a record that has been read whole


def read(
    folder: Path | None, paths: Iterable[Path], say: Callable[[str], None], *, curves: bool = True
) -> list[Record]:
    """All records below `folder`, as `Records` lays them out, and of files: JSON lines, or one JSON array as `run
    --json` prints it. Nothing on disk is changed.

    curves: with the losses of every step and epoch, nine tenths of a record. A damaged file is skipped and reported in
    one line, so are all damaged records of a file together. BadInput when a place cannot be read at all.
    """
    kind = Kind(parse, lambda record: record) if curves else Kind(parse_summary, without_curves)
    with _without_collector():
        records: list[Record] = []
        for record in _read(folder, paths, say, kind):
            if records:
                _share(records[-1], record)
            records.append(record)
    return records


def read_standings(folder: Path | None, paths: Iterable[Path], say: Callable[[str], None]) -> list[Record]:
    """As `read`, no more than a leaderboard needs: the fields `standings.KEPT`. For very many records."""
    shared = Standings()
    with _without_collector():
        return list(_read(folder, paths, say, Kind(shared.parse, shared.lighten)))


def sample(
    root: Path, attacks: Container[str], defenses: Container[str], each: int = 8, folders: int = 250
) -> list[Record]:
    """Some records of these attacks and of these defenses, without curves: `each` per folder at most, of its first
    trials. Quick however many there are; what cannot be read is left out."""
    cells = (cell for cell in root.glob("*/*/*") if cell.parent.name in attacks or cell.name in defenses)
    paths = (path for cell in itertools.islice(cells, folders) for path in sorted(cell.glob("[!.]*.json"))[:each])
    with _without_collector():
        return list(_parsed(map(os.fspath, paths), lambda path, error: None, parse_summary))


def _read(folder: Path | None, paths: Iterable[Path], say: Callable[[str], None], kind: Kind) -> Iterator[Record]:
    def skip(path: Path, error: OSError | ValueError) -> None:
        say(f"record {path} is skipped: {why(error)}")

    if folder is not None:
        yield from _parsed(_paths(folder), skip, kind.parse)
    for path in paths:
        yield from _of_file(path, say, kind)


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
        text = sealed(record)
        readable = parse(text)
        files.write_bytes(self.path(record), text)
        return readable

    def find(self, trial: Mapping[str, Any]) -> Record | None:
        """The finished record of a trial (attack, defense, protocol, trial, key), or None; a failed one counts as
        missing."""
        path = self.path(trial)
        record = next(_parsed([os.fspath(path)], self._set_aside), None)
        if record is not None and record["key"] != trial["key"]:
            self._set_aside(path, ValueError("it is the record of another trial"))
            return None
        return record if record and record["status"] == "done" else None

    def all(self) -> Iterator[Record]:
        """Every readable record, finished or failed, in the order of the file names."""
        if self.root.is_dir():
            yield from _parsed(_paths(self.root), self._set_aside)

    def _set_aside(self, path: Path, error: OSError | ValueError) -> None:
        if isinstance(error, OSError) and not isinstance(error, files.NotRegular):
            raise error  # the record may be sound
        files.set_aside(path, f"record {path}", why(error), self.say, ", the trial will be run again")


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that must be equal between two runs of the same trial on one kind of machine."""
    return {name: value for name, value in record.items() if name not in DEPENDS_ON_THE_DAY}


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Records hold no circles: looking for them among a million values takes as long as reading does."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()  # nor later: what is no longer used goes all the same
            gc.enable()


def _share(one: Any, other: Any) -> None:
    """Let the other record have the very objects of this one where they are equal."""
    for name in ALIKE:
        if one[name] == other[name]:
            other[name] = one[name]


def _parsed(
    paths: Iterable[str], on_damage: Callable[[Path, Any], None], parse: Callable[[bytes], Record] = parse
) -> Iterator[Record]:
    """The records in the files that are there and not damaged."""
    for path in paths:
        try:
            record = parse(files.read_regular(path))
        except FileNotFoundError:
            continue  # replaced while we were looking
        except (OSError, ValueError) as error:
            on_damage(Path(path), error)
        else:
            yield record


def _paths(root: Path) -> Iterator[str]:
    """Paths root/protocol/attack/defense/*.json, sorted. BadInput when a folder cannot be read."""
    folders = [os.fspath(root)]
    try:
        for _ in range(3):
            folders = [entry.path for folder in folders for entry in os.scandir(folder) if entry.is_dir()]
        for folder in sorted(folders, key=lambda folder: f"{folder}{os.sep}"):
            names = sorted(name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith("."))
            yield from (f"{folder}{os.sep}{name}" for name in names)
    except OSError as error:
        raise BadInput(f"records: '{error.filename}' cannot be read: {error.strerror}; fix: give --out DIR") from None


def _of_file(path: Path, say: Callable[[str], None], kind: Kind) -> Iterator[Record]:
    """Records of a file with one, or an array of them, per line, or with one or an array over many lines."""
    damaged = []
    try:
        with files.open_regular(path) as file:
            for number, line in enumerate(_lines(file), 1):
                try:
                    if line.startswith(b"{"):
                        yield kind.parse(line)
                        continue
                    values = from_json(line, allow_inf_nan=False) if line.strip() else []
                except ValueError as error:
                    damaged.append(f"line {number}, {why(error)}")
                    continue
                for value in values if isinstance(values, list) else [values]:
                    try:
                        verify(value)
                        yield kind.lighten(checked(value))
                    except ValueError as error:
                        damaged.append(f"line {number}, {why(error)}")
    except OSError as error:
        raise BadInput(
            f"--records: '{path}' cannot be read: {error.strerror}; fix: give a file of records, one per line"
        ) from None
    if damaged:
        say(f"records {path}: {len(damaged)} damaged record{'s' * (len(damaged) > 1)} skipped: {damaged[0]}")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, or all of it where that is one value over many lines. Only then is all of it in memory."""
    first = file.readline()
    with contextlib.suppress(ValueError):
        from_json(first)  # so more lines are more values
        for line in itertools.chain([first], file):
            yield from line.splitlines()
        return
    text = first + file.read()
    with contextlib.suppress(ValueError):
        from_json(text)
        yield text
        return
    yield from text.splitlines()
