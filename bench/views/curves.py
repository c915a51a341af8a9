"""Curves of a record. What an attack tells of its crafting is its own affair: it is shown where it can be."""

from __future__ import annotations

import math
from typing import Any

from bench.storage.record import Record


def best_restart(record: Record) -> tuple[int, list[float]] | None:
    """Which restart of the crafting ended lowest, and its losses by step, NaN where one is no number. None where the
    attack tells none, or not as a list for every restart with the last value of each."""
    curves, ends = record["poisons"].get("losses") or [], record["poisons"].get("final_losses") or []
    known = [i for i, end in enumerate(ends[: len(curves)]) if is_number(end)]
    best = min(known, key=ends.__getitem__, default=None)
    if best is None:
        return None
    curve = curves[best]
    if not isinstance(curve, list) or not any(map(is_number, curve)):
        return None
    return best, [float(loss) if is_number(loss) else math.nan for loss in curve]


def is_number(value: Any) -> bool:
    """Whether it is a finite one that a float holds."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False
