"""`pack` and `unpack`: an output folder carried elsewhere, and back."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli import options
from bench.foundation.shown import echo


@click.command(cls=options.Command)
@click.argument("out", type=options.PATH, metavar="OUT")
@click.argument("file", type=options.PATH, metavar="FILE")
@click.option("--most", type=click.IntRange(1), metavar="MIB", help="Size of FILE; what is needed least is left out.")
def pack(out: Path, file: Path, most: int | None) -> int:
    """Write an output folder as one file, to go on elsewhere.

    FILE gets the records under OUT and what its store holds, with the checkpoints of what was interrupted. A run may be
    at work on OUT.
    """
    from bench.foundation.progress import say
    from bench.storage import archive

    echo(f"{archive.pack(out, file, say, most * 2**20 if most else archive.MOST_BYTES)}: {file}")
    return 0


@click.command(cls=options.Command)
@click.argument("file", type=options.PATH, metavar="FILE")
@click.argument("out", type=options.PATH, metavar="OUT")
def unpack(file: Path, out: Path) -> int:
    """Put what `pack` wrote into an output folder.

    OUT may be new, or hold other work, which stays. All of FILE is checked before anything is written.
    """
    from bench.foundation.progress import say
    from bench.storage import archive

    echo(f"{archive.unpack(file, out, say)}: {out}")
    return 0


COMMANDS = (pack, unpack)
