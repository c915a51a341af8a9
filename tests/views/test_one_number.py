"""One number, one function: the same records, with failed, missing and doubled trials, say the same in every view."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.storage.record import Record
from bench.views import html as page_of
from bench.views import text
from bench.views.frames import leaderboard_frame, records_frame, records_of
from bench.views.leaderboard import leaderboard
from bench.views.mlflow.book import FILTER
from bench.views.mlflow.server import connect, resolve_uri
from bench.views.mlflow.sync import sync
from tests.records import cell, record

pytest.importorskip("mlflow")

NUMBERS = ("successes", "n", "rate", "low", "high", "accuracy", "drop", "cost", "change", "margin")
CELLS = [("none", "none"), ("gm", "none"), ("gm", "d"), ("gm", "lost")]


@pytest.fixture
def records() -> list[Record]:
    """Undefended: trial 5 failed. Behind d: trial 1 failed, trial 4 is missing, trial 2 is there twice (the newer
    counts) and so is trial 3 (it failed later than it was finished). Means over cells and over common trials have
    opposite signs, so that a view that takes the one for the other is found out."""
    accuracies = [0.80, 0.60, 0.82, 0.84, 0.50, 0.0]
    undefended = cell(
        "gm", "none", [1, 1, 0, 1, 1, None], accuracy=lambda i: accuracies[i], seconds__train=2.0,
        outcome=lambda i: {"target_margin": [4.0, 9.0, -2.0, 5.0, 1.0, 0.0][i]},
    )  # fmt: skip
    defended = cell(
        "gm", "d", [0, None, 1, 0], accuracy=lambda i: 0.75 + 0.01 * i, seconds__train=lambda i: 3.0 + i,
        outcome=lambda i: {"target_margin": [-1.5, 0.0, 7.0, -4.5][i]},
    )  # fmt: skip
    newer = record(
        "gm", "d", 2, 0, 0.78, seconds__train=6.0, finished="2026-02-01T00:00:00+00:00", outcome={"target_margin": -3.0}
    )
    later = record("gm", "d", 3, None, finished="2026-03-01T00:00:00+00:00")
    control = cell("none", "none", [0, 0, 1, 0, 0, 0], accuracy=0.85)
    return [*control, *undefended, later, *defended, newer, *cell("gm", "lost", [None, None])]


# By hand, from the description above: trials 0, 2 and 3 are common.
EXPECTED: dict[tuple[str, str], dict[str, float | None]] = {
    ("none", "none"): {"successes": 1, "n": 6, "accuracy": 0.85, "drop": None, "cost": None},
    ("gm", "none"): {"successes": 4, "n": 5, "accuracy": statistics.fmean([0.80, 0.60, 0.82, 0.84, 0.50])},
    ("gm", "d"): {
        "successes": 0, "n": 3, "accuracy": statistics.fmean([0.75, 0.78, 0.78]),
        "drop": statistics.fmean([0.05, 0.04, 0.06]), "cost": (3 + 6 + 6) / (2 + 2 + 2),
        # Changes of the margin: -5.5, -1 and -9.5; the median of the means of their pairs.
        "change": (0 - 1 + 0 - 0 + 0 - 1) / 3, "margin": (-5.25 - 5.5) / 2,
    },
    ("gm", "lost"): {"successes": 0, "n": 0},
}  # fmt: skip


def shown(view: dict[str, Any], *, digits: bool = False) -> dict[str, Any]:
    """As a person reads it, where a view rounds."""
    if not digits:
        return view
    rounded = {"rate": 2, "low": 2, "high": 2, "accuracy": 3, "drop": 3, "cost": 1, "change": 2, "margin": 1}
    return {name: value if value is None else round(value, rounded.get(name, 9)) for name, value in view.items()}


def of_dict(row: dict[str, Any]) -> dict[str, Any]:
    names = ("successes", "n", "success_rate", "success_low", "success_high", "clean_accuracy", "accuracy_drop")
    paired = row.get("comparison") or {}  # a part of its own, or columns
    changes = [paired.get(name, row.get(f"comparison_{name}")) for name in ("difference", "margin")]
    values = [*(row[name] for name in (*names, "train_cost")), *changes]
    return {name: _known(value) for name, value in zip(NUMBERS, values, strict=True)}


def _known(value: Any) -> float | None:
    return None if value in (None, "") or math.isnan(float(value)) else float(value)


def of_text(success: str, rate: str, accuracy: str, drop: str, *more: str) -> dict[str, Any]:
    """Numbers of what a table prints: 3/4, 75 % [19, 99], 80.0 % [..], 5.0; more: 1.5x, -67 [..], -5.4 [..]."""
    successes, n = (float(number) for number in success.split(" ")[0].split("/"))
    around = re.fullmatch(r"(\d+) % \[(\d+), (\d+)\]", rate)
    percents = [float(number) / 100 for number in around.groups()] if around else [None, 0.0, 1.0]
    of_accuracy = re.match(r"([\d.]+) %", accuracy)
    view = {"successes": successes, "n": n, **dict(zip(("rate", "low", "high"), percents, strict=True))}
    view["accuracy"] = float(of_accuracy[1]) / 100 if of_accuracy else None
    view["drop"] = None if drop == "-" else float(drop) / 100
    for name, shown, scale in zip(("cost", "change", "margin"), more, (1, 100, 1), strict=bool(more)):
        view[name] = None if shown == "-" else float(shown.split()[0].rstrip("x")) / scale
    return view


def columns(table: str, head: Sequence[str]) -> dict[tuple[str, str], dict[str, str]]:
    """Rows of an aligned table by attack and defense; its head is the line that starts with `rank`."""
    lines = table.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:2] == ["rank", "attack"])
    spans = [(match.start(), match.end()) for match in re.finditer("-+", lines[at + 1])]
    rows = {}
    for line in lines[at + 2 :]:
        if not line.strip():
            break
        values = dict(zip(head, (line[start:end].strip() for start, end in spans), strict=True))
        rows[values["attack"], values["defense"]] = values
    return rows


def from_run_table(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = columns(text.run_table(leaderboard(records)), text.RUN_HEAD)
    return {key: of_text(r["success"], r["rate [95 %]"], r["clean acc."], r["drop"]) for key, r in rows.items()}


def from_table(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = columns(text.table(leaderboard(records), "none"), text.HEAD)
    return {
        key: of_text(
            r["success"],
            r["rate [95 %]"],
            r["clean acc. [95 %]"],
            r["drop"],
            r["cost"],
            r["against {baseline}"],
            r["margin"],
        )
        for key, r in rows.items()
    }


def from_markdown(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    lines = text.markdown(leaderboard(records), "none").replace("\\", "").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {(r[1], r[2]): of_text(*r[3:8], r[11], r[12]) for r in rows if len(r) == len(text.HEAD) and "/" in r[3]}


def from_json(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads(text.as_json(leaderboard(records), "none"))
    return {(row["attack"], row["defense"]): of_dict(row) for row in rows}


def from_csv(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(text.as_csv(leaderboard(records), "none")))
    return {(row["attack"], row["defense"]): of_dict(row) for row in rows}


def from_frame(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    frame = leaderboard_frame(leaderboard(records))
    return {(str(row["attack"]), str(row["defense"])): of_dict(row) for row in frame.to_dict("records")}  # type: ignore[arg-type]


def from_trials(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """A frame of trials is enough to get the cells of."""
    return from_frame(records_of(records_frame(records)), uri, out)


class _Rows(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def from_html(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    parser = _Rows()
    parser.feed(page_of.page(leaderboard(records), "none"))
    rows = [[" ".join(cell.split()) for cell in row] for row in parser.rows if len(row) == len(page_of.COLUMNS)]
    return {(r[1], r[2]): of_text(*r[4].split(", ", 1), *r[5:8], r[11], r[12]) for r in rows}


def from_mlflow(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    sync(records, uri, out)
    return _told(uri)


def from_mlflow_in_shards(records: list[Record], uri: str, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Two machines that share a store, neither of which has all records; the undefended trials come last."""
    for defense in ("d", "lost", "none"):
        for half in (0, 1):
            sync([r for r in records if r["defense"] == defense and r["trial"] % 2 == half], uri, out)
    return _told(uri)


def _told(uri: str) -> dict[tuple[str, str], dict[str, Any]]:
    client = connect(uri)
    experiment = client.get_experiment_by_name("cifar10-scratch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], FILTER)
    names = ("successes", "n_trials", "success_rate", "success_low", "success_high", "clean_acc", "acc_drop")
    return {
        (run.data.tags["bench.attack"], run.data.tags["bench.defense"]): dict(
            zip(
                NUMBERS,
                map(run.data.metrics.get, (*names, "train_cost", "success_change", "margin_change")),
                strict=True,
            )
        )
        for run in runs
    }


EXACT = [from_json, from_csv, from_frame, from_trials, from_mlflow, from_mlflow_in_shards]
ROUNDED = [from_table, from_markdown, from_html, from_run_table]


@pytest.fixture
def out(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(blank.read_bytes())
    return tmp_path


def test_the_leaderboard_counts_by_hand(records: list[Record]) -> None:
    cells = {(e.figures.attack, e.figures.defense): of_dict(e.as_dict()) for e in leaderboard(records)}
    assert set(cells) == set(CELLS)
    for key, expected in EXPECTED.items():
        assert {name: cells[key][name] for name in expected} == pytest.approx(expected), key
    d, undefended = cells["gm", "d"], cells["gm", "none"]
    assert undefended["accuracy"] - d["accuracy"] < 0 < d["drop"]  # the difference of the means has the other sign


@pytest.mark.parametrize("view", [*EXACT, *ROUNDED])
def test_every_view_says_the_same(view: Any, records: list[Record], out: Path) -> None:
    uri = str(resolve_uri(None, out))
    expected = {(e.figures.attack, e.figures.defense): of_dict(e.as_dict()) for e in leaderboard(records)}
    told = view(records, uri, out)
    assert set(told) == set(CELLS)
    for key, values in expected.items():
        wanted = {name: value for name, value in values.items() if name in told[key]}
        assert len(wanted) == len(NUMBERS) - 3 * (view is from_run_table)  # which shows seconds, and a sentence
        assert shown(told[key], digits=view in ROUNDED) == pytest.approx(shown(wanted, digits=view in ROUNDED)), key


def test_a_frame_of_trials_has_every_trial_once_and_gives_the_same_figures(records: list[Record]) -> None:
    frame = records_frame(records)
    assert frame["key"].is_unique and len(frame) == 6 + 6 + 4 + 2
    done = frame[frame["status"] == "done"]
    for (attack, defense), trials in done.groupby(["attack", "defense"]):
        expected = EXPECTED[str(attack), str(defense)]
        assert (trials["success"].sum(), len(trials)) == (expected["successes"], expected["n"])
        assert trials["clean_accuracy"].mean() == pytest.approx(expected["accuracy"])
    pair = done[done["attack"] == "gm"].pivot_table(index="trial", columns="defense", values="seconds.train").dropna()
    assert pair["d"].sum() / pair["none"].sum() == pytest.approx(EXPECTED["gm", "d"]["cost"])
    row = frame[(frame["defense"] == "d") & (frame["trial"] == 2)].iloc[0]
    assert row["settings.protocol.threat.eps"] == 16 and row["poisons.n"] == 500 and row["code.version"] == "0.1.0"
