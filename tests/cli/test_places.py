"""Places that cannot be read or written: one line and exit 2, before any work."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from bench.cli import main
from bench.datasets import cifar10
from bench.foundation.errors import BadInput

RUN = ["run", "--attack", "none", "--only", "--trials", "1", "--jobs", "1", "--tracking", "none"]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], what: str) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and what in said.err and "fix: " in said.err, said


@pytest.mark.parametrize("part", ["", "records", "store", "images", "logs", "scratch"])
@pytest.mark.parametrize("fault", ["a file", "no right to write"])
def test_an_output_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, part: str, fault: str
) -> None:
    place = tmp_path / "out" / part
    place.parent.mkdir(exist_ok=True)
    if fault == "a file":
        place.touch()
    else:
        place.mkdir(parents=True)
        real = os.access  # root may do everything
        monkeypatch.setattr(
            os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == place) and real(path, mode)
        )
    fails([*RUN, "--out", str(tmp_path / "out")], capsys, f"'{place}' cannot be written")


def test_a_file_in_the_place_of_a_folder_to_export_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    export = ["export", str(tmp_path / "file" / "new"), "--attack", "random-noise", "--trials", "1"]
    fails([*export, "--out", str(tmp_path / "out")], capsys, "cannot be written")
    fails(["export", str(tmp_path / ("n" * 300)), *export[2:], "--out", str(tmp_path / "out")], capsys, "n" * 300)


def test_a_user_whom_the_system_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cifar10.default_folder() == tmp_path / "poisoning-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(BadInput, match="--data DIR"):
        cifar10.default_folder()
