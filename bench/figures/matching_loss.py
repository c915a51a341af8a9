"""The crafting objective over the steps, one line per trial and the median (from records).

The objective is the attack's own: 1 - cos of gradients for Gradient Matching, another for others, so panels cannot be
compared. Of several restarts the best is shown. Where surrogates were retrained (dotted lines), the objective changes.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.figures.canvas import COLOURS, WIDTH
from bench.figures.request import FigureRequest, Plate, Row, read, seeds_of
from bench.foundation.errors import BadInput
from bench.views.curves import best_restart

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """The best restart of one crafting. turns: steps before which surrogates were retrained."""

    attack: str
    trial: int
    seed: int
    restart: int
    losses: list[float]
    turns: list[int]


def measure(request: FigureRequest) -> Plate:
    """content: {attack: [Curve]}. Defenses share poisons, so each crafting counts once."""
    records = read(request)
    curves: dict[str, list[Curve]] = {}
    seen = set()
    for record in records:
        poisons, best = record["poisons"], best_restart(record)
        key = poisons.get("key", record["key"])
        if best is None or key in seen:
            continue
        seen.add(key)
        curve = Curve(record["attack"], record["trial"], record["seed"], *best, poisons.get("retrained_at", []))
        curves.setdefault(curve.attack, []).append(curve)
    if not curves:
        raise BadInput("these records hold no crafting losses: their attacks optimise nothing")
    rows: list[Row] = [
        (curve.attack, curve.trial, curve.seed, curve.restart, step, loss)
        for of_attack in curves.values()
        for curve in of_attack
        for step, loss in enumerate(curve.losses)
    ]
    counts = ", ".join(f"{attack} n = {len(of_attack)}" for attack, of_attack in curves.items())
    caption = f"{records[0]['protocol']}, {seeds_of(records)}; trials: {counts}; thick: median"
    wide = min(len(curves), 2)
    size = (WIDTH if wide == 1 else 2 * WIDTH, 0.3 + 2.0 * -(-len(curves) // wide))
    return Plate(("attack", "trial", "seed", "restart", "step", "objective"), rows, caption, curves, size)


def draw(plate: Plate, figure: Figure) -> None:
    curves: dict[str, list[Curve]] = plate.content
    wide = min(len(curves), 2)
    axes = figure.subplots(-(-len(curves) // wide), wide, squeeze=False)
    for axis, (attack, of_attack) in zip(axes.flat, curves.items(), strict=False):
        for curve in of_attack:
            axis.plot(curve.losses, color=COLOURS[5], linewidth=0.5, alpha=0.7)
        shortest = min(len(curve.losses) for curve in of_attack)
        median = [statistics.median(curve.losses[i] for curve in of_attack) for i in range(shortest)]
        axis.plot(median, color=COLOURS[0])
        for turn in of_attack[0].turns:
            axis.axvline(turn, color="#000000", linewidth=0.5, linestyle=":")
        axis.set(title=attack, xlabel="crafting step", ylabel="objective")
        if min(map(min, (curve.losses for curve in of_attack))) > 0:
            axis.set_ylim(bottom=0)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
