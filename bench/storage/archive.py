"""An output folder as one file: its records and what its store holds, carried elsewhere to go on with.

A tar file without compression: poisons and weights would get little smaller, and what is not compressed cannot grow
when it is unpacked. An archive is not trusted: of tar only names and bytes are used, a name must be one that an output
folder has, and the bytes what was written for that name, by their digest. The last file says how many there are.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from bench.foundation import files
from bench.foundation.errors import BadInput
from bench.foundation.names import LONGEST_COMPOSED
from bench.foundation.progress import Amount, Say, size
from bench.foundation.scratch import in_use, scratch_folder
from bench.storage.making import KIND as CHECKPOINTS
from bench.storage.making import Making
from bench.storage.record import parse, why
from bench.storage.records import Records, comparable
from bench.storage.store import Store, decode, digest_of

KINDS = ("poisons", "networks", CHECKPOINTS, "kept")  # of what the store holds; its locks stay where they are
END = "poisoning-bench"  # the last file: {"files": how many came before}
MOST_BYTES = 2**42  # of an archive
OF_TAR = 2**15  # bytes for the header of a file and the end of the archive, at most

_LABEL = rf"[A-Za-z0-9_][A-Za-z0-9._+-]{{0,{LONGEST_COMPOSED - 1}}}"
_RECORD = re.compile(rf"records/{_LABEL}/{_LABEL}/{_LABEL}/[0-9]{{4,16}}-[0-9a-f]{{16}}\.json")
_STORED = re.compile(
    rf"store/(?P<kind>{'|'.join(KINDS)})/(?P<two>[0-9a-f]{{2}})/"
    r"(?P<key>(?P=two)[0-9a-f]{62})(?P<of>-[0-9a-f]{24}-[0-9]{1,9})?\.safetensors"
)


@dataclass(frozen=True)
class Entry:
    """One file of an output folder, verified. name: its path there; kind: records, artefacts or checkpoints; progress:
    of two of one name the one with more is wanted; done: the key of what is finished with it, and result: what that
    must come to wherever it is made; empty of what has failed or is on the way."""

    name: str
    data: bytes
    kind: str
    progress: float
    done: str = ""
    result: Any = None

    @classmethod
    def of(cls, name: str, data: bytes) -> Entry:
        """ValueError for what no output folder holds under this name."""
        if _RECORD.fullmatch(name):
            record = parse(data)
            if Records(Path("records")).path(record).as_posix() != name:
                raise ValueError("it is the record of another trial")
            finished = (1, record["key"], comparable(record)) if record["status"] == "done" else (0,)
            return cls(name, data, "records", *finished)
        match = _STORED.fullmatch(name)
        if match is None or (match["kind"] == CHECKPOINTS) != bool(match["of"]):
            raise ValueError("no output folder has a file of that name")
        tensors, meta = decode(data, f"{match['kind']}/{match['key']}{match['of'] or ''}")
        if match["of"]:
            seconds = meta.get("seconds") if isinstance(meta, dict) else None
            return cls(name, data, CHECKPOINTS, seconds if isinstance(seconds, int | float) else 0.0)
        return cls(name, data, "artefacts", 1, match["key"], digest_of(tensors, ""))

    def replaces(self, other: Entry) -> bool:
        """Whether this is to stand in the place of the other, of the same name. ValueError where both are finished and
        not the same."""
        if self.done and other.done and self.result != other.result:
            raise ValueError("it holds other results")
        return self.progress > other.progress


@dataclass
class Carried:
    """What went over: files by kind, and their bytes. there: how many were there already."""

    files: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    there: int = 0

    def add(self, entry: Entry) -> None:
        self.files[entry.kind] += 1
        self.bytes += len(entry.data)

    def __str__(self) -> str:
        counts = ", ".join(f"{kind} {self.files[kind]}" for kind in ("records", "artefacts", CHECKPOINTS))
        return f"{counts}; {size(self.bytes)}" + (f"; {self.there} were there already" if self.there else "")


def pack(out: Path, file: Path, say: Say, most: int = MOST_BYTES) -> Carried:
    """Write what is needed to go on from the output folder `out` as the archive `file`, in the place of one that is
    there. A command may be at work on the folder: its files are whole or absent.

    most: bytes of the archive; records come first, then poisons, networks, checkpoints and what defenses keep, and what
    has no room is left out, aloud; so is what is damaged. BadInput where there is nothing to pack, or no place for it.
    """
    patterns = ("records/*/*/*/[!.]*.json", *(f"store/{kind}/*/[!.]*.safetensors" for kind in KINDS))
    sizes = {path: _size(path) for pattern in patterns for path in sorted(out.glob(pattern))}
    if not sizes:
        raise BadInput(f"pack: no records and nothing stored under '{out}'; fix: give the --out folder of a run")
    if file.exists() and not (file.is_file() and tarfile.is_tarfile(file)):
        raise BadInput(f"pack: '{file}' is there and is no archive; fix: pack OUT FILE, with the name of a new file")
    carried, too_large = Carried(), 0
    files.clear_leftovers(file)
    with (
        Amount(f"packing {file}", sum(sizes.values())) as amount,
        files.writing(file) as target,
        tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, bytes_of_it in sizes.items():
            amount.add(bytes_of_it)
            if target.tell() + bytes_of_it + OF_TAR > most:
                too_large += 1
                continue
            try:
                entry = Entry.of(path.relative_to(out).as_posix(), files.read_regular(path))
            except FileNotFoundError:
                continue  # a checkpoint whose work has ended meanwhile
            except (ValueError, files.NotRegular) as error:
                say(f"{path} is left out: {why(error)}")
                continue
            _add(archive, entry.name, entry.data)
            carried.add(entry)
        _add(archive, END, json.dumps({"files": carried.files.total()}).encode())
    if too_large:
        say(f"{too_large} files are left out, for which {size(most)} are too little; they are made again where needed")
    return carried


def unpack(file: Path, out: Path, say: Say) -> Carried:
    """Put what the archive holds into the output folder `out`, which may be there and hold other work.

    What is there stays; but a failed record gives way to a finished one, a checkpoint to one that is further, and a
    damaged file is set aside. BadInput, and nothing is written, when the archive is not whole and sound, or has other
    results than the folder for the same trial or key, or a command works on the folder. After a kill, unpack again.
    """
    if in_use(out):
        raise BadInput(f"unpack: a command works on '{out}'; fix: wait until it has ended")
    for entry in _entries(file, f"checking {file}"):
        _is_wanted(entry, out, file)
    files.make_folder(out)
    carried = Carried()
    with scratch_folder(out):  # so that others know that somebody is at work
        for entry in _entries(file, f"unpacking {file}"):
            path, (wanted, fault) = out / entry.name, _is_wanted(entry, out, file)
            if not wanted:
                carried.there += 1
                continue
            if fault:
                files.set_aside(path, str(path), fault, say, ", that of the archive takes its place")
            files.write_bytes(path, entry.data)
            if entry.done:
                Making(Store(out / "store"), entry.done).clear()
            carried.add(entry)
    return carried


def _is_wanted(entry: Entry, out: Path, file: Path) -> tuple[bool, str]:
    """Whether to write the entry, and what is wrong with the file that is there. BadInput if it has other results."""
    try:
        there = Entry.of(entry.name, files.read_regular(out / entry.name))
    except FileNotFoundError:
        return True, ""
    except (ValueError, files.NotRegular) as error:
        return True, why(error)
    try:
        return entry.replaces(there), ""
    except ValueError as error:
        place = f"'{entry.name}' of '{file}' is not that of '{out}'"
        raise BadInput(f"unpack: {place}: {error}; fix: unpack into another folder") from None


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # of no user and no time: the same folder gives the same archive
    header.size = len(data)
    archive.addfile(header, BytesIO(data))


def _entries(file: Path, doing: str) -> Iterator[Entry]:
    """What an archive holds, one after another. BadInput where it is not what `pack` writes, to the end."""
    try:
        with (
            files.open_regular(file, MOST_BYTES) as source,
            Amount(doing, total := _size(file)) as amount,
            tarfile.open(fileobj=source, mode="r|") as archive,  # a stream: no way to send us back
        ):
            yield from _verified(archive, total, amount)
    except OSError as error:
        raise BadInput(f"archive '{file}' cannot be read: {error.strerror}; fix: name one that `pack` wrote") from None
    except Exception as error:  # a forged header leads tarfile to KeyError, RecursionError and many more
        cause = why(error) or type(error).__name__
        raise BadInput(f"archive '{file}' is damaged, or not of `pack`: {cause}; fix: copy or pack it again") from None


def _verified(archive: tarfile.TarFile, total: int, amount: Amount) -> Iterator[Entry]:
    names: set[str] = set()
    for member in archive:
        if not member.isreg() or member.issparse() or not 0 <= member.size <= min(total, files.MOST_BYTES):
            raise ValueError(f"{member.name!r} is no file of ordinary size")
        source = archive.extractfile(member)
        assert source is not None  # of a regular file there is one
        data = source.read()
        if member.name == END:
            if json.loads(data) != {"files": len(names)}:
                raise ValueError("it has more or fewer files than it says")
            return
        if member.name in names:
            raise ValueError(f"{member.name!r} stands in it twice")
        names.add(member.name)
        try:
            entry = Entry.of(member.name, data)
        except ValueError as error:
            raise ValueError(f"{member.name!r}: {why(error)}") from None
        yield entry
        amount.add(len(data))
    raise ValueError("it is cut off")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
