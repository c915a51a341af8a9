"""Records: the truth on disk, old ones brought up to date, damaged ones reported and set aside or skipped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench.storage.record import parse, parse_summary, sealed
from bench.storage.records import Records, comparable, read
from tests.records import record as made_record


def record(**changes: Any) -> dict[str, Any]:
    return json.loads(sealed({**made_record("gm", "none", 3, 1.0, 0.5, key="1" * 64), **changes}))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def records(tmp_path: Path, said: list[str]) -> Records:
    return Records(tmp_path / "records", said.append)


def test_a_written_record_is_found_by_its_key(records: Records) -> None:
    records.write(record())
    assert records.find(record()) == record()
    assert records.find(record(key="2" * 64)) is None
    assert list(records.all()) == [record()]


def test_a_failed_record_is_listed_but_not_found(records: Records) -> None:
    records.write(record(status="failed", success=None, clean_accuracy=None))
    assert records.find(record()) is None
    assert [r["status"] for r in records.all()] == ["failed"]
    records.write(record())
    assert [r["status"] for r in records.all()] == ["done"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"key": 1}', json.dumps(record(schema=99)), "\x00\xff", "[" * 10**5]
)
def test_a_damaged_record_is_said_and_set_aside(records: Records, said: list[str], text: str) -> None:
    records.write(record())
    path = records.path(record())
    path.write_text(text)
    assert records.find(record()) is None
    assert len(said) == 1 and str(path) in said[0]
    assert not path.exists() and path.with_suffix(".damaged").read_text() == text
    assert list(records.all()) == []


def test_what_the_day_decides_is_not_compared() -> None:
    assert comparable(record()) == comparable(record(seconds={"train": 9.0}))
    assert comparable(record()) != comparable(record(success=0.0))


def test_nan_is_refused(records: Records) -> None:
    with pytest.raises(ValueError):
        records.write({**record(), "success": float("nan")})
    assert list(records.all()) == []


def test_two_readers_of_one_damaged_record(records: Records, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has moved it away between our reading and our moving."""
    records.write(record())
    records.path(record()).write_text("{")
    move = Path.replace

    def late(path: Path, to: Path) -> Path:
        move(path, to)
        return move(path, to)

    monkeypatch.setattr(Path, "replace", late)
    assert records.find(record()) is None and len(said) == 1


def test_what_is_written_is_what_is_read_back(records: Records) -> None:
    written = records.write({**record(), "knowledge": ("poison_rate",)})
    assert written["knowledge"] == ["poison_rate"] and records.find(record()) == written


@pytest.mark.parametrize(
    "changes",
    [{"success": None}, {"success": 1.5}, {"seconds": {"train": -1.0}}, {"trial": "3"}, {"finished": "2026-01-01"}],
)
def test_a_record_that_no_reader_would_take_is_not_written(records: Records, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        records.write(record(**changes))
    assert list(records.all()) == []


def test_records_of_older_versions_read_as_those_of_today() -> None:
    new = record(adapted_to=["noise-b"], attack="adaptive")
    new["settings"]["protocol"]["threat"] |= {"holdout": 0.05, "per_class": 0, "white_box": True, "pair": ""}
    old: dict[str, Any] = json.loads(json.dumps(new))
    old["draw"]["true_class"] = old["draw"].pop("source_class")
    old["draw"]["adversarial_class"] = old["draw"].pop("target_class")
    for name in ("holdout", "per_class", "white_box", "pair"):
        del old["settings"]["protocol"]["threat"][name]
    old["poisons"]["adapted_to"], new["poisons"]["adapted_to"] = "noise-b", "noise-b"
    for name in ("adapted_to", "variants", "notes", "external", "seeds", "surrogates"):
        del old[name]
    del old["digest"], new["digest"]
    assert parse(json.dumps(old).encode()) == new


def test_what_was_brought_up_to_date_carries_the_digest_of_what_it_is_now() -> None:
    """`run --json` prints it, and `leaderboard --records` reads that."""
    old: dict[str, Any] = {name: value for name, value in record().items() if name not in ("digest", "variants")}
    old["draw"] = {"target_ids": [1], "true_class": 0, "adversarial_class": 1}
    today = parse(sealed(old))
    assert today["draw"] == {"target_ids": [1], "source_class": 0, "target_class": 1}
    assert (
        today["digest"]
        and sealed(today)
        == json.dumps(
            {"digest": today["digest"], **{name: value for name, value in today.items() if name != "digest"}},
            separators=(",", ":"),
        ).encode()
        + b"\n"
    )
    assert parse(json.dumps(today).encode()) == today
    assert parse_summary(sealed(old))["digest"] == today["digest"]
    assert "digest" not in parse(json.dumps(old).encode())  # flagged as one of an older version


@pytest.mark.parametrize("form", ["lines", "array", "indented array", "one record"])
def test_files_hold_records_line_by_line_or_as_an_array(tmp_path: Path, said: list[str], form: str) -> None:
    several = [record(key=str(i) * 64, trial=i) for i in range(1 if form == "one record" else 3)]
    texts = {
        "lines": "".join(json.dumps(each) + "\n" for each in several),
        "array": json.dumps(several),
        "indented array": json.dumps(several, indent=1),
        "one record": json.dumps(several[0], indent=1),
    }
    file = tmp_path / "records.json"
    file.write_text(texts[form])
    assert read(None, [file], said.append) == several and not said


def test_a_view_skips_what_the_runner_sets_aside(records: Records, said: list[str]) -> None:
    records.write(record())
    records.write(record(key="2" * 64))
    path = records.path(record())
    path.write_text("{")
    assert [each["key"] for each in read(records.root, [], said.append)] == ["2" * 64]
    assert path.exists() and len(said) == 1 and f"{path} is skipped" in said[0]


def test_curves_may_be_left_out(records: Records, said: list[str]) -> None:
    whole = records.write(record(history=[{"loss": 1.0}], poisons={"n": 1, "losses": [[1.0]], "final_losses": [1.0]}))
    (light,) = read(records.root, [], said.append, curves=False)
    assert light == {**whole, "history": [], "poisons": {"n": 1, "final_losses": [1.0]}}


def test_every_flipped_bit_of_a_record_is_noticed(records: Records, said: list[str]) -> None:
    records.write(record())
    path = records.path(record())
    text = path.read_bytes()
    for position in range(0, len(text) - 1, 3):
        broken = bytearray(text)
        broken[position] ^= 1 << position % 8
        with pytest.raises(ValueError):
            parse(bytes(broken))
    path.write_bytes(text.replace(b'"success":1.0', b'"success":0.0'))
    assert read(records.root, [], said.append) == [] and "not what its digest says" in said[0]
    assert read(records.root, [], said.append, curves=False) == []
    assert records.find(record()) is None and path.with_suffix(".damaged").exists()


def test_a_record_that_was_laid_out_anew_is_the_same_record() -> None:
    assert parse(json.dumps(record(), indent=2).encode()) == record()
    with pytest.raises(ValueError, match="digest"):
        parse(json.dumps({**record(), "clean_accuracy": 0.25}, indent=2).encode())


def test_a_record_without_a_digest_is_read(tmp_path: Path, said: list[str]) -> None:
    old = {name: value for name, value in record().items() if name != "digest"}
    file = tmp_path / "old.jsonl"
    file.write_text(json.dumps(old) + "\n")
    assert read(None, [file], said.append) == [old] and not said


def test_records_that_change_places_are_set_aside(records: Records, said: list[str]) -> None:
    one, other = record(), record(key="2" * 64)
    records.write(one)
    records.path(one).rename(records.path(other))
    assert records.find(other) is None and "another trial" in said[0]
    assert records.path(other).with_suffix(".damaged").exists()


@pytest.mark.parametrize("changes", [{"success": 2.0}, {"environment": None}, {"settings": {"protocol": None}}])
def test_a_value_that_no_view_could_use_is_set_aside(
    records: Records, said: list[str], changes: dict[str, Any]
) -> None:
    path = records.path(record())
    path.parent.mkdir(parents=True)
    path.write_bytes(sealed({**record(), **changes}))
    assert records.find(record()) is None and len(said) == 1 and path.with_suffix(".damaged").exists()


def test_a_pipe_among_records_is_set_aside(records: Records, said: list[str]) -> None:
    path = records.path(record())
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert read(records.root, [], said.append) == [] and records.find(record()) is None
    assert len(said) == 2 and path.with_suffix(".damaged").exists()


@pytest.mark.parametrize("curves", [True, False])
def test_a_record_with_a_digest_may_lack_what_later_versions_add(
    records: Records, said: list[str], curves: bool
) -> None:
    text = sealed({name: value for name, value in record().items() if name != "places"})
    path = records.path(record())
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    (found,) = read(records.root, [], said.append, curves=curves)
    assert found["places"] == {} and not said
