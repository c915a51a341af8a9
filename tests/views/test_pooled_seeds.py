"""`leaderboard --pool`: trials of several seeds as one cell; what its intervals say, and what is never put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.foundation.statistics import interval, mean_interval, over_seeds, paired_difference, paired_test
from bench.storage.record import Record
from bench.views.frames import leaderboard_frame, records_frame, records_of
from bench.views.html import page
from bench.views.leaderboard import ONE_SEED, SEVERAL_SEEDS, Entry, leaderboard
from bench.views.text import run_table, table
from tests.records import cell, lines, several

BARE = {1: [1, 1, 1, 0], 2: [1, 0, 1, 1], 3: [1, 1, 1, 1]}
DEFENDED = {1: [0, 0, 1, 0], 2: [0, 1, 0, 0], 3: [0, 0, 1, 1]}
OVER = [seed for seed in BARE for _ in range(4)]


def seeds(attack: str, defense: str, successes: dict[int, list[int]], **changes: object) -> list[Record]:
    return [trial for seed, each in successes.items() for trial in cell(attack, defense, each, seed=seed, **changes)]


def flat(successes: dict[int, list[int]]) -> list[float]:
    return [float(success) for each in successes.values() for success in each]


@pytest.fixture
def records() -> list[Record]:
    return [*seeds("gm", "none", BARE, accuracy=lambda i: 0.9 + i / 100), *seeds("gm", "d", DEFENDED)]


def by_defense(board: list[Entry]) -> dict[str, Entry]:
    return {entry.figures.defense: entry for entry in board}


def test_without_it_a_board_has_a_cell_for_each_seed(records: list[Record]) -> None:
    board = leaderboard(records)
    assert sorted((e.attack_label, e.figures.defense, e.figures.n) for e in board) == [
        (f"gm [seed={seed}]", defense, 4) for seed in BARE for defense in ("d", "none")
    ]
    assert ONE_SEED in table(board, "none") and SEVERAL_SEEDS not in table(board, "none")


def test_pooled_the_trials_of_all_seeds_are_one_cell(records: list[Record]) -> None:
    board = by_defense(leaderboard(records, pool=True))
    found = board["d"]
    assert (found.attack_label, found.figures.n, found.figures.successes) == ("gm", 12, 4)
    told = found.as_dict()
    assert found.figures.seeds == (1, 2, 3) and (told["seed"], told["seeds"]) == (None, [1, 2, 3])
    assert (found.rank, board["none"].rank) == (1, 2) and found.cell != board["none"].cell
    assert found.drop and found.drop.n == 12 and found.comparison and found.comparison.n == 12


def test_every_interval_covers_that_over_trials_and_that_over_seeds(records: list[Record]) -> None:
    found = by_defense(leaderboard(records, pool=True))["d"]
    rates, (low, high) = flat(DEFENDED), over_seeds(flat(DEFENDED), OVER)[0]
    trials = interval(4, 12)
    assert found.figures.success_low == max(min(low, trials[0]), 0)
    assert found.figures.success_high == min(max(high, trials[1]), 1)
    changes = [a - b for a, b in zip(rates, flat(BARE), strict=True)]
    (low, high), p = over_seeds(changes, OVER)
    _, *ends = paired_difference(rates, flat(BARE))
    assert found.comparison and found.comparison.low == max(min(low, ends[0]), -1)
    assert found.comparison.high == min(max(high, ends[1]), 1)
    assert found.comparison.p == max(p, paired_test(rates, flat(BARE))[1] or 0)
    assert found.comparison.test == "exact McNemar and t over seeds"
    lost = [i / 100 for _ in BARE for i in range(4)]
    trials_alone = mean_interval(lost)  # the seeds agree to the last bit
    assert found.drop and found.drop.interval and trials_alone == pytest.approx(found.drop.interval)


def test_a_single_seed_pooled_is_what_it_is_alone(records: list[Record]) -> None:
    one = [record for record in records if record["seed"] == 2]
    assert leaderboard(one, pool=True)[0].figures == leaderboard(one)[0].figures
    assert [e.cell for e in leaderboard(one, pool=True)] == [e.cell for e in leaderboard(one)]
    assert ONE_SEED in table(leaderboard(one, pool=True), "none")


def test_attacks_are_compared_with_the_control_of_their_own_seeds(records: list[Record]) -> None:
    controls = seeds("none", "none", {1: [0] * 4, 2: [0] * 4, 3: [1, 0, 0, 0]})
    (entry,) = [e for e in leaderboard([*controls, *records], pool=True) if e.over_control]
    assert entry.over_control and entry.over_control.n == 12
    assert entry.over_control.difference == pytest.approx(10 / 12 - 1 / 12)


def test_trials_are_paired_within_a_seed(records: list[Record]) -> None:
    """Trial 0 of one seed has nothing to do with trial 0 of another."""
    apart = [r for r in records if (r["defense"], r["seed"]) in {("none", 1), ("none", 2), ("d", 2), ("d", 3)}]
    found = by_defense(leaderboard(apart, pool=True))["d"]
    assert found.comparison and found.comparison.n == 4 and found.comparison.difference == -2 / 4


def test_a_cell_of_fewer_seeds_than_its_rivals_is_flagged(records: list[Record]) -> None:
    board = by_defense(leaderboard([r for r in records if (r["defense"], r["seed"]) != ("d", 3)], pool=True))
    assert "2 of 3 seeds" in board["d"].flags and not any("seeds" in flag for flag in board["none"].flags)


@pytest.mark.parametrize("change", ["code__fingerprint", "settings__protocol__threat__eps", "data__fingerprint"])
def test_cells_that_differ_in_more_than_the_seed_stay_apart(change: str, records: list[Record]) -> None:
    value = 8 if change.endswith("eps") else "e" * 64
    board = leaderboard([*records, *cell("gm", "d", [1, 1], seed=4, **{change: value})], pool=True)
    assert sorted(e.figures.n for e in board if e.figures.defense == "d") == [2, 12]


def test_two_cells_of_one_seed_are_not_put_together(records: list[Record]) -> None:
    twin = cell("gm", "d", [1, 1], seed=1, cell="f" * 64)  # of listed trials, perhaps: records do not tell
    board = leaderboard([*records, *twin], pool=True)
    assert sorted(e.figures.n for e in board if e.figures.defense == "d") == [2, 4, 4, 4]
    assert len({(e.attack_label, e.defense_label) for e in board}) == len(board)


def test_victims_are_averaged_within_a_trial_of_a_seed_first() -> None:
    trials = [trial for seed in (1, 2) for trial in several("gm", "d", [[1.0, 0.0], [0.0, 0.0]], seed=seed)]
    (entry,) = leaderboard(trials, pool=True)
    assert (entry.figures.n, entry.figures.victims, entry.figures.successes) == (4, 8, 1.0)
    for text in (table([entry], "none"), page([entry], "none"), run_table([entry])):
        assert "1/4 (2 seeds, 8 victims)" in text


def test_the_command_and_the_frame_pool(
    records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(lines(tmp_path / "r.jsonl", records))
    assert main(["leaderboard", file, "--pool", "--format", "json"]) == 0
    assert [(one["n"], one["seeds"]) for one in json.loads(capsys.readouterr().out)] == [(12, [1, 2, 3])] * 2
    assert main(["leaderboard", file, "--pool"]) == 0
    text = capsys.readouterr().out
    assert "4/12 (3 seeds)" in text and SEVERAL_SEEDS in text and ONE_SEED not in text
    frame = leaderboard_frame(leaderboard(records_of(records_frame(records)), pool=True))
    assert frame.seeds.tolist() == ["1; 2; 3"] * 2 and frame.seed.isna().all()
