"""Runs units in processes of this machine: one per core on a CPU, one per device on GPUs.

One arithmetic thread per process: small networks run faster that way, and sums come out the same, bit for bit, however
many workers there are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import Timeout
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import resource_tracker
from joblib.externals.loky.process_executor import TerminatedWorkerError

from bench.execution.engines.base import KILLED, Done, Engine, Work, attempt
from bench.foundation.devices import visible
from bench.foundation.files import take_lock
from bench.foundation.progress import Heartbeat, Progress
from bench.foundation.scratch import scratch_folder


class Local(Engine):
    """jobs: processes, 1 works in this process; threads: of arithmetic in each; devices: what they share, in turn."""

    def __init__(self, jobs: int, threads: int = 1, devices: Sequence[str] = ("cpu",), quiet: bool = False) -> None:
        self.width, self.threads, self.quiet = jobs, threads, quiet
        self.devices = tuple(devices)[:jobs]
        self._slots: tuple[str, ...] = ()  # a file for each process, whose name is the GPU that it is to see
        self._out: Path | None = None

    def __str__(self) -> str:
        return "in this process" if self.width == 1 else f"in {self.width} processes"

    def device(self) -> str:
        return self.devices[0] if len(self.devices) == 1 else "cuda"

    @contextlib.contextmanager
    def open(self, out: Path) -> Iterator[None]:
        self._out = out
        if self.width > 1 or len(self.devices) > 1:
            _start_tracker()
        with self._slots_for(out) if len(self.devices) > 1 else contextlib.nullcontext():
            try:
                yield
            finally:
                if self.width > 1:  # at once: a thread that a plug-in left would keep a worker, and that this process
                    get_reusable_executor(max_workers=1, reuse=False, kill_workers=True).shutdown()

    @contextlib.contextmanager
    def _slots_for(self, out: Path) -> Iterator[None]:
        with scratch_folder(out) as folder:
            gpus = visible(self.devices)
            self._slots = tuple(f"{folder}/{slot}-{gpus[slot % len(gpus)]}" for slot in range(self.width))
            try:
                yield
            finally:
                self._slots = ()

    def run(self, title: str, units: Sequence[Any], work: Work) -> Generator[Done, None, None]:
        assert self._out is not None, "open the engine first"
        with scratch_folder(self._out) as folder, Progress(title, len(units), folder, self.quiet) as progress:
            missing = dict(enumerate(units))
            for index, done in self._attempts(missing, work, folder):
                del missing[index]
                progress.done += 1
                yield done

    def _attempts(self, missing: dict[int, Any], work: Work, folder: Path) -> Iterator[tuple[int, Done]]:
        jobs = min(self.width, len(missing))
        if jobs <= 1 and not self._slots:
            for index in list(missing):
                yield index, attempt(missing[index], work, Heartbeat(folder / f"{index}.json"), self.threads)
            return
        try:
            yield from self._pool(dict(missing), work, max(jobs, 2), folder)
            return
        except TerminatedWorkerError:
            pass
        # A worker was killed (out of memory, or by hand), and the pool with it. Once more, one unit at a time, so that
        # the unit that kills its process takes no other along.
        for index in list(missing):
            try:
                yield from self._pool({index: missing[index]}, work, 2, folder)
            except TerminatedWorkerError:
                yield index, Done(missing[index], None, f"{KILLED}; fix: fewer --jobs")

    def _pool(self, units: dict[int, Any], work: Work, jobs: int, folder: Path) -> Iterator[tuple[int, Done]]:
        shared = (work, self.threads, folder, self._slots)
        tasks = (delayed(_in_worker)(index, unit, *shared) for index, unit in units.items())
        # Not with the first unit: a parent that is killed before it hands one out would leave workers that wait for it.
        life = {"initializer": _end_with, "initargs": (os.getpid(),)}
        # No more ahead than loky's own queue holds: when it is ended with more, it complains with a traceback.
        ahead = {"batch_size": 1, "pre_dispatch": 2 * jobs}
        # Units are small: joblib shares no arrays through files, and gets no folder in the temporary directory.
        files = {"max_nbytes": None, "temp_folder": str(folder.parent)}
        yield from Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered", **ahead, **life, **files)(
            tasks
        )


def _start_tracker() -> None:
    """Start the process in which loky notes what to clear when this one is killed, unless it runs already.

    It clears in silence, since nobody can mend a killed run, and outlives the hang-up of the terminal.
    """
    before = os.environ.get("PYTHONWARNINGS")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _in_worker(
    index: int, unit: Any, work: Work, threads: int, folder: Path, slots: tuple[str, ...]
) -> tuple[int, Done]:
    if slots:
        _take_slot(slots)
    return index, attempt(unit, work, Heartbeat(folder / f"{index}.json"), threads)


_watching = False
_slot: Any = None  # the lock of the slot that this process has; it is free again when the process ends


def _take_slot(slots: tuple[str, ...]) -> None:
    """Take a free slot for the life of this process, and see only its GPU. Before the first use of CUDA here."""
    global _slot
    deadline = time.monotonic() + 60.0
    while _slot is None:
        for path in slots:
            with contextlib.suppress(Timeout):
                _slot = take_lock(Path(path), timeout=0)
                os.environ["CUDA_VISIBLE_DEVICES"] = Path(path).name.partition("-")[2]
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"all {len(slots)} slots are taken")
        time.sleep(0.2)


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: a killed run leaves no orphan that goes on computing."""
    global _watching
    if _watching:
        return
    _watching = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
