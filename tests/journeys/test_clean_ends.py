"""However a run ends, it leaves no folder in the temporary directory, no process, and no complaint of a helper."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.aftermath import ROOT, RUN, assert_nobody_left, members, wait_for

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A run whose temporary directory is `tmp_path / tmp` and whose warnings are heard."""
    (tmp_path / "tmp").mkdir()
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench", *RUN, "--out", str(out)]

    def heed() -> None:  # also where the tests themselves run in the background and do not
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def start(*more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, *more], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, preexec_fn=heed,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(lambda: next(out.glob("store/networks/*/*.safetensors"), None) is not None, process)
        return process

    return start


def loky_workers(session: int) -> list[int]:
    found = []
    for pid in members(session):
        with contextlib.suppress(OSError):
            if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def assert_clean(process: subprocess.Popen[str], tmp_path: Path) -> str:
    """What the command said."""
    _, stderr = process.communicate(timeout=300)
    assert_nobody_left(process.pid)
    # torch's compiler keeps one cache per user there, which every process that imports it makes.
    assert [path.name for path in (tmp_path / "tmp").iterdir() if not path.name.startswith("torchinductor")] == []
    assert [path for path in Path("/dev/shm").glob("*") if str(process.pid) in path.name] == []
    assert "Traceback" not in stderr and "resource_tracker" not in stderr and "Warning" not in stderr
    return stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(("jobs", "whom"), [("2", "parent"), ("2", "group"), ("1", "parent")])
def test_a_run_that_is_told_to_end(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals, jobs: str, whom: str
) -> None:
    process = begin("--jobs", jobs)
    (os.killpg if whom == "group" else os.kill)(process.pid, number)
    stderr = assert_clean(process, tmp_path)
    assert process.returncode == 128 + number
    assert stderr.splitlines()[-1] == "bench: interrupted; the same command goes on where this one stopped"
    assert not (tmp_path / "out" / "scratch").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_and_the_next_one(begin: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = begin("--jobs", "2")
    process.kill()
    assert_clean(process, tmp_path)
    again = begin("--jobs", "2")
    wait_for(lambda: loky_workers(again.pid), again)
    os.kill(min(loky_workers(again.pid)), signal.SIGKILL)
    assert_clean(again, tmp_path)
    assert again.returncode == 0 and not (tmp_path / "out" / "scratch").exists()
