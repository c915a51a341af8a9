"""What is shown to a person: names and messages come from files, and are not trusted to be mere letters."""

from __future__ import annotations

import sys


def plain(text: str) -> str:
    """One line without what would move the cursor, colour the terminal, turn the direction of writing or cannot be
    encoded; each such character is a `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def plain_lines(text: str) -> str:
    """The same for a text of several lines, which it keeps, with their tabs."""
    return "\n".join("\t".join(map(plain, line.split("\t"))) for line in text.split("\n"))


def echo(text: str, err: bool = False) -> None:
    """Print a result on stdout, or a message on stderr."""
    print(plain_lines(text), file=sys.stderr if err else sys.stdout, flush=True)
