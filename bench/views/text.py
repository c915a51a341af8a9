"""The leaderboard as text: aligned tables, GitHub tables, CSV, JSON. Names come from files and are not trusted."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from bench.views.columns import aligned
from bench.views.leaderboard import NOTES, Entry

HEAD = (
    *("rank", "attack", "defense", "success", "rate [95 %]", "clean acc. [95 %]", "drop", "cost", "told", "attack is"),
    *("published", "against {baseline}", "flags"),
)
RIGHT = {"rank", "drop", "cost"}
Cells = Sequence[Sequence[str]]


def table(entries: Sequence[Entry], baseline: str) -> str:
    """Aligned text for a terminal: of every protocol the matrix and the ranked list, then the notes."""
    return _document(entries, baseline, aligned, "{}", plain)


def markdown(entries: Sequence[Entry], baseline: str) -> str:
    """The same as GitHub tables."""
    return _document(entries, baseline, _github, "## {}", _for_github, "- ")


def as_json(entries: Sequence[Entry], baseline: str) -> str:
    """One array of cells. No NaN: what is not known is null."""
    return json.dumps([entry.as_dict() for entry in entries], indent=1, allow_nan=False) + "\n"


def as_csv(entries: Sequence[Entry], baseline: str) -> str:
    """One line a cell with the columns of the JSON; `published` and `comparison` spread over columns, lists joined."""
    rows = [_spread(entry.as_dict()) for entry in entries]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        writer.writerow([_for_spreadsheets(row.get(name)) for name in _COLUMNS])
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Entry], str], str]] = {
    "table": table, "md": markdown, "csv": as_csv, "json": as_json,
}  # fmt: skip

_PUBLISHED = ("source", "file", "table", "line", "success_rate", "clean_accuracy", "trials", "differs")
_COMPARISON = ("baseline", "n", "difference", "low", "high", "test", "p")
_COLUMNS = (
    *("protocol", "attack", "defense", "attack_label", "defense_label", "seed", "rank", "n", "failed", "successes"),
    *("success_rate", "success_low", "success_high", "clean_accuracy", "clean_accuracy_low", "clean_accuracy_high"),
    *("accuracy_drop", "accuracy_drop_low", "accuracy_drop_high", "accuracy_drop_n", "train_seconds", "train_cost"),
    *("knowledge", "attack_kind", "adapted_to", *(f"published_{name}" for name in _PUBLISHED)),
    *(*(f"comparison_{name}" for name in _COMPARISON), "flags", "cell"),
)


def plain(text: str) -> str:
    """Without what would move the cursor or colour the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def percent(rate: float, digits: int = 0) -> str:
    return f"{100 * rate:.{digits}f}"


def count(entry: Entry) -> str:
    figures = entry.figures
    return f"{round(figures.successes, 4):g}/{figures.n}"


def rate(entry: Entry) -> str:
    """65 % [41, 85]"""
    figures = entry.figures
    if not figures.n:
        return "-"
    low, high = percent(figures.success_low), percent(figures.success_high)
    return f"{percent(figures.success_rate)} % [{low}, {high}]"


def accuracy(entry: Entry) -> str:
    figures, around = entry.figures, entry.figures.clean_accuracy_interval
    if not figures.n:
        return "-"
    return f"{percent(figures.clean_accuracy, 1)} %" + (
        f" [{percent(around[0], 1)}, {percent(around[1], 1)}]" if around else ""
    )


def comparison(entry: Entry) -> str:
    """-45 [-63, -18] p = 0.0039, n = 20"""
    found = entry.comparison
    if found is None:
        return "-"
    points = f"{100 * found.difference:+.0f} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"
    return f"{points} {probability(found.p)}, n = {found.n}{' (t)' if found.test == 'paired t' else ''}"


def probability(p: float | None) -> str:
    return "no p" if p is None else "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def drop(entry: Entry) -> str:
    return percent(entry.drop.mean, 1) if entry.drop else "-"


def cost(entry: Entry) -> str:
    return f"{entry.train_cost:.1f}x" if entry.train_cost is not None else "-"


def told(entry: Entry) -> str:
    return ", ".join(entry.knowledge) or "nothing"


def kind(entry: Entry) -> str:
    return entry.kind + (f" ({', '.join(entry.adapted_to)})" if entry.adapted_to else "")


def footnotes(entries: Sequence[Entry]) -> dict[str, int]:
    """Where published values stand and how they differ, numbered from 1."""
    texts: dict[str, int] = {}
    for entry in entries:
        if entry.published:
            texts.setdefault(published_note(entry), len(texts) + 1)
    return texts


def published_note(entry: Entry) -> str:
    found = entry.published
    if found is None:
        return ""
    trials = f", {found.trials} trials" if found.trials else ""
    return f"{found.place}{trials}; " + (
        f"not our setting: {'; '.join(found.differs)}" if found.differs else "our setting, as far as it is printed"
    )


def by_protocol(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.figures.protocol, []).append(entry)
    return found


def matrix(entries: Sequence[Entry]) -> tuple[list[str], list[str], dict[tuple[str, str], Entry]]:
    """Attacks, defenses (undefended first) and the cells of one protocol by their labels."""
    attacks = list(dict.fromkeys(entry.attack_label for entry in entries))
    defenses = list(dict.fromkeys(entry.defense_label for entry in entries))
    defenses.sort(key=lambda label: label.partition(" [")[0] != "none")
    return attacks, defenses, {(entry.attack_label, entry.defense_label): entry for entry in entries}


def _document(
    entries: Sequence[Entry],
    baseline: str,
    draw: Callable[[Cells, set[int]], str],
    heading: str,
    clean: Callable[[str], str],
    bullet: str = "",
) -> str:
    notes, parts = footnotes(entries), []
    head = [text.format(baseline=clean(baseline)) for text in HEAD]
    right = {i for i, text in enumerate(head) if text in RIGHT}
    for protocol, own in by_protocol(entries).items():
        attacks, defenses, cells = matrix(own)
        square = [["", *map(clean, attacks)]]  # defenses downwards: they are many, and a line has an end
        for defense in defenses:
            found = [cells.get((attack, defense)) for attack in attacks]
            square.append([clean(defense), *(f"{count(one)}  {rate(one)}" if one else "" for one in found)])
        rows = [head, *([clean(text) for text in _row(entry, notes)] for entry in own)]
        parts += [heading.format(f"protocol {clean(protocol)}"), draw(square, set()), draw(rows, right)]
    parts.append("\n".join(bullet + clean(f"[{number}] {text}") for text, number in notes.items()))
    parts.append("\n".join(bullet + clean(text) for text in NOTES))
    return ("\n\n".join(part for part in parts if part)) + "\n"


def _row(entry: Entry, notes: dict[str, int]) -> list[str]:
    printed = "-"
    if entry.published:
        other = " (other)" if entry.published.differs else ""
        printed = f"{percent(entry.published.success_rate)} %{other} [{notes[published_note(entry)]}]"
    return [
        str(entry.rank or "-"),
        entry.attack_label,
        entry.defense_label,
        count(entry),
        rate(entry),
        accuracy(entry),
        drop(entry),
        cost(entry),
        told(entry),
        kind(entry),
        printed,
        comparison(entry),
        "; ".join(entry.flags),
    ]


def _github(rows: Cells, right: set[int]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{'|'.join('---:' if i in right else '---' for i in range(len(rows[0])))}|")
    return "\n".join(lines)


def _for_github(text: str) -> str:
    """No HTML, no table border, no link, emphasis or code."""
    return re.sub(r"([\\`*_\[\]|~#@])", r"\\\1", html.escape(plain(text), quote=False))


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("published", "comparison"):
        row |= {f"{name}_{key}": value for key, value in (row.pop(name) or {}).items()}
    return {name: "; ".join(value) if isinstance(value, list) else value for name, value in row.items()}


def _for_spreadsheets(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
