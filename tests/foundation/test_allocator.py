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
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t n) { return __libc_malloc(n); }\n"
    )
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    kept, _ = in_a_process(LD_PRELOAD=str(library))
    assert kept == "False"
