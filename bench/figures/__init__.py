"""Figures of what the records and the store hold, or of networks that are trained for them: one module per figure.

Each has `measure(request) -> Plate`, the numbers, and `draw(plate, figure)`.
"""

from __future__ import annotations

from bench.foundation.registry import announce

announce(
    "figure",
    {
        "poisons": ("bench.figures.poisons", "bases, poisons, amplified difference (from records and store)"),
        "matching-loss": ("bench.figures.matching_loss", "crafting objective over the steps (from records)"),
        "scatter": ("bench.figures.scatter", "success against clean accuracy, with intervals (from records)"),
        "friendly-noise": (
            "bench.figures.friendly_noise",
            "histogram of a victim's friendly noise (trains some epochs)",
        ),
        "landscape": ("bench.figures.landscape", "training loss around a trial's poisons (trains victims)"),
    },
)
