"""The leaderboard as one HTML file that needs no network: plots, a table to sort and filter, and matrices.

Everything is in the markup, so that it reads without its script too. Names come from files: the template escapes
whatever it is given, and the page allows no script or style but its own (by hash). `leaderboard.html` is the markup;
here is what it is filled with, and the geometry of the plots.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bench.foundation.shown import plain
from bench.views import text as words
from bench.views.leaderboard import Entry, rules

# Head of the table: title, and which way a first click sorts. "": no numbers in it.
COLUMNS = {
    "Protocol": "", "Attack": "", "Defense": "", "Rank": "ascending", "Success": "ascending",
    "Clean accuracy": "descending", "Drop": "ascending", "Cost": "ascending", "Knowledge": "", "Attack is": "",
    "Published": "ascending", "Against {}": "ascending", "Margin": "ascending", "Flags": "",
}  # fmt: skip
COLOURS = 8
SHAPES = (
    "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0",
    "M-5 -5h10v10h-10z",
    "M0 -7l6.5 12h-13z",
    "M0 -7l7 7l-7 7l-7 -7z",
)


class Look(NamedTuple):
    """Of an attack's points."""

    colour: int
    shape: str


@dataclass(frozen=True)
class Axes:
    """Where a plot's points stand, in its own units: success from left to right, clean accuracy in [low, high] from
    bottom to top."""

    low: float
    high: float
    step: float
    width: int = 520
    height: int = 360
    left: int = 56
    right: int = 22
    top: int = 12
    below: int = 52

    @classmethod
    def around(cls, entries: Sequence[Entry]) -> Axes:
        """With ends and step in round numbers."""
        figures = [entry.figures for entry in entries]
        every = [a for f in figures for a in (f.clean_accuracy, *(f.clean_accuracy_interval or ()))]
        low, high = max(min(every) - 0.01, 0.0), min(max(every) + 0.01, 1.0)
        step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / step <= 6)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(first * step, max(last, first + 1) * step, step)

    @property
    def bottom(self) -> int:
        return self.height - self.below

    @property
    def levels(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def x(self, rate: float) -> str:
        return f"{self.left + rate * (self.width - self.left - self.right):.1f}"

    def y(self, accuracy: float) -> str:
        share = (min(max(accuracy, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{self.bottom - share * (self.bottom - self.top):.1f}"


def page(entries: Sequence[Entry], baseline: str) -> str:
    """The whole file."""
    style, script = _part("leaderboard.css"), _part("leaderboard.js")
    protocols = words.by_protocol(entries)
    attacks = list(dict.fromkeys(entry.figures.attack for entry in entries))
    counted = {protocol: [entry for entry in group if entry.figures.n] for protocol, group in protocols.items()}
    environment = Environment(
        autoescape=True, finalize=_printable, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.from_string(_part("leaderboard.html")).render(
        words=words,
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'",
        style=Markup(style),
        script=Markup(script),
        baseline=baseline,
        columns=COLUMNS,
        entries=entries,
        protocols=list(protocols),
        looks={attack: Look(i % COLOURS, SHAPES[i // COLOURS % len(SHAPES)]) for i, attack in enumerate(attacks)},
        ids={entry.cell: f"cell-{i}" for i, entry in enumerate(entries)},
        plots=[(protocol, group, Axes.around(group)) for protocol, group in counted.items() if group],
        matrices={protocol: words.matrix(group) for protocol, group in protocols.items()},
        notes=words.footnotes(entries),
        general_notes=rules(entries),
    )


def _printable(value: Any) -> Any:
    """Applied to all that the template prints, before it is escaped."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _part(name: str) -> str:
    return (resources.files("bench.views") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
