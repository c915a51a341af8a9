"""Figures of what the records and the store hold, or of networks that are trained for them: one module per figure.

Each has `measure(request) -> Plate`, the numbers, and `draw(plate, figure)`.
"""

from __future__ import annotations

from bench.foundation.registry import announce

announce(
    "figure",
    {
        "poisons": (
            "bench.figures.poisons",
            "base images, poisons and their amplified difference, of one trial (from records and store)",
        ),
        "matching-loss": (
            "bench.figures.matching_loss",
            "crafting objective over the steps, a line per trial and the median (from records)",
        ),
        "scatter": (
            "bench.figures.scatter",
            "success against clean accuracy, a mark per cell with its intervals (from records)",
        ),
        "friendly-noise": (
            "bench.figures.friendly_noise",
            "histogram of a victim's friendly noise (FRIENDS, Fig. 4a; trains the first epochs)",
        ),
        "landscape": (
            "bench.figures.landscape",
            "training loss around a trial's poisons (FRIENDS, Figs. 2c and 3; trains victims)",
        ),
    },
)
