"""Freed memory stays in the process, unless somebody else's allocator or settings are at work."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

PAGE_FAULTS = """
import resource, torch
from bench.foundation.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(20):  # until a hole of this size is left where small blocks do not lie
    torch.ones(4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(4_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 40 * 16_000_000 // 4096


OWN_ALLOCATOR = """
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
static char *next; /* memory is taken from one range and never given back; every block is preceded by its size */
void *memalign(size_t to, size_t n) {
    char *now = __atomic_load_n(&next, __ATOMIC_SEQ_CST);
    if (!now) {
        char *range = mmap(0, 1ul << 36, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        __atomic_compare_exchange_n(&next, &now, range, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    if (to < 16) to = 16;
    char *start = __atomic_fetch_add(&next, n + 2 * to + 16, __ATOMIC_SEQ_CST);
    char *block = (char *)(((size_t)start + 16 + to - 1) / to * to);
    ((size_t *)block)[-1] = n;
    return block;
}
void *malloc(size_t n) { return memalign(16, n); }
void *calloc(size_t n, size_t size) { return memalign(16, n * size); }
void *aligned_alloc(size_t to, size_t n) { return memalign(to, n); }
int posix_memalign(void **block, size_t to, size_t n) { return (*block = memalign(to, n)) ? 0 : ENOMEM; }
void free(void *block) {}
void *realloc(void *block, size_t n) {
    void *other = memalign(16, n);
    if (block) memcpy(other, block, ((size_t *)block)[-1] < n ? ((size_t *)block)[-1] : n);
    return other;
}
"""


def in_a_process(**settings: str) -> tuple[str, int]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}  # dask sets one
    environment = {**inherited, **settings}
    ran = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    kept, faults = ran.stdout.split()
    return kept, int(faults)


@ON_GLIBC
def test_memory_is_used_again_without_asking_the_kernel() -> None:
    kept, faults = in_a_process()
    assert kept == "True" and faults < PAGES / 4


@ON_GLIBC
@pytest.mark.parametrize("setting", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}])
def test_what_a_person_has_set_is_left_alone(setting: dict[str, str]) -> None:
    kept, _ = in_a_process(**setting)
    assert kept == "False"


@ON_GLIBC
def test_an_allocator_that_was_preloaded_is_left_alone(tmp_path: Path) -> None:
    source, library = tmp_path / "own.c", tmp_path / "libown.so"
    source.write_text(OWN_ALLOCATOR)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    kept, _ = in_a_process(LD_PRELOAD=str(library))
    assert kept == "False"
