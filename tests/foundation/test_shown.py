"""One function cleans what is shown: no text from a file reaches the terminal as anything but letters."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli.main import main
from bench.foundation.progress import say
from bench.foundation.shown import echo, plain, plain_lines
from bench.views.leaderboard import leaderboard
from bench.views.text import FORMATS
from tests.records import cell, lines

ESCAPES = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x07", "\r", "\x08", "\u202e", "\u2028", "\udcff", "\x00"]


@pytest.mark.parametrize("escape", ESCAPES)
def test_what_a_terminal_would_obey_is_a_question_mark(escape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert escape not in plain(f"a{escape}b") and plain(f"a{escape}b").startswith("a?")
    echo(f"a{escape}b")
    echo(f"a{escape}b", err=True)
    say(f"a{escape}b")
    printed = capsys.readouterr()
    assert escape not in printed.out + printed.err
    assert printed.out.startswith("a?") and printed.err.startswith("a?")


@given(st.text(st.characters()))
def test_letters_of_all_languages_stay_and_so_do_lines_and_tabs(text: str) -> None:
    shown = plain_lines(text)
    assert len(shown) == len(text)
    assert all(a == b or (b == "?" and not a.isprintable()) for a, b in zip(text, shown, strict=True))
    assert plain_lines("Größe\tπ\nзакон") == "Größe\tπ\nзакон"


@pytest.mark.parametrize("escape", [each for each in ESCAPES if each != "\udcff"])  # which JSON cannot hold
@pytest.mark.parametrize("where", ["attack", "protocol", "error", "data__name", "environment__device_name"])
def test_no_format_of_the_leaderboard_hands_them_on(
    where: str, escape: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    named = f"x{escape}y"
    attack, changes = (named, {}) if where == "attack" else ("gm", {where: named})
    records = cell(attack, "d", [1.0, None], **changes)
    path = lines(tmp_path / "records.jsonl", records)
    for form in FORMATS:
        assert main(["leaderboard", "--records", str(path), "--format", form]) == 0
        printed = capfd.readouterr()
        assert escape not in printed.out + printed.err


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--attack", "{}"],
        ["run", "--defense", "{}.py"],
        ["run", "--protocol", "{}"],
        ["run", "--protocol", "{}.toml"],
        ["run", "--set", "{}=1"],
        ["run", "--set", "train.augment={}"],
        ["run", "--dataset", "folder:{}"],
        ["sweep", "{}.toml"],
        ["show", "attack", "{}"],
        ["leaderboard", "--records", "{}"],
        ["import", "{}", "to"],
        ["figure", "{}"],
        ["{}"],
        ["check", "{}"],
    ],
)
def test_no_message_hands_them_on(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format("x\x1b[31m\ry") for word in command]) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert "\x1b" not in printed.err and "\r" not in printed.err


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@f", "\t=1", "\r=1", " =1", "x\r=1", 'x"\r\n=1'])
def test_no_name_is_a_formula_in_csv(name: str) -> None:
    text = FORMATS["csv"](leaderboard(cell("gm", "d", [1.0], protocol=name)), "none")
    for line in io.StringIO(text, newline=None):  # as those read it for whom a carriage return ends a line
        assert line.lstrip()[:1] not in ("=", "+", "-", "@")
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["protocol"].strip("'? \t")[:1] not in ("\r", "\n")
    assert row["protocol"].lstrip()[:1] not in ("=", "+", "-", "@")


@pytest.mark.parametrize("address", ["https://e.vil/x", "http://e.vil", "www.e.vil", "WWW.e.vil", "a@e.vil"])
def test_no_name_is_a_link_in_markdown(address: str) -> None:
    text = FORMATS["md"](leaderboard(cell("gm", "d", [1.0], protocol=address)), "none")
    assert "e.vil" in text and address not in text


def test_json_holds_names_as_they_are() -> None:
    text = FORMATS["json"](leaderboard(cell("gm", "d", [1.0], protocol="x\x1b[31m")), "none")
    assert "\x1b" not in text and json.loads(text)[0]["protocol"] == "x\x1b[31m"
