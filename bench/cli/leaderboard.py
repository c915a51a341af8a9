"""`leaderboard`: the defenses ranked, from trial records. Nothing here imports torch: it answers in a second or two."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from bench.cli import options
from bench.foundation import files
from bench.foundation.errors import BadInput
from bench.foundation.shown import echo

FORMATS = ("table", "md", "csv", "json", "html")


@click.command(cls=options.Command)
@click.argument("file", nargs=-1, type=options.PATH, metavar="[FILE]...")
@click.option("--out", type=options.PATH, metavar="DIR", help=f"Read DIR/records (default: {options.OUT}).")
@click.option(
    "--records", multiple=True, type=options.PATH, metavar="FILE", help="A file with one record per line; repeat it."
)
@click.option("--protocol", "protocols", multiple=True, metavar="NAME", help="Only this one; repeat it (default: all).")
@click.option("--baseline", default="none", show_default=True, metavar="DEFENSE", help="Defense to test against.")
@click.option("--pool", is_flag=True, help="Take the trials of all seeds of a cell together.")
@click.option("--format", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--to", type=options.PATH, metavar="FILE", help="Write it to FILE (default: print it).")
def leaderboard(
    file: tuple[Path, ...], out: Path | None, records: tuple[Path, ...], protocols: tuple[str, ...], baseline: str,
    pool: bool, format: str, to: Path | None,
) -> int:  # fmt: skip
    """Rank the defenses from trial records.

    Every cell has its interval and a test against the baseline. FILE is one more file of records, as after --records;
    where there are any, --out is read only if it is given.
    """
    from bench.api import results
    from bench.views import html, text
    from bench.views.leaderboard import leaderboard

    paths = [*records, *file]
    folders = [out or options.OUT] if out or not paths else []
    trials = results.read([*folders, *paths], functools.partial(echo, err=True))
    chosen = results.select(trials, protocols, baseline)
    write = {**text.FORMATS, "html": html.page}[format]
    board = write(leaderboard(chosen, baseline, pool), baseline)
    if to is None:
        print(board, end="")  # its writers clean what they are given
        return 0
    try:
        files.write_bytes(to, board.encode())
    except OSError as error:
        raise BadInput(f"--to: '{to}' cannot be written: {error.strerror}") from None
    echo(f"leaderboard: {to}", err=True)
    return 0


COMMANDS = (leaderboard,)
