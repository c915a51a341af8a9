"""Commands that we print for a person to run: quoted, so that a shell takes them as they are."""

from __future__ import annotations

import shlex


def bench(*words: object) -> str:
    """`python -m bench ...`."""
    return shlex.join(["python", "-m", "bench", *map(str, words)])
