"""`list` and `show`: what can be run, and what it is."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from bench.cli import options
from bench.foundation.registry import ANNOUNCED, PLUGINS
from bench.foundation.shown import echo

if TYPE_CHECKING:
    from bench.foundation.registry import Plugin

KINDS = tuple(f"{kind}s" for kind in (*PLUGINS, "protocol", "sweep", *ANNOUNCED))
WIDTH, COLUMN = 100, 24
KNOWLEDGE = {
    "poison_rate": "the poison rate",
    "clean_holdout": "a clean hold-out",
    "external_model": "an external model",
    "attack_family": "the attack's family and eps",
}


@click.command("list", cls=options.Command)
@click.argument("kind", required=False, type=click.Choice(KINDS), metavar="[KIND]")
def list_(kind: str | None) -> int:
    """List what can be run.

    KIND: attacks, defenses, datasets, models, protocols, sweeps, engines, figures or formats (default: all).
    """
    for each in [kind] if kind else KINDS:
        echo(f"{each}:")
        for names, text in _entries(each):
            echo(_entry(names, text))
    return 0


@click.command(cls=options.Command)
@click.argument("kind", type=click.Choice([kind.removesuffix("s") for kind in KINDS]), metavar="KIND")
@click.argument("name")
def show(kind: str, name: str) -> int:
    """Show the card and settings of a plug-in, or a file of ours.

    KIND: attack, defense, dataset, model, protocol, sweep, engine, figure or format.
    """
    from bench.foundation import registry
    from bench.foundation.settings import describe
    from bench.request import protocol_file, sweep_file

    if kind == "protocol":
        echo(protocol_file.read_preset(name)[1].rstrip())
    elif kind == "sweep":
        echo(sweep_file.read(name)[2].rstrip())
    else:
        plugin = registry.find(kind, name)
        echo(f"{kind} {plugin.name}\n\n{inspect.cleandoc(plugin.card)}")
        if hasattr(plugin.make, "Settings"):
            echo("\nsettings:" if kind != "engine" else "\nsettings, as --set engine.key=value:")
            echo(describe(plugin.make.Settings, plugin.variant) or "  none")
    return 0


def _entries(kind: str) -> Iterator[tuple[list[str], str]]:
    """The names of every entry of a kind (a method's variants together) with its text."""
    from bench.foundation import registry
    from bench.request import protocol_file, sweep_file

    if kind == "protocols":
        yield from (
            ([name], protocol_file.read_preset(name)[0].get("description", ""))
            for name in protocol_file.protocol_names()
        )
    elif kind == "sweeps":
        yield from (([name], sweep_file.read(name)[1]) for name in sweep_file.names())
    else:
        singular = kind.removesuffix("s")
        methods: dict[Any, list[Plugin]] = {}
        for plugin in (registry.find(singular, name) for name in registry.names(singular)):
            if singular in ANNOUNCED:
                yield [plugin.name], plugin.card  # without importing it, which may need a package that is missing
            elif getattr(plugin.make, "crafts", True):
                methods.setdefault(plugin.make, []).append(plugin)
        for variants in methods.values():
            yield [_variant(plugin) for plugin in variants], _card(variants[0])


def _variant(plugin: Plugin) -> str:
    """The name, with the settings that make the variant unless they are many."""
    settings = ", ".join(f"{key} = {value}" for key, value in plugin.variant.items())
    return f"{plugin.name} ({settings})" if 1 <= len(plugin.variant) <= 2 else plugin.name


def _card(plugin: Plugin) -> str:
    """The first sentence of the card, and for attacks and defenses what they assume."""
    text = " ".join(plugin.card.split())
    first = re.split(r"(?<! al)(?<!\.)\. +(?=[A-Z`])", text)[0].rstrip(".")
    if plugin.kind == "defense":
        needs = [KNOWLEDGE.get(need, need) for need in plugin.make.needs]
        return f"{first}. Assumes: {', '.join(needs) or 'nothing'}."
    threat = re.search(r"(?:Threat model|Needs): (.+?)\.(?: |$)", text)
    return f"{first}. Assumes: {threat[1]}." if plugin.kind == "attack" and threat else f"{first}."


def _entry(names: Sequence[str], text: str) -> str:
    """Names in a column and the text beside it; below it where the names are longer than the column."""
    head = f"  {'  '.join(names)}"
    beside = " " * COLUMN
    if len(names) == 1 and len(head) < COLUMN:
        return textwrap.fill(text, WIDTH, initial_indent=head.ljust(COLUMN), subsequent_indent=beside)
    return "\n".join([*_rows(names), textwrap.fill(text, WIDTH, initial_indent=beside, subsequent_indent=beside)])


def _rows(names: Iterable[str]) -> Iterator[str]:
    """Names on lines that are not too long, none broken."""
    row = ""
    for name in names:
        if row and len(row) + 2 + len(name) > WIDTH:
            yield row
            row = ""
        row += f"  {name}"
    yield row


COMMANDS = (list_, show)
