"""Files that are either whole or absent (written aside, flushed to the disk, renamed), files that are read without
trust in what lies at their path, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import BaseFileLock, FileLock

from bench.foundation.errors import BadInput, DiskFull

PARTS = ("records", "store", "images", "logs", "scratch")  # of an output folder
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_BYTES = 8 * 2**30
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def make_folder(out: Path) -> None:
    """Create the output folder; BadInput when nothing can be written there, or in a part of it that is there."""
    place = out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for place in (out, *(out / part for part in PARTS if os.path.lexists(out / part))):
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise BadInput(f"output folder '{place}' cannot be written: {error.strerror}; fix: --out DIR") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; a kill or a full disk at any moment leaves the old file or none.

    DiskFull when there is no room for it.
    """
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that is put at `path` in one step when the block ends well, as by `write_bytes`; else it is gone."""
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read_regular(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """The content of a file that this process has not just written itself: every image, record, stored artefact,
    imported file, protocol or sweep file is read by this, or opened by `open_regular`.

    Links are followed. OSError, with the cause as its `strerror`, when the file cannot be read, FileNotFoundError when
    it is missing, NotRegular when it is none of up to `most` bytes.
    """
    handle, size = _regular(path, most)
    try:
        parts = [os.read(handle, size)]  # no more than that, though a writer may add to it
        while parts[-1] and (left := size - sum(map(len, parts))):
            parts.append(os.read(handle, left))
    finally:
        os.close(handle)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_regular(path: Path | str, most: int = MOST_BYTES) -> BinaryIO:
    """The file, open for reading. A pipe that nobody writes to would make us wait for ever, a device like /dev/zero
    never ends: only regular files are let through. Errors as of `read_regular`."""
    return os.fdopen(_regular(path, most)[0], "rb")


def _regular(path: Path | str, most: int) -> tuple[int, int]:
    """The handle of a regular file, and its size in bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # non-blocking: opening a pipe must not wait
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(
                errno.EINVAL, f"{KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a file", str(path)
            )
        if status.st_size > most:
            raise NotRegular(errno.EINVAL, f"{status.st_size} bytes, more than {most}", str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle, status.st_size


class NotRegular(OSError):
    """What lies at a path is a folder, a pipe, a device or a socket, or larger than anything that is read from it."""


def set_aside(path: Path, what: str, why: str, say: Callable[[str], None], then: str = "") -> None:
    """Move a damaged file out of the way, aloud. what: how it is called, its path included; then: what follows."""
    aside = path.with_suffix(".damaged")
    say(f"{what} is damaged ({why}); moved to {aside.name}{then}")
    with contextlib.suppress(FileNotFoundError):  # another process has moved it
        path.replace(aside)


def clear_leftovers(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left; call it while holding the lock on `path`."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the inter-process lock `path`; it is released when the holder ends, however it ends.

    timeout: seconds to wait, negative for ever; filelock's Timeout afterwards. DiskFull when there is no room for it.
    """
    held = take_lock(path, timeout)
    try:
        yield
    finally:
        held.release()


def take_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """As `lock`, for a holder that releases it, or ends with it.

    Where the file system has no flock this fails: filelock's stand-in for one would outlive a killed holder.
    """
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size:  # ours are empty, and taking one would make this one empty, too
            raise BadInput(f"'{path}' holds something, so it is no lock; fix: move it away")
        held = FileLock(path, timeout, thread_local=False, fallback_to_soft=False)
        held.acquire()
    return held


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn the system's complaint that there is no room into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(path, error) from error


def no_room(path: Path | str, error: OSError) -> DiskFull:
    """The error for a user when the system has no room for `path`."""
    return DiskFull(
        f"disk full: cannot write {path} ({error.strerror}); fix: free space there, or raise your quota, then the "
        "same command goes on where this one stopped"
    )
