"""`sync` and `ui`: MLflow beside the records."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from bench.cli import options
from bench.foundation.errors import BadInput
from bench.foundation.secrets import redacted
from bench.foundation.shown import echo


@click.command(cls=options.Command)
@options.group(options.out, options.tracking)
def sync(out: Path, tracking: str | None) -> int:
    """Bring MLflow in step with the records."""
    from bench.api.tracking import sync
    from bench.views.mlflow.book import FILTER

    uri, report = sync(out, tracking)
    trials = f"{report.trials_new} trials logged, {report.trials_present} already there"
    echo(f"{redacted(uri)}: {report.cells} cells, {trials}")
    echo(f"to see the cells only, filter by: {FILTER}")
    return 0


@click.command(cls=options.Command)
@click.option("--port", type=int, default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@options.group(options.out, options.tracking)
def ui(port: int, host: str, out: Path, tracking: str | None) -> int:
    """Open the MLflow UI on the right store."""
    from bench.views.mlflow.book import FILTER
    from bench.views.mlflow.server import SERVER, ensure_home, resolve_uri

    uri = resolve_uri(tracking, out)
    if uri is None:
        raise BadInput("ui: tracking is switched off (none); give --tracking URI")
    if uri.startswith(("http://", "https://")):
        echo(f"the tracking server has the UI: {redacted(uri)}")
        return 0
    if not (out / "mlflow.db").is_file() and tracking is None:
        raise BadInput(f"ui: no MLflow store under '{out}'; run something first, or give --out DIR")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host]
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not an argument, which everybody on this machine can read
    ensure_home()
    echo(f"http://{host}:{port} (filter the runs by: {FILTER})")
    for name, value in SERVER.items():
        os.environ.setdefault(name, value)
    os.execv(sys.executable, [*command, "--port", str(port)])


COMMANDS = (sync, ui)
