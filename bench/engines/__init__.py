"""Engines: where units of work are done. `base` says what one is; each other file is one."""

from __future__ import annotations

import importlib
from typing import Any

from bench.engines.base import Engine
from bench.errors import BadInput, nearest

NAMES = {"local": "Local", "dask": "Dask", "slurm": "Slurm"}


def find(name: str) -> Any:
    """The engine class called `name`. BadInput for an unknown one, and when what it stands on is not installed."""
    if name not in NAMES:
        raise BadInput(f"unknown engine '{name}'{nearest(name, NAMES)}")
    try:
        return getattr(importlib.import_module(f"bench.engines.{name}"), NAMES[name])
    except ModuleNotFoundError as error:
        raise BadInput(
            f"engine '{name}' needs {error.name}, which is not installed; repair: pip install 'poisoning-bench[{name}]'"
        ) from None


__all__ = ["NAMES", "Engine", "find"]
