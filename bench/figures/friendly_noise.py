"""Histogram of the friendly noise of a victim's training set (FRIENDS, Fig. 4a; trains the first epochs).

It is the noise of that trial's own victim: the same training behind the defense, with the same seeds, runs to epoch
`start` and stops there. Every value counts: all images, pixels and channels. Grey: the noise from which the
optimisation starts, uniform in [-8, 8] levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.defenses.friends import Friends
from bench.execution.plan import Cell
from bench.figures.canvas import COLOURS, WIDTH, legend_above
from bench.figures.request import FigureRequest, Plate, Row, plan_of
from bench.figures.training import made
from bench.foundation.errors import BadInput
from bench.science.defense import Defense
from bench.science.training import Run
from bench.science.victim import trainings
from bench.science.workspace import Workspace
from bench.storage.store import Made

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INITIAL = 8  # levels of 255, FRIENDS' start


class _Caught(Exception):
    """The friendly noise, int8 [n, 3, h, w]; ends the training."""

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise


class _Watched(Friends):
    def epoch(self, run: Run, epoch: int) -> None:
        super().epoch(run, epoch)
        if "friendly" in run.side:
            raise _Caught(run.side["friendly"])


def _watched(guard: Defense) -> Defense:
    return _Watched(guard.settings, guard.name)


def _counts(space: Workspace, cell: Cell, index: int) -> Made:
    """How often each level from -127 to 127 occurs."""
    try:
        trainings(space, space.study.case(index), cell.attack, cell.defense, _watched)
    except _Caught as caught:
        counts = torch.bincount(caught.noise.flatten().long() + 127, minlength=255)
        return {"counts": counts}, {"images": len(caught.noise)}
    raise AssertionError("the friendly noise was never made")


def measure(request: FigureRequest) -> Plate:
    """content: {defense: (zeta, share of each level from -zeta to zeta)}."""
    plan = plan_of(request, "none", "friends-b")
    study = plan.study
    for cell in plan.cells:
        make, label = cell.defense.make, cell.defense.label
        if not (isinstance(make, type) and issubclass(make, Friends)):
            raise BadInput(
                f"defense '{label}' makes no friendly noise; allowed: friends-u, friends-b, friends-g, friendly"
            )
        start, epochs = cell.defense.settings.as_dict()["start"], study.protocol.train.epochs
        if start >= epochs:
            raise BadInput(
                f"defense '{label}' makes its noise at epoch {start}, but training ends after {epochs}; "
                f"fix: --set defense.start={epochs - 1}"
            )
    artefacts = made("friendly noise", _counts, plan, plan.cells, request.out)
    rows: list[Row] = []
    shares: dict[str, tuple[int, list[float]]] = {}
    for cell, artefact in zip(plan.cells, artefacts, strict=True):
        zeta = cell.defense.settings.as_dict()["zeta"]
        counts = artefact.tensors["counts"][127 - zeta : 128 + zeta]
        share_of_levels = (counts.double() / counts.sum()).tolist()
        shares[cell.defense.label] = (zeta, share_of_levels)
        rows += [
            (cell.defense.label, level, count, share)
            for level, count, share in zip(range(-zeta, zeta + 1), counts.tolist(), share_of_levels, strict=True)
        ]
    attack, (index,) = plan.cells[0].attack.label, plan.cells[0].trials
    starts = sorted({cell.defense.settings.as_dict()["start"] for cell in plan.cells})
    caption = (
        f"{study.protocol.name}, attack {attack}, trial {index}, seed {study.seed}: n = {artefacts[0].meta['images']} "
        f"images, noise made after {' or '.join(map(str, starts))} epochs"
    )
    return Plate(("defense", "level", "count", "share"), rows, caption, shares, (WIDTH, 2.2))


def draw(plate: Plate, figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    axis = figure.add_subplot()
    shares: dict[str, tuple[int, list[float]]] = plate.content
    handles: list[Line2D | Patch] = []
    # Rounded to whole levels, a uniform start gives its two ends half of what the other levels get.
    start = [100 / (2 * INITIAL) * (0.5 if abs(level) == INITIAL else 1) for level in range(-INITIAL, INITIAL + 1)]
    edges = [level - 0.5 for level in range(-INITIAL, INITIAL + 2)]
    axis.stairs(start, edges, color="#bbbbbb", fill=True)
    handles.append(Patch(color="#bbbbbb", label="start of the optimisation"))
    for colour, (defense, (zeta, share)) in zip(COLOURS, shares.items(), strict=False):
        edges = [level - 0.5 for level in range(-zeta, zeta + 2)]
        axis.stairs([100 * of_level for of_level in share], edges, color=colour, linewidth=1.1)
        bound = 100 * (share[0] + share[-1])
        handles.append(Line2D([], [], color=colour, label=f"{defense}: {bound:.0f} % at ±{zeta}"))
    axis.set(xlabel="friendly noise, levels of 255", ylabel="share of values, %")
    legend_above(figure, handles, 2)
