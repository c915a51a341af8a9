"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.foundation.statistics import paired_difference
from bench.science.attack import CONTROL
from bench.views.cells import Cell, summarise
from bench.views.columns import aligned


def group(records: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Records by cell, in the order of appearance."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        cells.setdefault(record["cell"], []).append(record)
    return list(cells.values())


def _role(cell: Cell) -> str:
    if cell.attack in CONTROL.values():
        return "clean control" if cell.defense == "none" else "clean, defended"
    return "undefended" if cell.defense == "none" else "defended"


def _row(cell: Cell, undefended: Cell | None) -> tuple[str, ...]:
    if cell.n == 0:
        return (cell.attack, cell.defense, _role(cell), f"0/0 ({cell.failed} failed)", "-", "-", "-", "-", "-")
    count = f"{cell.successes:g}/{cell.n}" + (f" ({cell.failed} failed)" if cell.failed else "")
    drop = "-"
    if undefended is not None and undefended.n and cell.defense != "none":
        drop = f"{100 * (undefended.clean_accuracy - cell.clean_accuracy):.1f}"
    seconds = cell.seconds
    return (
        cell.attack,
        cell.defense,
        _role(cell),
        count,
        f"{100 * cell.success_rate:.0f} % [{100 * cell.success_low:.0f}, {100 * cell.success_high:.0f}]",
        f"{100 * cell.clean_accuracy:.1f} %",
        drop,
        f"{seconds.get('craft', 0.0):.1f}",
        f"{seconds.get('train', 0.0):.1f}",
    )


def _shows_trigger(own: list[dict[str, Any]]) -> bool:
    return own[0]["attack"] == CONTROL[True] or any((record.get("outcome") or {}).get("backdoor") for record in own)


def _comparisons(cells: list[list[dict[str, Any]]]) -> list[str]:
    """For every undefended attack its success over the clean control's, for every defense that over the undefended
    attack's, on the trials that both finished."""
    lines = []
    mixed = len({own[0]["attack"] for own in cells} & set(CONTROL.values())) > 1
    successes = [{r["trial"]: r["success"] for r in own if r["status"] == "done"} for own in cells]
    for mine, own in zip(successes, cells, strict=True):
        attack, defense = own[0]["attack"], own[0]["defense"]
        for theirs, other in zip(successes, cells, strict=True):
            control = other[0]["attack"] in CONTROL.values() and other[0]["defense"] == "none"
            fitting = control and defense == "none" and attack not in CONTROL.values()
            fitting &= not mixed or _shows_trigger(own) == _shows_trigger(other)
            fitting |= other[0]["attack"] == attack and defense != "none" and other[0]["defense"] == "none"
            common = sorted(mine.keys() & theirs.keys())
            if fitting and common:
                gain, low, high = paired_difference([mine[t] for t in common], [theirs[t] for t in common])
                against = f"{other[0]['attack']} x {other[0]['defense']}"
                lines.append(
                    f"{attack} x {defense} against {against}: {100 * gain:+.0f} points of success "
                    f"[{100 * low:+.0f}, {100 * high:+.0f}], paired, {len(common)} trials"
                )
    return lines


def table(records: Sequence[dict[str, Any]]) -> str:
    """Success k/n with its 95 % Clopper-Pearson interval, clean accuracy and seconds of each cell, as aligned text."""
    cells = [summarise(own) for own in group(records)]
    head = ("attack", "defense", "", "success", "rate [95 %]", "clean acc.", "drop", "craft s", "train s")
    undefended = {cell.attack: cell for cell in cells if cell.defense == "none"}
    rows = [head, *(_row(cell, undefended.get(cell.attack)) for cell in cells)]
    lines = [aligned(rows), *_comparisons(group(records))]
    controls = [cell for cell in cells if cell.attack in CONTROL.values() and cell.defense == "none" and cell.n]
    for control in controls:
        rate, mixed = 100 * control.success_rate, len(controls) > 1
        which = ", with a trigger" if mixed and control.attack == CONTROL[True] else ""
        lines.append(f"base rate (clean control{which}): {rate:.0f} %, what a trial 'succeeds' by without any poison")
    smallest = min(cell.n for cell in cells)
    if smallest < 20:
        lines.append(f"n = {smallest}: too few trials to compare; the usual number is 20 (--trials 20)")
    return "\n".join(lines)
