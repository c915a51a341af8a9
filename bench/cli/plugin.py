"""`check` and `new`: plug-ins of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli import options
from bench.foundation.shown import echo


@click.command(cls=options.Command)
@click.argument("plugin", nargs=-1, required=True, metavar="NAME|FILE...")
def check(plugin: tuple[str, ...]) -> int:
    """Test plug-ins against the contract of attacks and defenses."""
    from bench.authoring.contract import check

    failed = False
    for name in plugin:
        for result in check(name):
            echo(f"{'ok    ' if result.passed else 'FAILED'} {result.plugin}: {result.rule}{result.detail}")
            failed |= not result.passed
    return int(failed)


@click.command(cls=options.Command)
@click.argument("kind", type=click.Choice(["attack", "defense"]))
@click.argument("name")
@click.option(
    "--dir", "folder", type=options.PATH, default=Path(), metavar="DIR", help="Where to write it (default: here)."
)
def new(kind: str, name: str, folder: Path) -> int:
    """Start a plug-in of your own: a file that works, and its test.

    NAME is what the Python file is called, such as my_defense.
    """
    from bench.authoring.scaffold import next_steps, scaffold

    echo(next_steps(kind, *scaffold(kind, name, folder)))
    return 0


COMMANDS = (check, new)
