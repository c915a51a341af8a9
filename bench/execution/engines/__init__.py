"""Engines: where units of work are done. `base` says what an engine is; each of those announced here is one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.foundation.errors import BadInput
from bench.foundation.registry import announce, find
from bench.foundation.settings import build, literal

if TYPE_CHECKING:
    from bench.execution.engines.base import Engine

announce(
    "engine",
    {
        "local": ("bench.execution.engines.local:Local", "processes of this machine: one per core, or one per GPU"),
        "dask": (
            "bench.execution.engines.dask:Dask",
            "workers of a dask scheduler (--address) that see the --out folder",
        ),
        "slurm": (
            "bench.execution.engines.slurm:Slurm",
            "SLURM array jobs through submitit, with a shared --out folder",
        ),
    },
)
REMOTE_DEVICES = ("auto", "cpu", "cuda")


def choose(
    name: str, *, device: str, jobs: int | None, threads: int, address: str | None, sets: Sequence[str]
) -> Engine:
    """The engine that the command line asks for. sets: `engine.key=value`. BadInput in one line."""
    from bench.foundation.devices import choose_devices, default_jobs

    make = find("engine", name).make
    for option, value in (("--jobs", jobs), ("--threads", threads)):
        if value is not None and not 1 <= value <= 1024:
            raise BadInput(f"{option} {value}; allowed: 1 to 1024")
    if address is not None and name != "dask":
        raise BadInput(f"--address: engine '{name}' has none; fix: --engine dask")
    values = {key.partition(".")[2]: literal(text) for key, _, text in (item.partition("=") for item in sets)}
    if values and name != "slurm":
        raise BadInput(f"--set engine.{next(iter(values))}: engine '{name}' has no settings")
    if name == "local":
        devices = choose_devices(device)
        return make(jobs if jobs is not None else default_jobs(devices), threads, devices)
    if jobs is not None:
        repair = "as many workers as you like" if name == "dask" else "--set engine.parallel=N"
        raise BadInput(f"--jobs is for engine 'local'; fix: {repair}")
    if device not in REMOTE_DEVICES:
        raise BadInput(f"--device {device} with engine '{name}'; allowed: {', '.join(REMOTE_DEVICES)}")
    if name == "dask":
        return make(address, threads, device)
    return make(build(make.Settings, values, "engine"), threads, device)
