"""The fingerprint of code: all of bench.science and a plug-in's own imports shape it, nothing else does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.foundation import fingerprint

ROOT = Path(__file__).parents[2]

# Prints for every file whether one more statement in it moves the fingerprints of strip, of gm and of the model.
LOOK = """
import json, sys
from pathlib import Path
import bench
from bench.foundation import fingerprint
from bench.foundation.registry import find

makers = [find("defense", "strip").make, find("attack", "gm").make, find("model", "convnet").make]

def codes():
    fingerprint._source.cache_clear()
    fingerprint._closure.cache_clear()
    return [fingerprint.code(maker) for maker in makers]

root = Path(bench.__file__).parent
before, moved = codes(), {}
for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".toml", ".css", ".js", ".html", ".md")):
    text = path.read_text()
    for name, change in (("comment", "\\n# 1\\n"), ("statement", "\\n0\\n")):
        path.write_text(text + change)
        moved.setdefault(str(path.relative_to(root)), {})[name] = [a != b for a, b in zip(before, codes())]
    path.write_text(text)
assert codes() == before
print(json.dumps(moved))
"""


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[bool]]]:
    place = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bench", place / "bench", ignore=ignored)  # the links become folders, as in a wheel
    command = [sys.executable, "-c", LOOK]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_every_statement_of_science_counts_for_everything(moved: dict[str, dict[str, list[bool]]]) -> None:
    science = {path: moves["statement"] for path, moves in moved.items() if path.startswith("science/")}
    assert len(science) > 20
    assert {path for path, moves in science.items() if not all(moves)} == set()


@pytest.mark.slow
def test_comments_and_layout_do_not_count(moved: dict[str, dict[str, list[bool]]]) -> None:
    assert {path for path, moves in moved.items() if path.endswith(".py") and any(moves["comment"])} == set()


@pytest.mark.slow
def test_a_plugin_counts_with_what_it_imports_and_nothing_else_does(moved: dict[str, dict[str, list[bool]]]) -> None:
    outside = {path: moves["statement"] for path, moves in moved.items() if not path.startswith("science/")}
    of_strip, of_gm, of_model = ({path for path, moves in outside.items() if moves[i]} for i in range(3))
    assert of_model == {"models/convnet.py"}
    assert "defenses/strip.py" in of_strip and all(path.startswith("defenses/") for path in of_strip)
    assert {"attacks/gradient_matching.py", "attacks/crafting/matching.py"} <= of_gm
    assert all(path.startswith("attacks/") for path in of_gm)
    assert any(path.startswith("defenses/shared/") for path in of_strip)


PROBE = "import torch; from bench.foundation.fingerprint import numerics; print(numerics(torch.device('cpu'), {}))"


def numerics_with(threads: int, **variables: str) -> str:
    command = [sys.executable, "-c", PROBE.format(threads)]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_what_changes_bits_on_a_cpu_changes_the_numerics() -> None:
    usual = numerics_with(1)
    assert usual == numerics_with(1, OMP_NUM_THREADS="2")
    assert usual != numerics_with(2)
    assert usual != numerics_with(1, ATEN_CPU_CAPABILITY="default")


def test_threads_are_those_of_the_study_and_left_as_they_were() -> None:
    before = torch.get_num_threads()
    one, two = (fingerprint.numerics(torch.device("cpu"), threads) for threads in (1, 2))
    assert one != two and one["arithmetic"] != two["arithmetic"] and torch.get_num_threads() == before
    assert fingerprint.numerics(torch.device("cuda"), 1) == fingerprint.numerics(torch.device("cuda"), 2)
