"""Progress: a bar on a terminal and in a notebook, plain lines elsewhere, and never a failure."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tqdm

from bench.foundation import progress


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process looks like the kernel of a notebook."""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


class Widget(tqdm.tqdm):
    shown: list[tuple[float, str]] = []

    def refresh(self, *arguments: Any, **more: Any) -> bool:  # type: ignore[override]
        Widget.shown.append((self.n, self.postfix or ""))  # type: ignore[arg-type]
        return True


def stage(folder: Path) -> None:
    (folder / "0.json").write_text(json.dumps(["victim of gm", 1, 2]))
    done = {"poisons": 1}
    with progress.Progress({"poisons": 1, "victims": 4}, done, folder):
        done["victims"] = 2
        time.sleep(1.2)
        done["victims"] = 4


def test_a_notebook_gets_the_bar_of_notebooks(kernel: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Widget))
    stage(tmp_path)
    assert (3.5, "victim of gm 1/2") in Widget.shown  # three units and half of the one that runs


def test_elsewhere_it_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.1)
    stage(tmp_path)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "to do: 1 poisons, 4 victims"
    assert second == "poisons 1/1, victims 2/4 done; victim of gm 1/2"


def test_an_amount_is_a_bar_on_a_terminal_and_plain_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    with progress.Amount("packing it.tar", 3 * 2**20) as amount:
        amount.add(2**20)
    assert capsys.readouterr().err == "packing it.tar: 1.0 MiB of 3.0 MiB\n"
    monkeypatch.setattr(progress, "tqdm", Widget)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Widget.shown.clear()
    with progress.Amount("packing it.tar", 3) as amount:
        for _ in range(4):  # a file may have grown
            amount.add(1)
        assert amount._bar is not None and amount._bar.n == 3
    assert "of 3" not in capsys.readouterr().err


def test_a_terminal_that_is_gone_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        flush = isatty = lambda self: True

    monkeypatch.setattr(sys, "stderr", Gone())
    progress.say("a line")
    stage(tmp_path)
