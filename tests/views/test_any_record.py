"""Whatever is done to a record: it is skipped aloud, or every view shows it. Never a traceback."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.execution.past import Past
from bench.storage.record import sealed
from bench.storage.records import read, read_standings
from bench.storage.standings import Standings
from bench.views import frames, html, text
from bench.views.leaderboard import leaderboard
from tests.records import cell

CASES = int(os.environ.get("BENCH_CASES", "20"))
GOOD = [dict(one) for one in (*cell("gm", "none", [1.0, 0.0]), *cell("gm", "d", [0.0]))]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, inner in items for place in [(*above, name), *places(inner, (*above, name))]]


PLACES = places(GOOD[0])
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), st.none() | st.tuples(VALUES)), min_size=1, max_size=3)


def changed(place: tuple[Any, ...], value: tuple[Any] | None, record: Any) -> None:
    """Another value there, or none at all; nothing where an earlier change took the place away."""
    *above, last = place
    for name in above:
        try:
            record = record[name]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(record, dict) and value is None:
        record.pop(last, None)
    elif isinstance(record, dict) or (isinstance(record, list) and value and last < len(record)):
        record[last] = value[0]  # type: ignore[index]


def show(content: bytes) -> None:
    """All that reads records, with two sound ones beside."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_bytes(content + b"\n" + b"".join(map(sealed, GOOD[1:])))
        whole = read(None, [path], said.append)
        records = read(None, [path], said.append, curves=False)
        own = Path(folder) / "records" / "p" / "a" / "d"
        own.mkdir(parents=True)
        (own / "0000-0.json").write_bytes(content)
        standings = read_standings(Path(folder) / "records", [path], said.append)
        assert standings[-len(records) :] == read_standings(None, [path], said.append)
        light = Standings()
        assert standings == [light.lighten(r) for r in read(Path(folder) / "records", [path], said.append)]
    assert all(line.isprintable() for line in said)
    board = leaderboard(records)
    assert text.as_json(leaderboard(standings), "none") == text.as_json(board, "none")
    for write in (*text.FORMATS.values(), html.page):
        write(board, "none")
    text.run_table(board)
    frames.records_of(frames.records_frame(records))
    Past(whole)


@given(CHANGES, st.booleans())
@settings(max_examples=CASES, derandomize=True, deadline=None, database=None)
def test_values_types_and_missing_keys(changes: list[tuple[tuple[Any, ...], tuple[Any] | None]], seal: bool) -> None:
    record = json.loads(sealed(GOOD[0]))
    del record["digest"]
    for place, value in changes:
        changed(place, value, record)
    show(sealed(record) if seal else json.dumps(record).encode())


@given(st.lists(st.tuples(st.integers(0, len(sealed(GOOD[0])) - 1), st.integers(0, 7)), min_size=1, max_size=3))
@settings(max_examples=CASES, derandomize=True, deadline=None, database=None)
def test_flipped_bits(flips: list[tuple[int, int]]) -> None:
    content = bytearray(sealed(GOOD[0]))
    for position, bit in flips:
        content[position] ^= 1 << bit
    show(bytes(content))


@given(st.binary(max_size=200))
@settings(max_examples=CASES, derandomize=True, deadline=None, database=None)
def test_raw_bytes(content: bytes) -> None:
    show(content)
