"""Every measured figure in README.md and results/**/README.md, from the records that are committed beside it.

    python benchmarks/claims.py [--write]

A page marks where figures of records stand, and this script puts them there:

    <!-- records: records.jsonl; attacks: gm, none; defenses: none, friends-b -->
    <!-- /records -->

Paths are seen from the page. What else a mark may say is described in `Block`. The figures are the leaderboard's; below
them stand seeds, trials, precision, revision and the commands that make the records again. `X.md` and `X.csv` beside
`X.jsonl` are leaderboards of it, `python -m bench leaderboard --records X.jsonl --pool --format md`.

Without --write it prints what differs, and k/n or an interval in prose, which comes from nowhere; then it exits with 1.
What others measured stands between `<!-- quoted: WHOSE, WHERE -->` and `<!-- /quoted -->`; ours beside it, in a table
too, is a mark with `show`.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from contrast import contrast
from provenance import field_of, indented, provenance
from pydantic import Field

from bench.foundation.errors import BadInput, nearest
from bench.foundation.settings import Settings, build
from bench.storage import records as storage
from bench.storage.record import Record
from bench.views import text
from bench.views.cells import by_cell, name_of, pooled
from bench.views.leaderboard import Entry, leaderboard
from bench.views.reading import reading

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- records: ", "<!-- /records -->"
MARKED = re.compile(rf"({BEGIN}(?P<what>[^>]*?) -->)(?:(?!{BEGIN}).)*?({END})", re.S)
QUOTED = re.compile(r"<!-- quoted: [^>]+ -->.*?<!-- /quoted -->", re.S)
CODE = re.compile(r"^(?:    [^\n]*|```.*?^```)$", re.S | re.M)
LOOSE = re.compile(r"(?<![\w.,/-])\d+/\d+(?![\w./-])|\[[+-]?\d+(?:\.\d+)?, ?[+-]?\d+(?:\.\d+)?\]")
SUMMARY = ("success", "rate [95 %]", "clean acc. [95 %]", "drop", "against none", "margin")


def _published(entry: Entry) -> str:
    row = entry.published
    return f"{text.percent(row.success_rate)} % ({row.source}, Table {row.table})" if row else "-"


COLUMNS: dict[str, Callable[[Entry], str]] = {
    "success": text.count,
    "rate [95 %]": text.rate,
    "clean acc. [95 %]": text.accuracy,
    "drop": text.drop,
    "cost": text.cost,
    "against none": text.comparison,
    "margin": text.margin,
    "over control": lambda entry: text.comparison(replace(entry, comparison=entry.over_control)),
    "knowledge": text.knowledge,
    "published": _published,
    "flags": lambda entry: "; ".join(entry.flags),
}


class Block(Settings):
    """What a mark says, as `name: value, value; name: ...`."""

    records: tuple[str, ...] = Field(min_length=1, description="files of records")
    protocols: tuple[str, ...] = Field((), description="only these (default: all)")
    attacks: tuple[str, ...] = Field((), description="only these (default: all)")
    defenses: tuple[str, ...] = Field((), description="only these (default: all)")
    seeds: tuple[str, ...] = Field((), description="only these (default: all)")
    pool: tuple[Literal["yes", "no"], ...] = Field(
        ("yes",), max_length=1, description="the trials of several seeds as one cell, as of `leaderboard --pool`"
    )
    form: tuple[Literal["table", "run"], ...] = Field(
        ("table",), max_length=1, description="table: one row per cell; run: as `run` prints it at its end"
    )
    columns: tuple[str, ...] = Field(
        SUMMARY,
        description="of a table: of COLUMNS, or `title=outcome.target_margin`, the mean of a field of records, in per "
        "cent where the title ends in ` %`",
    )
    show: tuple[str, ...] = Field((), max_length=1, description="one column of one cell, within a sentence")
    contrast: tuple[str, ...] = Field(
        (), max_length=1, description="cells that differ in this setting alone, in pairs: settings.protocol.train.lr"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the figures of the records into the pages")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    args = parser.parse_args()
    try:
        stale = differing(args.root)
        faults = loose(args.root)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    for path, (was, now) in stale.items():
        if args.write:
            path.write_text(now)
            print(f"written: {path.relative_to(args.root)}")
        else:
            before, after = was.splitlines(), now.splitlines()
            print("\n".join(difflib.unified_diff(before, after, str(path), "from the records", lineterm="", n=0)))
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults or (stale and not args.write) else 0


def differing(root: Path) -> dict[Path, tuple[str, str]]:
    """Pages and leaderboards that are not what their records say: text as it is, and as it should be. BadInput for a
    mark that is not understood, records that cannot be read or are damaged, and cells that are not among them."""
    texts = {page: page.read_text() for page in pages(root)}
    for page, was in texts.items():
        if not len(MARKED.findall(was)) == was.count(BEGIN) == was.count(END):
            raise BadInput(f"{page}: a mark without its end, or an end without its mark; fix: {END} after each")
    made = {page: MARKED.sub(functools.partial(_filled, page), was) for page, was in texts.items()}
    for path in sorted(root.glob("results/**/*.jsonl")):
        for form in ("md", "csv"):
            if (board := path.with_suffix(f".{form}")).is_file():
                texts[board] = board.read_text()
                made[board] = text.FORMATS[form](leaderboard(read(path), pool=True), "none")
    return {path: (was, made[path]) for path, was in texts.items() if made[path] != was}


def loose(root: Path) -> list[str]:
    """Successes k/n and intervals that stand in a page with marks, but outside of them, of code and of quotations."""
    faults = []
    for page in pages(root):
        if not MARKED.search(page.read_text()):
            continue
        prose = page.read_text()
        for elsewhere in (MARKED, QUOTED, CODE):
            prose = elsewhere.sub(_blank, prose)
        for number, line in enumerate(prose.splitlines(), 1):
            faults += [
                f"{page.relative_to(root)}:{number}: '{found[0]}' stands outside of a mark; fix: say it without a "
                "figure, or as <!-- records: FILE; attacks: A; defenses: D; show: success --><!-- /records -->"
                for found in LOOSE.finditer(line)
            ]
    return faults


def pages(root: Path) -> list[Path]:
    return [*root.glob("README.md"), *sorted(root.glob("results/**/README.md"))]


@functools.cache
def read(path: Path) -> list[Record]:
    def refuse(message: str) -> None:
        raise BadInput(message)

    return storage.read(None, [path], refuse, curves=False)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _filled(page: Path, match: re.Match[str]) -> str:
    number = page.read_text().count("\n", 0, match.start()) + 1
    try:
        block = parse(match["what"])
        records = _selected(block, [record for name in block.records for record in read(page.parent / name)])
        parts = ("", _drawn(block, records), _below(block, records), "") if not block.show else ()
        shown = "\n\n".join(parts) or _inline(block, records)
    except BadInput as error:
        raise BadInput(f"{page}:{number}: {error}") from None
    return f"{match[1]}{shown}{match[3]}"


def parse(what: str) -> Block:
    """`a.jsonl, b.jsonl; attacks: gm` as a block."""
    items = [item.partition(":") for item in f"records: {what}".split(";")]
    named = {name.strip(): [value.strip() for value in values.split(",")] for name, _, values in items}
    return build(Block, named, "")


def _selected(block: Block, records: Sequence[Record]) -> list[Record]:
    """The records of protocols and seeds that a block names; attacks and defenses wait for their comparisons."""
    _must_know("protocol", block.protocols, {record["protocol"] for record in records})
    _must_know("seed", block.seeds, {str(record["seed"]) for record in records})
    return [
        record
        for record in records
        if (not block.protocols or record["protocol"] in block.protocols)
        and (not block.seeds or str(record["seed"]) in block.seeds)
    ]


def _must_know(kind: str, named: Sequence[str], known: set[str]) -> None:
    for name in named:
        if name not in known:
            raise BadInput(f"no records of {kind} '{name}'{nearest(name, known)}")


def _entries(block: Block, records: Sequence[Record]) -> list[Entry]:
    _must_know("attack", block.attacks, {record["attack"] for record in records})
    _must_know("defense", block.defenses, {record["defense"] for record in records})
    entries = leaderboard(records, pool=block.pool == ("yes",))
    return [entry for entry in entries if _is_named(block, entry.figures.attack, entry.figures.defense)]


def _cells(block: Block, records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of every entry."""
    cells = by_cell(records)
    return {name_of(cell): cell for cell in (pooled(cells) if block.pool == ("yes",) else cells)}


def _is_named(block: Block, attack: str, defense: str) -> bool:
    return all(name in (names or (name,)) for name, names in ((attack, block.attacks), (defense, block.defenses)))


def _below(block: Block, records: Sequence[Record]) -> str:
    return provenance([r for r in records if _is_named(block, r["attack"], r["defense"])], block.records)


def _drawn(block: Block, records: Sequence[Record]) -> str:
    if block.contrast:
        return contrast([r for r in records if _is_named(block, r["attack"], r["defense"])], block.contrast[0])
    entries, cells = _entries(block, records), _cells(block, records)
    if block.form == ("run",):
        said = [line for sentence in reading(entries) for line in textwrap.wrap(sentence, 116)]
        return indented([*text.run_table(entries).splitlines(), *said])
    several = len({entry.figures.protocol for entry in entries}) > 1
    head = [*(["protocol"] if several else []), "attack", "defense", *map(_title, block.columns)]
    rows = [
        [*([entry.figures.protocol] if several else []), entry.attack_label, entry.defense_label]
        + [_value(name, entry, cells) for name in block.columns]
        for entry in entries
    ]
    return text.draw(head, rows, "pipe")


def _inline(block: Block, records: Sequence[Record]) -> str:
    entries = _entries(block, records)
    if len(entries) != 1:
        raise BadInput(f"show: {len(entries)} cells are meant; allowed: one; fix: name attack, defense, protocol, seed")
    return _value(block.show[0], entries[0], _cells(block, records))


def _value(column: str, entry: Entry, cells: Mapping[str, Sequence[Record]]) -> str:
    title, is_mean, path = column.partition("=")
    if not is_mean:
        if title not in COLUMNS:
            raise BadInput(f"unknown column '{title}'{nearest(title, COLUMNS)}, or write title=a.field.of.records")
        return COLUMNS[title](entry)
    found = [field_of(record, path) for record in cells[entry.cell] if record["status"] == "done"]
    values = [value for value in found if isinstance(value, (int, float))]
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{100 * mean:.1f} %" if title.endswith(" %") else f"{mean:.1f}" if title.endswith(" s") else f"{mean:.3g}"


def _title(column: str) -> str:
    return column.partition("=")[0].removesuffix(" %")


if __name__ == "__main__":
    sys.exit(main())
