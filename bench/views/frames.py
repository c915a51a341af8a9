"""Trials and cells as pandas data frames, with the figures that all other views show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.foundation.errors import BadInput
from bench.storage.record import SCHEMA, Record, parse_unsealed
from bench.views.cells import one_per_key
from bench.views.differences import flat
from bench.views.leaderboard import Entry

if TYPE_CHECKING:
    from pandas import DataFrame

TRIAL_COLUMNS = (
    *("protocol", "attack", "defense", "seed", "trial", "victim", "status", "success", "clean_accuracy", "error"),
    *("cell", "key", "revision", "memory_peak_mib", "started", "finished", "digest"),
)
_NESTED = ("seconds", "outcome", "filter", "draw", "data", "code", "environment", "settings")
_LISTS = ("knowledge", "adapted_to")
_POISONS = ("key", "n", "eps", "max_change")
_PUBLISHED = ("source", "file", "table", "line", "success_rate", "clean_accuracy", "trials", "differs")
_COMPARISON = (
    *("baseline", "n", "difference", "low", "high", "test", "p"),
    *("margin", "margin_low", "margin_high", "margin_p", "margin_n"),
)
CELL_COLUMNS = (
    *(
        "protocol",
        "attack",
        "defense",
        "attack_label",
        "defense_label",
        "seed",
        "seeds",
        "rank",
        "n",
        "victims",
        "failed",
        "successes",
    ),
    *("success_rate", "success_low", "success_high", "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high"),
    *("accuracy_drop", "accuracy_drop_low", "accuracy_drop_high", "accuracy_drop_n", "train_seconds", "train_cost"),
    *("knowledge", "attack_kind", "adapted_to", *(f"published_{name}" for name in _PUBLISHED)),
    *(f"{kind}_{name}" for kind in ("comparison", "over_control") for name in _COMPARISON),
    *("flags", "cell"),
)
_EXACT = ("settings.", "draw.", "poisons.", "filter.", "data.")
_WHOLE_NUMBERS = (  # some unknown
    *("seed", "rank", "published_line", "published_trials"),
    *("comparison_n", "comparison_margin_n", "over_control_n", "over_control_margin_n"),
)


def records_frame(records: Iterable[Record]) -> DataFrame:
    """One row per trial and victim (of several records with one key the one that counts), in the order of the records.

    Columns: TRIAL_COLUMNS, then nested parts with a dot: `seconds.train`, `settings.protocol.threat.eps`,
    `outcome.target_margin`, `poisons.n`. Lists of names are joined with "; ". Curves are left to the records.
    """
    import pandas

    rows = [_trial(record) for record in one_per_key(records)]
    names = dict.fromkeys([*TRIAL_COLUMNS, *(name for row in rows for name in row)])
    settings = [name for name in names if name.startswith(_EXACT)]
    frame = pandas.DataFrame(rows, columns=[name for name in names if name not in settings])
    # As objects, so that 8 stays 8 where another defense has no such setting: `records_of` gives them back.
    return pandas.concat([frame, pandas.DataFrame(rows, columns=settings, dtype=object)], axis=1)


def records_of(frame: DataFrame) -> list[Record]:
    """What the leaderboard needs of the records behind a frame of trials, or some rows of it. BadInput for another
    frame."""
    if lacking := [name for name in TRIAL_COLUMNS if name not in frame and name != "victim"]:
        raise BadInput(f"these are no trial records: no column '{lacking[0]}'; fix: bench.records(...)")
    return [_record(row) for row in frame.to_dict("records")]


def leaderboard_frame(entries: Sequence[Entry]) -> DataFrame:
    """One row per cell, in the order of the entries, with CELL_COLUMNS: those of `Entry.as_dict`, its nested parts as
    `published_table` or `comparison_p`, lists joined with "; "; what is not known is missing (NaN or NA)."""
    import pandas

    frame = pandas.DataFrame([_spread(entry.as_dict()) for entry in entries], columns=list(CELL_COLUMNS))
    return frame.astype(dict.fromkeys(_WHOLE_NUMBERS, "Int64"))


def _trial(record: Record) -> dict[str, Any]:
    values: Mapping[str, Any] = record
    row = {name: values.get(name) for name in TRIAL_COLUMNS}
    row |= {name: "; ".join(values[name]) for name in _LISTS}
    for part in _NESTED:
        row |= dict(flat(_undotted(values.get(part) or {}, part), f"{part}."))
    return row | {f"poisons.{name}": values["poisons"].get(name) for name in _POISONS}


_MAY_HAVE_DOTS = {"seconds", "settings.attack", "settings.defense"}  # `seconds.train.networks`, `epic-0.1`


def _undotted(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Without names that hold a dot and that no version has written: a column could be taken for another's."""
    if where in _MAY_HAVE_DOTS:
        return values
    return {
        name: _undotted(value, f"{where}.{name}") if isinstance(value, Mapping) else value
        for name, value in values.items()
        if "." not in name
    }


def _record(row: dict[Any, Any]) -> Record:
    values: dict[str, Any] = {"schema": SCHEMA, "seconds": {}, "settings": {}}
    for name, entry in row.items():
        value = entry.tolist() if hasattr(entry, "tolist") else entry  # from a file, lists come back as arrays
        is_missing = value is None or (not isinstance(value, list) and value != value)  # NaN is not itself
        levels = 1 if str(name).startswith("seconds.") else -1  # seconds["train.networks"] is one name
        *parts, last = str(name).split(".", levels)
        if is_missing and (parts or name == "victim"):  # a table of an older version has none
            continue
        place = values
        while parts and isinstance(place.setdefault(parts[0], {}), dict):
            place = place[parts.pop(0)]
        place[".".join([*parts, last])] = None if is_missing else value  # names may hold dots: `a` beside `a.b`
    for name in _LISTS:
        values[name] = [item for item in (values.get(name) or "").split("; ") if item]
    return parse_unsealed(json.dumps(values).encode())


def _spread(cell: dict[str, Any]) -> dict[str, Any]:
    for part in ("published", "comparison", "over_control"):
        cell |= {f"{part}_{name}": value for name, value in (cell.pop(part) or {}).items()}
    return {name: "; ".join(map(str, value)) if isinstance(value, list) else value for name, value in cell.items()}
