"""What killed commands leave is cleared by the next one, and what is not theirs is not touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.foundation import scratch


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(scratch, "SHARED_MEMORY", folder)
    return folder


def dead_command(out: Path, **changes: object) -> int:
    """The process number of a command that was killed in `out`."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    folder = out / "scratch" / "x"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    owner = {"pid": process.pid, "began": time.time() - 60, "here": scratch._here()} | changes
    (folder / "owner").write_text(json.dumps([owner["pid"], owner["began"], *owner["here"]]))  # type: ignore[misc]
    return process.pid


def test_semaphores_of_a_killed_command_go_with_its_folder(tmp_path: Path, shared: Path) -> None:
    pid = dead_command(tmp_path)
    for name in (f"sem.loky-{pid}-abc", f"sem.loky-{pid}1-abc", f"loky-{pid}", "sem.other"):
        (shared / name).touch()
    scratch.clear_dead(tmp_path)
    assert sorted(path.name for path in shared.iterdir()) == sorted(
        [f"sem.loky-{pid}1-abc", f"loky-{pid}", "sem.other"]
    )
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("why", ["another machine", "made before", "made after", "the number is used again"])
def test_what_may_be_of_another_program_is_not_touched(tmp_path: Path, shared: Path, why: str) -> None:
    changes: dict[str, object] = {}
    if why == "another machine":
        changes["here"] = ["another", "boot", "pid:[1]"]
    if why == "the number is used again":
        changes["pid"] = os.getppid()
    pid = changes.get("pid", dead_command(tmp_path, **changes))
    left = shared / f"sem.loky-{pid}-abc"
    left.touch()
    if why.startswith("made"):
        moment = time.time() + (-1000 if why == "made before" else 1000)
        os.utime(left, (moment, moment))
    scratch.clear_dead(tmp_path)
    assert left.exists()


def test_a_running_command_keeps_its_folder(tmp_path: Path, shared: Path) -> None:
    with scratch.scratch_folder(tmp_path) as folder:
        assert json.loads((folder / "owner").read_text())[0] == os.getpid()
        scratch.clear_dead(tmp_path)
        assert folder.is_dir()
    assert not (tmp_path / "scratch").exists()
