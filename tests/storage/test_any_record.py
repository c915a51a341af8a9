"""Whatever is done to a record: it is read as a record, or refused with a ValueError in one line."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bench.storage.record import Record, parse, parse_summary, sealed, why, without_curves
from bench.storage.records import read
from bench.storage.standings import Standings
from tests.any_record import SOUND, cases, mutants

TEXT = sealed(SOUND[0])
NUMBERS = st.sampled_from(
    [b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5000, b"9" * 400, b"01", b"1.", b'"\\ud800"']
)


def read_or_refused(text: bytes) -> Record | None:
    """What is read can be written and read again, and the quick readers give the same."""
    try:
        record = parse(text)
    except ValueError as error:
        assert why(error).isprintable() and why(error)
        record = None
    if record is None:
        for reader in (parse_summary, Standings().parse):
            with contextlib.suppress(ValueError):
                reader(text)  # where only curves are damaged
        return None
    summary, standing = parse_summary(text), Standings().parse(text)
    assert {**standing, "digest": 0} == {**Standings().lighten(record), "digest": 0}
    again = parse(sealed(record))
    assert {**again, "digest": None} == {**record, "digest": None}
    light = without_curves(record)
    for part, whole in ((summary["poisons"], light["poisons"]), ({**summary, "poisons": 0}, {**light, "poisons": 0})):
        assert {**part, "digest": 0}.items() <= {**whole, "digest": 0}.items()  # without what no view knows
    return again


@given(mutants())
@cases()
def test_other_values_types_and_missing_keys(text: bytes) -> None:
    read_or_refused(text)


@given(st.sampled_from(re.findall(rb'"\w+":(?:-?[\d.]+|null|true|false|"[^"]*")', TEXT)), NUMBERS)
@cases()
def test_numbers_that_no_computer_has(old: bytes, number: bytes) -> None:
    name = old.partition(b":")[0]
    for text in (TEXT, b"{" + TEXT[TEXT.index(b",") + 1 :]):
        changed = text.replace(old, name + b":" + number, 1)
        if changed != text:
            assert read_or_refused(changed) is None or number == b"9" * 400


@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 7)), min_size=1, max_size=3))
@cases()
def test_flipped_bits(flips: list[tuple[int, int]]) -> None:
    content = bytearray(TEXT)
    for position, bit in flips:
        content[position] ^= 1 << bit
    read_or_refused(bytes(content))


@given(st.binary(max_size=200) | st.lists(mutants(), max_size=3).map(b"\n".join))
@cases(ci=50)
def test_any_bytes_of_a_file_are_skipped_aloud(content: bytes) -> None:
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_bytes(content + b"\n" + TEXT)
        whole, light = (read(None, [path], said.append, curves=curves) for curves in (True, False))
        own = Path(folder) / "records" / "p" / "a" / "d"
        own.mkdir(parents=True)
        (own / "0000-0.json").write_bytes(content)
        read(Path(folder) / "records", [], said.append)
    assert 1 <= len(whole) <= len(light)  # a board needs no curves: it shows a record of which they alone are damaged
    assert all(line.isprintable() for line in said)
    assert json.dumps(whole, allow_nan=False)
