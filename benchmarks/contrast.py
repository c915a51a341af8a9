"""Cells that differ in one setting alone, in pairs: the same trials, attack and defense, as a GitHub table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from bench.foundation.errors import BadInput
from bench.foundation.statistics import mean_interval, paired_difference
from bench.storage.record import Record
from bench.views.cells import by_cell, common_trials, summarise, trial_means
from bench.views.differences import flat
from bench.views.text import draw

Cell = Sequence[Record]


def contrast(records: Sequence[Record], setting: str) -> str:
    """Every value of a setting, such as `settings.protocol.train.precision`, against that of the first record, in
    points with 95 % intervals: success as on the leaderboard, clean accuracy by Student."""
    cells: dict[tuple[str, ...], dict[str, Cell]] = {}
    for cell in by_cell(records):
        first = cell[0]
        value = json.dumps(dict(flat(dict(first))).get(setting))
        cells.setdefault((first["protocol"], first["attack"], first["defense"]), {}).setdefault(value, cell)
    values = list(dict.fromkeys(value for of_pair in cells.values() for value in of_pair))
    if len(values) < 2:
        raise BadInput(f"contrast: '{setting}' has one value in these records: {', '.join(values)}")
    rows = [
        [*names, *_row(cells_of[values[0]], cells_of[value])]
        for names, cells_of in cells.items()
        for value in values[1:]
        if values[0] in cells_of and value in cells_of
    ]
    base, others = _plain(values[0]), ", ".join(map(_plain, values[1:]))
    last = setting.rpartition(".")[2]
    head = [
        "protocol",
        "attack",
        "defense",
        f"{last} {base}",
        others,
        "success, paired",
        "accuracy",
        "accuracy, paired",
    ]
    return draw(head, rows, "pipe")


def _row(base: Cell, other: Cell) -> list[str]:
    figures = [summarise(cell) for cell in (base, other)]
    pairs = common_trials(other, base)
    mine = [record for record, _ in pairs]
    after, before = (_means(mine, pairs, side, "success") for side in (0, 1))
    accuracy = [_means(mine, pairs, side, "clean_accuracy") for side in (0, 1)]
    lost = [a - b for a, b in zip(*accuracy, strict=True)]
    around = mean_interval(lost)
    return [
        *(f"{round(each.successes, 4):g}/{each.n}" for each in figures),
        _points(*paired_difference(after, before, len(pairs) > len(after)), digits=0),
        " / ".join(f"{100 * each.clean_accuracy:.1f}" for each in figures) + " %",
        _points(statistics.fmean(lost), *around, digits=2) if around else "-",
    ]


def _means(mine: Cell, pairs: Sequence[tuple[Record, Record]], side: int, name: str) -> list[float]:
    records: Any = [pair[side] for pair in pairs]
    return trial_means(mine, [record[name] or 0.0 for record in records])


def _points(difference: float, low: float, high: float, digits: int) -> str:
    return f"{100 * difference:+.{digits}f} [{100 * low:+.{digits}f}, {100 * high:+.{digits}f}]"


def _plain(value: str) -> str:
    return value.strip('"')
