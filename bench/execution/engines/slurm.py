"""Runs units as SLURM array jobs through submitit: what may begin and has room among `parallel` goes as one array."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from submitit import AutoExecutor, Job
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from bench.execution.engines.base import KILLED, MOST_ATTEMPTS, Done, Engine, Work
from bench.execution.engines.shared import Post, attempt_there, tried
from bench.execution.schedule import Schedule
from bench.foundation.errors import BadInput
from bench.foundation.progress import Progress
from bench.foundation.scratch import scratch_folder
from bench.foundation.settings import Settings

LARGEST_ARRAY = 1000  # SLURM's usual MaxArraySize is 1001
LOOK_EVERY = 0.5  # seconds between looks at the jobs; submitit asks SLURM less often


class SlurmSettings(Settings):
    """What a unit (a network, the poisons of a trial, a victim) asks for."""

    cluster: Literal["slurm", "local", "debug"] = Field(
        "slurm", description="local: processes of this machine, debug: this process; both to try things out"
    )
    partition: str = Field("", description="partition (empty: the cluster's default)")
    account: str = Field("", description="account (empty: yours)")
    gpus: int = Field(0, ge=0, le=16, description="GPUs per unit; a unit computes on one")
    cpus: int = Field(1, ge=1, le=256, description="cores per unit")
    memory: int = Field(8, ge=1, le=4096, description="GiB per unit")
    time: int = Field(240, ge=1, le=60 * 24 * 30, description="minutes per unit, at most")
    parallel: int = Field(100, ge=1, le=10_000, description="units at a time, queued ones included")


class Slurm(Engine):
    """settings: what every unit asks for."""

    Settings = SlurmSettings

    def __init__(self, settings: SlurmSettings, threads: int = 1, device: str = "auto", quiet: bool = False) -> None:
        self.settings, self.threads, self.quiet = settings, threads, quiet
        self.width = settings.parallel
        self._device = device if device != "auto" else "cuda" if settings.gpus else "cpu"
        if self._device == "cuda" and not settings.gpus and settings.cluster == "slurm":
            raise BadInput("--device cuda with engine 'slurm' asks for no GPU; fix: --set engine.gpus=1")
        self._out = Path()

    def __str__(self) -> str:
        return f"as SLURM jobs, {self.width} at a time" if self.settings.cluster == "slurm" else "as jobs without SLURM"

    def device(self) -> str:
        return self._device

    @contextlib.contextmanager
    def open(self, out: Path) -> Iterator[None]:
        self._out = out.resolve()
        settings = self.settings
        if self._out.exists() and self._out.stat().st_mode & 0o002:
            raise BadInput(
                f"engine 'slurm': everybody may write to '{self._out}', where jobs and results are kept as pickles, "
                f"which run as you when they are read; fix: chmod o-w '{self._out}'"
            )
        try:
            self._executor = AutoExecutor(self._out / "engine-jobs", cluster=settings.cluster)
        except (RuntimeError, ValueError) as error:
            raise BadInput(f"engine 'slurm': {' '.join(str(error).split())}; fix: run it where sbatch is") from None
        slurm = {"slurm_partition": settings.partition, "slurm_account": settings.account}
        self._executor.update_parameters(
            name="bench", timeout_min=settings.time, cpus_per_task=settings.cpus, gpus_per_node=settings.gpus,
            mem_gb=settings.memory, slurm_array_parallelism=settings.parallel,
            **{key: value for key, value in slurm.items() if value},
        )  # fmt: skip
        yield

    def run(self, schedule: Schedule, work: Work) -> Generator[Done, None, None]:
        with scratch_folder(self._out) as folder, Progress(schedule.totals, schedule.done, folder, self.quiet):
            posts = [Post(folder, index, self.threads, Path.cwd()) for index in range(len(schedule.steps))]
            running: dict[int, Job[Done]] = {}
            ended: list[Done] = []
            try:
                while True:
                    free = min(self.width - len(running), LARGEST_ARRAY)
                    running |= self._submit(list(itertools.islice(schedule, free)), schedule, work, posts)
                    yield from ended
                    if not running:
                        return
                    time.sleep(LOOK_EVERY)
                    ended = []
                    for index in [index for index, job in running.items() if job.done()]:
                        done = _outcome(running.pop(index), schedule.steps[index].unit)
                        if done is None and tried(posts[index]) < MOST_ATTEMPTS:
                            running |= self._submit([index], schedule, work, posts)
                            continue
                        killed = f"{KILLED}; or out of time: --set engine.time=MINUTES"
                        ended.append(done or Done(schedule.steps[index].unit, None, killed))
                        schedule.end(index, ended[-1].error is None)
            finally:
                for job in running.values():
                    job.cancel()

    def _submit(
        self, indices: Sequence[int], schedule: Schedule, work: Work, posts: Sequence[Post]
    ) -> dict[int, Job[Done]]:
        """As one array."""
        if not indices:
            return {}
        try:
            with self._executor.batch():
                return {
                    index: self._executor.submit(attempt_there, schedule.steps[index].unit, work, posts[index])
                    for index in indices
                }
        except FailedSubmissionError as error:
            raise BadInput(f"SLURM refuses the jobs: {error}; see `show engine slurm` for what can be set") from None


def _outcome(job: Job[Done], unit: Any) -> Done | None:
    """The result of a job; None when its process ended without one."""
    try:
        done = job.result()
    except FailedJobError as error:  # raised in the job, before or after the unit itself
        return Done(unit, None, str(error).strip().splitlines()[-1], str(error))
    except UncompletedJobError:
        return None
    return replace(done, unit=unit)
