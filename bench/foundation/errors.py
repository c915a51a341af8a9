"""The errors that a user can mend; the command line prints their one line and exits 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(Exception):
    """What the user asked for cannot be done. The message is one line: what, where, allowed range, repair."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DiskFull(BadInput):
    """Nothing more can be written: the run ends here, because what comes next could not be kept either."""


class TrialFailed(Exception):
    """One trial cannot be finished (its cause is in the message); the other trials go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint ``; did you mean 'x'?`` when a known name is close, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
