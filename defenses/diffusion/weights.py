"""Files with a denoiser's weights: their digest, and tensors that are believed only after a look at all of them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bench.plugin import BadInput, open_regular

AGAIN = "save or download it again, or leave out defense.source"


def refused(source: str, why: str, fix: str = AGAIN) -> BadInput:
    """What is said of a denoiser from outside that cannot be used."""
    return BadInput(f"defense.source '{source}' {why}; fix: {fix}")


def in_words(error: Exception) -> str:
    """The kind of an error of another library, and how its text begins."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def state(path: Path) -> tuple[int, int]:
    """Size and time of the last change: the key under which what a file holds is remembered."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def digest(path: Path) -> str:
    """sha256 of the content."""
    return _digest(str(path), *state(path))


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, changed: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto


def checked(source: str, what: str, found: object, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found` as the float32 weights of a network; BadInput in one line where they are not those that it has.

    what: the network, in words; expected: its own, of which the shapes count. Shapes are compared first: a small file
    may claim tensors that fill the memory as soon as somebody looks at their values.
    """
    if not isinstance(found, dict) or not all(map(_is_plain, found.values())):
        raise refused(source, "is not a checkpoint of named tensors")
    if all(str(name).startswith("module.") for name in found):  # trained on several devices
        found = {name.removeprefix("module."): value for name, value in found.items()}
    if reasons := list(_differences(expected, found)):
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise refused(source, f"is not {what}: {reasons[0]}{more}")
    # What was stored in half precision cannot take our pixels.
    weights = {name: value.detach().float() for name, value in found.items()}
    if any(not torch.isfinite(value).all() for value in weights.values()):
        raise refused(source, "holds NaN or infinity")
    return weights


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of numbers that lie in the memory, one after the other."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterable[str]:
    """Why weights do not fit a network, in words."""
    yield from (f"'{name}' is missing" for name in expected if name not in found)
    yield from (f"'{name}' is unknown" for name in found if name not in expected)
    for name, own in expected.items():
        if name in found and found[name].shape != own.shape:
            yield f"'{name}' has the shape {list(found[name].shape)}, not {list(own.shape)}"
