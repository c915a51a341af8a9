"""A plug-in that misbehaves spoils its own cell at most: no other, not the results on stdout, not the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.authoring.contract import check
from bench.cli.main import main
from bench.storage.records import Record
from tests.aftermath import ROOT

TINY = (
    *("--attack", "random-noise", "--only", "--trials", "1", "--tracking", "none", "--json", "--set", "train.epochs=1"),
    *("--set", "dataset.train_per_class=10", "--set", "dataset.test_per_class=2", "--set", "threat.budget=0.05"),
)
DEFENSE = '''
import os, subprocess, sys, threading, time
import torch
from bench.plugin import Defense, register
{at_import}

@register("defense", "{name}")
class Guest(Defense):
    """A defense of the user's own, named by its file, that misbehaves: it is handed data and does nothing with them."""

    def jobs(self, data, services):
        {in_hook}
        yield from super().jobs(data, services)
'''
FOREVER = "threading.Thread(target=time.sleep, args=(3600,), name='endless').start()"
LOUD = "print('loud'); os.system('echo louder')"
BAD = {
    "prints": ("", LOUD),
    "prints-at-import": (LOUD, "pass"),
    "dtype-at-import": ("torch.set_default_dtype(torch.float64)", "pass"),
    "gradients-at-import": ("torch.set_grad_enabled(False)", "pass"),
    "leaves-a-thread": ("", FOREVER),
    "exits": ("", "sys.exit(0)"),
    "interrupts": ("", "raise KeyboardInterrupt"),
}
ENDS = {"exits", "interrupts"}


def _plugin(folder: Path, name: str, at_import: str = "", in_hook: str = "pass") -> str:
    path = folder / f"{name}.py"
    path.write_text(DEFENSE.format(name=name, at_import=at_import, in_hook=in_hook))
    return str(path)


def _run(folder: Path, jobs: int, *defenses: str) -> tuple[int, dict[str, Record], str]:
    """Exit code, records by defense, and stderr of a run of these before `none`."""
    named = [word for defense in (*defenses, "none") for word in ("--defense", defense)]
    command = ["run", *named, "--jobs", str(jobs), "--out", str(folder / "out"), *TINY]
    finished = subprocess.run(
        [sys.executable, "-m", "bench", *command], capture_output=True, text=True, cwd=ROOT, timeout=200
    )
    return finished.returncode, {each["defense"]: each for each in json.loads(finished.stdout)}, finished.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of `none` in a command of its own."""
    return _run(tmp_path_factory.mktemp("alone"), 1)[1]["none"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_plugin_reaches_no_other_cell_and_no_exit_code(tmp_path: Path, alone: Record, jobs: int) -> None:
    code, records, stderr = _run(tmp_path, jobs, *(_plugin(tmp_path, name, *parts) for name, parts in BAD.items()))
    assert code == 1 and "Traceback" not in stderr
    assert set(records) == {*BAD, "none"}
    for name, record in records.items():
        if name in ENDS:
            assert record["status"] == "failed" and "must not end the process" in str(record["error"])
            continue
        for field in ("success", "clean_accuracy", "outcome", "history"):
            assert record[field] == alone[field], name


@pytest.mark.parametrize("ending", ["sys.exit(0)", "raise GeneratorExit"])
def test_one_that_would_end_the_process_when_it_is_imported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    plugin = _plugin(tmp_path, "ends-at-import", at_import=ending)
    run = ["run", "--defense", plugin, "--out", str(tmp_path / "out"), *TINY]
    for command in (run, ["check", plugin], ["show", "defense", plugin]):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and len(printed.err.splitlines()) == 1
        assert "must not end the process" in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "hook", "found"),
    [
        ("exits", "sys.exit(0)", "must not end the process"),
        ("precision", "torch.set_float32_matmul_precision('medium')", "torch's precision"),
        ("thread", "threading.Thread(target=time.sleep, args=(3,), name='endless').start()", "thread 'endless'"),
    ],
)
def test_the_contract_finds_them(tmp_path: Path, name: str, hook: str, found: str) -> None:
    results = check(_plugin(tmp_path, name, in_hook=hook))
    assert any(not result.passed and found in result.detail for result in results)
