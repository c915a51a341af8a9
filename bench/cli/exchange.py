"""`export` and `import`: poisons for other tools, and from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bench.cli import options
from bench.foundation import commands
from bench.foundation.shown import echo


@click.command(cls=options.Command)
@click.argument("folder", type=options.PATH, metavar="DIR")
@options.group(
    options.attack,
    click.option("--format", default="native", show_default=True, metavar="NAME", help="Format; see `list formats`."),
    options.protocol,
    options.study,
    options.effort,
    options.out,
)
def export(
    folder: Path, format: str, attack: str, protocol: str, out: Path, sets: tuple[str, ...], **asked: Any
) -> int:
    """Write an attack's poisons for other tools.

    What is not in the store is crafted first. DIR is a new folder; it gets a sub-folder per trial.
    """
    from bench.api import exchange
    from bench.api.work import prepare, requests

    effort = options.take(asked, options.EFFORT)
    request = requests(None, sets, attacks=(attack,), protocols=(protocol,), only=True, **asked)
    exported = exchange.export(folder, format, prepare(request, sets, out=out, tracking="none", **effort))
    for note in exported.notes:
        echo(note)
    echo(f"{exported.trials} trials of {exported.attack} as {format}: {folder}")
    return 0


@click.command("import", cls=options.Command)
@click.argument("source", type=options.PATH, metavar="SOURCE")
@click.argument("folder", type=options.PATH, metavar="DIR")
@options.group(
    click.option("--format", default="auto", show_default=True, metavar="NAME", help="Format; see `list formats`."),
    click.option("--trigger", is_flag=True, help="For formats that hold none: judge with the threat model's trigger."),
    options.protocol,
    options.study,
)
def import_(
    source: Path,
    folder: Path,
    format: str,
    trigger: bool,
    setup: str | None,
    protocol: str,
    sets: tuple[str, ...],
    **asked: Any,
) -> int:
    """Read and check another tool's poisons, for `run --poisons`.

    SOURCE is a trial's folder or file, or a folder with sub-folders 0, 1, ...; DIR is a new folder.
    """
    from bench.api import exchange
    from bench.api.work import requests

    (request,) = requests(None, sets, protocols=(protocol,), **asked)
    count = 0
    for line in exchange.import_(source, folder, request, format, setup, trigger):
        echo(line)
        count += 1
    given = {"--protocol": protocol if protocol != "quick" else None}
    given |= {f"--{name}": asked[name] for name in ("dataset", "data", "seed")}
    options_given = [word for name, value in given.items() if value is not None for word in (name, value)]
    settings = [word for item in sets for word in ("--set", item)]
    command = commands.bench("run", "--poisons", folder, *options_given, *settings)
    echo(f"{count} trials: {folder}; run them with: {command}")
    return 0


COMMANDS = (export, import_)
