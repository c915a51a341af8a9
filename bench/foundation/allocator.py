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
PROBE = 100_000  # bytes: less than glibc maps by itself


class _Statistics(ctypes.Structure):
    """What mallinfo2 returns, glibc 2.33 and later."""

    _fields_ = (("_", ctypes.c_size_t * 7), ("in_use", ctypes.c_size_t), ("__", ctypes.c_size_t * 2))


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep blocks of up to 1 GiB; whether it does."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        glibc = ctypes.CDLL("libc.so.6")
        if not (_allocates(glibc) and glibc.mallopt(M_TRIM_THRESHOLD, LARGEST_BLOCK)):
            return False
        return any(glibc.mallopt(M_MMAP_THRESHOLD, size) for size in (LARGEST_BLOCK, LARGEST_IN_OLD_GLIBC))
    except (OSError, AttributeError, TypeError):  # no glibc, or one before 2021
        return False


def _allocates(glibc: ctypes.CDLL) -> bool:
    """Whether this process's `malloc` takes its memory from glibc, and not from an allocator that was preloaded or
    linked. Names and addresses do not tell: that of a function may be that of a stub in the program."""
    glibc.mallinfo2.restype = _Statistics
    process = ctypes.CDLL(None)
    process.malloc.restype, process.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    process.free.restype, process.free.argtypes = None, [ctypes.c_void_p]
    before = glibc.mallinfo2().in_use
    block = process.malloc(PROBE)
    grown = glibc.mallinfo2().in_use - before
    process.free(block)
    return bool(PROBE <= grown < 2 * PROBE)
