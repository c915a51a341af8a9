"""Whatever the reader takes for a record, every view shows: never a traceback."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given

from bench.execution.past import Past
from bench.storage.record import Record, parse_summary, sealed
from bench.storage.records import read
from bench.storage.standings import Standings
from bench.views import frames, html, text
from bench.views.cells import by_cell, milliseconds, setting_of
from bench.views.leaderboard import leaderboard
from bench.views.mlflow import mapping
from bench.views.mlflow.sync import sync
from bench.views.published import published
from bench.views.reading import reading
from tests.any_record import SOUND, batches, cases

LARGEST = 2**63  # whole numbers of a database


def all_of(texts: list[bytes]) -> list[Record]:
    return [*map(parse_summary, texts), *SOUND[1:]]


@given(batches)
@cases(each=20, ci=40)
def test_tables_and_pages(texts: list[bytes]) -> None:
    board = leaderboard(all_of(texts))
    light = Standings()
    standings = [*map(light.parse, texts), *map(light.lighten, SOUND[1:])]
    assert text.as_json(leaderboard(standings), "none") == text.as_json(board, "none")
    for write in (*text.FORMATS.values(), html.page):
        write(board, "none").encode()
    "\n".join([text.run_table(board), *reading(board)]).encode()


@given(batches)
@cases(each=20, ci=100)
def test_data_frames(texts: list[bytes]) -> None:
    records = all_of(texts)
    again = frames.records_of(frames.records_frame(records))
    shown, expected = (sorted(entry.figures.n for entry in leaderboard(each)) for each in (again, records))
    assert shown == expected


@given(batches)
@cases(each=20)
def test_estimates_of_time(texts: list[bytes]) -> None:
    assert Past(all_of(texts)).count


@given(batches)
@cases(each=20)
def test_what_mlflow_is_told_of_a_record(texts: list[bytes]) -> None:
    records = all_of(texts)
    runs = [(told(record), record) for record in records]
    assert leaderboard([mapping.read_back(run, record) for run, record in runs])
    for trials in by_cell(records):
        assert all(mapping.cell_tags(trials[0], setting_of(trials[0]), published(trials[0])).values())
    for entry in leaderboard(records):
        mapping.cell_metrics(entry)


def told(record: Record) -> Any:
    """The run of a trial, with what a database can hold."""
    tags, params = mapping.trial_tags(record, "parent"), mapping.params_of(record)
    points = mapping.trial_metrics(record)
    assert all(isinstance(value, str) for value in (*tags.values(), *params.values()))
    assert all(-LARGEST < number < LARGEST for _, _, *numbers in points for number in numbers)
    end = milliseconds(record["finished"])
    metrics = {name: value for name, value, _, _ in points}
    return SimpleNamespace(data=SimpleNamespace(tags=tags, metrics=metrics), info=SimpleNamespace(end_time=end))


@pytest.mark.slow
@given(batches)
@cases(each=1000, ci=1)
def test_a_database_of_mlflow(texts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        path.write_bytes(b"".join([*map(sealed, SOUND), b"\n".join(texts)]))
        records = read(None, [path], print)
        report = sync(records, f"sqlite:///{folder}/mlflow.db", Path(folder))
        assert report.trials_new
        assert sync(records, f"sqlite:///{folder}/mlflow.db", Path(folder)).trials_new == 0
