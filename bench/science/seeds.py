"""Random streams by name: every consumer of chance has its own, so that adding one never shifts another."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every name, and on nothing else."""
    text = json.dumps([seed, *names], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_stream(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """A torch generator on `device` for the stream called `names`. CPU and GPU streams differ."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called `names`."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))
