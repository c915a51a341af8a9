"""Files of strangers, opened with care, and trial folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.foundation.errors import BadInput
from bench.foundation.files import open_regular, read_regular
from bench.foundation.shown import plain


class Refused(ValueError):
    """A file asks for something that is not data, or says it wrongly."""


@contextlib.contextmanager
def refusing(source: str) -> Iterator[None]:
    """Turn all that reading a malformed file can raise into one BadInput that names `source`."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # numpy, torch and pickle raise a dozen kinds, MemoryError and RecursionError included
        kind = "" if isinstance(error, Refused) else f"{type(error).__name__}: "
        raise BadInput(f"{source}: refused: {kind}{plain(str(error)[:240])}") from None


def check_file(path: Path) -> None:
    """BadInput unless `path` is a regular file (no link, device or pipe) of a size that can be read."""
    if path.is_symlink():
        raise BadInput(f"'{path}' is a link, which may lead anywhere; fix: put a copy of the file there")
    try:
        open_regular(path).close()
    except OSError as error:
        raise BadInput(f"'{path}' cannot be read: {error.strerror}") from None


def read_bytes(path: Path) -> bytes:
    check_file(path)
    with refusing(f"'{path}'"):
        return read_regular(path)


def numbered_folders(path: Path) -> dict[int, Path]:
    """The sub-folders whose names are plain numbers, by number; all other names are left alone."""
    folders = {}
    for entry in path.iterdir():
        if entry.name.isascii() and entry.name.isdigit() and str(int(entry.name[:9])) == entry.name:
            if entry.is_symlink() or not entry.is_dir():
                raise BadInput(f"'{entry}' is not a folder, or a link to one; fix: put a copy of the folder there")
            folders[int(entry.name)] = entry
    return dict(sorted(folders.items()))


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `path` in one step at the end, and is gone after an error."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and next(path.iterdir(), None) is None)):
        raise BadInput(f"'{path}' exists; fix: give a new folder, or remove it")
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise BadInput(f"'{path}' cannot be written: {error.strerror}; fix: give a folder that can be made") from None
    try:
        yield temporary
        for written in (*temporary.iterdir(), temporary):
            _flush(written)
        os.replace(temporary, path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
