"""The table at the end of a run is the leaderboard of the run: roles, intervals, paired differences."""

from __future__ import annotations

from bench.storage.record import Record
from bench.views.leaderboard import leaderboard
from bench.views.text import run_table
from tests.records import HOSTILE, cell


def table(records: list[Record]) -> str:
    return run_table(leaderboard(records))


def lines_with(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


def backdoor(attack: str, successes: list[float | None], **changes: object) -> list[Record]:
    trials = cell(attack, "none", successes, **changes)
    for trial in trials:
        if trial["status"] == "done":
            trial["outcome"] = {"backdoor": {"asr_all": trial["success"]}}
    return trials


def test_attacks_are_compared_with_the_control_and_defenses_with_the_undefended_victim() -> None:
    text = table(cell("none", "none", [0, 0, 0, 0]) + cell("gm", "none", [1, 1, 1, 0]) + cell("gm", "d", [0, 1, 0, 0]))
    compared = lines_with(text, "against")
    assert [line.partition(":")[0] for line in compared] == [
        "gm x d against gm x none",
        "gm x none against none x none",
    ]
    assert "-50 points" in compared[0] and "+75 points" in compared[1]
    assert all("paired, 4 trials" in line for line in compared)


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


def test_a_comparison_takes_only_trials_that_both_finished() -> None:
    control = backdoor("none-trigger", [0.1, 0.2, 0.1], poisons__n=0)
    attack = backdoor("sleeper", [0.5, None, 0.7])
    (line,) = lines_with(table(control + attack), "against")
    assert "+50 points" in line and "2 trials" in line
    assert "1.2/2 (1 failed)" in lines_with(table(control + attack), "undefended")[0]


def test_the_control_with_a_trigger_is_a_control() -> None:
    text = table(backdoor("none-trigger", [0.05, 0.1], poisons__n=0) + backdoor("sleeper", [0.5, 0.9]))
    assert "clean control" in text and "base rate without poisons: 8 %" in text


def test_a_run_without_a_control_compares_what_it_has() -> None:
    assert not lines_with(table(cell("gm", "none", [1, 0])), "against")
    assert len(lines_with(table(cell("gm", "none", [1, 0]) + cell("gm", "d", [0, 0])), "against")) == 1


def test_a_control_of_another_seed_is_none() -> None:
    assert not lines_with(table(cell("gm", "none", [1, 0]) + cell("none", "none", [0, 0], seed=1)), "against")


def test_with_both_controls_every_attack_is_compared_with_its_own() -> None:
    controls = cell("none", "none", [0, 0]) + backdoor("none-trigger", [0.1, 0.1], poisons__n=0)
    text = table(controls + cell("gm", "none", [1, 1]) + backdoor("sleeper", [0.5, 0.9]))
    assert [line.partition(":")[0] for line in lines_with(text, "against")] == [
        "gm x none against none x none",
        "sleeper x none against none-trigger x none",
    ]
    assert "base rate without poisons (none): 0 %" in text and "(none-trigger): 10 %" in text


def test_few_trials_are_pointed_out_and_names_cannot_move_the_cursor() -> None:
    assert "n = 2: too few trials to compare" in table(cell("gm", "none", [1, 0]))
    assert "too few" not in table(cell("gm", "none", [1] * 20))
    text = table(cell(HOSTILE, HOSTILE, [1.0]) + cell(HOSTILE, "none", [1.0]))
    assert "\x1b" not in text and "?[31m" in text
