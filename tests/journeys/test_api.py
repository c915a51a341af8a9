"""`import bench`: the public functions, from Python as from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import bench
from bench.cli.main import main
from bench.foundation.errors import BadInput
from tests.aftermath import ROOT
from tests.tiny import ATTACK_SETS, SETS

TINY = [*SETS, *ATTACK_SETS]
RECORDS = ROOT / "results" / "quick" / "records.jsonl"


def test_import_bench_is_quick_and_loads_no_torch() -> None:
    code = "import sys, bench; print(sorted(bench.__all__)); print('torch' in sys.modules, 'pandas' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert finished.stdout.splitlines() == [
        "['check', 'craft', 'defend', 'leaderboard', 'records', 'run', 'sweep']",
        "False False",
    ]
    (line,) = [line for line in finished.stderr.splitlines() if line.split("|")[-1].strip() == "bench"]
    assert int(line.split("|")[1]) < 200_000, "microseconds"


def test_what_is_public_is_listed_and_documented() -> None:
    assert set(bench.__all__) <= set(dir(bench))
    for name in bench.__all__:
        assert len((getattr(bench, name).__doc__ or "").split()) > 8, name
    with pytest.raises(AttributeError, match="module 'bench' has no attribute 'runn'"):
        _ = bench.runn


def test_frames_are_made_without_torch() -> None:
    code = f"import sys, bench; bench.leaderboard(bench.records({str(RECORDS)!r})); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def frame(out: Path) -> pd.DataFrame:
    return bench.run("gm", ["friends-b[start=1]"], trials=2, set=TINY, out=out, jobs=1, device="cpu")


@pytest.mark.slow
def test_run_gives_the_records_of_the_command(
    frame: pd.DataFrame, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    options = [word for item in TINY for word in ("--set", item)]
    code = main(
        ["run", "--attack", "gm", "--defense", "friends-b[start=1]", "--trials", "2", *options, "--out", str(out)]
        + ["--jobs", "1", "--device", "cpu", "--tracking", "none", "--json"]
    )
    records = json.loads(capsys.readouterr().out)
    assert code == 0 and all(record["cached"] for record in records), "the same request: nothing is left to do"
    assert list(frame.key) == [record["key"] for record in records]
    assert list(frame.success) == [record["success"] for record in records]
    assert list(frame.clean_accuracy) == [record["clean_accuracy"] for record in records]
    assert list(frame["seconds.train"]) == [record["seconds"]["train"] for record in records]
    from_disk = bench.records(out).sort_values("key", ignore_index=True)
    pd.testing.assert_frame_equal(from_disk, frame.sort_values("key", ignore_index=True), check_like=True)


def test_the_leaderboard_of_a_run_is_that_of_its_records(frame: pd.DataFrame, out: Path) -> None:
    board = bench.leaderboard(frame)
    assert [(row.attack, row.defense, row.n) for row in board.itertuples()] == [
        ("none", "none", 2), *[("gm", name, 2) for name in board.defense[1:]],
    ]  # fmt: skip
    assert set(board.defense) == {"none", "friends-b"}
    from_disk = bench.leaderboard(bench.records(out))
    pd.testing.assert_frame_equal(_by_cell(from_disk), _by_cell(board))


def _by_cell(board: pd.DataFrame) -> pd.DataFrame:
    return board.sort_values("cell", ignore_index=True)


def test_frames_can_be_filtered_and_put_together(frame: pd.DataFrame) -> None:
    halves = pd.concat([frame[frame.trial == 0], frame[frame.trial == 1]])
    pd.testing.assert_frame_equal(_by_cell(bench.leaderboard(halves)), _by_cell(bench.leaderboard(frame)))
    assert set(bench.leaderboard(frame[frame.trial == 0]).n) == {1}


def test_a_frame_goes_through_a_parquet_file(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_parquet(tmp_path / "trials.parquet")
    back = pd.read_parquet(tmp_path / "trials.parquet")
    pd.testing.assert_frame_equal(_by_cell(bench.leaderboard(back)), _by_cell(bench.leaderboard(frame)))


def test_the_leaderboard_of_a_frame_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--records", str(RECORDS), "--baseline", "friends-b", "--format", "json"]) == 0
    cells = json.loads(capsys.readouterr().out)
    board = bench.leaderboard(bench.records(RECORDS), baseline="friends-b")
    for name in (
        "cell",
        "defense_label",
        "attack_label",
        "successes",
        "n",
        "failed",
        "success_high",
        "accuracy_drop_n",
    ):
        assert list(board[name]) == [cell[name] for cell in cells], name
    for name in ("accuracy_drop", "accuracy_drop_low", "train_cost", "rank"):
        expected = [cell[name] if cell[name] is not None else np.nan for cell in cells]
        np.testing.assert_array_equal(board[name].astype(float), np.array(expected, float), name)
    assert list(board["flags"]) == ["; ".join(cell["flags"]) for cell in cells]


def test_settings_may_be_a_dictionary_and_names_a_list(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"trials": 1, "out": tmp_path, "jobs": 1, "device": "cpu", "only": True}
    as_items = bench.run("random-noise", ["none"], set=[*SETS, "train.drops=[1]"], **shared)
    as_dict = dict(item.split("=") for item in SETS)
    values = {key: json.loads(value) for key, value in as_dict.items()} | {"train.drops": [1]}
    again = bench.run(["random-noise"], "none", set=values, **shared)
    assert list(again.key) == list(as_items.key)


def test_a_sweep_file_is_run_with_changes(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('attacks = ["random-noise"]\n[[block]]\ndefenses = ["none"]\n[[block]]\ndefenses = ["noise-b"]\n')
    frame = bench.sweep(file, trials=1, only=True, set=SETS, out=tmp_path / "out", jobs=1, device="cpu")
    assert list(frame.defense) == ["none", "noise-b"] and set(frame.status) == {"done"}


def test_craft_gives_the_poisons_that_victims_are_trained_on(frame: pd.DataFrame, out: Path) -> None:
    poisons = bench.craft("gm", trial=1, set=TINY, out=out, device="cpu")
    assert poisons.images.dtype == torch.uint8 and poisons.images.shape[1:] == (3, 16, 16)
    row = frame[(frame.attack == "gm") & (frame.trial == 1)].iloc[0]
    assert len(poisons.ids) == len(poisons.images) == row["poisons.n"]
    again = bench.craft("gm", trial=1, set=TINY, out=out, device="cpu")
    assert torch.equal(poisons.images, again.images)
    assert not torch.equal(poisons.ids, bench.craft("gm", trial=0, set=TINY, out=out, device="cpu").ids)


def test_check_tells_what_was_kept() -> None:
    results = bench.check("none")
    assert results and all(result.passed for result in results)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda out: bench.run("gn", out=out), "unknown attack 'gn'; did you mean 'gm'?"),
        (lambda out: bench.run("gm", "friends-b[mux=8]", out=out), "unknown key 'defense.mux'; did you mean 'mu'?"),
        (lambda out: bench.run("gm", trials=0, out=out), "'trials': 0; allowed"),
        (lambda out: bench.run("gm", set="threat.eps=8", out=out), "allowed: a list of key=value items, or a dict"),
        (lambda out: bench.run("gm", set={"threat.epss": 8}, out=out), "did you mean 'eps'?"),
        (lambda out: bench.run("gm", jobs=0, out=out), "--jobs 0; allowed: 1 to 1024"),
        (lambda out: bench.sweep("friends-tabl1", out=out), "did you mean 'friends-table1'?"),
        (lambda out: bench.craft("gm", trial=-1, out=out), "trial -1; allowed: 0 and more"),
        (lambda out: bench.records(out), "cannot be read"),
        (lambda out: bench.records([out / "none.jsonl"]), "cannot be read"),
        (lambda out: bench.leaderboard(pd.DataFrame({"a": [1]})), "these are no trial records"),
        (lambda out: bench.check("frends-b"), "did you mean 'friends-b'?"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, call: Any, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        call(tmp_path / "out")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
