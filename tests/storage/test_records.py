"""Records: the truth on disk, damaged ones said and set aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.storage.records import SCHEMA, Records, comparable


def record(**changes: Any) -> dict[str, Any]:
    base = {
        "schema": SCHEMA,
        "key": "1" * 64,
        "cell": "2" * 64,
        "attack": "gm",
        "defense": "none",
        "protocol": "quick",
        "trial": 3,
        "seed": 0,
        "status": "done",
        "error": None,
        "success": 1.0,
        "clean_accuracy": 0.5,
        "seconds": {"train": 2.0},
        "poisons": {},
        "history": [],
        "settings": {},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:00:02+00:00",
    }
    return {**base, **changes}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def records(tmp_path: Path, said: list[str]) -> Records:
    return Records(tmp_path / "records", said.append)


def test_a_written_record_is_found_by_its_key(records: Records) -> None:
    records.write(record())
    assert records.find(record()) == record()
    assert records.find(record(key="1" * 16 + "3" * 48)) is None
    assert list(records.all()) == [record()]


def test_a_failed_record_is_listed_but_not_found(records: Records) -> None:
    records.write(record(status="failed"))
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
        records.write(record(success=float("nan")))
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
