"""Figures of what the records and the store hold, or of networks that are trained for them: one module a figure.

Each has `measure(request) -> Plate`, the numbers, and `draw(plate, figure)`. The first line of its docstring is what
`python -m bench figure` lists.
"""

from __future__ import annotations

FIGURES = {
    "poisons": "bench.figures.poisons",
    "matching-loss": "bench.figures.matching_loss",
    "scatter": "bench.figures.scatter",
    "friendly-noise": "bench.figures.friendly_noise",
    "landscape": "bench.figures.landscape",
}
