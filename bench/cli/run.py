"""`run` and `sweep`: attacks against defenses. They are one command; a sweep file holds several blocks of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bench.cli import options
from bench.foundation import commands
from bench.foundation.secrets import redacted
from bench.foundation.shown import echo


@click.command(cls=options.Command)
@click.argument("file", required=False, metavar="[SWEEP]")
@options.group(
    options.attacks,
    click.option(
        "--poisons", type=options.PATH, metavar="DIR", help="Imported poisons, instead of an attack; see `import`."
    ),
    options.defenses,
    options.protocols,
    click.option("--only", is_flag=True, help="Leave out the undefended cells and the clean controls."),
    click.option("--plan", "plan_only", is_flag=True, help="Show the plan and stop."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON array of trial records and nothing else."),
    options.victims,
    options.study,
    options.effort,
    options.out,
    options.tracking,
)
def run(file: str | None, plan_only: bool, as_json: bool, out: Path, sets: tuple[str, ...], **asked: Any) -> int:
    """Run attacks against defenses; finished trials are skipped.

    SWEEP is the name of a sweep that ships with the tool, or a TOML file; without one, the options say what is run.
    The plan comes first: cells, what the records hold, and how long the rest may take.
    """
    from bench.api.work import prepare, requests
    from bench.foundation.files import make_folder
    from bench.foundation.progress import say

    effort = options.take(asked, options.EFFORT)
    work = prepare(requests(file, sets, **asked), sets, out=out, **effort)
    if plan_only:
        echo(work.outline())
        return 0
    make_folder(out)
    say(work.outline())
    records = work.carry_out()
    if as_json:
        echo(json.dumps(records, allow_nan=False))
    else:
        echo(work.table(records))
        _where_next(out, work.uri, effort["tracking"])
        echo(work.reading(records))
    return 1 if any(record["status"] != "done" for record in records) else 0


def _where_next(out: Path, uri: str | None, tracking: str | None) -> None:
    from bench.views.mlflow.book import FILTER

    place = [] if out == options.OUT else ["--out", out]
    # The address of a server may hold a password; `ui` would only repeat it.
    store = ["--tracking", tracking] if tracking and tracking.startswith("sqlite:") else []
    echo(f"records: {out / 'records'}; logs of failures: {out / 'logs'}")
    if uri is not None:
        ui = commands.bench("ui", *place, *store)
        echo(f"MLflow: {redacted(uri)}; open it with: {ui}; filter by: {FILTER}")
    echo(f"leaderboard: {commands.bench('leaderboard', *place)}")
