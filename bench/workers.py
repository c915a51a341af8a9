"""Runs units of work in processes, two cores two processes; a unit that fails or kills its process costs only itself.

One arithmetic thread a process: small networks run faster that way, and sums come out the same, bit for bit, however
many workers there are.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from bench.errors import BadInput, DiskFull, TrialFailed
from bench.progress import Heartbeat, Progress, reporting_folder

Work = Callable[[Any, Heartbeat], Any]
"""A function of (unit, heartbeat) that a worker process can import."""


@dataclass(frozen=True)
class Done:
    """What became of a unit: its result, or in one line why there is none."""

    unit: Any
    result: Any
    error: str | None
    trace: str = ""


def run_units(
    title: str, units: Sequence[Any], work: Work, *, jobs: int, threads: int, quiet: bool = False
) -> Iterator[Done]:
    """Yield a Done for every unit, in the order in which they end. jobs: processes; 1 works in this process.

    DiskFull, from whichever process, ends them all.
    """
    with reporting_folder() as folder, Progress(title, len(units), folder, quiet) as progress:
        left = dict(enumerate(units))
        for index, done in _attempts(left, work, min(jobs, len(units)), threads, folder):
            del left[index]
            progress.done += 1
            yield done


def _attempts(left: dict[int, Any], work: Work, jobs: int, threads: int, folder: Path) -> Iterator[tuple[int, Done]]:
    if jobs <= 1:
        for index in list(left):
            yield _guarded(index, left[index], work, threads, folder)
        return
    try:
        yield from _pool(dict(left), work, jobs, threads, folder)
        return
    except TerminatedWorkerError:
        pass
    # A worker was killed (out of memory, or by hand), and the pool with it. Once more, one unit at a time, so that
    # the unit that kills its process takes no other along.
    for index in list(left):
        try:
            yield from _pool({index: left[index]}, work, 2, threads, folder)
        except TerminatedWorkerError:
            yield index, Done(left[index], None, "its process was killed twice (out of memory?); repair: fewer --jobs")


def _pool(units: dict[int, Any], work: Work, jobs: int, threads: int, folder: Path) -> Iterator[tuple[int, Done]]:
    tasks = (delayed(_guarded)(i, unit, work, threads, folder) for i, unit in units.items())
    # Not with the first unit: a parent that is killed before it hands one out would leave workers that wait for it.
    life = {"initializer": _end_with, "initargs": (os.getpid(),)}
    # No more ahead than loky's own queue holds: when it is ended with more, it complains with a traceback.
    ahead = {"batch_size": 1, "pre_dispatch": 2 * jobs}
    yield from Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered", **ahead, **life)(tasks)


def _guarded(index: int, unit: Any, work: Work, threads: int, folder: Path) -> tuple[int, Done]:
    torch.set_num_threads(threads)
    beat = folder / f"{index}.json"
    try:
        return index, Done(unit, work(unit, Heartbeat(beat)), None)
    except (KeyboardInterrupt, SystemExit, DiskFull):
        raise
    except (TrialFailed, BadInput) as error:
        return index, Done(unit, None, str(error), traceback.format_exc())
    except Exception as error:
        line = " ".join(str(error).split()) or "no message"
        return index, Done(unit, None, f"{type(error).__name__}: {line}", traceback.format_exc())
    finally:
        beat.unlink(missing_ok=True)


_watching = False


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: a killed run leaves no orphan that goes on computing."""
    global _watching
    if _watching:
        return
    _watching = True

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
