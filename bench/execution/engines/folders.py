"""The folders in which running units say how far they are: below the output folder, so that no killed command leaves
one in a place that nobody clears."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, Timeout

from bench.foundation.files import room_for, take_lock

LOCK = "lock"


@contextlib.contextmanager
def stage_folder(out: Path) -> Iterator[Path]:
    """A new folder below `out/engine`, gone afterwards; and those that killed commands have left are removed."""
    root = out.resolve() / "engine"
    clear(root)
    folder, held = _new(root)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # somebody has removed it
            # Under another name first: a unit that reports while the folder is emptied would keep it alive.
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
