"""Success against clean accuracy, one mark per cell, with 95 % intervals (from records).

Success: rate over finished trials with its interval (Clopper-Pearson; Gaffke's for several victims a trial). Clean
accuracy: mean over trials with Student's t interval of that mean (none for one trial). Good defenses are at the lower
right; good attacks are above their control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.figures.canvas import COLOURS, WIDTH, legend_above
from bench.figures.request import FigureRequest, Plate, read, seeds_of
from bench.foundation.errors import BadInput
from bench.views.cells import Cell, by_cell, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = "osD^vP*X<>hp"


def accuracy_interval(cell: Cell) -> tuple[float, float]:
    """95 % interval of the mean clean accuracy; the mean itself for a single trial."""
    return cell.clean_accuracy_interval or (cell.clean_accuracy, cell.clean_accuracy)


def measure(request: FigureRequest) -> Plate:
    """content: [Cell], those with a finished trial, in the order of the records."""
    records = read(request)
    cells = [cell for trials in by_cell(records) if (cell := summarise(trials)).n]
    if not cells:
        raise BadInput("none of these trials is finished; fix: run them again")
    sizes = sorted({cell.n for cell in cells})
    count = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    columns = (
        *("attack", "defense", "n", "success", "success_low", "success_high"),
        *("clean_accuracy", "clean_accuracy_low", "clean_accuracy_high"),
    )
    rows = [
        (c.attack, c.defense, c.n, c.success_rate, c.success_low, c.success_high, c.clean_accuracy, low, high)
        for c in cells
        for low, high in [accuracy_interval(c)]
    ]
    victims = ", several victims each" if any(c.victims > c.n for c in cells) else ""
    caption = f"{cells[0].protocol}, n = {count} trials per cell{victims}, {seeds_of(records)}; bars: 95 % intervals"
    height = 2.6 + 0.12 * (-(-len({c.attack for c in cells}) // 2) + -(-len({c.defense for c in cells}) // 2))
    return Plate(columns, list(rows), caption, cells, (WIDTH, height))


def draw(plate: Plate, figure: Figure) -> None:
    from matplotlib.lines import Line2D

    axis = figure.add_subplot()
    cells: list[Cell] = plate.content
    attacks, defenses = (list(dict.fromkeys(getattr(c, side) for c in cells)) for side in ("attack", "defense"))
    marks = {attack: MARKS[i % len(MARKS)] for i, attack in enumerate(attacks)}
    guards = [defense for defense in defenses if defense != "none"]
    colours = {"none": "#000000"} if "none" in defenses else {}
    colours |= {defense: COLOURS[i % len(COLOURS)] for i, defense in enumerate(guards)}
    for cell in cells:
        rate = 100 * cell.success_rate
        axis.errorbar(
            100 * cell.clean_accuracy, rate, xerr=100 * (accuracy_interval(cell)[1] - cell.clean_accuracy),
            yerr=[[rate - 100 * cell.success_low], [100 * cell.success_high - rate]],
            fmt=marks[cell.attack], color=colours[cell.defense], markersize=4, elinewidth=0.5, alpha=0.85,
        )  # fmt: skip
    axis.set(xlabel="clean accuracy, %", ylabel="attack success, %", ylim=(-3, 103))
    axis.grid(linewidth=0.3, alpha=0.5)
    shapes = [Line2D([], [], color="#555555", marker=m, linestyle="", markersize=4, label=a) for a, m in marks.items()]
    paints = [Line2D([], [], color=c, linewidth=3, label=f"defense {d}") for d, c in colours.items()]
    legend_above(figure, [*shapes, *paints], 2)
