"""From numbers to a file: the look that all figures share, and the table with the numbers. Needs matplotlib."""

from __future__ import annotations

import csv
import importlib.util
import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.figures.request import FigureRequest, Plate
from bench.foundation import files
from bench.foundation.errors import BadInput
from bench.foundation.registry import find

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 3.4  # inches, a column of a paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; black is for undefended victims."""

STYLE: dict[str, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 6,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # names of plug-ins are shown as they are, whatever they hold
    "svg.hashsalt": "bench",  # the same numbers give the same file
}
SUFFIXES = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def make(name: str, request: FigureRequest, to: Path, table: Path | None = None) -> str:
    """Make the figure called `name` and write it to `to`, its numbers to `table` as CSV; return its caption.

    BadInput before any work for an unknown name, an unknown suffix, or a missing matplotlib.
    """
    chosen = find("figure", name)
    for path, allowed in ((to, tuple(SUFFIXES)), (table, (".csv",))):
        if path is not None and (path.suffix not in allowed or path.is_dir()):
            raise BadInput(f"'{path}' cannot be written; allowed: a file that ends in {' or '.join(allowed)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput("figures need matplotlib, which is not installed; fix: pip install matplotlib")
    module = chosen.make
    plate: Plate = module.measure(request)
    image = render(plate, module.draw, to.suffix)
    try:
        if table is not None:
            files.write_bytes(table, as_csv(plate).encode())
        files.write_bytes(to, image)
    except OSError as error:
        raise BadInput(f"'{error.filename or to}' cannot be written: {error.strerror}; fix: --to FILE") from None
    return plate.caption


def render(plate: Plate, draw: Any, suffix: str = ".png") -> bytes:
    """The figure as the bytes of a file."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=plate.size, layout="constrained")
        draw(plate, figure)
        lines = textwrap.wrap(plate.caption, int(26 * plate.size[0]))
        figure.supxlabel("\n".join(lines), fontsize=5.5, color="#555555")
        file = io.BytesIO()
        smaller: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if suffix == ".png" else {}
        figure.savefig(file, format=suffix[1:], dpi=180, metadata=SUFFIXES[suffix], **smaller)
    return file.getvalue()


def as_csv(plate: Plate) -> str:
    """The table behind a figure, with a head line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(plate.columns)
    writer.writerows(plate.rows)
    return text.getvalue()


def legend_above(figure: Figure, handles: list[Any], columns: int) -> None:
    """One legend for the whole figure, above its axes; the caption is below them."""
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handletextpad=0.4, columnspacing=1.0)
