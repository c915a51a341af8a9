"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

OUT = Path("results/runs")
PATH = click.Path(path_type=Path)


class Command(click.Command):
    """A command that refuses an option given twice where one counts; click would take the last without a word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # not while a shell asks for completions
            *_, given = self.make_parser(ctx).parse_args(args=list(args))
            for option in given:
                if isinstance(option, click.Option) and not option.multiple and given.count(option) > 1:
                    raise click.UsageError(f"{option.opts[0]} is given more than once; fix: give it once", ctx)
        return super().parse_args(ctx, args)


def group(*options: Decorator) -> Callable[[F], F]:
    """Several options as one decorator, in the order in which --help shows them."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def take(asked: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Remove the named options from what was asked; those that the command has."""
    return {name: asked.pop(name) for name in names if name in asked}


def split(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Names given in several options, or in one with commas between them; commas in brackets belong to a name."""
    from bench.science.references import split

    return tuple(name for value in values for name in ([value] if Path(value).is_file() else split(value)))


attacks = click.option(
    "--attack", "attacks", multiple=True, callback=split, metavar="NAME|FILE",
    help="Attack, such as gm or gm[steps=50]; repeat it, or A,B (default: gm).",
)  # fmt: skip
defenses = click.option(
    "--defense", "defenses", multiple=True, callback=split, metavar="NAME|FILE",
    help="Defense, such as friends-b, friends-b[mu=8] or a+b; repeat it, or A,B (default: none).",
)  # fmt: skip
attack = click.option("--attack", default="gm", show_default=True, metavar="NAME|FILE", help="Attack.")
protocols = click.option(
    "--protocol", "protocols", multiple=True, callback=split, metavar="NAME|FILE",
    help="Protocol; repeat it, or A,B (default: quick).",
)  # fmt: skip
protocol = click.option("--protocol", default="quick", show_default=True, metavar="NAME|FILE", help="Protocol.")
sets = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a setting, such as threat.eps=8; see `show`."
)
dataset = click.option("--dataset", metavar="NAME", help="Another data set, such as folder:PATH.")
data = click.option("--data", type=PATH, metavar="DIR", help="Where data sets look for their files.")
seed = click.option("--seed", type=int, help="Study seed (default: 0).")
victims = click.option(
    "--victims", type=int, metavar="N", help="Victims per trial, with other seeds (default: the protocol's)."
)
study = group(
    dataset,
    data,
    click.option("--trials", type=int, metavar="N", help="Trials per cell (default: the protocol's)."),
    click.option("--setups", type=PATH, metavar="FILE", help="Take trials from a poison_setups pickle."),
    click.option("--setup", metavar="N|A..B", help="Which of the listed trials (default: the first)."),
    seed,
    sets,
)
device = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda (all GPUs), cuda:N or cuda:0,cuda:1."
)
EFFORT = ("engine", "address", "device", "jobs", "threads", "tracking")
effort = group(
    click.option("--engine", default="local", show_default=True, metavar="NAME", help="local, dask or slurm."),
    click.option("--address", metavar="URL", help="Address of the dask scheduler."),
    device,
    click.option("--jobs", type=int, metavar="N", help="Processes (default: one per core, or one per GPU)."),
    click.option("--threads", type=int, default=1, show_default=True, metavar="N", help="CPU threads per process."),
)
out = click.option("--out", type=PATH, default=OUT, show_default=True, metavar="DIR", help="Output folder.")
tracking = click.option("--tracking", metavar="URI", help="MLflow tracking URI, or none (default: SQLite under --out).")
