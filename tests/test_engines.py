"""The local engine: a unit that fails or kills its process costs only itself; every process has its device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench.engines.base import Done
from bench.engines.local import Local
from bench.errors import DiskFull, TrialFailed
from bench.progress import Heartbeat


def work(unit: str, heartbeat: Heartbeat) -> tuple[str, int, int]:
    heartbeat(unit, 1, 2)
    if unit == "fail":
        raise TrialFailed("a clean cause")
    if unit == "full":
        raise DiskFull("disk full: cannot write it")
    if unit == "crash":
        raise ValueError("several\nlines")
    if unit == "die":
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return unit, torch.get_num_threads(), os.getpid()


def run(units: Sequence[str], jobs: int) -> list[Done]:
    return list(Local(jobs, quiet=True).run("test", units, work))


@pytest.mark.parametrize("jobs", [1, 2])
def test_failures_are_told_in_one_line_and_the_rest_goes_on(jobs: int) -> None:
    units = ["a", "fail", "b", "crash", "c"]
    done = {item.unit: item for item in run(units, jobs)}
    assert set(done) == set(units)
    assert [done[unit].error for unit in ("a", "b", "c")] == [None] * 3
    assert done["fail"].error == "a clean cause"
    assert done["crash"].error == "ValueError: several lines"
    assert "Traceback" in done["crash"].trace


def test_a_full_disk_is_told_apart() -> None:
    done = {item.unit: item for item in run(["full", "fail"], 1)}
    assert done["full"].disk_full and done["full"].error == "disk full: cannot write it"
    assert not done["fail"].disk_full


def test_work_is_done_in_other_processes_with_one_thread() -> None:
    done = run(["a", "b"], 2)
    assert all(item.result[1] == 1 and item.result[2] != os.getpid() for item in done)


def test_a_killed_process_costs_its_unit_only() -> None:
    units = ["a", "b", "die", "c", "d", "e"]
    done = {item.unit: item for item in run(units, 2)}
    assert set(done) == set(units)
    assert [unit for unit in units if done[unit].error] == ["die"]
    assert "killed twice" in str(done["die"].error)


PARENT = """
import sys
from bench.engines.local import Local
from tests.test_engines import sleep_long
list(Local(2, quiet=True).run("test", [sys.argv[1] + "/a", sys.argv[1] + "/b"], sleep_long))
"""


def sleep_long(unit: str, heartbeat: Heartbeat) -> None:
    Path(unit).write_text(str(os.getpid()))
    time.sleep(120)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(command, cwd=Path(__file__).parent.parent, start_new_session=True)
    files = [tmp_path / "a", tmp_path / "b"]
    deadline = time.monotonic() + 90
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.1)
    workers = [int(file.read_text()) for file in files]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
