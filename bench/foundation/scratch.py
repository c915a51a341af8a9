"""Folders for what is of use while a command runs only: below its output folder, where the next command removes those
that killed ones have left. In the temporary directory nobody would."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, Timeout

from bench.foundation.files import room_for, take_lock

ROOT, LOCK, OWNER = "scratch", "lock", "owner"
SHARED_MEMORY = Path("/dev/shm")
SLACK = 60.0  # seconds after the last sign of life of a command within which it may still have made something
_BEGAN = time.time()


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A new folder below `out/scratch`, gone afterwards; those that killed commands have left are removed first."""
    root = out.resolve() / ROOT
    clear(root)
    folder, held = _new(root)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # somebody has removed it
            # Under another name first: a worker that reports while the folder is emptied would keep it alive.
            folder = folder.rename(folder.with_name(f"{folder.name}.gone"))
        held.release()
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            root.rmdir()


def clear_dead(out: Path) -> None:
    """Remove what commands on this output folder left that were killed."""
    clear(out.resolve() / ROOT)


def in_use(out: Path) -> bool:
    """Whether a command works on this output folder now."""
    clear_dead(out)
    return any((out.resolve() / ROOT).glob("*/"))


def clear(root: Path) -> None:
    """Remove the folders below `root` whose command has ended: nobody holds their lock."""
    for folder in root.glob("*/"):
        with contextlib.suppress(OSError, Timeout):
            held = take_lock(folder / LOCK, timeout=0)
            _clear_shared_memory(folder)
            shutil.rmtree(folder, ignore_errors=True)
            held.release()
    with contextlib.suppress(OSError):
        root.rmdir()


def _here() -> list[str]:
    """What tells this machine, since it began, and this set of process numbers from all others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [platform.node(), boot, os.readlink("/proc/self/ns/pid")]


def _clear_shared_memory(folder: Path) -> None:
    """Remove the semaphores of the worker pool of the command that made `folder` and has ended: of this user, with its
    process number, which nobody else has by now, and made while it ran."""
    with contextlib.suppress(OSError, ValueError):
        pid, began, *where = json.loads((folder / OWNER).read_text())
        if where != _here() or Path(f"/proc/{int(pid)}").exists():
            return
        ended = max(path.stat().st_mtime for path in (folder, *folder.iterdir())) + SLACK
        for left in SHARED_MEMORY.glob(f"sem.loky-{int(pid)}-*"):
            status = left.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and began <= status.st_mtime <= ended:
                left.unlink(missing_ok=True)


def _new(root: Path) -> tuple[Path, BaseFileLock]:
    """A folder with its lock; once more when another command took the root or the new folder for a leftover."""
    while True:
        with contextlib.suppress(FileNotFoundError, Timeout), room_for(root):
            root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=root))
            held = take_lock(folder / LOCK, timeout=0)
            with contextlib.suppress(OSError):  # where there is no /proc
                (folder / OWNER).write_text(json.dumps([os.getpid(), _BEGAN, *_here()]))
            return folder, held
