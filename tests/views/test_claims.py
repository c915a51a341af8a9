"""`benchmarks/claims.py`: every measured figure in README.md and results/**/README.md is what the records say."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from bench.api.work import requests
from bench.cli.main import commands
from bench.execution.plan import plan
from bench.execution.tasks import VictimTraining
from bench.foundation.errors import BadInput
from bench.storage.record import Record, parse, sealed
from tests import records
from tests.aftermath import ROOT
from tests.records import cell


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("claims")
    module.read.cache_clear()
    return module


@pytest.fixture
def board() -> list[Record]:
    return [
        *cell("gm", "none", [1, 1, 1, 0]),
        *cell("gm", "friends-b", [0, 0, 1, 0], accuracy=0.85),
        *cell("none", "none", [0, 0, 0, 0]),
    ]


def page(folder: Path, text: str, trials: Sequence[Record] = ()) -> Path:
    """A page of a results' folder with records beside it."""
    place = folder / "results" / "mine"
    place.mkdir(parents=True, exist_ok=True)
    if trials:
        records.lines(place / "records.jsonl", trials)
    path = place / "README.md"
    path.write_text(text)
    return path


def run(claims: ModuleType, monkeypatch: pytest.MonkeyPatch, root: Path, *options: str) -> int:
    claims.read.cache_clear()
    monkeypatch.setattr(sys, "argv", ["claims.py", "--root", str(root), *options])
    return int(claims.main())


def test_every_figure_in_the_pages_is_what_the_records_say(claims: ModuleType) -> None:
    stale = [str(path.relative_to(ROOT)) for path in claims.differing(ROOT)]
    assert stale == [], "fix: python benchmarks/claims.py --write"
    assert claims.loose(ROOT) == []


def test_another_outcome_of_one_committed_trial_is_noticed_on_every_page_that_shows_it(
    claims: ModuleType, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "README.md", tmp_path)
    for folder in ("quick", "quick-transfer"):
        shutil.copytree(ROOT / "results" / folder, tmp_path / "results" / folder)
    path = tmp_path / "results" / "quick" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    where = next(i for i, line in enumerate(lines) if b'"attack":"gm"' in line.replace(b": ", b":"))
    trial = parse(lines[where])
    trial["success"] = 1 - (trial["success"] or 0)
    lines[where] = sealed(trial)
    path.write_bytes(b"".join(lines))
    found = {changed.relative_to(tmp_path).as_posix() for changed in claims.differing(tmp_path)}
    assert found == {"README.md", "results/quick/README.md"}


def test_a_new_folder_needs_records_and_a_mark(
    claims: ModuleType, board: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    written = page(tmp_path, "# Mine\n\n<!-- records: records.jsonl -->\n<!-- /records -->\n\nThe end.\n", board)
    assert run(claims, monkeypatch, tmp_path) == 1
    assert "+| gm" in capsys.readouterr().out
    assert "| gm" not in written.read_text()
    assert run(claims, monkeypatch, tmp_path, "--write") == 0
    text = written.read_text()
    assert text.startswith("# Mine\n\n<!-- records: records.jsonl -->\n") and text.endswith("\n\nThe end.\n")
    rows = [[each.strip() for each in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == [
        "attack",
        "defense",
        "success",
        "rate [95 %]",
        "clean acc. [95 %]",
        "drop",
        "against none",
        "margin",
    ]
    assert rows[1][:4] == ["gm", "friends-b", "1/4", "25 % [1, 81]"] and rows[1][5] == "5.0"
    assert len(rows) == 4
    assert "`records.jsonl`: seed 0; 4 trials a cell; float32; a processor; torch 2.15.0; revision aaaaaaaa." in text
    assert "    python -m bench run --protocol cifar10-scratch " in text
    assert run(claims, monkeypatch, tmp_path) == 0
    records.lines(written.parent / "records.jsonl", [*board[:-1], {**board[-1], "success": 1.0}])
    assert run(claims, monkeypatch, tmp_path) == 1


def test_a_leaderboard_beside_its_records_is_checked_too(
    claims: ModuleType, board: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in ("md", "csv"):
        written = page(tmp_path, "# Mine\n", board).with_name(f"records.{form}")
        written.write_text("old\n")
        assert run(claims, monkeypatch, tmp_path) == 1
        assert run(claims, monkeypatch, tmp_path, "--write") == 0
        assert "friends-b" in written.read_text()


def test_a_figure_of_one_cell_may_stand_in_a_sentence(claims: ModuleType, board: list[Record], tmp_path: Path) -> None:
    mark = "<!-- records: records.jsonl; attacks: gm; defenses: none; show: success -->"
    written = page(tmp_path, f"It succeeds in {mark}?<!-- /records --> trials.\n", board)
    assert claims.differing(tmp_path)[written][1] == f"It succeeds in {mark}3/4<!-- /records --> trials.\n"


def test_columns_may_be_means_of_any_field_of_the_records(claims: ModuleType, tmp_path: Path) -> None:
    trials = cell("sleeper", "none", [0.5, 0.7], outcome=lambda i: {"backdoor": {"asr_all": (0.5, 0.7)[i]}})
    mark = "<!-- records: records.jsonl; columns: rate %=outcome.backdoor.asr_all, train s=seconds.train -->"
    written = page(tmp_path, f"{mark}\n<!-- /records -->\n", trials)
    text = claims.differing(tmp_path)[written][1]
    assert re.search(r"\| rate +\| +train s \|", text) and re.search(r"\| 60.0 % +\| +2.0 \|", text)


@pytest.mark.parametrize(("pool", "rows"), [("", ["3/4 (2 seeds)"]), ("; pool: no", ["1/2", "2/2"])])
def test_seeds_are_pooled_unless_a_mark_says_otherwise(
    pool: str, rows: list[str], claims: ModuleType, tmp_path: Path
) -> None:
    trials = cell("gm", "none", [1, 0], seed=1, seconds=lambda i: {"train": 4.0}) + cell("gm", "none", [1, 1], seed=2)
    mark = f"<!-- records: records.jsonl; columns: success, train s=seconds.train{pool} -->"
    written = page(tmp_path, f"{mark}\n<!-- /records -->\n", trials)
    text = claims.differing(tmp_path)[written][1]
    found = [[each.strip() for each in line.split("|")[3:5]] for line in text.splitlines() if line.startswith("| gm")]
    assert sorted(success for success, _ in found) == rows
    assert {seconds for _, seconds in found} == ({"2.0", "4.0"} if pool else {"3.0"})
    assert "`records.jsonl`: seeds 1, 2; 2 trials a cell and seed" in text
    assert "for seed in 1 2; do python -m bench run" in text


def test_cells_that_differ_in_one_setting_are_contrasted_in_pairs(claims: ModuleType, tmp_path: Path) -> None:
    trials = [
        *cell("gm", "none", [1, 0, 0, 0], settings__attack={"steps": 250}),
        *cell("gm", "none", [1, 1, 1, 0], accuracy=0.92, settings__attack={"steps": 500}),
    ]
    mark = "<!-- records: records.jsonl; contrast: settings.attack.steps -->"
    written = page(tmp_path, f"{mark}\n<!-- /records -->\n", trials)
    text = claims.differing(tmp_path)[written][1]
    (row,) = (line for line in text.splitlines() if "| gm" in line)
    _, _, _, _, before, after, success, accuracy, lost, _ = (each.strip() for each in row.split("|"))
    assert (before, after, accuracy) == ("1/4", "3/4", "90.0 / 92.0 %")
    assert success.startswith("+50 [") and lost == "+2.00 [+2.00, +2.00]"
    mark = mark.replace("steps", "step")
    page(tmp_path, f"{mark}\n<!-- /records -->\n", trials)
    with pytest.raises(BadInput, match=r"README.md:1: contrast: 'settings.attack.step' has one value"):
        claims.differing(tmp_path)


@pytest.mark.parametrize("figure", ["4/20 succeed", "20 points [6, 44]", "-3.5 [-4.0, +1.5]"])
def test_a_rate_or_an_interval_in_prose_is_a_fault(
    figure: str, claims: ModuleType, board: list[Record], tmp_path: Path
) -> None:
    mark = "<!-- records: records.jsonl; attacks: gm -->\n<!-- /records -->"
    page(tmp_path, f"{mark}\n\n    code: {figure}\n\n`results/2026`, 95 %, ap-0.25/0.5, 10 of 1,000\n", board)
    assert claims.loose(tmp_path) == []
    page(tmp_path, f"{mark}\n\n<!-- quoted: Geiping, Table 1 -->\n{figure}\n<!-- /quoted -->\n", board)
    assert claims.loose(tmp_path) == []
    page(tmp_path, f"{mark}\n\nAs we found, {figure}.\n", board)
    (fault,) = claims.loose(tmp_path)
    assert fault.startswith("results/mine/README.md:4: ") and "fix: " in fault


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<!-- records: records.jsonl; attack: gm -->{end}", "unknown key 'attack'; did you mean 'attacks'?"),
        ("<!-- records: records.jsonl; attacks: gn -->{end}", "no records of attack 'gn'"),
        ("<!-- records: records.jsonl; columns: succes -->{end}", "unknown column 'succes'; did you mean 'success'?"),
        ("<!-- records: records.jsonl; attacks: gm; show: success -->{end}", "2 cells are meant; allowed: one"),
        ("<!-- records: other.jsonl -->{end}", "cannot be read"),
        ("<!-- records: records.jsonl -->\n\nand so on", "a mark without its end"),
        ("<!-- records: records.jsonl -->\nlost\n<!-- records: records.jsonl -->{end}", "a mark without its end"),
    ],
)
def test_a_mark_that_is_not_understood_is_refused_in_one_line_and_writes_nothing(
    text: str, complaint: str, claims: ModuleType, board: list[Record], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    written = page(tmp_path, text.replace("{end}", "\n<!-- /records -->\n"), board)
    before = written.read_text()
    assert run(claims, monkeypatch, tmp_path, "--write") == 2
    told = capsys.readouterr().err
    assert complaint in told and "README.md" in told and told.count("\n") == 1
    assert written.read_text() == before


def test_damaged_records_are_refused(claims: ModuleType, board: list[Record], tmp_path: Path) -> None:
    written = page(tmp_path, "<!-- records: records.jsonl -->\n<!-- /records -->\n", board)
    path = written.with_name("records.jsonl")
    path.write_text(path.read_text().replace('"success":1', '"success":0', 1))
    with pytest.raises(BadInput, match="1 damaged record skipped"):
        claims.differing(tmp_path)


def asked(command: str) -> list[VictimTraining]:
    """The victims of a command line, by its own plan. `for seed in ...` is done as a shell would."""
    loop = re.fullmatch(r"for seed in (.*); do (.*); done", command)
    lines = [loop[2].replace("$seed", seed) for seed in loop[1].split()] if loop else [command]
    tasks: list[VictimTraining] = []
    for line in lines:
        context = click.Context(commands)
        name, run, rest = commands.resolve_command(context, shlex.split(line)[3:])
        assert run is not None
        with run.make_context(name, rest, parent=context) as made:
            given = {name: made.params[name] for name in ("attacks", "defenses", "protocols", "only", "trials", "seed")}
            asked = requests(None, made.params["sets"], victims=made.params["victims"], **given)
        tasks += plan(asked).victims(ROOT).values()
    return tasks


def made_of(task: VictimTraining) -> Record:
    settings = {
        "protocol": task.study.settings(),
        "attack": task.attack.values(),
        "defense": task.defense.values(),
    }
    return records.record(
        task.attack.label, task.defense.label, task.index, 0.0, victim=task.victim, seed=task.study.seed,
        protocol=task.study.protocol.name, settings=settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    "commands",
    [
        ["python -m bench run --attack gm --defense friends-b --trials 3"],
        ["python -m bench run --attack gm,sleeper --defense friends-b,mixup --trials 3 --seed 2"],
        ["for seed in 1 2; do python -m bench run --attack gm --defense friends-b --trials 3 --seed $seed; done"],
        ["python -m bench run --set threat.eps=8 --set train.epochs=20 --attack 'gm[steps=7]' --trials 2"],
        ["python -m bench run --attack gm --defense 'friends-b[mu=8],friends-b[mu=4]+epic-0.1' --trials 2 --only"],
        ["python -m bench run --attack none --trials 2"],
        ["python -m bench run --attack metapoison --defense none --trials 2 --only"],
        ["python -m bench run --attack gm --trials 2 --victims 3"],
        ["python -m bench run --protocol quick-transfer --attack bp --defense epic-0.1 --trials 2"],
        [
            "python -m bench run --attack gm --defense friends-b --trials 3",
            "python -m bench run --attack metapoison --trials 2",
        ],
    ],
)
def test_the_command_below_a_table_asks_for_the_same_trials_again(claims: ModuleType, commands: list[str]) -> None:
    tasks = [task for command in commands for task in asked(command)]
    again = importlib.import_module("commands_of").commands_of([made_of(task) for task in tasks])
    assert {task.key for command in again for task in asked(command)} == {task.key for task in tasks}
    assert len(again) == len(commands)
