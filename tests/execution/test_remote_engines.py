"""dask and slurm: the records of the local engine, and a killed worker costs one attempt."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster

from bench.execution import runner
from bench.execution.engines import dask as dask_engine
from bench.execution.engines import shared
from bench.execution.engines.base import Done, Engine
from bench.execution.engines.dask import Dask
from bench.execution.engines.local import Local
from bench.execution.engines.slurm import Slurm, SlurmSettings
from bench.execution.schedule import Schedule, Step
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.progress import Heartbeat
from bench.foundation.scratch import scratch_folder
from bench.storage.records import comparable
from tests import plans
from tests.tiny import ATTACK_SETS, SETS

STUDY = [*SETS, *ATTACK_SETS, "threat.surrogates=1", "trials=1"]


@contextlib.contextmanager
def cluster(workers: int = 2, threads: int = 1) -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=workers, threads_per_worker=threads, processes=True, dashboard_address=None, silence_logs=50
    ) as made:
        yield made


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[LocalCluster]:
    with cluster() as made:
        yield made


def study_records(engine: Engine, out: Path) -> list[dict[str, Any]]:
    plan = plans.prepare("quick", STUDY, attack="gm", defenses=["friends-b"])
    results = runner.execute(plan, out, engine, lambda line: None, lambda record: None)
    assert [record["error"] for record in results] == [None] * 3
    return [comparable(record) for record in results]


@pytest.fixture(scope="module")
def of_local(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return study_records(Local(1, quiet=True), tmp_path_factory.mktemp("local"))


def local_jobs() -> Slurm:
    return Slurm(SlurmSettings(cluster="local", time=5), quiet=True)


@pytest.mark.slow
def test_dask_makes_the_records_of_the_local_engine(
    dask_cluster: LocalCluster, of_local: list[dict[str, Any]], tmp_path: Path
) -> None:
    engine = Dask(dask_cluster.scheduler_address, quiet=True)
    assert study_records(engine, tmp_path) == of_local
    assert engine.width == 2 and not list(tmp_path.glob("scratch/*"))


@pytest.mark.slow
def test_slurm_makes_the_records_of_the_local_engine(of_local: list[dict[str, Any]], tmp_path: Path) -> None:
    assert study_records(local_jobs(), tmp_path) == of_local


def work(unit: str, heartbeat: Heartbeat) -> tuple[str, int]:
    """`die`: kill the own process at every attempt; `die once FILE`: at the first; `wait FILE`: a minute,
    the second time no more."""
    verb, _, path = unit.partition(" ")
    if verb == "fail":
        raise TrialFailed("a clean cause")
    if verb == "die" or (verb == "once" and not Path(path).exists()):
        if path:
            Path(path).write_text("x")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if verb == "wait":
        with Path(path).open("a") as file:
            file.write(f"{os.getpid()}\n")
        again = len(Path(path).read_text().split()) > 1
        for step in range(0 if again else 1200):
            heartbeat(unit, step, 1200)
            time.sleep(0.05)
    return unit, os.getpid()


def done_by(engine: Engine, out: Path, units: Sequence[str]) -> dict[str, Done]:
    with engine.open(out):
        return {done.unit: done for done in engine.run(Schedule.of("test", units), work)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dask", "slurm"])
def test_failures_and_killed_processes_cost_only_themselves(name: str, tmp_path: Path) -> None:
    once = f"once {tmp_path / 'mark'}"
    units = ["a", "fail", "die", once, "b"]
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(cluster()).scheduler_address if name == "dask" else ""
        engine: Engine = Dask(address, quiet=True) if name == "dask" else local_jobs()
        done = done_by(engine, tmp_path, units)
    assert set(done) == set(units)
    assert {unit for unit in units if done[unit].error} == {"fail", "die"}
    assert done["fail"].error == "a clean cause" and "Traceback" in done["fail"].trace
    assert "killed twice" in str(done["die"].error)
    assert all(done[unit].result[1] != os.getpid() for unit in ("a", "b", once))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "dask", "slurm"])
def test_every_engine_takes_turns(name: str, tmp_path: Path) -> None:
    """One worker, to which the longest comes last."""
    steps = [Step(str(number), "test", seconds=number, turn=(number // 2, -number)) for number in range(6)]
    with contextlib.ExitStack() as stack:
        engine: Engine = Local(1, quiet=True)
        if name == "dask":
            engine = Dask(stack.enter_context(cluster(workers=1)).scheduler_address, quiet=True)
        elif name == "slurm":
            engine = Slurm(SlurmSettings(cluster="local", time=5, parallel=1), quiet=True)
        stack.enter_context(engine.open(tmp_path))
        assert [done.unit for done in engine.run(Schedule(steps), work)] == ["1", "0", "3", "2", "5", "4"]


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_an_attempt(tmp_path: Path) -> None:
    log = tmp_path / "pids"

    def kill_first() -> None:
        while not (log.exists() and log.read_text().endswith("\n")):
            time.sleep(0.05)
        os.kill(int(log.read_text().split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_first)
    killer.start()
    with cluster(workers=1) as made:
        done = done_by(Dask(made.scheduler_address, quiet=True), tmp_path, [f"wait {log}"])
    killer.join()
    (only,) = done.values()
    first, second = log.read_text().split()
    assert only.error is None and only.result[1] == int(second) != int(first)


@pytest.mark.slow
def test_leaving_early_stops_what_runs(dask_cluster: LocalCluster, tmp_path: Path) -> None:
    """The running unit notices that its folder has gone; the worker is free for others soon."""
    log = tmp_path / "pids"
    engine = Dask(dask_cluster.scheduler_address, quiet=True)
    with engine.open(tmp_path):
        running = engine.run(Schedule.of("test", ["a", f"wait {log}", f"wait {log}2"]), work)
        assert next(running).unit == "a"
        while not (log.exists() and Path(f"{log}2").exists()):
            time.sleep(0.05)
        running.close()
    started = time.monotonic()
    assert set(done_by(engine, tmp_path, ["b", "c"])) == {"b", "c"}
    assert time.monotonic() - started < 15


@pytest.mark.slow
def test_what_dask_lacks_is_said_before_any_work(dask_cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs a scheduler; fix: start `dask scheduler --host HOST`"):
        Dask(None)
    with cluster(workers=1, threads=2) as made, pytest.raises(BadInput, match="--nworkers 2 --nthreads 1"):
        done_by(Dask(made.scheduler_address), tmp_path, ["a"])
    with pytest.raises(BadInput, match="has no CUDA; fix: --device cpu"):
        done_by(Dask(dask_cluster.scheduler_address, device="cuda"), tmp_path, ["a"])


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_folder(
    dask_cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def elsewhere(out: Path) -> Iterator[Path]:
        yield out / "not-there"

    # The module: where a run keeps its scratch is no choice of its caller.
    monkeypatch.setattr(dask_engine, "scratch_folder", elsewhere)
    with pytest.raises(BadInput, match="does not see '.*'; fix: an --out folder that all machines share"):
        done_by(Dask(dask_cluster.scheduler_address), tmp_path, ["a"])


def test_a_unit_tells_when_its_machine_does_not_see_the_folder(tmp_path: Path) -> None:
    post = shared.Post(tmp_path / "gone", 0, 1, tmp_path)
    assert "does not see" in str(shared.attempt_there("a", work, post).error)


def test_folders_of_killed_commands_are_removed_and_those_of_running_ones_kept(tmp_path: Path) -> None:
    (tmp_path / "scratch" / "left").mkdir(parents=True)
    with scratch_folder(tmp_path) as first:
        with scratch_folder(tmp_path) as second:
            assert sorted((tmp_path / "scratch").iterdir()) == sorted([first, second])
        assert first.is_dir()
    assert not (tmp_path / "scratch").exists()


def test_gpus_must_be_asked_for() -> None:
    assert Slurm(SlurmSettings(gpus=1)).device() == "cuda" and Slurm(SlurmSettings()).device() == "cpu"
    with pytest.raises(BadInput, match="fix: --set engine.gpus=1"):
        Slurm(SlurmSettings(), device="cuda")


def test_slurm_refuses_a_folder_that_everybody_may_write_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    with pytest.raises(BadInput, match=f"everybody may write to '{out}'.*fix: chmod o-w '{out}'$"):
        done_by(local_jobs(), out, ["a"])
    assert not list(out.iterdir())
    out.chmod(0o775)
    with local_jobs().open(out):
        pass


@pytest.mark.parametrize("address", ["tcp://me:hunter2x@127.0.0.1:1", "tls://127.0.0.1:1?token=hunter2x"])
def test_the_address_of_a_scheduler_is_shown_without_its_secrets(address: str, tmp_path: Path) -> None:
    engine = Dask(address, quiet=True)
    engine.width = 1
    with pytest.raises(BadInput, match="no dask scheduler at .*fix: ") as refused:
        engine.device()
    assert "hunter2x" not in f"{engine} {refused.value}" and "***" in str(engine) and "***" in str(refused.value)
