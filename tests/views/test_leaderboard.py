"""Cells from records: ranks, labels, paired figures, flags, published values."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy import stats

from bench.views.leaderboard import Entry, leaderboard
from bench.views.published import published
from tests.records import cell, record


def of(entries: list[Entry], attack: str, defense: str) -> Entry:
    (found,) = [e for e in entries if (e.figures.attack, e.figures.defense) == (attack, defense)]
    return found


@pytest.fixture
def board() -> list[Entry]:
    undefended = [1] * 13 + [0] * 7
    defended = [1] * 4 + [0] * 16
    return leaderboard(
        [
            *cell("gm", "none", undefended, accuracy=lambda i: 0.90 + 0.001 * i),
            *cell("gm", "d", defended, accuracy=lambda i: 0.87 + 0.002 * i, seconds__train=3.0),
            *cell("gm", "e", defended, accuracy=0.95),
            *cell("none", "none", [0] * 20),
        ]
    )


def test_figures_of_a_cell(board: list[Entry]) -> None:
    d = of(board, "gm", "d").as_dict()
    assert (d["n"], d["failed"], d["successes"], d["success_rate"]) == (20, 0, 4, 0.2)
    assert (d["success_low"], d["success_high"]) == pytest.approx(tuple(stats.binomtest(4, 20).proportion_ci()))
    accuracies = [0.87 + 0.002 * i for i in range(20)]
    around = stats.t.interval(0.95, 19, loc=0.889, scale=stats.sem(accuracies))
    assert d["clean_accuracy"] == pytest.approx(0.889)
    assert (d["clean_accuracy_low"], d["clean_accuracy_high"]) == pytest.approx(around)
    # The drop of trial i is 0.03 - 0.001 i.
    lost = [0.03 - 0.001 * i for i in range(20)]
    assert d["accuracy_drop"] == pytest.approx(0.0205) and d["accuracy_drop_n"] == 20
    assert d["accuracy_drop_low"] == pytest.approx(stats.t.interval(0.95, 19, loc=0.0205, scale=stats.sem(lost))[0])
    assert d["train_cost"] == 1.5
    assert d["comparison"]["p"] == pytest.approx(2 / 512)  # nine trials undefended only, none behind d only
    assert (d["comparison"]["test"], d["comparison"]["n"]) == ("exact McNemar", 20)
    assert d["comparison"]["difference"] == pytest.approx(-0.45) and d["comparison"]["baseline"] == "none"
    assert not d["flags"]


def test_lower_success_ranks_first_then_accuracy(board: list[Entry]) -> None:
    assert [(e.figures.defense, e.rank) for e in board if e.figures.attack == "gm"] == [("e", 1), ("d", 2), ("none", 3)]
    assert of(board, "none", "none").rank == 1


def test_equal_cells_share_a_rank_and_the_order_of_records_does_not_matter() -> None:
    records = [*cell("gm", "a", [0, 1]), *cell("gm", "b", [1, 0]), *cell("gm", "none", [1, 1])]
    assert [e.rank for e in leaderboard(records)] == [1, 1, 3]
    random.Random(0).shuffle(records)
    again = {e.figures.defense: (e.rank, e.comparison, e.drop) for e in leaderboard(records)}
    assert again == {e.figures.defense: (e.rank, e.comparison, e.drop) for e in leaderboard(sorted(records, key=str))}


def test_only_common_trials_are_compared() -> None:
    """Of five trials one failed here, another there, and one has another target."""
    undefended = cell("gm", "none", [1, 1, None, 1, 1], accuracy=lambda i: 0.9)
    defended = cell("gm", "d", [0, None, 0, 0, 1], accuracy=lambda i: 0.8 + 0.02 * i, seconds__train=lambda i: 2.0 + i)
    defended[4]["draw"]["target_ids"] = [7]
    entry = of(leaderboard(undefended + defended), "gm", "d")
    assert entry.comparison is not None and entry.drop is not None
    assert entry.comparison.n == entry.drop.n == 2  # trials 0 and 3
    assert entry.drop.mean == pytest.approx((0.1 + 0.04) / 2)
    assert entry.train_cost == pytest.approx((2 + 5) / (2 + 2))
    assert entry.figures.n == 4 and entry.figures.failed == 1


def test_rates_are_compared_by_a_paired_t_test() -> None:
    ours, theirs = [0.08, 0.2, 0.1, 0.05], [0.5, 0.9, 0.7, 0.1]
    entry = of(leaderboard(cell("sleeper", "none", theirs) + cell("sleeper", "d", ours)), "sleeper", "d")
    assert entry.comparison is not None and entry.comparison.test == "paired t"
    assert entry.comparison.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)


def test_another_baseline() -> None:
    records = [*cell("gm", "none", [1, 1]), *cell("gm", "a", [1, 0]), *cell("gm", "b", [0, 0])]
    entries = leaderboard(records, baseline="a")
    found = {e.figures.defense: e.comparison and (e.comparison.baseline, e.comparison.difference) for e in entries}
    assert found == {"none": ("a", 0.5), "a": None, "b": ("a", -0.5)}


def test_cells_of_other_settings_seeds_or_data_are_no_baseline() -> None:
    other: list[dict[str, Any]] = [
        {"seed": 1}, {"settings__protocol__threat__eps": 8}, {"settings__attack__steps": 9}, {"data__fingerprint": "e"},
    ]  # fmt: skip
    for changes in other:
        entry = of(leaderboard([*cell("gm", "none", [1, 1], **changes), *cell("gm", "d", [0, 0])]), "gm", "d")
        assert entry.comparison is None and entry.drop is None and entry.train_cost is None


def test_two_settings_of_one_defense_are_two_cells_with_the_difference_in_their_labels() -> None:
    records = [
        *cell("gm", "none", [1, 1]),
        *cell("gm", "d", [0, 1], settings__defense={"mu": 16, "zeta": 8}),
        *cell("gm", "d", [0, 0], settings__defense={"mu": 32, "zeta": 8}),
    ]
    entries = leaderboard(records)
    assert {e.defense_label for e in entries} == {"none", "d [mu=16]", "d [mu=32]"}
    assert {e.attack_label for e in entries} == {"gm"}
    assert all(e.figures.n == 2 for e in entries)


def test_settings_are_told_apart_in_the_attacks_label() -> None:
    records = [*cell("gm", "none", [1], seed=0), *cell("gm", "none", [1], seed=1)]
    assert {e.attack_label for e in leaderboard(records)} == {"gm [seed=0]", "gm [seed=1]"}
    records = [*cell("gm", "none", [1]), *cell("gm", "none", [1], settings__protocol__threat__eps=8)]
    assert {e.attack_label for e in leaderboard(records)} == {"gm [eps=16]", "gm [eps=8]"}


def test_cells_that_differ_in_code_only_are_told_apart_too() -> None:
    records = [*cell("gm", "d", [1]), *cell("gm", "d", [0], code__fingerprint="f" * 64)]
    labels = {e.defense_label for e in leaderboard(records)}
    assert len(labels) == 2 and any("code ffffffff" in label for label in labels)


def test_a_key_counts_once_and_the_better_record_of_it() -> None:
    good = record("gm", "d", 0, 1.0)
    failed = {**good, "status": "failed", "success": None, "clean_accuracy": None, "finished": "2027-01-01T00:00:00Z"}
    newer = {**good, "success": 0.0, "finished": "2026-06-01T00:00:00+00:00"}
    for order in ([good, failed, newer, good], [newer, good, good, failed]):
        (entry,) = leaderboard(order)  # type: ignore[arg-type]
        assert (entry.figures.n, entry.figures.failed, entry.figures.successes) == (1, 0, 0)


def test_a_cell_of_failures_has_no_figures_and_no_rank() -> None:
    entries = leaderboard([*cell("gm", "none", [1, 0]), *cell("gm", "d", [None, None])])
    row = of(entries, "gm", "d").as_dict()
    assert row["rank"] is None and row["success_rate"] is None and row["clean_accuracy"] is None
    assert (row["n"], row["failed"], row["success_low"], row["success_high"]) == (0, 2, 0.0, 1.0)
    assert "2 failed" in row["flags"] and entries[-1].figures.defense == "d"
    assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())
    assert leaderboard([]) == []


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({}, None),
        ({"poisons__max_change": 17}, "poisons beyond eps in 20 trials"),
        ({"filter__dropped": 6000}, "filtered 12 % of the training set"),
        ({"filter__dropped": 4000}, None),
        ({"accuracy": 0.84}, "no success, but 6.0 points of clean accuracy lost"),
        ({"accuracy": 0.86}, None),
        ({"revision": "b" * 40}, "2 code revisions (aaaaaaaa, bbbbbbbb)"),
        ({"revision": lambda i: "c" * 40 + "+" if i else "a" * 40}, "2 code revisions (aaaaaaaa, cccccccc+)"),
        ({"environment__device": "cuda"}, "2 devices (cpu a processor, cuda a processor)"),
        ({"poisons__key": "0" * 64}, "other poisons than the cell it is compared with in 20 trials"),
    ],
)
def test_flags(changes: dict[str, Any], flag: str | None) -> None:
    records = cell("gm", "none", [1] * 20) + cell("gm", "d", [0] * 20, **changes)
    assert of(leaderboard(records), "gm", "d").flags == ((flag,) if flag else ())


def test_few_and_failed_trials_are_flagged() -> None:
    (entry,) = leaderboard(cell("gm", "d", [1] * 19 + [None]))
    assert entry.flags == ("1 failed", "n < 20")


def test_adaptive_static_and_control() -> None:
    entries = leaderboard(
        [
            *cell("none", "none", [0]),
            *cell("gm", "none", [1]),
            *cell("new", "none", [1], adapted_to=["noise-b", "friends-b"]),
            *cell("old", "none", [1], adapted_to=[], poisons__adapted_to="noise-b"),
        ]
    )
    kinds = {e.figures.attack: (e.kind, e.adapted_to) for e in entries}
    assert kinds == {
        "none": ("control", ()), "gm": ("static", ()), "new": ("adaptive", ("noise-b", "friends-b")),
        "old": ("adaptive", ("noise-b",)),
    }  # fmt: skip


# Published values


def test_the_published_row_of_the_same_setting() -> None:
    found = published(record("gm", "friends-b", 0, 0.0, settings__defense={"mu": 16, "zeta": 16, "source_model": ""}))
    assert found is not None and found.as_dict() == {
        "source": "FRIENDS", "file": "friends.csv", "table": "1", "line": 12, "success_rate": 0.0,
        "clean_accuracy": 0.9152, "trials": 20, "differs": [],
    }  # fmt: skip


def test_what_differs_from_the_published_setting_is_said() -> None:
    changed = record(
        "gm", "friends-b", 0, 0.0, settings__defense={"mu": 8, "zeta": 16}, settings__protocol__model="convnet"
    )
    found = published(changed)
    assert found is not None and found.differs == ("model resnet18, here convnet", "mu 16, here 8")


def test_the_row_of_the_nearest_eps_and_of_the_source_network() -> None:
    found = published(record("gm", "none", 0, 0.0, settings__protocol__threat__eps=8))
    assert found is not None and (found.table, found.success_rate, found.differs) == ("3", 0.5, ())
    settings = {"mu": 16, "zeta": 16, "source_model": "lenet"}
    found = published(record("gm", "friends-b", 0, 0.0, settings__defense=settings))
    assert found is not None and (found.table, found.clean_accuracy, found.differs) == ("6", 0.9139, ())


def test_the_diffusion_paper_where_friends_has_no_row() -> None:
    changes: dict[str, Any] = {
        "settings__protocol__threat__scenario": "transfer",
        "settings__protocol__pretrain_dataset": {"name": "cifar100"},
    }
    found = published(record("cp", "none", 0, 0.0, **changes))
    assert found is not None and (found.source, found.table, found.success_rate) == ("Diffusion Denoising", "2", 0.126)
    black = published(record("cp", "none", 0, 0.0, settings__protocol__threat__surrogate="vgg11", **changes))
    assert black is not None and (black.success_rate, black.differs) == (0.031, ())


@pytest.mark.parametrize(
    ("attack", "defense", "scenario"),
    [
        ("none", "none", "from-scratch"),
        ("gm", "none", "transfer"),  # never a row of another scenario
        ("gm", "mixup", "from-scratch"),
        ("gm", "a+friends-b", "from-scratch"),
        ("bp-original", "none", "transfer"),
        ("gm", "roe", "nowhere"),
    ],
)
def test_no_row_no_value(attack: str, defense: str, scenario: str) -> None:
    assert published(record(attack, defense, 0, 0.0, settings__protocol__threat__scenario=scenario)) is None


def test_settings_of_the_wrong_kind_are_taken_as_different() -> None:
    found = published(record("gm", "none", 0, 0.0, settings__protocol={"threat": {"scenario": "from-scratch"}}))
    assert found is not None and "model resnet18, here unknown" in found.differs
    odd = {"threat": {"scenario": "from-scratch", "surrogate": 3}, "dataset": {"name": 5}, "model": 5, "train": []}
    assert published(record("gm", "none", 0, 0.0, settings__protocol=odd)) is not None


@pytest.mark.parametrize(
    ("defense", "settings", "table", "success"),
    [
        ("denoise-0.25", {"sigma": 0.25}, "1", 0.03),
        ("denoise-0.25-warm", {"sigma": 0.25}, "3", 0.05),  # ten of forty epochs on the attacked data
        ("dp-sgd-0.05", {"noise_multiplier": 0.05, "clip": 1.0}, "5", 0.04),
    ],
)
def test_defenses_that_the_diffusion_paper_calls_otherwise(
    defense: str, settings: dict[str, Any], table: str, success: float
) -> None:
    found = published(
        record("gm", defense, 0, 0.0, settings__defense=settings, settings__protocol__threat__surrogates=4)
    )
    assert found is not None and found.source == "Diffusion Denoising"
    assert (found.table, found.success_rate) == (table, success)
    assert not any("sigma" in difference or "noise" in difference for difference in found.differs)
    other = published(record("gm", defense, 0, 0.0, settings__defense={**settings, next(iter(settings)): 0.7}))
    assert other is not None and any("here 0.7" in difference for difference in other.differs)


def test_private_sgd_at_our_own_noise_has_no_row() -> None:
    assert published(record("gm", "dp-sgd", 0, 0.0, settings__defense={"noise_multiplier": 1.0, "clip": 1.0})) is None


def test_a_record_from_before_a_setting_stands_beside_those_that_name_its_value() -> None:
    old = record("gm", "none", 0, 1.0, settings__protocol__threat={"scenario": "from-scratch", "eps": 16})
    new, other = (
        record("gm", "strip", 0, 0.0, settings__protocol__threat={**THREAT, "holdout": share}) for share in (0.05, 0.1)
    )
    with_old, with_other = leaderboard([old, new]), leaderboard([old, other])
    assert len({entry.setting for entry in with_old}) == 1 and len({entry.setting for entry in with_other}) == 2
    assert {entry.attack_label for entry in with_old} == {"gm"}


THREAT: dict[str, Any] = {"scenario": "from-scratch", "eps": 16}


def test_records_without_a_digest_are_flagged() -> None:
    (entry,) = leaderboard([{**one, "digest": None} for one in cell("gm", "none", [1] * 20)])
    assert entry.flags == ("20 records without a digest: written by an older version",)


def test_a_board_that_mixes_precisions_says_so_and_compares_none_of_them() -> None:
    exact, half = (
        [*cell("gm", "none", [1] * 20, **which), *cell("gm", "d", [0] * 20, **which)]
        for which in ({"settings__protocol__train__precision": asked} for asked in ("float32", "bfloat16"))
    )
    assert not any("precision" in flag for entry in leaderboard(exact) for flag in entry.flags)
    mixed = leaderboard([*exact, *half])
    assert all(entry.flags[-1] == "the board mixes precisions (bfloat16, float32)" for entry in mixed)
    assert sorted(entry.rank or 0 for entry in mixed) == [1, 1, 2, 2]
    defended = [entry for entry in mixed if entry.figures.defense == "d"]
    assert [entry.comparison.n for entry in defended if entry.comparison] == [20, 20]
