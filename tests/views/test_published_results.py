"""The papers' tables under results/published: form, completeness against control totals, spot values."""

from __future__ import annotations

import csv
from collections import Counter
from decimal import Decimal
from importlib import resources
from typing import Any

import pytest

FOLDER = resources.files("bench.published")
SHARED = ["table", "attack", "eps", "scenario", "epochs", "trials", "defense", "success", "clean_accuracy"]
PERCENTAGES = {"success", "success_error", "clean_accuracy", "clean_accuracy_error"}
NUMBERS = PERCENTAGES | {"minutes", "true_positives", "false_positives"}
COLUMNS = {
    "friends": "table attack eps scenario epochs trials defense success success_error clean_accuracy "
    "clean_accuracy_error minutes",
    "diffusion_denoising": "table attack eps scenario knowledge surrogates epochs trials defense sigma pretraining "
    "warm_start success clean_accuracy true_positives false_positives",
}
# How many numbers a table of the paper has in a column, and their sum, taken from the paper and not from the file.
TOTALS = {
    "friends": {
        "1": {
            "success": (12, "225.00"),
            "success_error": (12, "46.44"),
            "clean_accuracy": (12, "1083.23"),
            "clean_accuracy_error": (12, "3.57"),
            "minutes": (12, "1277"),
        },
        "2": {
            "success": (13, "545.78"),
            "success_error": (13, "90.52"),
            "clean_accuracy": (13, "1126.78"),
            "clean_accuracy_error": (13, "5.74"),
        },
        "3": {"success": (12, "577.92"), "clean_accuracy": (12, "1075.89")},
        "4": {"success": (8, "95.00"), "clean_accuracy": (8, "730.54")},
        "5": {
            "success": (6, "325.88"),
            "success_error": (6, "51.25"),
            "clean_accuracy": (6, "542.51"),
            "clean_accuracy_error": (6, "1.86"),
        },
        "6": {"success": (3, "0"), "clean_accuracy": (3, "274.18")},
    },
    "diffusion_denoising": {
        "1": {"success": (29, "450.2"), "clean_accuracy": (29, "1985.2")},
        "2": {"success": (50, "220.0"), "clean_accuracy": (50, "4541.3")},
        "3": {"success": (45, "749.7"), "clean_accuracy": (45, "3347.6")},
        "4": {
            "success": (4, "36.2"),
            "clean_accuracy": (4, "359.8"),
            "true_positives": (2, "462"),
            "false_positives": (2, "527"),
        },
        "5": {"success": (14, "197.6"), "clean_accuracy": (14, "1137.9")},
    },
}
SPOTS = [
    ("friends", {"table": "1", "defense": "noisy-sgd"}, ("5.00", "75.70")),
    ("friends", {"table": "2", "defense": "epic-0.2"}, ("9.10", "86.21")),
    ("friends", {"table": "3", "attack": "bp", "defense": "friends-b"}, ("35.00", "79.35")),
    ("friends", {"table": "4", "defense": "noise-b"}, ("5.00", "89.31")),
    ("friends", {"table": "5", "attack": "sleeper-adaptive-friends", "defense": "friends-b"}, ("30.50", "88.42")),
    (
        "diffusion_denoising",
        {"table": "1", "attack": "gm", "knowledge": "white-box", "surrogates": "4", "sigma": "0.1"},
        ("9.0", "86.5"),
    ),
    (
        "diffusion_denoising",
        {"table": "1", "attack": "gm", "knowledge": "black-box", "surrogates": "4", "sigma": "0.25"},
        ("2.0", "70.1"),
    ),
    (
        "diffusion_denoising",
        {"table": "2", "attack": "htbd", "knowledge": "black-box", "sigma": "1.0"},
        ("1.4", "86.7"),
    ),
    (
        "diffusion_denoising",
        {"table": "3", "attack": "sleeper", "pretraining": "cifar10-tampered", "sigma": "1.0"},
        ("11.5", "36.0"),
    ),
    ("diffusion_denoising", {"table": "5", "attack": "bp", "defense": "adv-training"}, ("96.4", "90.3")),
]
papers = pytest.mark.parametrize("paper", COLUMNS)


def read(paper: str) -> list[dict[str, str]]:
    with open(FOLDER / f"{paper}.csv", newline="", encoding="utf-8") as file:  # type: ignore[call-overload]
        return list(csv.DictReader(file, strict=True))


def only(paper: str, **wanted: Any) -> list[dict[str, str]]:
    return [row for row in read(paper) if all(row[name] == value for name, value in wanted.items())]


def cells(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Success and clean accuracy of the rows, in their order."""
    return [(row["success"], row["clean_accuracy"]) for row in rows]


def test_every_file_is_tested_and_described() -> None:
    assert {path.stem for path in FOLDER.glob("*.csv")} == set(COLUMNS) == set(TOTALS)  # type: ignore[attr-defined]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{paper}.csv`" in readme for paper in COLUMNS)


@papers
def test_the_columns_are_right_and_every_row_has_them(paper: str) -> None:
    columns = COLUMNS[paper].split()
    assert [name for name in columns if name in SHARED] == SHARED
    for row in read(paper):
        assert list(row) == columns  # a row that is too long has the key None
        assert None not in row.values()  # one that is too short has no value
        assert all(value == value.strip() for value in row.values())


@papers
def test_identifiers_are_of_known_values(paper: str) -> None:
    known = {"scenario": {"from-scratch", "transfer"}, "eps": {"8", "16"}, "trials": {"", "20", "24", "100"}}
    known |= {"knowledge": {"white-box", "black-box"}, "surrogates": {"", "1", "4"}, "warm_start": {"", "no", "yes"}}
    known |= {"sigma": {"", "0.0", "0.1", "0.25", "0.5", "1.0"}, "epochs": {"", "40", "80", "85"}}
    for row in read(paper):
        assert row["attack"] and row["defense"]
        assert all(row[name] in values for name, values in known.items() if name in row)


@papers
def test_percentages_are_percentages_and_counts_are_counts(paper: str) -> None:
    for row in read(paper):
        for name in NUMBERS & set(row):
            if row[name] and name in PERCENTAGES:
                assert 0 <= Decimal(row[name]) <= 100, row
            elif row[name]:
                assert row[name].isdigit(), row


@papers
def test_every_number_of_every_table_is_there(paper: str) -> None:
    found: dict[Any, Any] = {}
    for row in read(paper):
        table = found.setdefault(row["table"], {})
        for name in NUMBERS & set(row):
            if row[name]:
                count, total = table.get(name, (0, Decimal(0)))
                table[name] = count + 1, total + Decimal(row[name])
    wanted = {
        table: {name: (count, Decimal(total)) for name, (count, total) in columns.items()}
        for table, columns in TOTALS[paper].items()
    }
    assert found == wanted


@papers
def test_no_cell_is_there_twice(paper: str) -> None:
    rows = read(paper)
    keys = Counter(tuple(value for name, value in row.items() if name not in NUMBERS) for row in rows)
    assert len(keys) == len(rows), [key for key, count in keys.items() if count > 1]


def test_the_empty_rows_are_the_two_that_the_readme_names() -> None:
    empty = [row for paper in COLUMNS for row in read(paper) if not any(row.get(name) for name in NUMBERS)]
    expected = only("diffusion_denoising", table="1", knowledge="black-box", surrogates="1", sigma="1.0")
    assert empty == [*expected, *only("diffusion_denoising", table="5", attack="bp", defense="roe")]


@pytest.mark.parametrize(("paper", "where", "values"), SPOTS)
def test_spot_values(paper: str, where: dict[str, str], values: tuple[str, str]) -> None:
    assert cells(only(paper, **where)) == [values]


def test_spot_values_of_the_columns_that_one_paper_has() -> None:
    (ap,) = only("friends", table="1", defense="ap-0.5")
    assert (ap["success_error"], ap["clean_accuracy_error"], ap["minutes"]) == ("2.01", "0.00", "221")
    (knn,) = only("diffusion_denoising", table="4", attack="bp", defense="deepknn")
    assert (knn["true_positives"], knn["false_positives"]) == ("431", "63")


def test_friends_repeats_its_numbers_alike() -> None:
    for defense in ("friendly", "friends-g", "friends-b", "friends-u"):
        first, again = (only("friends", table=table, defense=defense) for table in "14")
        assert cells(first) == cells(again)
    for defense in ("none", "friends-b"):
        first, again = (only("friends", table=table, attack="sleeper", defense=defense) for table in "25")
        assert cells(first) == cells(again)


@pytest.mark.parametrize(("attack", "table"), [("bp", "2"), ("gm", "1"), ("sleeper", "1")])
def test_the_baseline_of_table_3_repeats_tables_1_and_2(attack: str, table: str) -> None:
    surrogates = "" if attack == "bp" else "4"
    where = {"attack": attack, "knowledge": "white-box", "surrogates": surrogates}
    first = cells(only("diffusion_denoising", table=table, **where))
    again = cells(only("diffusion_denoising", table="3", pretraining="none", **where))
    assert len(first) == 5
    assert [tuple(map(Decimal, cell)) for cell in first] == [tuple(map(Decimal, cell)) for cell in again]
