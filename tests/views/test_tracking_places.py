"""Where tracking keeps its files and what it leaves alone: odd and moved folders, other people's locks and notes,
stores that were half made, and servers that say nonsense or nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.api import tracking
from bench.foundation.errors import BadInput
from bench.views.mlflow import book, patience, tables
from bench.views.mlflow.database import ensure, file_of, uri_of
from bench.views.mlflow.server import connect, resolve_uri
from bench.views.mlflow.sync import SyncReport, sync
from tests.aftermath import sent
from tests.records import cell, record, write

pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def no_server_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def with_store(out: Path, blank: Path) -> str:
    out.mkdir()
    shutil.copy(blank, out / "mlflow.db")
    return str(resolve_uri(None, out))


@pytest.mark.parametrize("name", ["q?mark", "per%20cent", "ha#sh", "ü b", "a;b&c=d", "at@sign:x"])
def test_the_store_lies_in_an_output_folder_of_any_name_and_nowhere_else(
    tmp_path: Path, blank: Path, name: str
) -> None:
    out = tmp_path / name
    uri = with_store(out, blank)
    assert file_of(uri) == out / "mlflow.db"
    assert sync([record("gm", "none", 0, 1.0)], uri, out) == SyncReport(1, 1, 0)
    assert len(sent(uri, "trial")) == 1 and len(list(out.glob("mlflow-artifacts/*/artifacts/record.json"))) == 1
    with sqlite3.connect(out / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_artefacts_follow_an_output_folder_that_is_moved(tmp_path: Path, blank: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    sync([record("gm", "none", 0, 1.0)], with_store(old, blank), old)
    old.rename(new)
    uri = str(resolve_uri(None, new))
    assert sync([record("gm", "none", i, 1.0) for i in range(2)], uri, new) == SyncReport(1, 1, 1)
    assert not old.exists()
    for run in sent(uri, "trial"):  # the one from before, too
        place = connect(uri).download_artifacts(run.info.run_id, "record.json", str(tmp_path))
        assert json.loads(Path(place).read_text())["key"] == run.data.tags["bench.record"]
    assert len(list(new.glob("mlflow-artifacts/*/artifacts/record.json"))) == 2


def test_artefacts_in_a_store_elsewhere_move_only_when_their_folder_is_gone(tmp_path: Path, blank: Path) -> None:
    shared = tmp_path / "shared.db"
    shutil.copy(blank, shared)
    one, other = tmp_path / "one", tmp_path / "other"
    for out, trials in ((one, 1), (other, 2)):
        out.mkdir()
        sync([record("gm", "none", i, 1.0) for i in range(trials)], uri_of(shared), out)
    assert len(list(one.glob("mlflow-artifacts/*/artifacts/record.json"))) == 2
    shutil.rmtree(one)
    sync([record("gm", "none", 2, 1.0)], uri_of(shared), other)
    assert len(list(other.glob("mlflow-artifacts/*/artifacts/record.json"))) == 1 and not one.exists()


def test_a_lock_is_never_a_file_of_somebody_else(tmp_path: Path, blank: Path) -> None:
    shutil.copy(blank, tmp_path / "poetry.db")
    (tmp_path / "poetry.lock").write_text("theirs")
    sync([record("gm", "none", 0, 1.0)], uri_of(tmp_path / "poetry.db"), tmp_path)
    assert (tmp_path / "poetry.lock").read_text() == "theirs"
    (tmp_path / ".poetry.db.bench-lock").write_text("theirs, too")
    with pytest.raises(BadInput, match=r"'.*\.poetry\.db\.bench-lock' holds something"):
        sync([record("gm", "none", 0, 1.0)], uri_of(tmp_path / "poetry.db"), tmp_path)
    assert (tmp_path / ".poetry.db.bench-lock").read_text() == "theirs, too"


@pytest.mark.parametrize("theirs", ["## Our notes", book.OUR_NOTE + "1/runs) and what we found"])
def test_notes_of_others_stay_and_ours_go_beside_them(tmp_path: Path, blank: Path, theirs: str) -> None:
    out = tmp_path / "out"
    uri = with_store(out, blank)
    client = connect(uri)
    number = client.create_experiment("cifar10-scratch")
    if theirs.startswith(book.OUR_NOTE):  # our page, which somebody went on with
        sync([record("gm", "none", 0, 1.0)], uri, out)
    client.set_experiment_tag(number, book.NOTE, theirs)
    for trial in range(2):
        sync([record("gm", "none", trial, 1.0)], uri, out)
        tags = client.get_experiment(number).tags
        assert tags[book.NOTE] == theirs and tags[book.PAGE] == book.description(number)


# ---- trials as rows


def everything(uri: str) -> list[Any]:
    client, told = connect(uri), []
    for kind in ("cell", "trial"):
        for run in sent(uri, kind):
            points = {m: client.get_metric_history(run.info.run_id, m) for m in run.data.metrics}
            tags = {name: value for name, value in run.data.tags.items() if name != "mlflow.parentRunId"}
            told.append(
                (tags, run.data.params, run.data.metrics, run.info.run_name, run.info.status, run.info.start_time,
                 run.info.end_time, run.info.user_id, run.info.lifecycle_stage,
                 {name: sorted((p.step, p.value, p.timestamp) for p in history) for name, history in points.items()})
            )  # fmt: skip
    return sorted(told, key=str)


def test_rows_are_what_the_client_would_have_written(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = cell("gm", "none", [1, None]) + cell("gm", "d", [0, 1], history=[{"loss": 2.0}, {"loss": 1.0}])
    found = []
    for name in ("rows", "client"):
        out = tmp_path / name
        uri = with_store(out, blank)
        assert sync(trials, uri, out) == SyncReport(2, 4, 0) and sync(trials, uri, out) == SyncReport(2, 0, 4)
        found.append(everything(uri))
        monkeypatch.setattr(tables.Tables, "of", lambda client: None)
    assert found[0] == found[1] and len(found[0]) == 6


def test_an_mlflow_with_other_tables_is_written_through_its_client(
    tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tables._rows

    def less(run: Any, experiment: str, place: str) -> Any:
        rows = real(run, experiment, place)
        return {**rows, "SqlMetric": [{"key": "m"}]}

    monkeypatch.setattr(tables, "_rows", less)
    out = tmp_path / "out"
    uri = with_store(out, blank)
    assert sync([record("gm", "none", 0, 1.0)], uri, out) == SyncReport(1, 1, 0)
    assert len(sent(uri, "trial")) == 1


# ---- stores that were half made


def test_a_store_that_was_left_half_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.db import utils

    made: list[str] = []

    def whole(engine: Any) -> None:
        made.append(str(engine.url))
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE experiments (x)")

    def killed(engine: Any) -> None:
        whole(engine)
        raise KeyboardInterrupt

    file = tmp_path / "mlflow.db"
    monkeypatch.setattr(utils, "_initialize_tables", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure(file)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(utils, "_initialize_tables", whole)
    (tmp_path / ".mlflow.db.0123.tmp-journal").write_bytes(b"of a killed one")
    ensure(file)
    assert len(made) == 2 and [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    ensure(file)  # tables without a row, as a kill in MLflow itself leaves them
    assert len(made) == 3
    with sqlite3.connect(file) as connection:
        connection.execute("INSERT INTO experiments VALUES (1)")
    ensure(file)
    assert len(made) == 3


def test_a_database_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "theirs.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = file.read_bytes()
    ensure(file)
    (tmp_path / "text.db").write_text("no database " * 100)
    ensure(tmp_path / "text.db")
    assert file.read_bytes() == before and (tmp_path / "text.db").read_text() == "no database " * 100


# ---- servers


class Odd(BaseHTTPRequestHandler):
    """Answers every request in the way its server is told to."""

    def do_GET(self) -> None:
        way = self.server.way  # type: ignore[attr-defined]
        self.send_response(429 if way == "later" else 200)
        if way == "later":
            self.send_header("Retry-After", "3000")
        self.send_header("Content-Length", "1000" if way == "drip" else str(len(way)))
        self.end_headers()
        try:
            if way != "drip":
                self.wfile.write(way.encode())
            for _ in range(1000 if way == "drip" else 0):
                self.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "way",
    ["drip", "later", "[]", "{}", '{"experiment": 3}', '{"experiment": {"experiment_id": "x", "tags": 7}}', "<html>",
     '{"experiment": {}}', '{"experiments": [{}]}', "{"],
)  # fmt: skip
def test_a_server_that_says_nonsense_or_nothing_is_one_line(
    odd: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    odd.way = way  # type: ignore[attr-defined]
    monkeypatch.setattr(patience, "limit", lambda: 1.0)
    monkeypatch.setattr("bench.views.mlflow.sync.limit", lambda: 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    uri = f"http://me:to/p-secret@127.0.0.1:{odd.server_port}"
    begin = time.monotonic()
    with pytest.raises(BadInput, match=r"^cannot log to http://\*\*\*@127\.0\.0\.1:.*fix: ") as error:
        sync([record("gm", "none", 0, 1.0)], uri.replace("to/p-", "top-"), tmp_path)
    assert time.monotonic() - begin < 10
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    assert not (tmp_path / "scratch").exists()


def test_sync_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from bench.api.tracking import sync; import bench.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_sync_logs_the_records_of_a_folder(tmp_path: Path, blank: Path) -> None:
    out = tmp_path / "out"
    uri = with_store(out, blank)
    write(out, cell("gm", "none", [1, 0]))
    assert tracking.sync(out, None) == (uri, SyncReport(1, 2, 0))
