"""Plug-ins of other installed packages: found by `list`, checked by `check`, run in worker processes; broken ones do no
harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import SETS

ROOT = Path(__file__).parents[2]

INVERT = '''
"""Inverted images."""

import os
from pathlib import Path

from bench.plugin import Defense, register


@register("defense", "their-invert")
class Invert(Defense):
    """A defense of another package: trains on inverted images, and leaves the number of its process behind."""

    def setup(self, run):
        if "PIDS" in os.environ:
            (Path(os.environ["PIDS"]) / str(os.getpid())).touch()

    def batch(self, batch, run, stage):
        if stage == "pixel":
            batch.pixels = 1 - batch.pixels
        return batch
'''


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Put a package with entry points into a folder of its own, as an installer leaves it: code beside a dist-info."""

    def make(package: str, code: str, entries: str) -> Path:
        site = tmp_path / "site"
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").write_text(code)
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
        return site

    return make


def bench(site: Path, *arguments: str, **more: Any) -> tuple[int, str, str, int]:
    """`python -m bench` with the packages of `site` installed: exit code, stdout, stderr, number of the process."""
    paths = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "bench", *arguments], cwd=site, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths, **more},
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err, process.pid


@pytest.mark.slow
def test_a_plugin_of_another_package_is_listed_checked_and_run_in_workers(
    install: Callable[..., Path], tmp_path: Path
) -> None:
    site = install("theirpackage", INVERT, "[bench.defenses]\ntheir-invert = theirpackage\n")
    code, out, err, _ = bench(site, "list", "defenses")
    assert code == 0 and "  their-invert " in out and err == ""
    code, out, _, _ = bench(site, "check", "their-invert")
    assert code == 0 and out.count("ok ") >= 8 and "FAILED" not in out

    install("brokenpackage", "1 / 0", "[bench.defenses]\ntheirs = brokenpackage\n")  # from now on beside it
    pids = tmp_path / "pids"
    pids.mkdir()
    sets = [word for item in SETS for word in ("--set", item)]
    code, out, err, main = bench(
        site, "run", "--attack", "random-noise", "--defense", "their-invert", "--only", *sets, "--jobs", "2",
        "--out", str(tmp_path / "out"), "--tracking", "none", "--json", PIDS=str(pids),
    )  # fmt: skip
    assert code == 0, err
    records = json.loads(out)
    assert [(record["defense"], record["status"]) for record in records] == [("their-invert", "done")] * 2
    workers = {int(path.name) for path in pids.iterdir()}
    assert workers and main not in workers
    assert err.count("could not be loaded") == 1, "said once, not again by every worker"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package_at_all", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("raise SystemExit('go\\naway')", "SystemExit: go away"),
        (INVERT + "\nraise RuntimeError('later')", "RuntimeError: later"),
        (INVERT.replace("their-invert", "friends-b"), "BadInput: two defenses are called 'friends-b'"),
    ],
)
def test_a_broken_entry_point_is_one_line_that_names_its_package(
    install: Callable[..., Path], code: str, reason: str
) -> None:
    site = install("brokenpackage", code, "[bench.defenses]\ntheirs = brokenpackage\n")
    status, out, err, _ = bench(site, "list", "defenses")
    assert status == 0 and "  friends-b " in out and "their-invert" not in out
    assert "of package 'brokenpackage'" in err and reason in err and err.count("\n") == 1
