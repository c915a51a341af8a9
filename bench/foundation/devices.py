"""Which devices compute, and how many processes share them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import joblib
import torch

from bench.foundation.errors import BadInput


def choose_devices(asked: str) -> tuple[str, ...]:
    """The devices for `auto`, `cpu`, `cuda` (all of them) or `cuda:0,cuda:1`. BadInput when one is unknown or
    absent."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return (asked,)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cuda" and count > 1:
        return tuple(f"cuda:{i}" for i in range(count))
    devices = tuple(dict.fromkeys(name.strip() for name in asked.split(",")))
    for name in devices:
        kind, _, number = name.partition(":")
        if kind != "cuda" or (name != "cuda" and not (number.isascii() and number.isdigit() and len(number) < 4)):
            raise BadInput(
                f"unknown device '{name}'; allowed: auto, cpu, cuda, cuda:N, or a list such as cuda:0,cuda:1"
            )
        if int(number or 0) >= count:
            raise BadInput(f"no device '{name}': torch sees {count} GPU{'' if count == 1 else 's'}; fix: --device cpu")
    if len(devices) > 1 and "cuda" in devices:
        raise BadInput(f"--device {asked}: in a list, number the GPUs, as in cuda:0,cuda:1")
    return devices


def default_jobs(devices: Sequence[str]) -> int:
    """One process per core (of those that a container grants) on a CPU, or one per GPU."""
    return joblib.cpu_count() if devices[0] == "cpu" else len(devices)


def visible(devices: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The CUDA_VISIBLE_DEVICES with which a process sees only one of `devices` (`cuda:N`), for each of them; also where
    it already hides or reorders some."""
    numbers = [int(device.partition(":")[2]) for device in devices]
    names = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [names[number] if names else str(number) for number in numbers]
