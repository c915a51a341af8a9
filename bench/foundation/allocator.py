"""Keeps freed memory in the process for the next step of a training, which asks for the same sizes again.

glibc gives large blocks back to the kernel at once, and the kernel clears every page of the next ones: 3 to 12 % of a
training step on a CPU. Other allocators, and what a person has set for glibc's, are left alone.
"""

from __future__ import annotations

import ctypes
import functools
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_BLOCK = 1 << 30  # bytes
LARGEST_IN_OLD_GLIBC = 1 << 25


class _Symbol(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p), ("address", ctypes.c_void_p),
    )  # fmt: skip


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep blocks of up to 1 GiB; whether it does."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        process = ctypes.CDLL(None)
        if not (_is_glibc(process) and process.mallopt(M_TRIM_THRESHOLD, LARGEST_BLOCK)):
            return False
        return any(process.mallopt(M_MMAP_THRESHOLD, size) for size in (LARGEST_BLOCK, LARGEST_IN_OLD_GLIBC))
    except (OSError, AttributeError, TypeError):  # no glibc
        return False


def _is_glibc(process: ctypes.CDLL) -> bool:
    """Whether `malloc` is glibc's own, and no other's that was preloaded or linked."""
    process.gnu_get_libc_version  # noqa: B018  (AttributeError elsewhere)
    found = _Symbol()
    address = ctypes.cast(process.malloc, ctypes.c_void_p)
    return bool(process.dladdr(address, ctypes.byref(found))) and os.path.basename(found.file).startswith(b"libc.so")
