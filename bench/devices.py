"""Which device computes, and how many processes share it."""

from __future__ import annotations

import os

import torch

from bench.errors import BadInput


def choose_device(asked: str) -> str:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`. BadInput when it is unknown or not there."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    if device is None or device.type != "cuda":
        raise BadInput(f"unknown device '{asked}'; allowed: auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise BadInput(
            f"device '{asked}' is not there: torch sees {count} GPU{'' if count == 1 else 's'}; repair: --device cpu"
        )
    return asked


def default_jobs(device: str) -> int:
    """One process a core on a CPU, one on a GPU."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1
