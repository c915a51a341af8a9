"""Several victims for one set of poisons: cells count by trials, pairs are of one trial and victim, flags tell gaps."""

from __future__ import annotations

import pytest

from bench.foundation.statistics import paired_difference, rates_interval
from bench.storage.record import Record
from bench.views.frames import leaderboard_frame, records_frame, records_of
from bench.views.html import page
from bench.views.leaderboard import Entry, leaderboard
from bench.views.text import run_table, table
from tests.records import cell, several

OURS, THEIRS = [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


def entries(records: list[Record]) -> dict[str, Entry]:
    return {entry.figures.defense: entry for entry in leaderboard(records)}


@pytest.fixture
def records() -> list[Record]:
    return [*several("gm", "none", THEIRS, accuracy=0.9), *several("gm", "d", OURS, accuracy=0.8)]


def test_a_trials_success_is_the_rate_of_its_victims(records: list[Record]) -> None:
    found = entries(records)["d"]
    assert (found.figures.n, found.figures.victims, found.figures.successes) == (3, 6, 1.0)
    assert (found.figures.success_low, found.figures.success_high) == rates_interval([0.5, 0.0, 0.5])
    assert found.comparison and (found.comparison.n, found.comparison.test) == (3, "exact sign flips")
    expected = paired_difference([0.5, 0.0, 0.5], [1.0, 0.5, 1.0], several=True)
    assert (found.comparison.difference, found.comparison.low, found.comparison.high) == expected
    assert found.drop and (found.drop.n, found.drop.mean) == (3, pytest.approx(0.1))
    assert not any("victims" in flag for flag in found.flags)


def test_every_view_tells_how_many_victims_there_are(records: list[Record]) -> None:
    board = leaderboard(records)
    for text in (run_table(board), table(board, "none"), page(board, "none")):
        assert "1/3 (6 victims)" in text
    assert "12 victims in 2 cells" in page(board, "none") and "Gaffke" in table(board, "none")
    frame = records_frame(records)
    assert frame.victim.tolist() == [0, 1] * 6
    assert leaderboard_frame(leaderboard(records_of(frame))).equals(leaderboard_frame(board))


def test_a_table_of_an_older_version_has_first_victims_only() -> None:
    board, frame = leaderboard(cell("gm", "d", [1.0, 0.0])), records_frame(cell("gm", "d", [1.0, 0.0]))
    assert leaderboard(records_of(frame.drop(columns="victim")))[0].figures == board[0].figures


def test_unequal_numbers_are_flagged_and_only_victims_of_both_are_compared() -> None:
    uneven = several("gm", "d", [[0.0, 1.0], [0.0, None], [1.0]])
    found = entries([*several("gm", "none", THEIRS), *uneven])["d"]
    assert "1 failed" in found.flags and "1 to 2 victims per trial" in found.flags
    assert "more or fewer victims than the cell it is compared with in 2 trials" in found.flags
    assert (found.figures.n, found.figures.victims, found.figures.success_rate) == (3, 4, 0.5)
    assert found.comparison and found.comparison.difference == pytest.approx((0.5 + 0 + 1) / 3 - 1)


def test_first_victims_against_several_are_compared_as_single_ones() -> None:
    found = entries([*cell("gm", "none", [1.0, 1.0, 1.0]), *several("gm", "d", OURS)])["d"]
    assert found.comparison and (found.comparison.test, found.comparison.n) == ("exact McNemar", 3)
    assert found.comparison.difference == pytest.approx(1 / 3 - 1)


def test_rates_over_many_images_keep_students_test_on_trials() -> None:
    rates = [*several("gm", "none", [[0.5, 0.7], [0.9, 0.8]]), *several("gm", "d", [[0.1, 0.2], [0.3, 0.2]])]
    found = entries(rates)["d"]
    assert found.comparison and (found.comparison.test, found.comparison.n) == ("paired t", 2)
