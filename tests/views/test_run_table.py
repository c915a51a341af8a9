"""The table at the end of a run is the leaderboard of the run, with the part that each cell has in it."""

from __future__ import annotations

from bench.storage.record import Record
from bench.views.leaderboard import leaderboard
from bench.views.text import run_table
from tests.records import HOSTILE, cell


def table(records: list[Record]) -> str:
    return run_table(leaderboard(records))


def test_rows_have_a_role_and_the_ranks_of_the_leaderboard() -> None:
    text = table(
        [
            *cell("none", "none", [0, 0]),
            *cell("none", "d", [0, 0]),
            *cell("gm", "none", [1, 1], accuracy=0.9),
            *cell("gm", "d", [0, None], accuracy=0.85, seconds__train=5.0),
            *cell("gm", "broken", [None, None]),
        ]
    )
    rows = [" ".join(line.split()) for line in text.splitlines()[2:7]]
    assert rows == [
        "1 none none clean control 0/2 0 % [0, 84] 90.0 % - 1.0 2.0",
        "1 none d clean, defended 0/2 0 % [0, 84] 90.0 % 0.0 1.0 2.0",
        "1 gm d defended 0/1 (1 failed) 0 % [0, 98] 85.0 % 5.0 1.0 5.0",
        "2 gm none undefended 2/2 100 % [16, 100] 90.0 % - 1.0 2.0",
        "- gm broken defended 0/0 (2 failed) - - - - -",
    ]
    assert max(map(len, text.splitlines())) <= 120


def test_the_control_with_a_trigger_is_a_control() -> None:
    trials = cell("none-trigger", "none", [0.05, 0.1], poisons__n=0)
    for trial in trials:
        trial["outcome"] = {"backdoor": {"asr_all": trial["success"]}}
    assert "clean control" in table(trials)


def test_names_cannot_move_the_cursor() -> None:
    text = table(cell(HOSTILE, HOSTILE, [1.0]) + cell(HOSTILE, "none", [1.0]))
    assert "\x1b" not in text and "?[31m" in text
