"""A user whom the system does not know, as in a container that is started with any number: no name, no home."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.storage.records import Records
from tests.aftermath import ROOT, assert_in_step
from tests.tiny import SETS

UID = 54321
RUN = ["run", "--attack", "none", "--only", "--trials", "1", "--jobs", "1", *(w for s in SETS for w in ("--set", s))]
READER = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
READER += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
Said = Callable[..., "subprocess.CompletedProcess[str]"]


SEES = "import importlib.util as i, os, torch; assert os.access(i.find_spec('mlflow').origin, os.F_OK)"


def works(*command: str, **who: Any) -> bool:
    """Whether that user can run Python and sees its libraries, as `os.access` sees them too."""
    try:
        tried = subprocess.run([*command, sys.executable, "-c", SEES], capture_output=True, **who)
        return tried.returncode == 0
    except (PermissionError, FileNotFoundError):
        return False


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of that user's, not below pytest's, which only its own user may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chown(name, UID, UID)
        yield Path(name)


@pytest.fixture
def said(place: Path) -> Said:
    """A command of that user, without HOME."""
    who: dict[str, Any] = {"user": UID, "group": UID}
    command: list[str] = []
    if not works(**who):  # Python lies where only root may read: then with the right to read all, and to write nothing
        who, command = {}, READER
        if not works(*READER):
            pytest.skip("no other user can run Python here")
    variables = {key: value for key, value in os.environ.items() if key not in ("HOME", "USER", "LOGNAME")}
    variables |= {"XDG_CACHE_HOME": str(place / "cache"), "TMPDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        bench = [*command, sys.executable, "-W", "ignore", "-m", "bench", *arguments]
        return subprocess.run(bench, cwd=ROOT, env=variables, capture_output=True, text=True, **who)

    return run


@pytest.mark.slow
def test_a_user_without_name_and_home_lists_and_runs(place: Path, said: Said) -> None:
    listed = said("list")
    assert (listed.returncode, listed.stderr) == (0, "") and "friends-b" in listed.stdout
    out = place / "out"
    made = said(*RUN, "--out", str(out))
    assert made.returncode == 0 and "Traceback" not in made.stderr and "cannot" not in made.stderr, made.stderr
    assert len(list(Records(out / "records").all())) == 1
    assert_in_step(out, f"sqlite:///{out}/mlflow.db")
    assert {path.stat().st_uid for path in (out, *out.rglob("*"))} == {UID}
