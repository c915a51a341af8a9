"""MLflow as a view: replay, repair, the numbers of a cell, and that a dead server costs nothing but the view."""

from __future__ import annotations

import functools
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bench.foundation.errors import BadInput
from bench.foundation.statistics import interval
from bench.storage.record import Record
from bench.views.mlflow import book, server, tables
from bench.views.mlflow import sync as syncing
from bench.views.mlflow.server import connect, resolve_uri
from bench.views.mlflow.sync import SyncReport, Tracker, sync
from tests.records import cell, record

pytest.importorskip("mlflow")

DEAD = "http://127.0.0.1:9"
START = datetime(2025, 1, 1, tzinfo=UTC)


def make(
    trial: int = 0, attack: str = "gm", defense: str = "friends-b", success: float | None = 1.0, **over: Any
) -> Record:
    """A record with all that a run of MLflow is made from; trials begin ten minutes after each other."""
    start = START + timedelta(minutes=10 * trial)
    made = record(
        attack, defense, trial, success, 0.5 + trial / 100, protocol="quick", seed=3, revision=None, filter=None,
        outcome={"target_predictions": [3], "target_margin": 0.8, "backdoor": None},
        draw={"index": trial, "target_ids": [7], "source_class": 1, "target_class": 3, "base_ids": [1, 2]},
        seconds={"surrogates": 45.0, "craft": 20.0, "train": 11.0, "evaluate": 1.0},
        reused={"surrogates": True, "poisons": False},
        poisons={"losses": [[0.9, 0.8, 0.7], [0.9, 0.5, 0.1]], "final_losses": [0.7, 0.1]},
        history=[{"loss": 2.0, "accuracy": 0.2, "samples": 1000}, {"loss": 1.0, "accuracy": 0.6, "samples": 1000}],
        settings={
            "protocol": {"threat": {"eps": 16, "budget": 0.01}, "recipe": {"drops": [1, 2]}},
            "attack": {"steps": 3}, "defense": {"noise": "bernoulli"},
        },
        knowledge=["poison rate"], data={"name": "photographs", "fingerprint": "f"}, code={"version": "0.1.0"},
        environment={"python": "3.11"}, memory_peak_mib=512.0,
        started=start.isoformat(), finished=(start + timedelta(seconds=80)).isoformat(),
    )  # fmt: skip
    made.update(over)  # type: ignore[typeddict-item]  # some are no records on purpose
    return made


def failed(trial: int, **over: Any) -> Record:
    nothing: dict[str, Any] = {"success": None, "clean_accuracy": None, "outcome": None, "history": [], "poisons": {}}
    return make(trial, **nothing | {"status": "failed", "error": "out of memory"} | over)


@pytest.fixture
def out(tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "my out"
    folder.mkdir()
    shutil.copy(blank, folder)
    return folder


@pytest.fixture
def uri(out: Path) -> str:
    return str(resolve_uri(None, out))


@pytest.fixture
def runs(uri: str) -> Callable[..., list[Any]]:
    """The active runs of a kind, oldest first."""

    def search(kind: str, **tags: Any) -> list[Any]:
        client = connect(uri)
        where = " AND ".join(f"tags.\"bench.{k}\" = '{v}'" for k, v in {"kind": kind, **tags}.items())
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(ids, where, order_by=["attributes.start_time ASC"]))

    return search


def text(uri: str, run: Any, name: str, to: Path) -> str:
    return Path(connect(uri).download_artifacts(run.info.run_id, name, str(to))).read_text()


# ---- where to track


def test_uri_option_beats_environment_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert resolve_uri(None, tmp_path) == "http://tracker:5000"
    assert resolve_uri("postgresql://u:p@db/x", tmp_path) == "postgresql://u:p@db/x"
    assert resolve_uri("none", tmp_path) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    assert resolve_uri(None, tmp_path) is None


@pytest.mark.parametrize("bad", ["./mlruns", "/tmp/mlruns", "file:///tmp/x", "file:x", "sqlite:x.db", "sqlite://x.db"])
def test_folders_and_half_addresses_are_refused_with_a_fix(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"^--tracking .*fix: sqlite:///.*/mlflow\.db$"):
        resolve_uri(bad, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", bad)
    with pytest.raises(BadInput, match=r"^MLFLOW_TRACKING_URI .*fix: sqlite:///"):
        resolve_uri(None, tmp_path)


def test_without_mlflow_only_none_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="pip install mlflow, or --tracking none"):
        resolve_uri("sqlite:////tmp/x.db", tmp_path)
    assert resolve_uri("none", tmp_path) is None


def test_importing_and_not_tracking_does_not_import_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from bench.views.mlflow.sync import Tracker\n"
        "tracker = Tracker(None, pathlib.Path('.'), print); tracker.add({}); assert tracker.close() == 0\n"
        "sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---- what is written


def test_cell_and_trial_show_the_record(out: Path, uri: str, runs: Callable[..., list[Any]], tmp_path: Path) -> None:
    made = make(0)
    assert sync([made], uri, out, lambda r: b"png") == SyncReport(1, 1, 0)
    (parent,), (child,) = runs("cell"), runs("trial")
    assert (parent.info.run_name, child.info.run_name) == ("gm x friends-b", "trial 0")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["bench.record"] == made["key"] and child.data.tags["bench.reused"] == "surrogates"
    begin = round(START.timestamp() * 1000)
    assert (child.info.start_time, child.info.end_time) == (begin, begin + 80_000)
    assert parent.info.start_time == begin and parent.info.end_time >= begin + 80_000
    for run in (parent, child):
        assert run.info.status == "FINISHED" and run.data.tags["bench.complete"] == "1"
        assert run.data.tags["bench.knowledge"] == "poison rate"
        assert run.data.params["protocol.threat.eps"] == "16" and run.data.params["defense.noise"] == "bernoulli"
        assert run.data.params["protocol.recipe.drops"] == "[1, 2]"
        assert (run.data.metrics["eps"], run.data.metrics["budget"], run.data.metrics["seed"]) == (16, 0.01, 3)
    assert child.data.metrics["craft_s"] == 20 and child.data.metrics["memory_peak_mib"] == 512
    client = connect(uri)
    craft = client.get_metric_history(child.info.run_id, "craft_loss")
    assert [(m.step, m.value) for m in craft] == [(0, 0.9), (1, 0.5), (2, 0.1)]  # the better restart
    assert craft[-1].timestamp == begin + 68_000  # before training (11 s) and evaluation (1 s)
    assert [m.value for m in client.get_metric_history(child.info.run_id, "train_accuracy")] == [0.2, 0.6]
    assert json.loads(text(uri, child, "record.json", tmp_path)) == made
    assert json.loads(text(uri, parent, "config.json", tmp_path))["settings"] == made["settings"]
    assert text(uri, parent, "poisons.png", tmp_path) == "png"
    experiment = client.get_experiment_by_name("quick")
    assert "tags.\"bench.kind\" = 'cell'" in experiment.tags["mlflow.note.content"]  # type: ignore[union-attr]
    assert experiment.artifact_location == (out.resolve() / "mlflow-artifacts").as_uri()  # type: ignore[union-attr]


def test_variants_notes_and_what_is_used_from_outside(
    out: Path, uri: str, runs: Callable[..., list[Any]], tmp_path: Path
) -> None:
    made = make(
        0, variants={"by votes (k=3)": {"success": 0.0, "clean_accuracy": 0.75, "rejected": 0.1}},
        notes={"epsilon": 8.0, "per epoch": [1, 2]}, external={"opacus": {"version": "1.6.0"}},
        seconds={"surrogates": 45.0, "craft": 20.0, "train": 11.0, "evaluate": 1.0, "external": 300.0},
    )  # fmt: skip
    sync([made], uri, out)
    (parent,), (child,) = runs("cell"), runs("trial")
    found = child.data.metrics
    assert (found["success.by votes _k_3_"], found["clean_acc.by votes _k_3_"], found["success"]) == (0.0, 0.75, 1.0)
    assert found["external_s"] == parent.data.metrics["external_s"] == 300
    assert json.loads(text(uri, child, "record.json", tmp_path))["notes"] == made["notes"]
    assert json.loads(text(uri, parent, "config.json", tmp_path))["external"] == made["external"]
    sync([make(1)], uri, out)
    assert runs("cell")[0].data.metrics["n_trials"] == 2


def test_numbers_of_a_cell(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    sync([make(0), make(1, success=0.0), make(2), failed(3)], uri, out)
    (parent,) = runs("cell")
    found = parent.data.metrics
    low, high = interval(2, 3)
    wanted = {
        "n_trials": 3, "n_failed": 1, "successes": 2, "success_rate": 2 / 3, "success_low": low, "success_high": high,
        "clean_acc": 0.51, "clean_acc_std": 0.01, "craft_s": 20, "train_s": 11, "surrogates_s": 45,
    }  # fmt: skip
    assert {name: pytest.approx(value) for name, value in wanted.items()}.items() <= found.items()


def test_drop_against_the_undefended_cell_in_any_order(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    sync([make(0, clean_accuracy=0.5), make(0, attack="none", clean_accuracy=0.9)], uri, out)
    assert all("acc_drop" not in run.data.metrics for run in runs("cell"))
    sync([make(0, defense="none", clean_accuracy=0.6)], uri, out)  # the reference comes last
    drops = {run.info.run_name: run.data.metrics.get("acc_drop") for run in runs("cell")}
    assert drops == {"gm x friends-b": pytest.approx(0.1), "gm x none": None, "none x friends-b": None}


def test_drop_against_an_undefended_cell_that_was_there_before(
    out: Path, uri: str, runs: Callable[..., list[Any]]
) -> None:
    sync([make(0, defense="none", clean_accuracy=0.6)], uri, out)
    sync([make(0, clean_accuracy=0.5)], uri, out)  # the reference is only in MLflow
    drops = {run.info.run_name: run.data.metrics.get("acc_drop") for run in runs("cell")}
    assert drops == {"gm x friends-b": pytest.approx(0.1), "gm x none": None}


def test_failed_trial(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    assert sync([failed(0)], uri, out) == SyncReport(1, 1, 0)
    (parent,), (child,) = runs("cell"), runs("trial", status="failed")
    assert child.info.status == "FAILED" and child.data.tags["bench.error"] == "out of memory"
    assert "success" not in child.data.metrics
    assert parent.info.status == "FAILED" and parent.data.metrics["n_failed"] == 1
    assert (parent.data.metrics["success_low"], parent.data.metrics["success_high"]) == (0, 1)
    later = make(0, finished=(START + timedelta(hours=1)).isoformat())
    assert sync([later], uri, out) == SyncReport(1, 1, 0)  # the retry takes its place
    (parent,), (child,) = runs("cell", status="done"), runs("trial")
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert (parent.data.metrics["n_failed"], parent.data.metrics["successes"]) == (0, 1)


def test_odd_names_long_values_and_gaps_are_taken(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    odd = {"a=b (%)": "x" * 9000, "../up": 1, "/root/": 2, "k" * 400: None, "empty": {}, "text": "", "ünï": [1]}
    losses = [1.0 / (i + 1) for i in range(1000)]
    losses[0] = math.nan
    made = make(
        0, settings={"protocol": odd, "attack": {}, "defense": {}}, error="e" * 9000,
        poisons={"losses": [losses, []], "final_losses": [losses[-1]]}, history=[{"loss": None, "accuracy": 0.1}],
        outcome={"backdoor": {"asr_all": 0.5, "asr_excluding": 0.4, "asr_conditional": 0.6, "base_rate": 0.1, "n": 9}},
    )  # fmt: skip
    assert sync([made], uri, out) == SyncReport(1, 1, 0)
    (child,), (parent,) = runs("trial"), runs("cell")
    assert child.data.params["protocol.a_b ___"] == "x" * 6000
    assert max(map(len, child.data.params)) == 250
    assert child.data.metrics["asr_conditional"] == 0.6 and parent.data.metrics["clean_acc_std"] == 0
    client = connect(uri)
    craft = client.get_metric_history(child.info.run_id, "craft_loss")
    assert len(craft) == 50 and (craft[0].step, craft[-1].step) == (1, 999)
    assert not client.get_metric_history(child.info.run_id, "train_loss")


# ---- replay and repair


def state(runs: Callable[..., list[Any]]) -> list[Any]:
    return sorted((r.info.run_id, r.info.end_time, dict(r.data.metrics)) for k in ("cell", "trial") for r in runs(k))


def test_replay_changes_nothing(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    records = [make(trial, defense=defense) for defense in ("none", "friends-b") for trial in range(2)]
    asked: list[int] = []

    def image(record: Record) -> bytes:
        asked.append(record["trial"])
        return b"png"

    assert sync(records, uri, out, image) == SyncReport(2, 4, 0)
    before = state(runs)
    assert sync(records + records[:1], uri, out, image) == SyncReport(2, 0, 4)
    assert sync(records[1:2], uri, out, image) == SyncReport(1, 0, 1)
    assert state(runs) == before and len(before) == 6
    assert asked == [0, 0]  # once per cell
    assert sync([], uri, out) == SyncReport(0, 0, 0)


def test_trials_that_are_only_in_the_store_still_count(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    sync([make(0), make(1)], uri, out)
    assert sync([make(2, success=0.0)], uri, out) == SyncReport(1, 1, 0)
    sync([make(0)], uri, out)
    (parent,) = runs("cell")
    assert (parent.data.metrics["n_trials"], parent.data.metrics["successes"]) == (3, 2)


def test_trials_of_an_older_version_are_logged_again_once(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    """They do not name their target, so that nobody could tell which trials of two cells are the same."""
    sync([make(0), make(0, defense="none", clean_accuracy=0.9)], uri, out)
    client = connect(uri)
    for run in runs("trial"):
        client.delete_tag(run.info.run_id, "bench.target")
    for run in runs("cell"):
        client.set_tag(run.info.run_id, "bench.scene", "of another version")
    assert sync([make(0), make(0, defense="none", clean_accuracy=0.9)], uri, out) == SyncReport(2, 2, 0)
    assert sync([make(0)], uri, out) == SyncReport(1, 0, 1)
    drops = {run.data.tags["bench.defense"]: run.data.metrics.get("acc_drop") for run in runs("cell")}
    assert drops == {"friends-b": pytest.approx(0.4), "none": None} and len(runs("trial")) == 2


def test_trials_with_another_target_are_not_compared_when_they_are_read_back(
    out: Path, uri: str, runs: Callable[..., list[Any]]
) -> None:
    draw = {"target_ids": [8], "source_class": 1, "target_class": 3}
    sync(
        [make(0, defense="none", clean_accuracy=0.9), make(1, defense="none", clean_accuracy=0.8, draw=draw)], uri, out
    )
    sync([make(0), make(1)], uri, out)
    defended = next(run for run in runs("cell") if run.data.tags["bench.defense"] == "friends-b")
    assert defended.data.metrics["acc_drop"] == pytest.approx(0.4) and defended.data.metrics["n_trials"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("as_rows", "places"), [(True, 5), (False, 11)])
def test_half_written_runs_are_repaired(
    out: Path, uri: str, runs: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, as_rows: bool, places: int
) -> None:
    """Die after 1, 2, ... things are written, as a killed process does; the next sync mends what is left."""
    import mlflow

    left = 1000

    def mortal(whole: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return whole(*args, **more)

        return write

    for name in ("create_run", "log_batch", "set_terminated", "set_tag"):
        monkeypatch.setattr(mlflow.MlflowClient, name, mortal(getattr(mlflow.MlflowClient, name)))
    monkeypatch.setattr(book.Book, "_put", mortal(book.Book._put))
    monkeypatch.setattr(tables.Tables, "add", mortal(tables.Tables.add))
    if not as_rows:
        monkeypatch.setattr(tables.Tables, "of", lambda client: None)
    sync([make(0)], uri, out)
    deaths = 0
    for step in range(1, 30):
        records = [make(step), make(step, defense=f"new-{step}")]  # a cell that grows, and one that begins
        left = step
        try:
            sync(records, uri, out)
        except KeyboardInterrupt:
            deaths += 1
        left = 1000
        sync(records, uri, out)
        if deaths < step:
            break
    assert deaths == step - 1 > places  # every place to die was visited
    found = {kind: runs(kind) for kind in ("cell", "trial")}
    assert {run.info.status for kind in found for run in found[kind]} == {"FINISHED"}
    assert len(found["trial"]) == 1 + 2 * step and len(found["cell"]) == 1 + step
    assert sorted(run.data.metrics["n_trials"] for run in found["cell"]) == [1] * step + [step + 1]
    assert all("protocol.threat.eps" in run.data.params for kind in found for run in found[kind])


def test_stale_run_without_its_record_at_hand_is_ended(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    sync([make(0)], uri, out)
    client, (parent,) = connect(uri), runs("cell")
    tags = {"bench.kind": "trial", "bench.cell": make(1)["cell"], "bench.record": make(1)["key"]}
    client.create_run(parent.info.experiment_id, tags=tags)
    sync([make(2)], uri, out)
    assert sorted(run.info.status for run in runs("trial")) == ["FINISHED", "FINISHED", "KILLED"]
    assert sync([make(1)], uri, out) == SyncReport(1, 1, 0)
    assert {run.info.status for run in runs("trial")} == {"FINISHED"} and len(runs("trial")) == 3


def test_duplicates_and_a_deleted_experiment_are_mended(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    sync([make(0)], uri, out)
    client, (parent,), (child,) = connect(uri), runs("cell"), runs("trial")
    for run in (parent, child):  # as two machines leave them that share a server and no lock
        twin = client.create_run(run.info.experiment_id, tags=dict(run.data.tags)).info.run_id
        client.log_metric(twin, "trial", 0)
        client.set_terminated(twin, end_time=run.info.end_time)
    client.delete_experiment(parent.info.experiment_id)
    assert sync([make(0)], uri, out) == SyncReport(1, 0, 1)
    (parent,), (child,) = runs("cell"), runs("trial")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["n_trials"] == 1


FIRST_USE = """
import json, pathlib, sys
from bench.views.mlflow.sync import sync
out = pathlib.Path(sys.argv[1])
report = sync(json.load(open(sys.argv[2])), f"sqlite:///{out}/mlflow.db", out)
print(json.dumps([report.trials_new, report.trials_present]))
"""


@pytest.mark.slow
def test_two_processes_use_a_fresh_store_at_once(tmp_path: Path) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    files[0].write_text(json.dumps([make(0), make(1)]))
    files[1].write_text(json.dumps([make(1), make(2)]))
    fresh = tmp_path / "fresh"
    pair = [
        subprocess.Popen([sys.executable, "-c", FIRST_USE, str(fresh), str(file)], stdout=-1, stderr=-1, text=True)
        for file in files
    ]
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert sum(json.loads(stdout)[0] for stdout, _ in said) == 3  # stdout holds our line alone
    assert [stderr for _, stderr in said] == ["", ""]
    uri = f"sqlite:///{fresh}/mlflow.db"
    assert sync([make(0), make(1), make(2)], uri, fresh) == SyncReport(1, 0, 3)


# ---- never in the way


def test_tracker_logs_what_it_is_given(
    out: Path, uri: str, runs: Callable[..., list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    tracker = Tracker(uri, out, said.append)
    begin = time.monotonic()
    for trial in range(5):
        tracker.add(make(trial), functools.partial({2: b"png"}.get, trial))
    assert time.monotonic() - begin < 0.5
    assert tracker.close() == 0 and tracker.close() == 0
    assert said == [] and len(runs("trial")) == 5
    assert runs("cell")[0].data.tags["bench.image"] == "1"
    assert capfd.readouterr().out == ""


def test_unreachable_server_is_said_once_and_mended_later(out: Path, uri: str, runs: Callable[..., list[Any]]) -> None:
    said: list[str] = []
    tracker = Tracker(DEAD, out, said.append)
    begin = time.monotonic()
    for trial in range(3):
        tracker.add(make(trial))
    assert time.monotonic() - begin < 0.5
    while not said and time.monotonic() - begin < 20:
        time.sleep(0.05)
    tracker.add(make(3))
    assert tracker.close() == 4
    assert time.monotonic() - begin < 20
    assert len(said) == 2 and all("\n" not in line for line in said)
    assert DEAD in said[0] and "4 record(s)" in said[1] and "python -m bench sync" in said[1]
    assert sync([make(trial) for trial in range(4)], uri, out) == SyncReport(1, 4, 0)
    assert len(runs("trial")) == 4


def test_tracker_tries_again_after_a_failure(
    out: Path, uri: str, runs: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "BACK_OFF", (0.05, 0.1))
    said: list[str] = []
    real, tries = syncing.sync, []

    def flaky(*args: Any) -> SyncReport:
        tries.append(len(args[0]))
        if len(tries) < 3:
            raise RuntimeError("no\nroute")
        return real(*args)

    monkeypatch.setattr(syncing, "sync", flaky)
    tracker = Tracker(uri, out, said.append)
    tracker.add(make(0))
    while len(tries) < 3:
        time.sleep(0.02)
    tracker.add(make(1))
    assert tracker.close() == 0 and len(runs("trial")) == 2
    assert said == ["tracking: RuntimeError: no; the run goes on and its records are kept"]


def test_close_waits_no_longer_than_its_patience(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncing, "sync", lambda *args: time.sleep(3))
    said: list[str] = []
    tracker = Tracker("sqlite:////nowhere.db", out, said.append)
    tracker.add(make(0))
    begin = time.monotonic()
    assert tracker.close(patience=0.2) == 1
    assert time.monotonic() - begin < 1 and len(said) == 1


def test_broken_store_is_one_line_without_the_password(out: Path) -> None:
    (out / "broken.db").write_text("this is no database " * 100)
    with pytest.raises(BadInput, match="cannot log to sqlite:.*not a database.*fix: .*python -m bench sync"):
        sync([make(0)], f"sqlite:///{out}/broken.db", out)
    with pytest.raises(BadInput) as error:
        sync([make(0)], "http://me:secret@127.0.0.1:9", out)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_missing_database_driver_is_named(out: Path) -> None:
    with pytest.raises(BadInput, match=r"No module named 'pymssql'; fix: install that driver, or name the one"):
        sync([make(0)], "mssql+pymssql://host/x", out)


def test_lock_has_a_time_limit(out: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOCK_PATIENCE", 0.2)
    with server.only_writer(uri, out), pytest.raises(BadInput, match=r"\.mlflow\.db\.bench-lock.*fix"):
        sync([make(0)], uri, out)


def test_cells_of_one_name_are_told_apart_by_their_settings(out: Path, uri: str) -> None:
    one = cell("gm", "d", [1, 0], settings__defense={"mu": 16})
    other = cell("gm", "d", [0, 0], settings__defense={"mu": 32})
    sync(cell("gm", "none", [1, 1]) + one, uri, out)
    sync(other, uri, out)  # a cell that comes later renames the one that was alone before
    client = connect(uri)
    experiment = client.get_experiment_by_name("cifar10-scratch")
    found = client.search_runs([experiment.experiment_id], book.FILTER)  # type: ignore[union-attr]
    assert {run.info.run_name for run in found} == {"gm x none", "gm x d [mu=16]", "gm x d [mu=32]"}


def test_a_cell_has_its_cost_the_published_value_and_what_made_it(out: Path, uri: str) -> None:
    defended = cell("gm", "friends-b", [0, 0], seconds__train=3.0, adapted_to=["noise-b"])
    sync(cell("gm", "none", [1, 1]) + defended, uri, out)
    client = connect(uri)
    experiment = client.get_experiment_by_name("cifar10-scratch")
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment.experiment_id], book.FILTER)}  # type: ignore[union-attr]
    data = runs["gm x friends-b"]
    assert data.metrics["train_cost"] == 1.5 and "train_cost" not in runs["gm x none"].metrics
    assert data.metrics["published_success"] == 0 and runs["gm x none"].metrics["published_success"] == 0.75
    assert data.tags["bench.published"].startswith("FRIENDS, Table 1 (friends.csv, line 12); differs: mu 16")
    assert data.tags["bench.adapted_to"] == "noise-b" and data.tags["bench.revision"] == "a" * 40
    assert data.tags["bench.device"] == "cpu a processor"


def test_an_old_description_is_replaced_and_links_to_the_cells(out: Path, uri: str) -> None:
    sync(cell("gm", "none", [1]), uri, out)
    client = connect(uri)
    number = client.get_experiment_by_name("cifar10-scratch").experiment_id  # type: ignore[union-attr]
    text = client.get_experiment(number).tags["mlflow.note.content"]
    assert f"(#/experiments/{number}/runs?searchFilter=tags.%22bench.kind%22" in text
    old = book.OUR_NOTE + "1/runs) of another age"
    for tag, value in ((book.NOTE, old), (book.SIGNED, book._digest(old))):
        client.set_experiment_tag(number, tag, value)
    sync(cell("gm", "none", [1]), uri, out)
    assert client.get_experiment(number).tags["mlflow.note.content"] == text
