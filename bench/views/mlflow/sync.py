"""Bringing a store in step with records: at once (`sync`), or from a thread while a run goes on (`Tracker`).

`sync` is the one path from records to MLflow; `Tracker` calls it from a thread, so that no training waits for a server.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.foundation import commands
from bench.foundation.errors import BadInput
from bench.foundation.scratch import scratch_folder
from bench.foundation.secrets import redacted
from bench.storage.record import Record
from bench.views.cells import by_cell
from bench.views.mlflow.book import Book, Images
from bench.views.mlflow.database import unhurried_disk
from bench.views.mlflow.patience import Paced, limit
from bench.views.mlflow.server import connect, default_uri, keep_quiet, only_writer

REPAIR = "see that it is an MLflow server or a file that can be written (a SQLite file may also be removed)"
DRIVER = "install that driver, or name the one that you have, as in postgresql+psycopg2://"
Image = Callable[[], bytes | None]
BACK_OFF = (10.0, 300.0)  # seconds between tries at a store that fails: first and longest
REST = 10.0  # times as long as it took, at most 30 s, before the next sync of a run: many trials at once cost a third


@dataclass(frozen=True)
class SyncReport:
    """Cells touched, trials logged now, trials that were there already."""

    cells: int
    trials_new: int
    trials_present: int


def sync(records: Sequence[Record], uri: str, out: Path, images: Images | None = None) -> SyncReport:
    """Bring the store at `uri` up to date with `records`; repeat it as often as you like.

    out: the output folder, for the lock and the artefacts; images: the PNG of a record's poisons, if it has one
    (asked in trial order until a cell has its image). BadInput, in one line, when the store fails.
    """
    protocols: dict[str, list[list[Record]]] = {}
    for trials in by_cell(records):
        protocols.setdefault(trials[0]["protocol"], []).append(trials)
    cells = [trials for protocol in protocols.values() for trials in protocol]
    if not cells:
        return SyncReport(0, 0, 0)
    try:
        relaxed = unhurried_disk() if uri == default_uri(out) else contextlib.nullcontext()
        with only_writer(uri, out), relaxed, scratch_folder(out) as scratch:
            client = Paced(connect(uri))
            write = functools.partial(_write, client, protocols, images, out, scratch)
            logged = write() if uri.startswith("sqlite:") else client.within(limit(), write)
    except BadInput:
        raise
    except Exception as error:  # of libraries of all kinds, and of what a server says that is none
        repair = DRIVER if isinstance(error, ImportError) else f"{REPAIR}, then {_again(out)}"
        raise BadInput(redacted(f"cannot log to {uri}: {_first_line(error)}; fix: {repair}", uri)) from error
    return SyncReport(len(cells), logged, sum(map(len, cells)) - logged)


def _write(
    client: Paced, protocols: Mapping[str, list[list[Record]]], images: Images | None, out: Path, scratch: Path
) -> int:
    place = None if client.tracking_uri.startswith(("http", "databricks")) else out
    return sum(
        Book(client, protocol, place, scratch).log(protocols[protocol], images) for protocol in sorted(protocols)
    )


class Tracker:
    """Logs records while the training goes on: `add` returns at once, a daemon thread does the work.

    uri: from `resolve_uri`, None for no tracking; say: takes one line for the user (called from the thread too).
    """

    def __init__(self, uri: str | None, out: Path, say: Callable[[str], None]) -> None:
        self._uri, self._out, self._say = uri, out, say
        self._wake = threading.Condition()
        self._waiting: list[tuple[Record, Image | None]] = []
        self._closing = self._failing = self._reported = False
        self._thread: threading.Thread | None = None
        if uri is not None:
            keep_quiet()

    def add(self, record: Record, image: Image | None = None) -> None:
        """Queue a finished record; image: gives the PNG of its poisons when the record is logged, None without."""
        if self._uri is None:
            return
        with self._wake:
            self._waiting.append((record, image))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def close(self, patience: float = 30.0) -> int:
        """Wait at most `patience` seconds (5 when the store has been failing); how many records are not logged."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(min(patience, 5.0) if self._failing else patience)
        with self._wake:
            unlogged = len(self._waiting)
        if unlogged:
            self._say(f"tracking: {unlogged} record(s) are on disk but not in MLflow; fix: {_again(self._out)}")
        return unlogged

    def _work(self) -> None:
        delay = BACK_OFF[0]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._waiting)
                batch, closing = list(self._waiting), self._closing
            if not batch:
                return
            images = {record["key"]: image for record, image in batch}
            began = time.monotonic()
            try:
                sync([record for record, _ in batch], str(self._uri), self._out, functools.partial(_image, images))
            except Exception as error:  # whatever happens to a view, the training that it shows goes on
                self._failing = True
                if not self._reported:
                    self._reported = True
                    line = redacted(_first_line(error), self._uri)
                    self._say(f"tracking: {line}; the run goes on and its records are kept")
                if closing:
                    return
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, timeout=delay)
                delay = min(2 * delay, BACK_OFF[1])
            else:
                self._failing, delay = False, BACK_OFF[0]
                with self._wake:
                    del self._waiting[: len(batch)]
                    self._wake.wait_for(lambda: self._closing, timeout=min(REST * (time.monotonic() - began), 30.0))


def _again(out: Path) -> str:
    return commands.bench("sync", "--out", out)


def _image(images: Mapping[str, Image | None], record: Record) -> bytes | None:
    image = images[record["key"]]
    return image() if image is not None else None


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0][:400]
    return text if isinstance(error, BadInput) else f"{type(error).__name__}: {text}"
