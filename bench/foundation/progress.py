"""How far a run is: a bar on a terminal or in a notebook, plain lines elsewhere. Workers report through small files.

All of it goes to stderr; stdout is for results. A terminal that is gone costs the run nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.foundation.shown import plain, plain_lines

PLAIN_EVERY = 10.0  # seconds between plain lines
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"


class Heartbeat:
    """A worker's voice: `report(step, done, of)` writes to the unit's file, at most four times per second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

    def __call__(self, step: str, done: int, of: int) -> None:
        now = time.monotonic()
        if now - self._last < 0.25 and done < of:
            return
        self._last = now
        with contextlib.suppress(OSError):  # progress is never worth a failure
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps([step, done, of]))
            temporary.replace(self.path)


class Amount:
    """Shows how far one thing is. what: such as "packing runs.tar"; of: bytes in all."""

    def __init__(self, what: str, of: int) -> None:
        self.what, self.of, self.done = what, of, 0
        self._plain_at = time.monotonic()
        self._bar = _bar(what, of)

    def __enter__(self) -> Amount:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.close()

    def add(self, count: int) -> None:
        self.done += count
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.update(min(float(count), self.of - self._bar.n))
        elif time.monotonic() - self._plain_at > PLAIN_EVERY:
            self._plain_at = time.monotonic()
            say(f"{self.what}: {size(self.done)} of {size(self.of)}")


def size(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


class Progress:
    """Shows a run: how many units of each kind are done, and what the running ones are at.

    totals: units by kind; done: those that have ended, counted by whoever runs them; folder: of the units' heartbeats.
    """

    def __init__(self, totals: Mapping[str, int], done: Mapping[str, int], folder: Path, quiet: bool = False) -> None:
        self.totals, self.done, self.folder = totals, done, folder
        self._stop = threading.Event()
        self._plain_at = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._quiet = quiet
        self._bar = None if quiet else _bar(str(self), sum(totals.values()))

    def __str__(self) -> str:
        return ", ".join(f"{kind} {self.done.get(kind, 0)}/{total}" for kind, total in self.totals.items())

    def __enter__(self) -> Progress:
        if not self._quiet:
            if self._bar is None:
                say(f"to do: {', '.join(f'{total} {kind}' for kind, total in self.totals.items())}")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.n = float(sum(self.done.values()))
                self._bar.close()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            running = list(self._running())
            partial = sum(done / max(of, 1) for _, done, of in running)
            text = ", ".join(f"{step} {done}/{of}" for step, done, of in running)
            if self._bar is not None:
                with contextlib.suppress(OSError):
                    self._bar.n = min(sum(self.done.values()) + partial, float(sum(self.totals.values())))
                    self._bar.set_description_str(plain(str(self)), refresh=False)
                    self._bar.set_postfix_str(plain(text), refresh=True)
            elif time.monotonic() - self._plain_at > PLAIN_EVERY:
                self._plain_at = time.monotonic()
                say(f"{self} done; {text or 'starting'}")

    def _running(self) -> Iterator[tuple[str, int, int]]:
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                step, done, of = json.loads(path.read_text())
                yield step, done, of


def _bar(description: str, total: int) -> tqdm[Any] | None:
    """The bar of a notebook or a terminal; None elsewhere, such as in a log file."""
    make = tqdm
    if _in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets it is a bar of text
            from tqdm.auto import tqdm as make
    elif not sys.stderr.isatty():
        return None
    return make(
        total=float(total), desc=plain(description), file=sys.stderr, dynamic_ncols=True, leave=False, bar_format=BAR
    )


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. It is not asked for IPython unless that is loaded already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def say(line: str) -> None:
    """One line for a person, on stderr, above a bar if there is one."""
    with contextlib.suppress(OSError):
        tqdm.write(plain_lines(line), file=sys.stderr)
        sys.stderr.flush()


Say = Callable[[str], None]
