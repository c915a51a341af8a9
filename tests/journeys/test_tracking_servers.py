"""Tracking to a server: absent, gone in the middle, slow; SQLite or PostgreSQL behind it; many trials at once."""

from __future__ import annotations

import importlib
import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.execution import runner
from bench.execution.engines.local import Local
from bench.storage.record import Record
from bench.views.mlflow.sync import Tracker
from tests import plans
from tests.aftermath import ROOT, RUN, assert_in_step, records, sent
from tests.servers import Between, free_port, postgres, tracking_server
from tests.tiny import ATTACK_SETS, SETS

pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow

COUNT = itertools.count()

MISSING = "tracking: 6 record(s) are on disk but not in MLflow; fix: python -m bench sync"


@pytest.fixture(autouse=True)
def no_server_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def one_server(blank: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(blank, folder / "mlflow.db")
    with tracking_server(f"sqlite:///{folder}/mlflow.db", folder) as address:
        yield address


@pytest.fixture
def server(one_server: str) -> Iterator[str]:
    """A tracking server that knows nothing; what it learns is put aside afterwards, under another name."""
    yield one_server
    from mlflow import MlflowClient

    client = MlflowClient(one_server, one_server)
    for run in [*sent(one_server, "cell"), *sent(one_server, "trial")]:
        client.delete_run(run.info.run_id)
    for experiment in client.search_experiments():
        if experiment.name != "Default":
            client.rename_experiment(experiment.experiment_id, f"{experiment.name} {next(COUNT)}")


@pytest.fixture
def untrained(undisturbed: Path, tmp_path: Path) -> Path:
    """The undisturbed output without its records: all poisons are there, no victim."""
    out = shutil.copytree(undisturbed, tmp_path / "out")
    shutil.rmtree(out / "records")
    return out


def run(out: Path, uri: str) -> int:
    return main([*RUN, "--out", str(out), "--jobs", "1", "--tracking", uri, "--json"])


def assert_mended(out: Path, undisturbed: Path, uri: str, new: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One sync brings the store in step, with at most `new` trials logged, and a second one does nothing."""
    assert records(out) == records(undisturbed)
    capsys.readouterr()
    for most in (new, 0):
        assert main(["sync", "--out", str(out), "--tracking", uri]) == 0
        told = capsys.readouterr().out
        logged, present = (int(told.split(word)[0].split()[-1]) for word in (" trials logged", " already there"))
        assert logged <= most and logged + present == 6, told
        assert_in_step(out, uri)


def test_a_server_that_is_absent_and_comes_later(
    undisturbed: Path, untrained: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    assert run(untrained, address) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "tracking" in line]
    assert len(said) == 2 and address in said[0] and "the run goes on and its records are kept" in said[0]
    assert (
        said[1] == f"tracking: 6 record(s) are on disk but not in MLflow; fix: python -m bench sync --out {untrained}"
    )
    assert main(["sync", "--out", str(untrained), "--tracking", address]) == 2
    failed = capsys.readouterr()
    assert failed.out == "" and failed.err.count("\n") == 1 and f"cannot log to {address}" in failed.err
    with Between(server, port=port):
        assert_mended(untrained, undisturbed, address, 6, capsys)


@pytest.mark.parametrize("most", [4, 20])
def test_a_server_that_goes_away_in_the_middle(
    undisturbed: Path, untrained: Path, server: str, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    with Between(server, most=most) as between:
        assert run(untrained, between.address) == 0
        assert between.requests > most
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "the run goes on and its records are kept" in captured.err
    assert_mended(untrained, undisturbed, server, 6, capsys)


def test_a_slow_server_does_not_hold_up_the_run(
    undisturbed: Path, untrained: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two seconds a call, several calls a trial: the run hands its records over in no time, and is done before."""
    plan = plans.prepare("quick", [*SETS, *ATTACK_SETS], attack="gm", defenses=["friends-b"])
    said: list[str] = []
    adds: list[float] = []
    with Between(server, delay=2.0) as between:
        tracker = Tracker(between.address, untrained, said.append)

        def add(record: Record) -> None:
            clock = time.perf_counter()
            tracker.add(record)
            adds.append(time.perf_counter() - clock)

        runner.execute(plan, untrained, Local(1, quiet=True), said.append, add)
        clock = time.perf_counter()
        left = tracker.close(patience=3)
        assert time.perf_counter() - clock < 10
        assert left == 6 and len(adds) == 6 and max(adds) < 1  # half of what a single call takes
    assert (
        said[-1] == f"tracking: 6 record(s) are on disk but not in MLflow; fix: python -m bench sync --out {untrained}"
    )
    assert tracker.close(patience=60) == 6  # its thread has found that the server is gone
    assert_mended(untrained, undisturbed, server, 6, capsys)


def leaderboard(uri: str) -> dict[str, dict[str, Any]]:
    """All that MLflow's API says about cells and trials, but for what it numbers itself."""
    told = {}
    own = ("mlflow.parentRunId", "mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")
    for kind in ("cell", "trial"):
        for run in sent(uri, kind):
            tags = {name: value for name, value in run.data.tags.items() if name not in own}
            told[tags.get("bench.record", tags["bench.cell"])] = {
                "name": run.info.run_name, "status": run.info.status, "tags": tags, "params": dict(run.data.params),
                "start": run.info.start_time, "end": run.info.end_time if kind == "trial" else None,
                "metrics": dict(run.data.metrics),
            }  # fmt: skip
    return told


@pytest.fixture
def database() -> Iterator[str]:
    with postgres() as uri:
        yield uri


def test_postgresql_tells_the_same_as_sqlite(
    undisturbed: Path, untrained: Path, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run tracked to a server with PostgreSQL, its records replayed into SQLite and straight into PostgreSQL."""
    with tracking_server(database, tmp_path) as address:
        assert run(untrained, address) == 0
        assert_mended(untrained, undisturbed, address, 6, capsys)  # all were logged live, unless the machine is busy
        through_server = leaderboard(address)
    sqlite = f"sqlite:///{untrained}/mlflow.db"
    assert main(["sync", "--out", str(untrained), "--tracking", sqlite]) == 0
    assert len(through_server) == 9 and leaderboard(sqlite) == through_server
    assert main(["sync", "--out", str(untrained), "--tracking", database]) == 0
    assert "0 trials logged, 6 already there" in capsys.readouterr().out
    assert leaderboard(database) == through_server


def test_many_trials_from_eight_processes(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/tracking_load.py` cut down: nothing fails, nothing is lost, and the run does not wait."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    measure = importlib.import_module("tracking_load").measure
    shutil.copy(blank, tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    load = measure(48, 8, 1.0, uri, tmp_path)
    assert (load.left, load.said) == (0, [])
    assert sum(load.adds) < 0.05 * load.wall
    assert load.syncs < 48  # what came meanwhile was taken together
    assert len(sent(uri, "trial")) == 48
    counts = {run.data.tags["bench.defense"]: run.data.metrics["n_trials"] for run in sent(uri, "cell")}
    assert sum(counts.values()) == 48 and len(counts) == 10
