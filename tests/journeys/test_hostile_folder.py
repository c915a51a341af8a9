"""Research repositories have folders called attacks/, defenses/ or models/ and files called utils.py: in such a folder
every command of the README works, and none of those files is executed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.aftermath import ROOT

PACKAGES = (
    *("attacks", "defenses", "results", "tests", "models", "datasets", "views", "science", "storage", "foundation"),
    *("exchange", "execution", "request", "authoring", "figures", "cli", "published", "plugin"),
)
FILES = (
    *("results.py", "bench_utils.py", "data.py", "utils.py", "science.py", "cli.py", "errors.py", "settings.py"),
    *("registry.py", "records.py", "training.py", "friends.py", "options.py", "protocol.py", "conftest.py", "setup.py"),
)
PLUGIN = '''
from bench.plugin import Defense, register


@register("defense", "of-the-folder")
class OfTheFolder(Defense):
    """A defense of the user's own, named by its file: does nothing."""
'''
COMMANDS = [
    "list",
    "list defenses",
    "show defense friends-b",
    "show attack gm",
    "show protocol quick",
    "show sweep friends-table1",
    "show dataset photographs",
    "show model convnet",
    "show engine slurm",
    "run --attack gm --defense friends-b --defense my_defense.py --plan",
    "run --attack random-noise --trials 1 --only --tracking none --jobs 1 --set train.epochs=1 "
    "--set dataset.train_per_class=10 --set dataset.test_per_class=2 --set threat.budget=0.05",
    "sweep friends-table4 --protocol quick --trials 1 --plan",
    "export poisons --attack random-noise --trials 1",
    "import poisons ours --trials 1",
    "leaderboard",
    "leaderboard --format html --to board.html",
    "new defense another_defense --dir plugins_of_mine",
    "check my_defense.py",
    "figure",
    "figure poisons --help",
    "sync",
]
IN_ONE_PROCESS = """
import json, shlex, sys
from bench.cli.main import main
for command in json.loads(sys.argv[1]):
    print("->", command, flush=True)
    code = main(shlex.split(command))
    assert code == 0, f"{command}: exit {code}"
import bench
assert len(bench.records()) == 1 and len(bench.leaderboard(bench.records())) == 1
assert bench.craft("random-noise").images.shape[1] == 3
assert all(result.passed for result in bench.check("none"))
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose every file leaves a mark when it is executed."""
    folder = tmp_path / "their repository"
    folder.mkdir()
    for package in PACKAGES:
        (folder / package).mkdir()
        for name in ("__init__", "base", "main", "gradient_matching", "shared"):
            _mine(folder / package / f"{name}.py")
    for name in FILES:
        _mine(folder / name)
    (folder / "my_defense.py").write_text(PLUGIN)
    return folder


def _mine(path: Path) -> None:
    mark = path.parent.parent / "marks" if path.parent.name in PACKAGES else path.parent / "marks"
    path.write_text(f"from pathlib import Path\nPath({str(mark)!r}).open('a').write({str(path)!r} + '\\n')\n")


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


@pytest.mark.slow
def test_every_command_works_in_a_folder_with_files_of_our_names_and_none_of_them_is_executed(hostile: Path) -> None:
    (hostile / "start.py").write_text(IN_ONE_PROCESS)  # the script's own folder comes first on its path
    finished = _python(hostile, "start.py", json.dumps(COMMANDS))
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    assert not (hostile / "marks").exists(), (hostile / "marks").read_text()
    assert "ModuleNotFoundError" not in finished.stderr and "Traceback" not in finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "list attacks",
        "leaderboard --records one.jsonl",
        "run --attack random-noise --defense my_defense.py --trials 1 --tracking none --jobs 2 --set train.epochs=1 "
        "--set dataset.train_per_class=10 --set dataset.test_per_class=2 --set threat.budget=0.05",
    ],
)
def test_so_do_the_module_and_its_worker_processes(hostile: Path, command: str) -> None:
    published = ROOT / "results" / "quick" / "records.jsonl"
    (hostile / "one.jsonl").write_text(published.read_text().partition("\n")[0] + "\n")
    finished = _python(hostile, "-m", "bench", *shlex.split(command))
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert not (hostile / "marks").exists(), (hostile / "marks").read_text()
