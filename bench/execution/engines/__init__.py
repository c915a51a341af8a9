"""Engines: where units of work are done. `base` says what one is; each other file is one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from bench.execution.engines.base import Engine
from bench.foundation.devices import choose_devices, default_jobs
from bench.foundation.errors import BadInput, nearest
from bench.foundation.settings import build, literal

CLASSES = {"local": "Local", "dask": "Dask", "slurm": "Slurm"}
CARDS = {
    "local": "processes of this machine: one a core on a CPU, one a GPU",
    "dask": "the workers of a dask scheduler (--address); they must see the --out folder",
    "slurm": "SLURM array jobs through submitit; they must see the --out folder",
}
REMOTE_DEVICES = ("auto", "cpu", "cuda")


def find(name: str) -> Any:
    """The engine class called `name`. BadInput for an unknown one, and when what it stands on is not installed."""
    if name not in CLASSES:
        raise BadInput(f"unknown engine '{name}'{nearest(name, CLASSES)}")
    try:
        return getattr(importlib.import_module(f"bench.execution.engines.{name}"), CLASSES[name])
    except ModuleNotFoundError as error:
        raise BadInput(
            f"engine '{name}' needs {error.name}, which is not installed; fix: pip install 'poisoning-bench[{name}]'"
        ) from None


def choose(
    name: str, *, device: str, jobs: int | None, threads: int, address: str | None, sets: Sequence[str]
) -> Engine:
    """The engine that the command line asks for. sets: `engine.key=value`. BadInput in one line."""
    make = find(name)
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


__all__ = ["CARDS", "Engine", "choose", "find"]
