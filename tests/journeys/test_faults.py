"""Runs survive: killed workers, killed and interrupted parents, full disks, damaged files, two runs at once.

After each the records are those of an undisturbed run, no process is left, and MLflow is in step with the records.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.execution import runner
from bench.execution.engines.local import Local
from bench.science.identity import identities
from bench.storage.store import key_of
from tests import plans
from tests.aftermath import (
    RUN,
    assert_in_step,
    assert_nobody_left,
    members,
    mount_of,
    records,
    start,
    wait_for,
)
from tests.tiny import ATTACK_SETS, SETS

UNTRACKED = [*RUN, "--tracking", "none"]


@pytest.fixture(autouse=True)
def no_server_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def finish(out: Path) -> None:
    """The same command again, in this process, and then a sync."""
    assert main([*UNTRACKED, "--out", str(out), "--jobs", "1", "--json"]) == 0
    assert main(["sync", "--out", str(out)]) == 0


def assert_mended(out: Path, undisturbed: Path) -> None:
    assert records(out) == records(undisturbed)
    assert_in_step(out, f"sqlite:///{out}/mlflow.db")
    assert [path.name for path in out.rglob("*.tmp") if "store" in path.parts] == []


# ---- processes that are killed or interrupted


def workers() -> set[int]:
    """The worker processes of this process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"LokyProcess" in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_workers_that_are_killed_while_crafting_and_while_training(undisturbed: Path, tmp_path: Path) -> None:
    out, said, killed = tmp_path / "out", list[str](), list[str]()
    plan = plans.prepare("quick", [*SETS, *ATTACK_SETS], attack="gm", defenses=["friends-b"])
    poisons = key_of(identities(plan.study).poisons(plan.cells[1].attack, plan.study.case(0)))
    victim = identities(plan.study).record(plan.cells[1].attack, plan.cells[1].defense, 0)["key"]

    def kill() -> None:
        for key in (poisons, victim):  # whoever makes something holds its lock
            wait_for((out / "store" / "locks" / f"{key}.lock").exists)
            os.kill(min(workers()), signal.SIGKILL)
            killed.append(key)

    killer = threading.Thread(target=kill)
    killer.start()
    results = runner.execute(plan, out, Local(2, quiet=True), said.append, lambda record: None)
    killer.join()
    assert len(killed) == 2 and {record["status"] for record in results} == {"done"}
    assert records(out) == records(undisturbed)
    assert [line for line in said if "failed" in line] == []


def has_worker(session: int) -> Callable[[], bool]:
    return lambda: any(b"LokyProcess" in cmdline(pid) for pid in members(session))


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def has_file(out: Path, pattern: str) -> Callable[[], bool]:
    return lambda: next(out.glob(pattern), None) is not None


@pytest.mark.slow
def test_a_parent_that_is_killed_thrice(undisturbed: Path, tmp_path: Path) -> None:
    """While its workers begin, while they craft, while they train; tracked, so that MLflow is cut off in the middle."""
    for moment in ("begin", "store/poisons/*/*.safetensors", "records/*/*/friends-b/*.json"):
        process = start(*RUN, "--out", str(tmp_path), "--jobs", "2", stdout=None, stderr=subprocess.DEVNULL)
        wait_for(has_worker(process.pid) if moment == "begin" else has_file(tmp_path, moment), process)
        process.kill()
        process.wait()
        assert_nobody_left(process.pid)
    finish(tmp_path)
    assert_mended(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["group", "parent"])
def test_control_c(undisturbed: Path, tmp_path: Path, whom: str) -> None:
    process = start(*RUN, "--out", str(tmp_path), "--jobs", "2")
    wait_for(has_file(tmp_path, "records/*/*/*/*.json"), process)
    (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 130 and stdout == ""
    assert "Traceback" not in stderr and "Error" not in stderr
    assert stderr.splitlines()[-1] == "bench: interrupted; the same command goes on where this one stopped"
    assert_nobody_left(process.pid)
    finish(tmp_path)
    assert_mended(tmp_path, undisturbed)


@pytest.mark.slow
def test_two_runs_at_once_in_one_folder(undisturbed: Path, tmp_path: Path) -> None:
    pair = [start(*RUN, "--out", str(tmp_path), "--jobs", "1", "--json") for _ in range(2)]
    said = [process.communicate(timeout=500) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    mine, yours = ({r["key"]: {**r, "cached": None} for r in json.loads(stdout)} for stdout, _ in said)
    assert mine == yours and len(mine) == 6  # seconds and all: each record was made once
    finish(tmp_path)
    assert_mended(tmp_path, undisturbed)


# ---- disks that are full


class Full:
    """A disk that is full for some files: `step` fails with the kernel's error when `of` is in the file's name."""

    def __init__(self, step: str, of: str) -> None:
        self.step, self.of, self.hits = step, of, 0

    def install(self, patch: pytest.MonkeyPatch) -> None:
        if self.step == "create":
            real_open = Path.open

            def refuse(path: Path, mode: str = "r", *more: Any, **others: Any) -> Any:
                if "x" in mode and self.of in str(path):
                    self.fail(str(path))
                return real_open(path, mode, *more, **others)

            patch.setattr(Path, "open", refuse)
        else:
            real_sync = os.fsync

            def lose(descriptor: int) -> None:
                if self.of in os.readlink(f"/proc/self/fd/{descriptor}"):
                    self.fail(None)
                real_sync(descriptor)

            patch.setattr(os, "fsync", lose)

    def fail(self, name: str | None) -> None:
        self.hits += 1
        raise OSError(errno.ENOSPC, "No space left on device", name)


def assert_one_line(stderr: str, place: Path) -> None:
    last = stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert last.startswith(f"bench: disk full: cannot write {place}")
    assert "fix: " in last and "the same command goes on" in last


@pytest.mark.slow
@pytest.mark.parametrize("step", ["create", "flush"])
@pytest.mark.parametrize("of", ["/networks/", "/poisons/", "/images/", "/records/"])
def test_a_disk_that_is_full_for_a_while(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    step: str, of: str,
) -> None:  # fmt: skip
    out = shutil.copytree(undisturbed, tmp_path / "out")
    shutil.rmtree(out / "records")
    if of != "/records/":
        shutil.rmtree(out / "store")
        shutil.rmtree(out / "images")
    full = Full(step, of)
    with monkeypatch.context() as patch:
        full.install(patch)
        assert main([*UNTRACKED, "--out", str(out), "--jobs", "1", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and full.hits == 1  # no further unit is begun that could not be kept
    assert_one_line(captured.err, out / of.strip("/") if of in ("/images/", "/records/") else out / "store")
    assert list(out.rglob("*.tmp")) == [] and not (out / "logs").exists()
    finish(out)
    assert_mended(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "place", "jobs"), [(500_000, "store/networks", 1), (3_000, "records", 2)])
def test_the_kernel_refuses_to_write_more(undisturbed: Path, tmp_path: Path, limit: int, place: str, jobs: int) -> None:
    """A limit on the size of files is a real error of the kernel, which worker processes inherit."""
    out = shutil.copytree(undisturbed, tmp_path / "out")
    shutil.rmtree(out / "records")
    if place != "records":
        shutil.rmtree(out / "store")
    limited = start(
        *UNTRACKED, "--out", str(out), "--jobs", str(jobs),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    stdout, stderr = limited.communicate(timeout=500)
    assert (limited.returncode, stdout) == (2, ""), stderr
    assert_one_line(stderr, out / place)
    assert_nobody_left(limited.pid)
    finish(out)
    assert_mended(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    if not mount_of(2_000_000, folder):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_real_disk_that_is_full(undisturbed: Path, small_disk: Path) -> None:
    """Room for one network of two, and then for all."""
    out = small_disk / "out"
    first = start(*UNTRACKED, "--out", str(out), "--jobs", "2")
    stdout, stderr = first.communicate(timeout=500)
    assert (first.returncode, stdout) == (2, ""), stderr
    assert_one_line(stderr, out / "store/networks")
    assert_nobody_left(first.pid)
    subprocess.run(["mount", "-o", "remount,size=30000000", str(small_disk)], check=True)
    finish(out)
    assert_mended(out, undisturbed)


@pytest.mark.slow
def test_mlflow_has_no_room(
    undisturbed: Path, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The database is on a disk of its own, which is full before it is made; the records do not mind."""
    out = shutil.copytree(undisturbed, tmp_path / "out")
    shutil.rmtree(out / "records")
    subprocess.run(["mount", "-o", "remount,size=300000", str(small_disk)], check=True)
    uri = f"sqlite:///{small_disk}/mlflow.db"
    assert main([*RUN, "--out", str(out), "--tracking", uri, "--jobs", "1", "--json"]) == 0
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr and "the run goes on and its records are kept" in stderr
    assert "tracking: 6 record(s) are on disk but not in MLflow; fix: python -m bench sync" in stderr
    subprocess.run(["mount", "-o", "remount,size=30000000", str(small_disk)], check=True)
    for left in small_disk.glob("mlflow.db*"):  # half made, as the fix says
        left.unlink()
    # A process of its own, and a copy to look at: in this one MLflow keeps its connection to the file that has gone.
    again = [sys.executable, "-W", "ignore", "-m", "bench", "sync", "--out", str(out), "--tracking", uri]
    subprocess.run(again, check=True, timeout=300)
    shutil.copy(small_disk / "mlflow.db", tmp_path / "copy.db")
    assert_in_step(out, f"sqlite:///{tmp_path}/copy.db")
    assert records(out) == records(undisturbed)
