"""What a leaderboard needs of records is read quickly; it is what is read of whole records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.storage.record import parse, sealed
from bench.storage.records import read, read_standings
from bench.storage.standings import KEPT, Standings
from tests.records import lines, record, write

KEY = "e" * 64
CURVE = [{"loss": 0.5, "accuracy": 0.25}]
LOSSES = [[1.0, 0.5], [2.0]]


def standing(**changes: Any) -> tuple[Any, Any, bool]:
    """Of a record with these fields: the standing from its text, the one from the whole record, and whether the text
    had to be read whole."""
    whole = {name: value for name, value in record("gm", "none", 3, 1.0).items() if name != "digest"}
    text = sealed({**whole, "history": CURVE, "poisons": {"key": KEY, "n": 3, "losses": LOSSES}, **changes})
    read_whole = []

    class Watched(Standings):
        def lighten(self, record: Any) -> Any:
            read_whole.append(record)
            return super().lighten(record)

    return Watched().parse(text), Standings().lighten(parse(text)), bool(read_whole)


def test_a_record_as_it_is_written_is_not_read_whole() -> None:
    quick, slow, read_whole = standing(draw={"target_ids": [1], "source_class": 0, "target_class": 1, "base_ids": [5]})
    assert quick == slow and not read_whole
    assert tuple(quick) == KEPT and quick["poisons"] == {"key": KEY, "n": 3}
    assert quick["draw"] == {"target_ids": [1], "source_class": 0, "target_class": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"history": [{"lists": [1, 2], "loss": 1.0}, {"lists": []}]},
        {"history": ["],", "]}", ',"success":0.0'], "notes": {"history": ["a", ']},"']}},
        {"history": [{"a b": "c\\d]}"}]},
        {"history": [[], [[]], {}], "notes": {"losses": [1], "settings": {"a": {}}, "seconds": {"b": 1}}},
        {"poisons": {"losses": [1.0], "key": KEY, "final_losses": [[1.0]], "n": 5}},
        {"poisons": {"losses": [{"settings": {"x": {}}}, {"seconds": {"y": [1]}}], "n": 2}},
        {"settings": {"protocol": {"seconds": {"a": 1}, "settings": {"b": 2}}}},
        {"error": 'said "],\n" [', "external": {"settings": {}}},
        {"seconds": {}, "environment": {"settings": {"seconds": {}}}},
    ],
)
def test_whatever_the_layout_it_is_what_is_read_of_the_whole_record(changes: dict[str, Any]) -> None:
    quick, slow, _ = standing(**changes)
    assert quick == slow


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("settings", {"protocol": 1}),
            ("notes", []),
            ("reused", None),
            ("memory_peak_mib", "8"),
            ("places", {"a": 1}),
        ),
        *(("success", 1.5), ("success", None), ("finished", "2026-01-01"), ("seeds", {"surrogates": [0.5]})),
        *(("draw", {"target_ids": [1], "source_class": 0, "target_class": 1, "base_ids": ["a"]}), ("code", {"a": 1})),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_though_no_board_shows_it(name: str, value: Any) -> None:
    with pytest.raises(ValueError):
        standing(**{name: value})


def test_every_flipped_bit_is_noticed() -> None:
    text = sealed({**record("gm", "none", 3, 1.0), "history": CURVE})
    standings = Standings()
    standings.parse(text)
    for position in range(0, len(text) - 1, 3):
        broken = bytearray(text)
        broken[position] ^= 1 << position % 8
        with pytest.raises(ValueError):
            standings.parse(bytes(broken))


def test_equal_numbers_of_two_kinds_are_kept_apart() -> None:
    standings = Standings()
    eps = [standings.lighten(record("gm", "d", 0, 1.0, settings__defense={"mu": mu})) for mu in (8, 8.0, True)]
    assert [json.dumps(one["settings"]["defense"]) for one in eps] == ['{"mu": 8}', '{"mu": 8.0}', '{"mu": true}']


def test_trials_share_what_they_have_in_common(tmp_path: Path) -> None:
    several = [record("gm", defense, trial, 1.0) for defense in ("none", "d") for trial in range(3)]
    write(tmp_path, several)
    for found in (
        read_standings(tmp_path / "records", [], print),
        read_standings(None, [lines(tmp_path / "records.jsonl", several)], print),
    ):
        assert len(found) == 6 and len({id(one["settings"]) for one in found}) == 1
        assert len({id(one["draw"]) for one in found}) == 3 and len({id(one["cell"]) for one in found}) == 2


def test_of_a_file_damaged_lines_are_skipped_aloud(tmp_path: Path) -> None:
    file = lines(tmp_path / "records.jsonl", [record("gm", "none", trial, 1.0) for trial in range(3)])
    good = file.read_bytes().splitlines()
    said: list[str] = []
    file.write_bytes(b"\n".join([good[0][:-9], good[1].replace(b'"success":1.0', b'"success":0.0'), good[2], b""]))
    assert [one["trial"] for one in read_standings(None, [file], said.append)] == [2]
    assert len(said) == 1 and "2 damaged records skipped: line 1" in said[0]
    assert [one["trial"] for one in read(None, [file], said.append)] == [2] and said[1] == said[0]
