"""Errors that a user can fix; the command line prints their one line and exits 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000  # characters of a message


class BadInput(Exception):
    """What the user asked for cannot be done. The message is one line: what, where, allowed range, fix; its middle is
    left out where it is longer than anyone reads."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


class DiskFull(BadInput):
    """Nothing more can be written: the run ends, because later results could not be stored either."""


class TrialFailed(Exception):
    """One trial cannot be finished (the message says why); the other trials go on."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The hint ``; did you mean 'x'?`` when a known name is close, else the list of known names."""
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
