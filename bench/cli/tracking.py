"""`sync` and `ui`: MLflow beside the records."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from bench.cli import options
from bench.foundation.errors import BadInput
from bench.foundation.secrets import redacted
from bench.foundation.shown import echo
from bench.foundation.signals import Stopped

FILES = options.group(
    click.argument("file", nargs=-1, type=options.PATH, metavar="[FILE]..."),
    click.option(
        "--records", multiple=True, type=options.PATH, metavar="FILE",
        help="Log a file with one record per line, instead of what is under --out; repeat it.",
    ),
)  # fmt: skip


@click.command(cls=options.Command)
@options.group(FILES, options.out, options.tracking)
def sync(file: tuple[Path, ...], records: tuple[Path, ...], out: Path, tracking: str | None) -> int:
    """Bring MLflow in step with the records.

    FILE is one more file of records, as after --records.
    """
    from bench.views.mlflow.book import FILTER

    _sync(out, tracking, (*records, *file))
    echo(f"to see the cells only, filter by: {FILTER}")
    return 0


@click.command(cls=options.Command)
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Port (default: from 5000, the first free).")
@click.option("--host", default="127.0.0.1", show_default=True)
@options.group(FILES, options.out, options.tracking)
def ui(
    port: int | None, host: str, file: tuple[Path, ...], records: tuple[Path, ...], out: Path, tracking: str | None
) -> int:
    """Open the MLflow UI on the right store, until Ctrl-C.

    With --records, or FILE after them, these are logged there first.
    """
    from bench.views.mlflow.book import FILTER
    from bench.views.mlflow.server import resolve_uri
    from bench.views.mlflow.website import free_port, website

    uri, files = resolve_uri(tracking, out), (*records, *file)
    if uri is None:
        raise BadInput("ui: tracking is switched off (none); give --tracking URI")
    served = uri.startswith(("http://", "https://"))
    if not files and not served and tracking is None and not (out / "mlflow.db").is_file():
        raise BadInput(f"ui: no MLflow store under '{out}'; run something first, or give --out DIR or --records FILE")
    if not served:
        free_port(host, port)  # what cannot be had is said before any work
    if files:
        _sync(out, tracking, files)
    if served:
        echo(f"the tracking server has the UI: {redacted(uri)}")
        return 0
    try:
        with website(uri, host, free_port(host, port)) as site:
            echo(f"{site.address} (filter the runs by: {FILTER}); Ctrl-C ends it")
            site.wait()
    except Stopped as stopped:
        if stopped.number != signal.SIGINT:
            raise
    return 0


def _sync(out: Path, tracking: str | None, files: tuple[Path, ...]) -> None:
    from bench.api.tracking import sync

    uri, report = sync(out, tracking, files)
    trials = f"{report.trials_new} trials logged, {report.trials_present} already there"
    echo(f"{redacted(uri)}: {report.cells} cells, {trials}")


COMMANDS = (sync, ui)
