"""The leaderboard as text: tables, CSV and JSON, and what a run prints. Names come from files and are not trusted."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import SEPARATING_LINE, tabulate

from bench.foundation.shown import plain
from bench.views.comparisons import MarginChange
from bench.views.leaderboard import UNDEFENDED, Entry, rules

HEAD = (
    *("rank", "attack", "defense", "success", "rate [95 %]", "clean acc. [95 %]", "drop", "cost", "knowledge"),
    *("attack is", "published", "against {baseline}", "margin", "flags"),
)
RUN_HEAD = ("rank", "attack", "defense", "", "success", "rate [95 %]", "clean acc.", "drop", "craft s", "train s")
RIGHT = {"rank", "drop", "cost", "craft s", "train s"}
SHORT = {"paired t": " (t)", "exact sign flips": " (flips)"}  # of tests other than McNemar's
Rows = Sequence[Sequence[str]]


def table(entries: Sequence[Entry], baseline: str) -> str:
    """Aligned text for a terminal: of every protocol the matrix and the ranked list, then the notes."""
    return _document(entries, baseline, "simple", "{}", plain)


def markdown(entries: Sequence[Entry], baseline: str) -> str:
    """The same as GitHub tables."""
    return _document(entries, baseline, "pipe", "## {}", _for_github, "- ")


def as_json(entries: Sequence[Entry], baseline: str) -> str:
    """One array of cells. No NaN: what is not known is null."""
    return json.dumps([entry.as_dict() for entry in entries], indent=1, allow_nan=False) + "\n"


def as_csv(entries: Sequence[Entry], baseline: str) -> str:
    """One line per cell: `frames.leaderboard_frame`."""
    from bench.views.frames import leaderboard_frame

    frame = leaderboard_frame(entries)
    texts = frame.select_dtypes(["object", "string"])
    return frame.assign(**texts.map(_for_spreadsheets)).to_csv(index=False, lineterminator="\n")


FORMATS: dict[str, Callable[[Sequence[Entry], str], str]] = {
    "table": table, "md": markdown, "csv": as_csv, "json": as_json,
}  # fmt: skip


def run_table(entries: Sequence[Entry]) -> str:
    """What a run prints at its end: the leaderboard of its own records in few columns; `reading` says what it shows."""
    return draw(RUN_HEAD, [[plain(text) for text in _run_row(entry)] for entry in entries])


def _run_row(entry: Entry) -> list[str]:
    figures = entry.figures
    undefended = figures.defense == UNDEFENDED
    role = "undefended" if undefended else "defended"
    if entry.kind == "control":
        role = "clean control" if undefended else "clean, defended"
    seconds = [f"{figures.seconds.get(stage, 0.0):.1f}" if figures.n else "-" for stage in ("craft", "train")]
    return [
        str(entry.rank or "-"),
        entry.attack_label,
        entry.defense_label,
        role,
        count(entry) + (f" ({figures.failed} failed)" if figures.failed else ""),
        rate(entry),
        f"{percent(figures.clean_accuracy, 1)} %" if figures.n else "-",
        drop(entry),
        *seconds,
    ]


def draw(head: Sequence[str], rows: Rows, form: str = "simple") -> str:
    """A table as text, as it stands in `rows`: no text is taken for a number."""
    sides = ["right" if name in RIGHT else "left" for name in head]
    if form != "simple":
        return tabulate(rows, head, form, disable_numparse=True, colalign=sides)
    # The head as a row: tabulate makes every column two characters wider than its head.
    ruled = tabulate([head, SEPARATING_LINE, *rows], tablefmt=form, disable_numparse=True, colalign=sides)
    return "\n".join(ruled.splitlines()[1:-1])


def percent(rate: float, digits: int = 0) -> str:
    return f"{100 * rate:.{digits}f}"


def count(entry: Entry) -> str:
    """13/20 (5 seeds, 40 victims)"""
    figures = entry.figures
    parts = [f"{len(figures.seeds)} seeds"] if len(figures.seeds) > 1 else []
    parts += [f"{figures.victims} victims"] if figures.victims > figures.n else []
    return f"{round(figures.successes, 4):g}/{figures.n}" + (f" ({', '.join(parts)})" if parts else "")


def trained(entries: Sequence[Entry]) -> str:
    """`120 trials`, or `480 victims` where a trial has several."""
    several = any(entry.figures.victims > entry.figures.n for entry in entries)
    total = sum(entry.figures.victims + entry.figures.failed for entry in entries)
    return f"{total} {'victims' if several else 'trials'}"


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
    paired = entry.comparison
    if paired is None:
        return "-"
    points = f"{100 * paired.difference:+.0f} [{100 * paired.low:+.0f}, {100 * paired.high:+.0f}]"
    return f"{points} {probability(paired.p)}, n = {paired.n}{SHORT.get(paired.test.partition(' and ')[0], '')}"


def margin(entry: Entry) -> str:
    """-4.6 [-6.6, -2.7] p = 0.0039"""
    paired = entry.comparison
    if paired is None or paired.margin is None:
        return "-"
    fewer = f", n = {paired.margin.n}" if paired.margin.n < paired.n else ""
    return f"{logits(paired.margin)} {probability(paired.margin.p)}{fewer}"


def logits(margin: MarginChange) -> str:
    """-4.6 [-6.6, -2.7]; -0.18 [-0.26, -0.10]"""
    digits = 1 if abs(margin.typical) >= 1 else 2
    ends = ", ".join(f"{end:+.{digits}f}" for end in margin.interval or ())
    return f"{margin.typical:+.{digits}f}" + (f" [{ends}]" if ends else "")


def probability(p: float | None) -> str:
    return "no p" if p is None else "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def drop(entry: Entry) -> str:
    return percent(entry.drop.mean, 1) if entry.drop else "-"


def cost(entry: Entry) -> str:
    return f"{entry.train_cost:.1f}x" if entry.train_cost is not None else "-"


def knowledge(entry: Entry) -> str:
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
    row = entry.published
    if row is None:
        return ""
    trials = f", {row.trials} trials" if row.trials else ""
    return f"{row.place}{trials}; " + (
        f"not our setting: {'; '.join(row.differs)}" if row.differs else "our setting, as far as it is printed"
    )


def by_protocol(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    protocols: dict[str, list[Entry]] = {}
    for entry in entries:
        protocols.setdefault(entry.figures.protocol, []).append(entry)
    return protocols


def matrix(entries: Sequence[Entry]) -> tuple[list[str], list[str], dict[tuple[str, str], Entry]]:
    """Attacks, defenses (undefended first) and the cells of one protocol by their labels."""
    attacks = list(dict.fromkeys(entry.attack_label for entry in entries))
    defenses = list(dict.fromkeys(entry.defense_label for entry in entries))
    defenses.sort(key=lambda label: label.partition(" [")[0] != "none")
    return attacks, defenses, {(entry.attack_label, entry.defense_label): entry for entry in entries}


def _document(
    entries: Sequence[Entry],
    baseline: str,
    form: str,
    heading: str,
    clean: Callable[[str], str],
    bullet: str = "",
) -> str:
    notes, parts = footnotes(entries), []
    head = [text.format(baseline=clean(baseline)) for text in HEAD]
    for protocol, of_protocol in by_protocol(entries).items():
        attacks, defenses, cells = matrix(of_protocol)
        square = []  # defenses downwards: they are many, and a line has an end
        for defense in defenses:
            line = [cells.get((attack, defense)) for attack in attacks]
            square.append([clean(defense), *(f"{count(entry)}  {rate(entry)}" if entry else "" for entry in line)])
        rows = [[clean(text) for text in _row(entry, notes)] for entry in of_protocol]
        parts.append(heading.format(f"protocol {clean(protocol)}"))
        parts += [draw(["", *map(clean, attacks)], square, form), draw(head, rows, form)]
    parts.append("\n".join(bullet + clean(f"[{number}] {text}") for text, number in notes.items()))
    parts.append("\n".join(bullet + clean(text) for text in rules(entries)))
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
        knowledge(entry),
        kind(entry),
        printed,
        comparison(entry),
        margin(entry),
        "; ".join(entry.flags),
    ]


def _for_github(text: str) -> str:
    """No HTML, no table border, no link (an address alone would become one), emphasis or code."""
    return re.sub(r"([\\`*_\[\]|~#@]|:(?=//)|(?<=www)\.)", r"\\\1", html.escape(plain(text), quote=False), flags=re.I)


def _for_spreadsheets(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe in front, and none can begin a line."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text
