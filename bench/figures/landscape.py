"""Training loss around a trial's poisons, undefended and behind defenses (FRIENDS, Figs. 2c and 3; trains victims).

Measured is the mean cross-entropy of the poisons' labels over all poisons of the trial, at

    clip(base_i + u (poison_i - base_i) + v eps r_i, 0, 1)

u: along the poison's own direction, 0 the base image, 1 the poison; v: along a random direction of the poison's size,
every value of r_i -1 or 1 with equal chance, drawn once for each image, independent of the poison. The paper varies
two random directions around the base images and marks the poison; here one axis goes through the poison, so that it
lies in the plane. Networks: the attacker's first surrogate, trained on clean data, where the poisons stand out (Fig.
2c), and the victims, trained on the poisons to their last epoch (Fig. 3). Eval mode, no augmentation, and none of a
defense's noise, as when the victim is judged. Colours are logarithmic and the same in all panels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.execution.plan import Cell
from bench.figures.canvas import WIDTH
from bench.figures.request import FigureRequest, Plate, Row, plan_of
from bench.figures.training import made
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.progress import say
from bench.science.classifier import Classifier, frozen
from bench.science.crafting import poisons_of
from bench.science.seeds import derive, torch_stream
from bench.science.training import to_pixels
from bench.science.victim import trainings
from bench.science.workspace import Workspace
from bench.storage.store import Made

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALONG = [i / 8 - 1 for i in range(25)]  # u, from -1 to 2 by way of 0 and 1
ACROSS = [i / 4 - 2 for i in range(17)]  # v, from -2 to 2 by way of 0
CHUNK = 512  # images at a time
SHADES = 24
LINES = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 3)]  # nats, where a white line stands


@dataclass(frozen=True)
class Surface:
    """name: of the network; loss: [len(ACROSS)][len(ALONG)]."""

    name: str
    loss: list[list[float]]

    def at(self, u: float, v: float) -> float:
        return self.loss[ACROSS.index(v)][ALONG.index(u)]


@torch.no_grad()
def mean_loss(model: Classifier, pixels: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy of float pixels [n, 3, h, w], which are clipped to [0, 1]."""
    total = 0.0
    for images, image_labels in zip(pixels.clamp(0, 1).split(CHUNK), labels.split(CHUNK), strict=True):
        total += F.cross_entropy(model(images), image_labels, reduction="sum").item()
    return total / len(labels)


def surface(model: Classifier, base: Tensor, along: Tensor, across: Tensor, labels: Tensor) -> Tensor:
    """Loss [len(ACROSS), len(ALONG)] at base + u along + v across; all [n, 3, h, w] in [0, 1] units."""
    with frozen(model):
        grid = [[mean_loss(model, base + u * along + v * across, labels) for u in ALONG] for v in ACROSS]
    return torch.tensor(grid, dtype=torch.float64)


def _around(space: Workspace, cell: Cell, index: int, model: Classifier) -> Tensor:
    """The surface of a network around the poisons of a trial."""
    study, case = space.study, space.study.case(index)
    poisons, clean = poisons_of(space, case, cell.attack)[0], case.clean
    base, poison = to_pixels(clean.images[clean.rows_of(poisons.ids)]), to_pixels(poisons.images)
    signs = torch.empty_like(base).bernoulli_(
        0.5, generator=torch_stream("cpu", derive(study.seed, "figure", "landscape"), index)
    )
    across = (2 * signs - 1) * study.protocol.threat.eps / 255
    tensors = (each.to(study.device) for each in (base, poison - base, across, poisons.labels))
    return surface(model, *tensors)


def _of_victim(space: Workspace, cell: Cell, index: int) -> Made:
    trained = trainings(space, space.study.case(index), cell.attack, cell.defense)
    if len(trained) > 1:
        raise TrialFailed(f"defense '{cell.defense.label}' trains {len(trained)} networks, and this figure shows one")
    return {"loss": _around(space, cell, index, trained[0].model)}, {}


def _of_surrogate(space: Workspace, cell: Cell, index: int) -> Made:
    return {"loss": _around(space, cell, index, space.networks.surrogate(0)[0])}, {}


def measure(request: FigureRequest) -> Plate:
    """content: [Surface], the surrogate's first, then those of the victims."""
    plan = plan_of(request, "gm", "friends-b")
    attack = plan.cells[-1].attack
    if not attack.make.poisons_data:
        raise BadInput(f"attack '{attack.label}' crafts no poisons, so there is no loss surface to plot")
    settings = tuple(item for item in request.asked.set if not item.startswith("defense."))
    bare = replace(request, asked=request.asked.changed(defenses=("none",), set=settings))
    (undefended,) = plan_of(bare, "gm", "none").cells
    cells = [undefended, *(cell for cell in plan.cells if cell.defense.label != "none")]
    study, (index,) = plan.study, plan.cells[0].trials
    (first,) = made("loss around poisons", _of_surrogate, plan, cells[:1], request.out)
    artefacts = [first, *made("loss around poisons, victim", _of_victim, plan, cells, request.out)]
    names = ["attacker's surrogate", "victim, undefended", *(f"victim, {cell.defense.label}" for cell in cells[1:])]
    surfaces = [Surface(name, a.tensors["loss"].tolist()) for name, a in zip(names, artefacts, strict=True)]
    rows: list[Row] = [
        (panel.name, u, v, loss)
        for panel in surfaces
        for v, line in zip(ACROSS, panel.loss, strict=True)
        for u, loss in zip(ALONG, line, strict=True)
    ]
    space = Workspace.at(study, request.out, lambda *_: None, say)
    n = len(poisons_of(space, study.case(index), attack)[0].ids)
    caption = (
        f"{study.protocol.name}, {attack.label}, trial {index}, seed {study.seed}; n = {n} poisons, "
        f"eps {study.protocol.threat.eps}/255; circle: base images, star: poisons"
    )
    return Plate(("network", "u", "v", "loss"), rows, caption, surfaces, (2 * WIDTH, 2.6))


def draw(plate: Plate, figure: Figure) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter

    surfaces: list[Surface] = plate.content
    axes = figure.subplots(1, len(surfaces), sharey=True, squeeze=False)[0]
    floor = 1e-4  # nats; lower values are shown as this one
    clipped = [[[max(loss, floor) for loss in line] for line in panel.loss] for panel in surfaces]
    values = [loss for loss_of in clipped for line in loss_of for loss in line]
    low, high = min(values), max(max(values), 2 * min(values))
    shades = [low * (high / low) ** (i / SHADES) for i in range(SHADES)] + [high]
    ticks = [mark for mark in LINES if low < mark < high]
    for axis, panel, loss in zip(axes, surfaces, clipped, strict=True):
        field = axis.contourf(ALONG, ACROSS, loss, levels=shades, norm=LogNorm(low, high), cmap="cividis")
        axis.contour(ALONG, ACROSS, loss, levels=ticks, colors="white", linewidths=0.3)
        axis.plot(0, 0, "o", markersize=4, markerfacecolor="none", color="white")
        axis.plot(1, 0, "*", markersize=6, color="white")
        axis.set(
            title=f"{panel.name}\nbase {panel.at(0, 0):.2g}, poison {panel.at(1, 0):.2g}",
            xlabel="poison's direction, u",
        )
    axes[0].set_ylabel("random direction, v (units of eps)")
    bar = figure.colorbar(field, ax=list(axes), ticks=ticks, format=FuncFormatter(lambda loss, _: f"{loss:g}"))
    bar.set_label("mean training loss, nats")
