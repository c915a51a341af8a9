"""The one rule for names that become folders, labels and parts of what one types: plug-ins and protocols."""

from __future__ import annotations

import re

from bench.foundation.errors import BadInput

LONGEST = 60
LONGEST_COMPOSED = 130
"""Of `a+b`: with an attack's name and a number of a trial it still fits into a file name of 255 bytes."""
RULE = f"a word of up to {LONGEST} letters (a to z), digits, '.', '_' and '-' that begins with a letter, a digit or '_'"
_WORD = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")


def word(name: str, what: str, fix: str = "another name") -> str:
    """The name itself. BadInput, with `what` it is the name of, unless it is a word: no path, no separator of the
    command line, nothing that is hidden, nothing that reads as the file of a plug-in."""
    if not isinstance(name, str) or not _WORD.fullmatch(name) or name.endswith(".py"):
        shown = ascii(name if len(str(name)) <= LONGEST + 20 else f"{str(name)[:LONGEST]}...")
        raise BadInput(f"{what} cannot be called {shown}; allowed: {RULE}; fix: {fix}")
    return name


def of_trial(trial: int, victim: int) -> str:
    """`trial 3`, and `trial 3 victim 1` for others than the first victim."""
    return f"trial {trial} victim {victim}" if victim else f"trial {trial}"
