"""`python -m bench leaderboard`: what it reads, prints and refuses, and how fast."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cli import main
from bench.storage.record import Record
from bench.views.html import page
from bench.views.leaderboard import leaderboard
from bench.views.text import as_csv, as_json, markdown, table
from tests.records import HOSTILE, cell, lines, record, write

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = {
    "rank": (int, None), "attack": (str,), "defense": (str,), "protocol": (str,), "seed": (int, None), "seeds": (list,),
    "attack_label": (str,), "defense_label": (str,), "n": (int,),
    "victims": (int,), "failed": (int,), "successes": (int, float),
    "success_rate": (float, None), "success_low": (float,), "success_high": (float,),
    "clean_accuracy": (float, None), "clean_accuracy_low": (float, None), "clean_accuracy_high": (float, None),
    "accuracy_drop": (float, None), "accuracy_drop_low": (float, None), "accuracy_drop_high": (float, None),
    "accuracy_drop_n": (int,), "train_seconds": (float, None), "train_cost": (float, None), "knowledge": (list,),
    "attack_kind": (str,), "adapted_to": (list,), "published": (dict, None), "comparison": (dict, None),
    "over_control": (dict, None), "flags": (list,), "cell": (str,),
}  # fmt: skip


@pytest.fixture
def records() -> list[Record]:
    return [
        *cell("none", "none", [0.0] * 4),
        *cell("gm", "none", [1.0, 1.0, 0.0, 1.0]),
        *cell("gm", "friends-b", [0.0, 0.0, 0.0, None], knowledge=["poison_rate"]),
        *cell("gm", "broken", [None]),
        *cell(HOSTILE, HOSTILE, [0.5, 0.25]),
    ]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["leaderboard", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refuse_nan(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def test_json_has_the_promised_fields_and_no_nan(records: list[Record]) -> None:
    cells = json.loads(as_json(leaderboard(records), "none"), parse_constant=refuse_nan)
    assert len(cells) == 5
    for one in cells:
        assert set(one) == set(SCHEMA)
        for name, kinds in SCHEMA.items():
            assert any(one[name] is None if kind is None else isinstance(one[name], kind) for kind in kinds), name
    (friends,) = [one for one in cells if one["defense"] == "friends-b"]
    assert (friends["n"], friends["successes"], friends["failed"], friends["success_rate"]) == (3, 0, 1, 0)
    assert friends["published"]["table"] == "1" and friends["comparison"]["n"] == 3


def test_csv_reads_back_and_holds_no_formulas(records: list[Record]) -> None:
    evil = cell("=cmd|' /C calc'!A0", "@d", [1.0])
    rows = list(csv.DictReader(io.StringIO(as_csv(leaderboard(records + evil), "none"))))
    assert len(rows) == 6 and rows[-1]["attack"] == "'=cmd|' /C calc'!A0" and rows[-1]["defense"] == "'@d"
    (friends,) = [row for row in rows if row["defense"] == "friends-b"]
    assert float(friends["success_rate"]) == 0 and friends["published_table"] == "1"
    assert float(friends["comparison_difference"]) == pytest.approx(-2 / 3) and friends["knowledge"] == "poison_rate"
    assert [row["success_rate"] for row in rows if row["defense"] == "broken"] == [""]


def test_the_table_shows_matrix_ranks_rule_and_source(records: list[Record]) -> None:
    text = table(leaderboard(records), "none")
    matrix, ranks = text.split("\n\n")[1:3]
    assert re.search(r"^ +none +gm +<script>", matrix, re.M)  # attacks across, defenses downwards
    assert re.search(r"^none .* 3/4  75 % \[19, 99\]", matrix, re.M)
    assert re.search(r"^friends-b +0/3  0 % \[0, 71\]", matrix, re.M)
    assert re.search(r"^ +1  gm +friends-b .* poison_rate +static +0 % \(other\) \[1\] .*1 failed; n < 20", ranks, re.M)
    assert "against none" in ranks and "lower success first, then higher clean accuracy" in text
    assert "[1] FRIENDS, Table 1 (friends.csv, line 12), 20 trials; not our setting: mu 16, here unknown" in text
    assert "\x1b" not in text and "?[31m" in text


def test_markdown_cells_cannot_break_out(records: list[Record]) -> None:
    text = markdown(leaderboard(records), "none")
    assert "<script" not in text and "&lt;script&gt;" in text and "[x](" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert widths == {5, 15}  # the matrix (defense, three attacks) and the ranked list, whatever the names are


class _Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_is_one_file_and_escapes_what_comes_from_records(records: list[Record]) -> None:
    for name in ("protocol", "revision", "environment__device_name"):
        records += cell("gm", f"x-{name}", [1.0, 0.0], **{name: HOSTILE})
    text = page(leaderboard(records, HOSTILE), HOSTILE)
    parsed = _Page()
    parsed.feed(text)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == tags.count("style") == 1
    for tag, attributes in parsed.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#") and "src" not in attributes
    assert not re.search(r"https?://(?!e\.vil)", text) and "@import" not in text and "url(" not in text
    policy = next(a["content"] for t, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert any(HOSTILE.replace("\x1b", "?").replace("\n", "?") in t for t in parsed.texts)
    assert tags.count("tr") == 1 + 8 + sum(1 + n for n in (3, 1))  # head and cells, then the two matrices
    assert all(a.get("aria-sort") == "none" for t, a in parsed.tags if t == "th" and "aria-sort" in a)
    assert "$" not in re.sub(r"<script>.*</script>", "", text, flags=re.S)


def test_html_of_nothing_but_failures() -> None:
    assert "0/0" in page(leaderboard(cell("gm", "d", [None])), "none")


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "html"])
def test_every_format_from_disk_and_to_a_file(
    records: list[Record], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [one for one in records if one["attack"] != HOSTILE]
    write(tmp_path, records)
    code, out, err = run(capsys, "--out", str(tmp_path), "--format", form)
    assert code == 0 and not err and "friends-b" in out
    code, printed, _ = run(capsys, "--out", str(tmp_path), "--format", form, "--to", str(tmp_path / "new" / "board"))
    assert code == 0 and not printed and (tmp_path / "new" / "board").read_text() == out
    code, again, _ = run(capsys, "--records", str(lines(tmp_path / "r.jsonl", records)), "--format", form)
    if form in ("csv", "json"):  # the order of cells is that of the records
        assert code == 0 and sorted(again) == sorted(out)


def test_files_and_folder_together_count_every_key_once(
    records: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, cell("gm", "none", [1.0] * 4))
    file = lines(tmp_path / "r.jsonl", cell("gm", "none", [1.0] * 6) * 2)
    _, out, _ = run(capsys, "--out", str(tmp_path), "--records", str(file), "--format", "json")
    (one,) = json.loads(out)
    assert (one["n"], one["successes"]) == (6, 6)


def test_damaged_files_and_lines_are_said_and_skipped_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = cell("gm", "none", [1.0, 0.0])
    write(tmp_path, good)
    folder = tmp_path / "records" / "cifar10-scratch" / "gm" / "none"
    bad = {
        "not-json": b"{", "no-record": b"[1, 2]", "nan": json.dumps({**good[0], "success": float("nan")}).encode(),
        "beyond": json.dumps({**good[0], "success": 1.5}).encode(), "deep": b"[" * 100_000,
        "binary": b"\xff\xfe\x00", "no-result": json.dumps({**good[0], "success": None}).encode(),
        "schema": json.dumps({**good[0], "schema": 2}).encode(),
        "no-zone": json.dumps({**good[0], "finished": "2026-01-01T00:00:00"}).encode(),
    }  # fmt: skip
    for name, content in bad.items():
        (folder / f"{name}.json").write_bytes(content)
    (tmp_path / "r.jsonl").write_bytes(
        json.dumps(good[0]).encode() + b"\n\n{\n" + b"\x1b[31m\n" + json.dumps(record("gm", "d", 0, 1.0)).encode()
    )
    code, out, err = run(capsys, "--out", str(tmp_path), "--records", str(tmp_path / "r.jsonl"), "--format", "json")
    assert code == 0 and {(one["defense"], one["n"]) for one in json.loads(out)} == {("none", 2), ("d", 1)}
    said = err.splitlines()
    assert len(said) == len(bad) + 1 and "\x1b" not in err
    for name in bad:
        assert sum(f"{name}.json is skipped: " in line for line in said) == 1
    assert "2 damaged records skipped: line 3" in said[-1]
    assert {path.stem for path in folder.iterdir()} >= set(bad)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "nowhere"], "'nowhere/records' cannot be read: No such file or directory; fix: give --out DIR"),
        (["--records", "nowhere.jsonl"], "'nowhere.jsonl' cannot be read"),
        (["--records", "empty.jsonl"], "no records under 'empty.jsonl'"),
        (["--records", "r.jsonl", "--protocol", "cifar10-scratsh"], "did you mean 'cifar10-scratch'?"),
        (["--records", "r.jsonl", "--baseline", "freinds-b"], "did you mean 'friends-b'?"),
        (["--records", "r.jsonl", "--format", "xml"], "invalid value for '--format': 'xml' is not one of 'table'"),
        (["--records", "r.jsonl", "--to", "/proc/nothing/x"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    lines(Path("r.jsonl"), cell("gm", "friends-b", [1.0]))
    lines(Path("empty.jsonl"), [])
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and len(err.splitlines()) == 1 and expected in err


def test_protocols_are_filtered_and_baselines_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(lines(tmp_path / "r.jsonl", [*cell("gm", "a", [1.0]), *cell("gm", "b", [0.0], protocol="quick")]))
    _, out, _ = run(capsys, "--records", file, "--protocol", "quick", "--format", "json")
    assert [one["protocol"] for one in json.loads(out)] == ["quick"]
    _, out, _ = run(capsys, "--records", file, "--baseline", "a")
    assert "against a" in out


def test_the_committed_records_give_the_figures_of_their_readme(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys, "--records", str(ROOT / "results/quick/records.jsonl"), "--format", "json")
    cells = {(one["attack"], one["defense"]): one for one in json.loads(out)}
    gm = cells["gm", "friends-b"]
    assert not err and (gm["successes"], gm["n"]) == (4, 20) and gm["comparison"]["p"] == pytest.approx(2 / 512)
    assert gm["accuracy_drop"] == pytest.approx(0.061, abs=5e-4)
    assert cells["sleeper-adaptive-friends", "none"]["adapted_to"] == ["friends-b"]
    assert cells["none", "none"]["attack_kind"] == "control"


def test_torch_is_not_imported(tmp_path: Path) -> None:
    """It would take longer than all the rest."""
    file = lines(tmp_path / "r.jsonl", cell("gm", "none", [1.0, 0.0]))
    command = [sys.executable, "-X", "importtime", "-m", "bench", "leaderboard", "--records", str(file)]
    done = subprocess.run([*command, "--format", "html"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "bench.views.leaderboard" in imported
    assert not imported & {"torch", "mlflow", "pandas", "scipy.stats", "tqdm", "matplotlib"}


@pytest.mark.slow
def test_many_records_are_read_in_seconds() -> None:
    """A generous bound for a busy machine: on a quiet core 3,000 records take about one second."""
    command = [sys.executable, "benchmarks/leaderboard.py", "--records", "3000", "--repeats", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    (found,) = json.loads(done.stdout.splitlines()[-1])
    assert max(one["cpu"] for one in found["found"].values()) < 6


@pytest.mark.parametrize("protocol", ["quick", "quick-transfer"])
def test_the_committed_leaderboards_are_those_of_the_committed_records(
    protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ROOT / "results" / "defenses"
    for form in ("md", "csv"):
        _, out, _ = run(capsys, "--records", str(place / f"{protocol}.jsonl"), "--format", form)
        assert out == (place / f"{protocol}.{form}").read_text()
