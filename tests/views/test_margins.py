"""The change of the target's margin: which trials count, which sign it has, and that every view shows the same."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.foundation.statistics import typical_change
from bench.storage.record import Record, parse, sealed
from bench.storage.records import read_standings
from bench.views.frames import leaderboard_frame, records_frame, records_of
from bench.views.html import page
from bench.views.leaderboard import MARGIN, Entry, leaderboard
from bench.views.mlflow.mapping import cell_metrics
from bench.views.reading import reading
from bench.views.text import as_csv, as_json, logits, margin, markdown, table
from tests.records import cell, lines, record, several

BARE = [3.0, -1.0, 2.5, 4.0, 0.5, 1.0, -2.0]
DEFENDED = [-1.0, -1.5, -2.0, 1.0, -0.5, -3.5, -2.25]
CHANGES = [-4.0, -0.5, -4.5, -3.0, -1.0, -4.5, -0.25]


def with_margins(attack: str, defense: str, margins: Sequence[float | None], **changes: object) -> list[Record]:
    return cell(
        attack, defense, [float(m is not None and m > 0) for m in margins],
        outcome=lambda i: {"target_margin": margins[i], "backdoor": None}, **changes,
    )  # fmt: skip


@pytest.fixture
def records() -> list[Record]:
    return [*with_margins("none", "none", [-6.0] * 7), *with_margins("gm", "none", BARE),
            *with_margins("gm", "d", DEFENDED)]  # fmt: skip


def of(records: list[Record], defense: str = "d") -> Entry:
    (entry,) = [e for e in leaderboard(records) if e.figures.defense == defense and e.figures.attack == "gm"]
    return entry


def test_below_zero_the_defense_moved_the_target_away_from_the_attackers_class(records: list[Record]) -> None:
    found = of(records).comparison
    assert found and found.margin
    assert (found.margin.typical, found.margin.interval, found.margin.p) == typical_change(CHANGES)
    assert found.margin.typical < 0 and found.margin.n == 7
    attack = of(records, "none").over_control
    assert attack and attack.margin and attack.margin.typical > 0  # the attack moved it towards that class
    assert "negative: the defense moved the target away from the attacker's class; positive: towards it" in MARGIN


def test_only_pairs_in_which_both_tell_their_margin_count(records: list[Record]) -> None:
    margins = [*DEFENDED[:5], None, None]
    found = of([*records[:14], *with_margins("gm", "d", margins)])
    assert found.comparison and found.comparison.n == 7 and found.comparison.margin
    assert (found.comparison.margin.n, found.comparison.margin.interval) == (5, None)
    assert margin(found) == "-2.5 p = 0.062, n = 5"
    untold = of([*records[:14], *cell("gm", "d", [0.0] * 7)])
    assert untold.comparison and untold.comparison.margin is None and margin(untold) == "-"
    assert untold.comparison.as_dict()["margin_p"] is None and MARGIN not in table([untold], "none")


def test_victims_of_a_trial_count_by_their_mean() -> None:
    def victims(defense: str, margins: list[list[float]]) -> list[Record]:
        trials = several("gm", defense, [[0.0] * len(each) for each in margins])
        for trial in trials:
            trial["outcome"] = {"target_margin": margins[trial["trial"]][trial["victim"]]}
        return trials

    found = of([*victims("none", [[1.0, 3.0], [0.0, 0.0]]), *victims("d", [[0.0, 1.0], [-4.0, 2.0]])]).comparison
    assert found and found.margin
    assert (found.margin.typical, found.margin.n) == (typical_change([-1.5, -1.0])[0], 2)


def test_every_view_shows_it(records: list[Record], tmp_path: Path) -> None:
    entry, board = of(records), leaderboard(records)
    assert entry.comparison and entry.comparison.margin and entry.comparison.margin.interval
    change, (low, high) = entry.comparison.margin, entry.comparison.margin.interval
    shown = f"{change.typical:+.1f} [{low:+.1f}, {high:+.1f}]"
    assert logits(change) == shown
    for text in (table(board, "none"), page(board, "none"), markdown(board, "none").replace("\\", "")):
        assert f"{shown} p = 0.016" in text and "towards it" in text
    assert f"margin {shown}" in reading(board)[0]
    (row,) = [row for row in csv.DictReader(io.StringIO(as_csv(board, "none"))) if row["defense"] == "d"]
    (told,) = [one["comparison"] for one in json.loads(as_json(board, "none")) if one["defense"] == "d"]
    for name in ("margin", "margin_low", "margin_high", "margin_p", "margin_n"):
        assert float(row[f"comparison_{name}"]) == pytest.approx(told[name]) == pytest.approx(change.as_dict()[name])
    metrics = cell_metrics(entry)
    assert [metrics[f"margin_change{end}"] for end in ("", "_low", "_high")] == [change.typical, low, high]
    assert metrics["success_change"] == entry.comparison.difference
    frames = [records_of(records_frame(records)), read_standings(None, [lines(tmp_path / "r.jsonl", records)], print)]
    for again in frames:
        assert leaderboard_frame(leaderboard(again)).equals(leaderboard_frame(board))


def test_small_changes_have_two_digits() -> None:
    trials = [*with_margins("gm", "none", [0.0] * 6), *with_margins("gm", "d", [-0.125, -0.25, -0.25, 0.5, -0.5, 0.0])]
    assert re.fullmatch(r"-0\.\d\d \[-0\.50, \+0\.50\] p = 0\.\d+", margin(of(trials)))


def test_a_margin_that_no_network_has_is_damage() -> None:
    sound = record("gm", "d", 0, 1.0, outcome={"target_margin": 3.4e38})
    assert parse(sealed(sound)) == sound
    with pytest.raises(ValueError, match="target_margin"):
        parse(sealed({**sound, "outcome": {"target_margin": 3.4e48}}))
