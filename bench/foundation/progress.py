"""How far a run is: one bar on a terminal, plain lines elsewhere. Workers report through small files, never draw.

All of it goes to stderr; stdout is for results.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

PLAIN_EVERY = 10.0  # seconds between plain lines


class Heartbeat:
    """A worker's voice: `report(what, done, of)` writes to the unit's file, at most four times a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

    def __call__(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._last < 0.25 and done < of:
            return
        self._last = now
        with contextlib.suppress(OSError):  # progress is never worth a failure
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps([what, done, of]))
            temporary.replace(self.path)


class Progress:
    """Shows one stage of `total` units: how many are done, and what the running ones are at."""

    def __init__(self, title: str, total: int, folder: Path, quiet: bool = False) -> None:
        self.title, self.total, self.folder = title, total, folder
        self.done = 0
        self._stop = threading.Event()
        self._bar: tqdm[Any] | None = None
        self._plain_at = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._quiet = quiet
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(
                total=float(total),
                desc=title,
                file=sys.stderr,
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
            )

    def __enter__(self) -> Progress:
        if not self._quiet:
            if self._bar is None:
                print(f"{self.title}: {self.total} to do", file=sys.stderr, flush=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            running = list(self._running())
            partial = sum(done / max(of, 1) for _, done, of in running)
            text = ", ".join(f"{what} {done}/{of}" for what, done, of in running)
            if self._bar is not None:
                self._bar.n = min(self.done + partial, float(self.total))
                self._bar.set_postfix_str(text, refresh=True)
            elif time.monotonic() - self._plain_at > PLAIN_EVERY:
                self._plain_at = time.monotonic()
                print(f"{self.title}: {self.done}/{self.total} done; {text or 'starting'}", file=sys.stderr, flush=True)

    def _running(self) -> Iterator[tuple[str, int, int]]:
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                what, done, of = json.loads(path.read_text())
                yield what, done, of


def say(line: str) -> None:
    """One line for a person, on stderr, above a bar if there is one."""
    tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def reporting_folder() -> Iterator[Path]:
    """A folder for heartbeats that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


Say = Callable[[str], None]
