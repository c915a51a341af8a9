"""Runs units in processes of this machine: one per core on a CPU, one per device on GPUs.

One arithmetic thread per process: small networks run faster that way, and sums come out the same, bit for bit, however
many workers there are.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from filelock import Timeout
from joblib.externals.loky import get_reusable_executor, process_executor
from joblib.externals.loky.backend import resource_tracker
from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

from bench.execution.engines.base import KILLED, Done, Engine, Work, attempt
from bench.execution.schedule import Schedule
from bench.foundation.devices import visible
from bench.foundation.files import take_lock
from bench.foundation.progress import Heartbeat, Progress
from bench.foundation.scratch import scratch_folder

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


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
                    _end_workers()

    @contextlib.contextmanager
    def _slots_for(self, out: Path) -> Iterator[None]:
        with scratch_folder(out) as folder:
            gpus = visible(self.devices)
            self._slots = tuple(f"{folder}/{slot}-{gpus[slot % len(gpus)]}" for slot in range(self.width))
            try:
                yield
            finally:
                self._slots = ()

    def run(self, schedule: Schedule, work: Work) -> Generator[Done, None, None]:
        assert self._out is not None, "open the engine first"
        jobs = min(self.width, len(schedule.steps))
        with scratch_folder(self._out) as folder, Progress(schedule.totals, schedule.done, folder, self.quiet):
            if jobs <= 1 and not self._slots:
                for index in schedule:
                    unit = schedule.steps[index].unit
                    done = attempt(unit, work, Heartbeat(folder / f"{index}.json"), self.threads)
                    schedule.end(index, done.error is None)
                    yield done
            else:
                shared = (work, self.threads, folder, self._slots)
                yield from _Pool(schedule, max(jobs, 2), shared).run()


class _Pool:
    """The units of a schedule in processes. shared: what `_in_worker` is told with each."""

    def __init__(self, schedule: Schedule, jobs: int, shared: tuple[Work, int, Path, tuple[str, ...]]) -> None:
        self._schedule, self._jobs, self._shared = schedule, jobs, shared
        self._running: dict[Future[Done], int] = {}
        # Of libraries that torch knows nothing of.
        self._environment = {name: os.environ.get(name, str(shared[1])) for name in THREADS}

    def run(self) -> Iterator[Done]:
        ended: list[Done] = []
        try:
            while True:
                # No more ahead than there are processes, so that what gets ready next may come first.
                for index in itertools.islice(self._schedule, self._jobs - len(self._running)):
                    self._begin(index)
                yield from ended
                if not self._running:
                    return
                ended = list(self._ended())
        finally:
            if self._running:
                self._wait_until_handed_out()
                _end_workers()

    def _wait_until_handed_out(self) -> None:
        """loky's thread ends with a traceback when the pool is ended before it has taken a unit that was submitted just
        now. It takes them at once, since it holds more than there are processes."""
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline and not all(f.running() or f.done() for f in self._running):
            time.sleep(0.005)

    def _begin(self, index: int) -> None:
        # Not with the first unit: a parent that is killed before it hands one out would leave workers that wait for it.
        life = {"initializer": _start_worker, "initargs": (os.getpid(),), "timeout": None, "env": self._environment}
        try:
            pool = get_reusable_executor(self._jobs, **life)  # a new one after a process was killed
            future = pool.submit(_in_worker, index, self._schedule.steps[index].unit, *self._shared)
        except BrokenProcessPool as error:  # by a kill just now
            future = Future()
            future.set_exception(error)
        self._running[future] = index

    def _ended(self) -> Iterator[Done]:
        """Wait until at least one has ended. A process that is killed (out of memory, or by hand) ends the pool: what
        ran there is tried once more, one unit at a time, so that the unit that kills its process takes no other along.
        """
        cut_off: dict[int, BrokenProcessPool] = {}
        yield from self._collect(wait(self._running, return_when=FIRST_COMPLETED).done, cut_off)
        if cut_off:  # and with it all others
            yield from self._collect(wait(self._running).done, cut_off)
        for index in cut_off:
            self._begin(index)
            again: dict[int, BrokenProcessPool] = {}
            yield from self._collect(wait(self._running).done, again)
            for error in again.values():
                cause = f"{KILLED}; fix: fewer --jobs" if isinstance(error, TerminatedWorkerError) else str(error)
                self._schedule.end(index, False)
                yield Done(self._schedule.steps[index].unit, None, cause, str(error.__cause__ or error))

    def _collect(self, futures: Iterable[Future[Done]], cut_off: dict[int, BrokenProcessPool]) -> Iterator[Done]:
        for future in futures:
            index = self._running.pop(future)
            try:
                done = future.result()
            except BrokenProcessPool as error:
                cut_off[index] = error
            else:
                self._schedule.end(index, done.error is None)
                yield done


def _end_workers() -> None:
    """At once, whatever they do."""
    get_reusable_executor(max_workers=1, reuse=False, kill_workers=True).shutdown()


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


def _in_worker(index: int, unit: Any, work: Work, threads: int, folder: Path, slots: tuple[str, ...]) -> Done:
    if slots:
        _take_slot(slots)
    return attempt(unit, work, Heartbeat(folder / f"{index}.json"), threads)


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


def _start_worker(parent: int) -> None:
    # Memory that is kept on purpose (`keep_freed_memory`) is no leak, for which loky would replace the worker.
    process_executor._MAX_MEMORY_LEAK_SIZE = sys.maxsize
    _end_with(parent)


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
