"""What must hold after any fault: the same records, no process left, MLflow in step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.storage.records import Records, comparable
from tests.tiny import ATTACK_SETS, SETS

ROOT = Path(__file__).parent.parent
TINY = [word for item in (*SETS, *ATTACK_SETS) for word in ("--set", item)]
RUN = ["run", "--attack", "gm", "--defense", "friends-b", *TINY]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "bench", *arguments]


def start(*arguments: str, **more: Any) -> subprocess.Popen[str]:
    """A command of the bench in a session of its own, so that all that it starts can be found again, and heeding
    Ctrl-C even where the tests themselves run in the background and do not."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    more.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command(*arguments), cwd=ROOT, **{**pipes, **more})


def records(out: Path) -> dict[str, dict[str, Any]]:
    """What two runs of the same trials must agree on, by key."""
    return {record["key"]: comparable(record) for record in Records(out / "records").all()}


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, its = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(its) == session and state not in "ZX":
                found.append(int(entry.name))
    return found


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[-90:]
    except OSError:  # it has ended meanwhile
        return ""


def assert_nobody_left(session: int, within: float = 120.0) -> None:
    deadline = time.monotonic() + within
    while left := members(session):
        assert time.monotonic() < deadline, f"still there: {[_command_of(pid) for pid in left]}"
        time.sleep(0.05)


def wait_for(true: Any, process: subprocess.Popen[str] | None = None, within: float = 500.0) -> None:
    """Until `true()`; fails when the process ends before, or the time is over."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, f"ended with {process and process.returncode}"
        time.sleep(0.005)


def sent(uri: str, kind: str) -> list[Any]:
    """The active runs of a kind in all experiments of a tracking store."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.\"bench.kind\" = '{kind}'", max_results=5000))


def assert_in_step(out: Path, uri: str) -> None:
    """Every record is one run with its numbers, every cell one with its counts, and nothing is left running."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    told = {record["key"]: record for record in Records(out / "records").all()}
    trials = sent(uri, "trial")
    assert sorted(run.data.tags["bench.record"] for run in trials) == sorted(told)
    for run in trials:
        record, found = told[run.data.tags["bench.record"]], run.data.metrics
        assert run.info.status == ("FINISHED" if record["status"] == "done" else "FAILED")
        if record["status"] == "done":
            assert (found["success"], found["clean_acc"]) == (record["success"], record["clean_accuracy"])
            assert (found["train_s"], found["craft_s"]) == (record["seconds"]["train"], record["seconds"]["craft"])
    cells = {run.data.tags["bench.cell"]: run.data.metrics for run in sent(uri, "cell")}
    assert len(cells) == len(sent(uri, "cell"))
    for cell in {record["cell"] for record in told.values()}:
        done = [record for record in told.values() if record["cell"] == cell and record["status"] == "done"]
        assert cells[cell]["n_trials"] == len(done)
        assert abs(cells[cell]["clean_acc"] - fmean(record["clean_accuracy"] for record in done)) < 1e-9  # type: ignore[misc]
    client = MlflowClient(uri, uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    assert not client.search_runs(ids, "attributes.status = 'RUNNING'", ViewType.ALL)


def mount_of(size: int, folder: Path) -> bool:
    """A disk of `size` bytes at `folder`, if this user may mount one."""
    folder.mkdir()
    if os.geteuid() != 0:
        return False
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(mounted, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
