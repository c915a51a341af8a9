"""The leaderboard as one HTML file that needs no network: plots, a table to sort and filter, and matrices.

Everything is in the markup, so that it reads without its script too. Names come from files: whatever is not markup of
this module goes through `_text`, and the page allows no script or style but its own (by hash).
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from string import Template

from bench.views import text as words
from bench.views.leaderboard import NOTES, Entry

# Head of the table: title, and which way a first click sorts. "": no numbers in it.
COLUMNS = {
    "Protocol": "", "Attack": "", "Defense": "", "Rank": "ascending", "Success": "ascending",
    "Clean accuracy": "descending", "Drop": "ascending", "Cost": "ascending", "Told": "", "Attack is": "",
    "Published": "ascending", "Against {}": "ascending", "Flags": "",
}  # fmt: skip
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 360, 56, 22, 12, 52  # of a plot, in its own units
COLOURS = 8
SHAPES = (
    "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0 -11 0",
    "M-5 -5h10v10h-10z",
    "M0 -7l6.5 12h-13z",
    "M0 -7l7 7l-7 7l-7 -7z",
)
MANY = 40  # points in a plot, from which whiskers are shown only where one points


def page(entries: Sequence[Entry], baseline: str) -> str:
    """The whole file."""
    style, script = _part("leaderboard.css"), _part("leaderboard.js")
    protocols = words.by_protocol(entries)
    attacks = list(dict.fromkeys(entry.figures.attack for entry in entries))
    looks = {attack: (i % COLOURS, SHAPES[i // COLOURS % len(SHAPES)]) for i, attack in enumerate(attacks)}
    numbers = {id(entry): f"cell-{i}" for i, entry in enumerate(entries)}
    notes = words.footnotes(entries)
    trials = sum(entry.figures.n + entry.figures.failed for entry in entries)
    return Template(_part("leaderboard.html")).substitute(
        policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'",
        title=_text(", ".join(protocols)[:200]),
        style=style,
        script=script,
        summary=f"{trials} trials in {len(entries)} cells; protocols: {_text(', '.join(protocols))}. "
        f"Defenses are tested against <b>{_text(baseline)}</b>. Better is lower success and higher accuracy.",
        count=str(len(entries)),
        protocols=_options(protocols),
        attacks=_options(attacks),
        plots="".join(_plot(protocol, own, looks, numbers) for protocol, own in protocols.items()),
        head="".join(_head(title.format(baseline), first) for title, first in COLUMNS.items()),
        rows="".join(_row(entry, numbers[id(entry)], notes) for entry in entries),
        matrices="".join(_matrix(protocol, own, numbers) for protocol, own in protocols.items()),
        notes="".join(f"<li>{_text(note)}</li>" for note in NOTES),
        published="".join(f'<li id="published-{number}">{_text(note)}</li>' for note, number in notes.items()),
    )


def _part(name: str) -> str:
    return (resources.files("bench.views") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(text: str) -> str:
    """Safe in an element and in a quoted attribute."""
    return html.escape(words.plain(text), quote=True)


def _options(names: Iterable[str]) -> str:
    return "".join(f'<option value="{_text(name)}">{_text(name)}</option>' for name in names)


# Table


def _head(title: str, first: str) -> str:
    order = f' data-first="{first}"' if first else ""
    return f'<th scope="col" aria-sort="none"{order}><button type="button">{_text(title)}</button></th>'


def _row(entry: Entry, name: str, notes: Mapping[str, int]) -> str:
    figures, found = entry.figures, entry.published
    printed = "-"
    if found:
        number = notes[words.published_note(entry)]
        other = " <small>other setting</small>" if found.differs else ""
        printed = f'{words.percent(found.success_rate)} %{other} <a href="#published-{number}">[{number}]</a>'
    cells = [
        f'<td class="name">{_text(figures.protocol)}</td>',
        f'<td class="name">{_text(entry.attack_label)}</td>',
        f'<td class="name">{_text(entry.defense_label)}</td>',
        _number(entry.rank, str(entry.rank or "-")),
        _number(figures.success_rate if figures.n else None, f"{words.count(entry)}, {_small(words.rate(entry))}"),
        _number(figures.clean_accuracy if figures.n else None, _small(words.accuracy(entry))),
        _number(entry.drop.mean if entry.drop else None, words.drop(entry)),
        _number(entry.train_cost, words.cost(entry)),
        f'<td class="name">{_text(words.told(entry))}</td>',
        f'<td class="name">{_text(words.kind(entry))}</td>',
        _number(found.success_rate if found else None, printed),
        _number(entry.comparison.difference if entry.comparison else None, _text(words.comparison(entry))),
        f'<td class="wide">{_text("; ".join(entry.flags))}</td>',
    ]
    data = f'data-protocol="{_text(figures.protocol)}" data-attack="{_text(figures.attack)}"'
    return f'<tr id="{name}" {data} data-flags="{len(entry.flags)}">{"".join(cells)}</tr>\n'


def _number(value: float | None, shown: str) -> str:
    """A cell that is sorted by `value`; shown: markup."""
    return f'<td class="number" data-value="{"" if value is None else repr(float(value))}">{shown}</td>'


def _small(text: str) -> str:
    """The interval after a figure, smaller."""
    figure, bracket, rest = text.partition(" [")
    return f"{_text(figure)}<small>{_text(bracket + rest)}</small>" if bracket else _text(figure)


def _matrix(protocol: str, entries: Sequence[Entry], numbers: Mapping[int, str]) -> str:
    attacks, defenses, cells = words.matrix(entries)
    head = "".join(f'<th scope="col">{_text(defense)}</th>' for defense in defenses)
    lines = []
    for attack in attacks:
        found = [cells.get((attack, defense)) for defense in defenses]
        shown = [
            f'<td><a href="#{numbers[id(one)]}">{words.count(one)}</a>, {_small(words.rate(one))}</td>'
            if one
            else "<td></td>"
            for one in found
        ]
        lines.append(f'<tr><th scope="row">{_text(attack)}</th>{"".join(shown)}</tr>')
    title = f"Success on {_text(protocol)}: attack and defense"
    return (
        f'<section data-of="{_text(protocol)}"><h2>{title}</h2>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<table class="matrix"><thead><tr><th scope="col">attack</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>\n"
    )


# Plot


def _plot(
    protocol: str, entries: Sequence[Entry], looks: Mapping[str, tuple[int, str]], numbers: Mapping[int, str]
) -> str:
    counted = [entry for entry in entries if entry.figures.n]
    if not counted:
        return ""
    every = [a for e in counted for a in (e.figures.clean_accuracy, *(e.figures.clean_accuracy_interval or ()))]
    low, high, step = _range(max(min(every) - 0.01, 0.0), min(max(every) + 0.01, 1.0))

    def x(rate: float) -> str:
        return f"{LEFT + rate * (WIDTH - LEFT - RIGHT):.1f}"

    def y(accuracy: float) -> str:
        share = (min(max(accuracy, low), high) - low) / (high - low)
        return f"{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    lines = []
    for i in range(6):
        minor = ' class="minor"' if i % 5 else ""
        lines.append(f'<line class="grid" x1="{x(i / 5)}" x2="{x(i / 5)}" y1="{y(low)}" y2="{y(high)}"/>')
        lines.append(f'<text{minor} x="{x(i / 5)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{20 * i}</text>')
    for i in range(round((high - low) / step) + 1):
        level = low + i * step
        lines.append(f'<line class="grid" x1="{x(0)}" x2="{x(1)}" y1="{y(level)}" y2="{y(level)}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(level)}" dy=".35em" text-anchor="end">{100 * level:.0f}</text>')
    lines.append(f'<text x="{x(0.5)}" y="{HEIGHT - 10}" text-anchor="middle">poison success, %</text>')
    middle = f"{(TOP + HEIGHT - BOTTOM) / 2:.0f}"
    lines.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">clean accuracy, %</text>')
    for entry in counted:
        figures, (colour, shape) = entry.figures, looks[entry.figures.attack]
        about = _text(
            f"{entry.attack_label} against {entry.defense_label}: success {words.count(entry)}, {words.rate(entry)}; "
            f"clean accuracy {words.accuracy(entry)}"
        )
        px, py = x(figures.success_rate), y(figures.clean_accuracy)
        whiskers = f"M{x(figures.success_low)} {py}H{x(figures.success_high)}"
        if figures.clean_accuracy_interval:
            below, above = map(y, figures.clean_accuracy_interval)
            whiskers += f"M{px} {below}V{above}"
        lines.append(
            f'<a href="#{numbers[id(entry)]}" class="c{colour}" aria-label="{about}"><title>{about}</title>'
            f'<path class="whisker" d="{whiskers}"/>'
            f'<path class="point" transform="translate({px} {py})" d="{shape}"/></a>'
        )
    legend = "".join(
        f'<li><svg class="c{colour}" viewBox="-8 -8 16 16" aria-hidden="true"><path class="point" d="{shape}"/></svg>'
        f"{_text(attack)}</li>"
        for attack, (colour, shape) in looks.items()
        if any(entry.figures.attack == attack for entry in counted)
    )
    many = " many" if len(counted) > MANY else ""
    return (
        f'<section data-of="{_text(protocol)}"><h2>{_text(protocol)}</h2>'
        f'<svg class="plot{many}" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" '
        f'aria-label="Success against clean accuracy, one point a cell">{"".join(lines)}</svg>'
        f'<p class="tip">Point at a cell, or reach it with the keyboard. Lines are 95 % intervals.</p>'
        f'<ul class="legend" aria-label="Attacks">{legend}</ul></section>\n'
    )


def _range(low: float, high: float) -> tuple[float, float, float]:
    """Ends and step of an axis around low to high in [0, 1], in round numbers."""
    span = high - low
    step = next(one for one in (0.01, 0.02, 0.05, 0.1, 0.2) if span / one <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, max(last, first + 1) * step, step
