"""The local engine: a unit that fails or kills its process costs only itself; every process has its device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from bench.execution.engines.base import Done
from bench.execution.engines.local import Local, _take_slot
from bench.execution.schedule import Schedule
from bench.foundation.devices import choose_devices, default_jobs, visible
from bench.foundation.errors import BadInput, DiskFull, TrialFailed
from bench.foundation.progress import Heartbeat


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


@pytest.fixture
def run(tmp_path: Path) -> Callable[[Sequence[str], int], list[Done]]:
    def done(units: Sequence[str], jobs: int) -> list[Done]:
        engine = Local(jobs, quiet=True)
        with engine.open(tmp_path):
            return list(engine.run(Schedule.of("test", units), work))

    return done


Run = Callable[[Sequence[str], int], list[Done]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_failures_are_told_in_one_line_and_the_rest_goes_on(run: Run, jobs: int) -> None:
    units = ["a", "fail", "b", "crash", "c"]
    done = {item.unit: item for item in run(units, jobs)}
    assert set(done) == set(units)
    assert [done[unit].error for unit in ("a", "b", "c")] == [None] * 3
    assert done["fail"].error == "a clean cause"
    assert done["crash"].error == "ValueError: several lines"
    assert "Traceback" in done["crash"].trace


def test_a_full_disk_is_told_apart(run: Run) -> None:
    done = {item.unit: item for item in run(["full", "fail"], 1)}
    assert done["full"].disk_full and done["full"].error == "disk full: cannot write it"
    assert not done["fail"].disk_full


def test_work_is_done_in_other_processes_with_one_thread(run: Run) -> None:
    done = run(["a", "b"], 2)
    assert all(item.result[1] == 1 and item.result[2] != os.getpid() for item in done)


@pytest.mark.slow
def test_a_killed_process_costs_its_unit_only(run: Run) -> None:
    units = ["a", "b", "die", "c", "d", "e"]
    done = {item.unit: item for item in run(units, 2)}
    assert set(done) == set(units)
    assert [unit for unit in units if done[unit].error] == ["die"]
    assert "killed twice" in str(done["die"].error)


kept: list[bytearray] = []


def keep_memory(unit: str, heartbeat: Heartbeat) -> int:
    """More than loky takes for a leak, and for longer than it waits before it looks again."""
    kept.append(bytearray(b"1" * 200_000_000))
    time.sleep(1.1)
    return os.getpid()


@pytest.mark.slow
def test_a_worker_that_keeps_memory_stays(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    engine = Local(2, quiet=True)
    with engine.open(tmp_path):
        pids = {done.result for done in engine.run(Schedule.of("test", [str(i) for i in range(8)]), keep_memory)}
    assert len(pids) == 2
    assert [str(warning.message) for warning in recwarn if "worker stopped" in str(warning.message)] == []


PARENT = """
import sys
from pathlib import Path
from bench.execution.engines.local import Local
from bench.execution.schedule import Schedule
from tests.execution.test_engines import sleep_long
engine = Local(2, quiet=True)
with engine.open(Path(sys.argv[1])):
    list(engine.run(Schedule.of("test", [sys.argv[1] + "/a", sys.argv[1] + "/b"]), sleep_long))
"""


def sleep_long(unit: str, heartbeat: Heartbeat) -> None:
    Path(unit).write_text(str(os.getpid()))
    time.sleep(120)


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PARENT, str(tmp_path)]
    parent = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)
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


def seen(unit: str, heartbeat: Heartbeat) -> tuple[int, str]:
    """Waits for a second process, so that the first does not do all before the others have started."""
    Path(unit, str(os.getpid())).touch()
    deadline = time.monotonic() + 120
    while len(list(Path(unit).iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "none")


@pytest.mark.slow
def test_every_process_sees_one_gpu_and_the_gpus_are_shared_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is touched: only what each worker process is shown, before it could."""
    get_reusable_executor().shutdown(wait=True)  # a worker keeps its slot for life
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    engine = Local(3, devices=("cuda:1", "cuda:0"), quiet=True)
    assert engine.device() == "cuda"
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    with engine.open(tmp_path / "out"):
        shown = [done.result for done in engine.run(Schedule.of("test", [str(meeting)] * 9), seen)]
    get_reusable_executor().shutdown(wait=True)
    by_process = dict(shown)
    assert os.getpid() not in by_process and len(by_process) > 1
    assert len(set(shown)) == len(by_process)  # a process always sees the same
    assert set(by_process.values()) == {"5", "7"}  # and slots 0 and 1 are taken first


def hold_slot(slots: tuple[str, ...], told: Connection) -> None:
    _take_slot(slots)
    told.send(os.environ["CUDA_VISIBLE_DEVICES"])
    time.sleep(600)


def test_a_slot_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    slots = (str(tmp_path / "0-4"), str(tmp_path / "1-6"))
    context = multiprocessing.get_context("fork")

    def start() -> tuple[Any, str]:
        mine, theirs = context.Pipe()
        process = context.Process(target=hold_slot, args=(slots, theirs))
        process.start()
        assert mine.poll(60)
        return process, mine.recv()

    (first, of_first), (second, of_second) = start(), start()
    assert (of_first, of_second) == ("4", "6")
    first.kill()
    first.join()
    third, of_third = start()
    assert of_third == "4"
    for process in (second, third):
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("asked", "gpus", "expected"),
    [
        ("auto", 0, ("cpu",)), ("auto", 1, ("cuda",)), ("auto", 2, ("cuda:0", "cuda:1")), ("cpu", 2, ("cpu",)),
        ("cuda", 3, ("cuda:0", "cuda:1", "cuda:2")), ("cuda:1", 2, ("cuda:1",)),
        ("cuda:1, cuda:0", 2, ("cuda:1", "cuda:0")),
    ],
)  # fmt: skip
def test_devices(monkeypatch: pytest.MonkeyPatch, asked: str, gpus: int, expected: tuple[str, ...]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_devices(asked) == expected
    if expected[0] != "cpu":
        assert default_jobs(expected) == len(expected)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("cuda:2", "no device 'cuda:2': torch sees 2 GPUs"), ("cuda:0,cpu", "unknown device 'cpu'"),
        ("cuda:x", "unknown device 'cuda:x'"), ("cuda,cuda:1", "number the GPUs, as in cuda:0,cuda:1"),
    ],
)  # fmt: skip
def test_bad_devices(monkeypatch: pytest.MonkeyPatch, asked: str, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadInput, match=expected):
        choose_devices(asked)


def test_what_a_gpu_is_called_where_some_are_hidden() -> None:
    assert visible(["cuda:0", "cuda:1"], {}) == ["0", "1"]
    assert visible(["cuda:1", "cuda:0"], {"CUDA_VISIBLE_DEVICES": "3,MIG-ab"}) == ["MIG-ab", "3"]


def test_one_job_on_several_gpus_takes_the_first() -> None:
    assert Local(1, devices=("cuda:1", "cuda:2")).device() == "cuda:1"
