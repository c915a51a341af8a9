"""Files that are either whole or absent (written aside, flushed to the disk, renamed), and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock

from bench.foundation.errors import BadInput, DiskFull

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_folder(out: Path) -> None:
    """Create the output folder; BadInput when nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise BadInput(f"output folder '{out}' cannot be written: {error.strerror}; fix: --out DIR") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; a kill or a full disk at any moment leaves the old file or none.

    DiskFull when there is no room for it.
    """
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
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
