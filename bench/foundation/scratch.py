"""Folders for what is of use while a command runs only: below its output folder, where the next command removes those
that killed ones have left. In the temporary directory nobody would."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, Timeout

from bench.foundation.files import room_for, take_lock

ROOT, LOCK = "scratch", "lock"


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


def clear(root: Path) -> None:
    """Remove the folders below `root` whose command has ended: nobody holds their lock."""
    for folder in root.glob("*/"):
        with contextlib.suppress(OSError, Timeout):
            held = take_lock(folder / LOCK, timeout=0)
            shutil.rmtree(folder, ignore_errors=True)
            held.release()


def _new(root: Path) -> tuple[Path, BaseFileLock]:
    """A folder with its lock; once more when another command took the root or the new folder for a leftover."""
    while True:
        with contextlib.suppress(FileNotFoundError, Timeout), room_for(root):
            root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=root))
            return folder, take_lock(folder / LOCK, timeout=0)
