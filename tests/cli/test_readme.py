"""The README: every command in it is one, and its Python example names what there is."""

from __future__ import annotations

import re
import shlex

import click
import pytest

import bench
from bench.cli.main import commands
from tests.aftermath import ROOT

README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python -m bench ([a-z][^\n`]*)", README)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_is_understood(line: str) -> None:
    words = shlex.split(
        re.split(r"  +|, | > |; done", line)[0].replace("$seed", "0")
    )  # the rest is for reader and shell
    context = click.Context(commands)
    name, command, rest = commands.resolve_command(context, words)
    assert name and command
    command.make_context(name, rest, parent=context).close()


def test_the_readme_names_every_public_function_and_no_other() -> None:
    assert set(re.findall(r"bench\.([a-z]+)\(", README)) == set(bench.__all__)


def test_the_glossary_has_ten_words() -> None:
    glossary = README.partition("## Words")[2].partition("\n## ")[0]
    assert glossary.count("\n| ") - 1 == 10
