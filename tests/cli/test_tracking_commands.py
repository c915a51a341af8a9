"""`sync` and `ui`: which records, which store, which port."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cli import main
from bench.foundation.errors import BadInput
from bench.views.mlflow import website
from tests.aftermath import assert_nobody_left, sent, start
from tests.records import cell, lines, write
from tests.servers import free_port

pytest.importorskip("mlflow")


@pytest.fixture
def out(tmp_path: Path, blank: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(blank, folder)
    return folder


@pytest.fixture
def board(tmp_path: Path) -> Path:
    return lines(tmp_path / "board.jsonl", [*cell("gm", "none", [1, 0]), *cell("gm", "d", [0, 0])])


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command ends with."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said
    return said.err


def test_files_of_records_are_logged_instead_of_the_folder(
    out: Path, board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = lines(tmp_path / "more.jsonl", cell("gm", "e", [1]))
    write(out, cell("gm", "own", [1]))
    assert main(["sync", "--records", str(board), str(more), "--out", str(out)]) == 0
    assert "3 cells, 5 trials logged, 0 already there" in capsys.readouterr().out
    uri = f"sqlite:///{out}/mlflow.db"
    assert sorted(run.data.tags["bench.defense"] for run in sent(uri, "cell")) == ["d", "e", "none"]
    assert main(["sync", "--out", str(out)]) == 0
    assert "1 cells, 1 trials logged, 0 already there" in capsys.readouterr().out


def test_files_without_records_are_one_line(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read: No such file" in fails(capsys, "sync", "--records", "nowhere.jsonl", "--out", str(out))
    empty = lines(tmp_path / "empty.jsonl", [])
    assert "no records in" in fails(capsys, "sync", "--records", str(empty), "--out", str(out))
    assert "--out DIR or --records FILE" in fails(capsys, "ui", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--port", "99999", "0<=x<=65535"), ("--host", "no such.invalid", "is not known; fix: 127.0.0.1"),
     ("--host", "203.0.113.1", "is no address of this machine")],
)  # fmt: skip
def test_a_place_where_no_server_can_listen_is_one_line_and_nothing_is_logged(
    tmp_path: Path, board: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    new = tmp_path / "new"
    assert said in fails(capsys, "ui", option, value, "--records", str(board), "--out", str(new))
    assert not new.exists()


def test_a_port_in_use_is_refused_when_it_is_asked_for_and_passed_over_when_not(
    tmp_path: Path, board: Path, taken: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    line = fails(capsys, "ui", "--port", str(taken), "--records", str(board), "--out", str(new))
    assert f"port {taken} is in use by another program; fix: " in line and not new.exists()
    monkeypatch.setattr(website, "PORT", taken)
    assert taken < website.free_port("127.0.0.1", None) < taken + website.TRIES
    monkeypatch.setattr(website, "TRIES", 1)
    with pytest.raises(BadInput, match="all in use"):
        website.free_port("127.0.0.1", None)
    assert website.free_port("127.0.0.1", 0) not in (0, taken)


def test_the_ui_logs_files_first_and_prints_where_it_is(
    out: Path, board: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Site:
        address = "http://127.0.0.1:5001"

        def wait(self) -> None:
            raise BadInput("the server has ended")

    @contextlib.contextmanager
    def site(uri: str, host: str, port: int) -> Iterator[Site]:
        assert uri == f"sqlite:///{out}/mlflow.db" and len(sent(uri, "trial")) == 4
        yield Site()

    monkeypatch.setattr(website, "website", site)
    assert main(["ui", "--records", str(board), "--out", str(out)]) == 2
    assert "http://127.0.0.1:5001" in capsys.readouterr().out


@pytest.mark.slow
def test_the_ui_prints_one_address_once_it_answers_and_ends_with_its_server(out: Path) -> None:
    port = free_port()
    ui = start("ui", "--out", str(out), "--port", str(port))
    assert ui.stdout is not None
    address = ui.stdout.readline().split()[0]
    assert address == f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:
        assert answer.status == 200
    ui.send_signal(signal.SIGINT)
    rest = ui.communicate(timeout=60)
    assert (ui.returncode, *rest) == (0, "", "")
    assert_nobody_left(ui.pid)


@pytest.mark.slow
def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.db").write_text("this is no database " * 100)
    line = fails(capsys, "ui", "--tracking", f"sqlite:///{tmp_path}/broken.db", "--port", "0")
    assert "MLflow's server ended at once: " in line and "not a database" in line
