"""The sentence at the end of a run: what was seen and what so few trials cannot tell; never more than they bear out."""

from __future__ import annotations

import itertools
import re

import pytest

from bench.storage.record import Record
from bench.views.leaderboard import leaderboard
from bench.views.reading import reading
from tests.records import HOSTILE, cell, several


def read(*cells: list[Record]) -> str:
    (sentence,) = reading(leaderboard([record for trials in cells for record in trials]))
    return sentence


def hits(count: int, of: int) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


def with_margin(trials: list[Record], margin: float) -> list[Record]:
    for trial in trials:
        trial["outcome"] = {"target_margin": margin - trial["trial"]}
    return trials


CONTROL = cell("none", "none", hits(0, 5))


def test_few_trials_show_something_and_cannot_tell_the_rest() -> None:
    defended = cell("gm", "friends-b", hits(1, 5), accuracy=0.879)
    assert read(CONTROL, cell("gm", "none", hits(3, 5)), defended) == (
        "gm succeeded in 3 of 5 trials undefended and in 1 of 5 trials behind friends-b, at 2.1 points of accuracy "
        "(without poisons in 0 of 5 trials); so few trials cannot tell whether the poisons raise success (+3 to +88 "
        "points, p = 0.25) or friends-b lowers success (-73 to +16 points): --trials 20 narrows it."
    )


def test_what_twenty_trials_tell_is_told_with_its_interval() -> None:
    bare, defended = cell("gm", "none", hits(13, 20)), cell("gm", "friends-b", hits(4, 20))
    text = read(cell("none", "none", hits(1, 20)), with_margin(bare, 3.0), with_margin(defended, -1.0))
    told = re.search(r"; the poisons raise success by \d+ to \d+ points and (friends-b lowers .*)\.$", text)
    assert told and re.fullmatch(
        r"friends-b lowers success by \d+ to \d+ points, margin -4\.0 \[-4\.0, -4\.0\] \(95 %\)", told[1]
    )
    assert "cannot tell" not in text and "--trials" not in text


def test_a_change_is_a_fact_only_where_interval_and_test_agree() -> None:
    """Of 3 to 0 in 5 trials the interval leaves zero out, but chance alone does that in one case of four."""
    (entry,) = [e for e in leaderboard([*CONTROL, *cell("gm", "none", hits(3, 5))]) if e.over_control]
    assert entry.over_control and entry.over_control.low > 0 and entry.over_control.p == 0.25
    assert "cannot tell whether the poisons raise success (+3 to +88 points, p = 0.25)" in read(
        CONTROL, cell("gm", "none", hits(3, 5))
    )


def test_a_defense_that_makes_it_worse_is_not_praised() -> None:
    text = read(cell("gm", "none", hits(2, 20)), cell("gm", "d", hits(16, 20), accuracy=0.905))
    assert "behind d, with 0.5 points more accuracy" in text and re.search(
        r"d raises success by \d+ to \d+ points", text
    )


def test_a_single_trial_tells_nothing() -> None:
    text = read(cell("none", "none", [0.0]), cell("gm", "none", [1.0]), cell("gm", "d", [0.0]))
    assert text.startswith("gm succeeded in 1 of 1 trial undefended and in 0 of 1 trial behind d")
    assert "; a single trial cannot tell whether the poisons raise success (" in text and " by " not in text


def test_without_an_undefended_victim_no_change_is_told() -> None:
    text = read(cell("gm", "d", hits(1, 4)))
    assert text == (
        "gm succeeded in 1 of 4 trials behind d; the true rate may be 1 to 81 % behind d (95 %): --trials 20 narrows "
        "it; without an undefended victim nothing tells what a defense changes."
    )


def test_failed_trials_are_told_and_count_for_nothing() -> None:
    text = read(CONTROL, cell("gm", "none", [1, 1, None, 1, 0]), cell("gm", "d", [None, 0, 1, 0, None]))
    assert "in 3 of 4 trials (1 failed) undefended and in 1 of 3 trials (2 failed) behind d" in text
    assert read(cell("gm", "none", [1, None]), cell("gm", "d", [None, 0])).endswith(
        "; no trial finished both undefended and behind d."
    )
    assert read(cell("gm", "none", [1.0]), cell("gm", "d", [None])).endswith("; no trial of gm behind d finished.")
    lost = [cell("gm", name, [None]) for name in ("none", "a", "b", "c", "d")]
    assert read(*lost) == (
        "no trial of gm undefended finished; no trial of gm behind a finished; no trial of gm behind b finished; "
        "nor did any behind 2 more."
    )


def test_of_many_defenses_the_ends_are_named_and_the_rest_counted() -> None:
    behind = [cell("gm", f"d{k}", hits(k, 20)) for k in (0, 5, 15, 18)]
    text = read(cell("gm", "none", hits(16, 20)), *behind)
    assert "undefended and behind 4 defenses in 0 of 20 trials (d0) to 18 of 20 trials (d18)" in text
    assert text.endswith("; 2 of these defenses lower success, 0 raise it (95 %, each by itself), for 2 these trials "
                         "cannot tell.")  # fmt: skip


def test_rates_are_not_counted_as_trials() -> None:
    """Of two victims, or of many images: a sum of 2.0 over trials is no two successes."""
    text = read(several("gm", "none", [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), cell("gm", "d", [0.5, 0.5, 1.0]))
    assert text.startswith(
        "gm succeeded in 67 % (the mean of 3 trials) undefended and in 67 % (the mean of 3 trials) behind"
    )


def test_clean_controls_alone_say_what_they_are() -> None:
    sentences = reading(leaderboard([*cell("none", "none", hits(1, 20)), *cell("none", "d", hits(0, 20))]))
    assert sorted(sentences) == [
        f"without poisons{where} the victim errs as an attacker would wish in {rate}: what an attack must beat."
        for where, rate in ((" behind d", "0 of 20 trials (0 to 17 %)"), ("", "1 of 20 trials (0 to 25 %)"))
    ]
    assert reading(leaderboard(cell("none", "none", [None]))) == ["no trial of none undefended finished."]


def test_every_attack_has_a_sentence_and_its_own_control() -> None:
    def shown(trials: list[Record]) -> list[Record]:
        for trial in trials:
            trial["outcome"] = {"backdoor": {"asr_all": trial["success"]}}
        return trials

    sleeper = shown(cell("sleeper", "none", [0.5, 0.25]))
    trigger = shown(cell("none-trigger", "none", [0.1, 0.1], poisons__n=0))
    board = leaderboard([*cell("none", "none", hits(0, 2)), *cell("gm", "none", hits(2, 2)), *sleeper, *trigger])
    first, second = reading(board)
    assert first.startswith("gm succeeded in 2 of 2 trials undefended (without poisons in 0 of 2 trials);")
    assert "sleeper succeeded in 38 % (the mean of 2 trials) undefended (without poisons in 10 %" in second


def test_names_cannot_move_the_cursor() -> None:
    text = read(cell(HOSTILE, HOSTILE, [1.0]), cell(HOSTILE, "none", [1.0]))
    assert "\x1b" not in text and "\n" not in text


SIZES = [None, (0, 1), (3, 5), (5, 5), (2, 20), (18, 20)]
MADE = {
    (attack, defense, size): cell(attack, defense, hits(*size)) if size else []
    for attack, defense in (("none", "none"), ("gm", "none"), ("gm", "a"), ("gm", "b"))
    for size in SIZES
}


@pytest.mark.parametrize("bare", SIZES)
def test_whatever_was_run_what_is_said_holds(bare: tuple[int, int] | None) -> None:
    for control, first, second in itertools.product((None, (0, 1), (2, 20)), SIZES[1:], (None, (3, 5), (2, 20))):
        cells = {("none", "none"): control, ("gm", "none"): bare, ("gm", "a"): first, ("gm", "b"): second}
        board = leaderboard([record for (a, d), size in cells.items() for record in MADE[a, d, size]])
        (text,) = reading(board)
        for (attack, defense), size in cells.items():
            if attack == "gm" and size:
                where = "undefended" if defense == "none" else f"behind {defense}"
                assert f"in {size[0]} of {size[1]} trial{'s' * (size[1] > 1)} {where}" in text
        for entry in board:
            if paired := entry.comparison:
                certain = paired.p is not None and paired.p <= 0.05
                lowers, raises = certain and paired.high < 0, certain and paired.low > 0
                name = entry.defense_label
                assert (f"{name} lowers success by" in text, f"{name} raises success by" in text) == (lowers, raises)
                assert (f"{name} lowers success (" in text) == (not lowers and not raises)
        assert ("without an undefended victim" in text) == (not bare)
