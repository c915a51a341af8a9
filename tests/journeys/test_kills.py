"""SIGKILL, again and again: the next command goes on from what is there. At length: `benchmarks/kill_storm.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.aftermath import RUN, assert_in_step, records
from tests.kills import Kills, stage

MARKS = ("store/networks/*/*.safetensors", "records/*/*/*/*.json", ".mlflow.db.*.tmp")


@pytest.mark.slow
def test_a_run_that_is_killed_over_and_over(tmp_path: Path, undisturbed: Path) -> None:
    """While it trains, when a record is there, and in the middle of its first tracking."""
    out, kills = tmp_path / "out", Kills(tmp_path / "tmp")
    kills.temporary.mkdir()
    run, wanted = (*RUN, "--out", str(out), "--jobs", "1"), records(undisturbed)
    for mark in MARKS:
        said = kills.kill(lambda _, mark=mark: next(out.glob(mark), None) is not None, *run)  # type: ignore[misc]
        assert said is not None and stage(said, out, len(wanted)) not in ("start", "plan"), said
        assert list(out.glob("scratch/*"))
    kills.finish(*run)
    assert not kills.left(out)
    assert records(out) == wanted
    assert_in_step(out, f"sqlite:///{out}/mlflow.db")
