"""Runs units on the workers of a dask scheduler, by futures: each is submitted when what it needs is done.

joblib's own dask backend waits for ever when a worker is killed, so it is not used. dask starts a task whose worker
died again on its own, several times, and also one whose result was lost with its worker; a unit itself counts the
attempts that were cut off, and is given up after two. Repeating a finished unit finds its record and is quick.
"""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker

from bench.execution.engines.base import KILLED, MOST_ATTEMPTS, Done, Engine, Work
from bench.execution.engines.shared import SHARE, Post, Seen, attempt_there, look, tried
from bench.execution.schedule import Schedule
from bench.foundation.errors import BadInput
from bench.foundation.progress import Progress
from bench.foundation.scratch import scratch_folder
from bench.foundation.secrets import redacted

PATIENCE = 20  # seconds to wait for the scheduler, and for the first worker
LOOK_EVERY = 5.0  # seconds without news before a look at whether workers are there
DESERTED = 300.0  # seconds without any worker after which the units that run are given up


class Dask(Engine):
    """address: of the scheduler, as tcp://host:8786; device: auto is CUDA where all workers have it."""

    def __init__(self, address: str | None, threads: int = 1, device: str = "auto", quiet: bool = False) -> None:
        if not address:
            raise BadInput(
                "engine 'dask' needs a scheduler; fix: start `dask scheduler --host HOST`, `dask worker ADDRESS "
                "--nworkers N --nthreads 1`, and give --address ADDRESS"
            )
        self.threads, self.quiet = threads, quiet
        self._address, self._shown = address, redacted(address)
        self._device = device
        self._out = Path()
        self._client: Client | None = None

    def __str__(self) -> str:
        return f"on {self.width} dask workers at {self._shown}"

    def device(self) -> str:
        with self._connected() as client:  # also when it is given: how many workers there are shapes the estimate
            if self._device == "auto":
                self._device = "cuda" if all(seen.cuda for seen in self._look(client, Path()).values()) else "cpu"
        return self._device

    @contextlib.contextmanager
    def open(self, out: Path) -> Iterator[None]:
        self._out = out.resolve()
        with self._connected() as client:
            with scratch_folder(self._out) as folder:
                for seen in self._look(client, folder).values():
                    if not (seen.folder and seen.lock):
                        lack = "does not share the locks of" if seen.folder else "does not see"
                        raise BadInput(f"dask worker on {seen.machine} {lack} '{self._out}'; {SHARE}")
                    if self._device == "cuda" and not seen.cuda:
                        raise BadInput(f"dask worker on {seen.machine} has no CUDA; fix: --device cpu")
            self._client = client
            try:
                yield
            finally:
                self._client = None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Client]:
        try:
            client = Client(self._address, timeout=PATIENCE)
        except (OSError, TypeError, ValueError) as error:  # TypeError: tls:// without certificates
            line = redacted(" ".join(str(error).split()), self._address)
            raise BadInput(f"no dask scheduler at '{self._shown}' ({line}); fix: dask scheduler --host HOST") from None
        with client:
            with contextlib.suppress(TimeoutError):
                client.wait_for_workers(1, timeout=PATIENCE)
            workers = client.scheduler_info(n_workers=-1)["workers"]
            if not workers:
                raise BadInput(f"no worker at '{self._shown}'; fix: dask worker {self._shown} --nthreads 1")
            for name, worker in workers.items():
                if worker["nthreads"] != 1:
                    raise BadInput(
                        f"dask worker {name} runs {worker['nthreads']} units in one process, which share their random "
                        f"state; fix: dask worker {self._shown} --nworkers {worker['nthreads']} --nthreads 1"
                    )
            self.width = len(workers)
            yield client

    def _look(self, client: Client, folder: Path) -> dict[str, Seen]:
        try:
            return dict(client.run(look, folder))
        except Exception as error:
            line = redacted(" ".join(str(error).split()), self._address)
            raise BadInput(
                f"a dask worker at '{self._shown}' cannot run this tool ({type(error).__name__}: {line}); "
                "fix: install the same version there, or start the workers in the same folder"
            ) from None

    def run(self, schedule: Schedule, work: Work) -> Generator[Done, None, None]:
        client = self._client
        assert client is not None, "open the engine first"
        with scratch_folder(self._out) as folder, Progress(schedule.totals, schedule.done, folder, self.quiet):
            posts = [Post(folder, index, self.threads, Path.cwd()) for index in range(len(schedule.steps))]
            futures = _Futures(client, schedule, work, posts)
            futures.begin(schedule)
            try:
                for index, future in futures.as_they_end():
                    unit = schedule.steps[index].unit
                    done = _outcome(future, unit)
                    if done is None and tried(posts[index]) < MOST_ATTEMPTS:
                        futures.begin([index])  # dask gave it up, for its own count of killed workers
                        continue
                    done = done or Done(unit, None, f"{KILLED}; see the worker's log")
                    schedule.end(index, done.error is None)
                    futures.begin(schedule)
                    yield done
                for index in futures.running_units():
                    unit = schedule.steps[index].unit
                    yield Done(unit, None, f"no dask worker is left at '{self._shown}'")
            finally:
                futures.cancel()


class _Futures:
    """The futures that run, by their keys, and a queue of the keys of those that have ended."""

    def __init__(self, client: Client, schedule: Schedule, work: Work, posts: Sequence[Post]) -> None:
        self._client, self._schedule, self._work, self._posts = client, schedule, work, posts
        self._running: dict[str, tuple[int, Future]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def begin(self, indices: Iterable[int]) -> None:
        """Hand them to dask, which begins those first whose rank is lowest."""
        for index in indices:
            step = self._schedule.steps[index]
            key = f"bench-{step.title.replace(' ', '-')}-{index}-{uuid.uuid4().hex[:8]}"
            task = (attempt_there, step.unit, self._work, self._posts[index])
            priority = -self._schedule.ranks[index]
            future = self._client.submit(*task, key=key, pure=False, retries=0, priority=priority)
            self._running[key] = index, future
            future.add_done_callback(self._end)

    def _end(self, future: Future) -> None:
        self._ended.put(str(future.key))

    def as_they_end(self) -> Iterator[tuple[int, Future]]:
        """Each with its unit's index, until none runs or there has been no worker to run them for long."""
        last_seen = time.monotonic()
        while self._running:
            try:
                yield self._running.pop(self._ended.get(timeout=LOOK_EVERY))
            except queue.Empty:
                if self._client.status == "running" and self._client.scheduler_info(n_workers=-1)["workers"]:
                    last_seen = time.monotonic()
                if time.monotonic() - last_seen > DESERTED:
                    return

    def running_units(self) -> list[int]:
        return [index for index, _ in self._running.values()]

    def cancel(self) -> None:
        if self._running and self._client.status == "running":
            self._client.cancel([future for _, future in self._running.values()], force=True)


def _outcome(future: Future, unit: Any) -> Done | None:
    """What a future brought; None when its workers were killed."""
    if future.status == "finished":
        done: Done = future.result()
        return replace(done, unit=unit)
    if future.status == "error":
        error = future.exception()
        if isinstance(error, KilledWorker):
            return None
        return Done(unit, None, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Done(unit, None, f"dask task lost ({future.status}): scheduler down or task cancelled")
