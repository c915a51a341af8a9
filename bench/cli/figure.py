"""`figure`: one figure, or the list of them."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli import options
from bench.foundation.errors import BadInput
from bench.foundation.shown import echo


@click.command(cls=options.Command)
@click.argument("name", required=False)
@click.option("--to", type=options.PATH, metavar="FILE", help="Image: .png, .svg or .pdf (default: NAME.png).")
@click.option("--csv", "table", type=options.PATH, metavar="FILE", help="The numbers behind it.")
@click.option("--records", type=options.PATH, metavar="FILE", help="Records of a .jsonl file instead of --out.")
@click.option("--attack", metavar="NAME|FILE", help="Of this attack.")
@click.option(
    "--defense",
    "defenses",
    multiple=True,
    callback=options.split,
    metavar="NAME|FILE",
    help="Of this defense; repeat it.",
)
@click.option("--trial", type=int, metavar="N", help="Of this trial.")
@click.option("--protocol", metavar="NAME|FILE", help="Of this protocol.")
@options.group(options.seed, options.dataset, options.data, options.sets, options.device, options.out)
def figure(
    name: str | None, to: Path | None, table: Path | None, records: Path | None, attack: str | None,
    defenses: tuple[str, ...], trial: int | None, protocol: str | None, seed: int | None, dataset: str | None,
    data: Path | None, sets: tuple[str, ...], device: str, out: Path,
) -> int:  # fmt: skip
    """Draw a figure; without a name, list them.

    Some figures are drawn from records, others train what they show; the list says which.
    """
    from bench.api.work import requests
    from bench.figures import canvas
    from bench.figures.request import FigureRequest
    from bench.foundation.registry import find, names

    if name is None:
        for known in names("figure"):
            echo(f"  {known:16} {find('figure', known).card}")
        return 0
    if trial is not None and trial < 0:
        raise BadInput(f"--trial {trial}; allowed: 0 and more")
    (asked,) = requests(
        None, sets, attacks=(attack,) if attack else (), defenses=defenses, protocols=(protocol,) if protocol else (),
        seed=seed, dataset=dataset, data=data,
    )  # fmt: skip
    request = FigureRequest(asked, out, records, device, trial)
    target = to or Path(f"{name}.png")
    echo(f"{canvas.make(name, request, target, table)}\n{target}")
    return 0


COMMANDS = (figure,)
