"""Plans as commands make them, for tests that carry them out themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.execution.plan import Plan, plan
from bench.request.request import Request


def prepare(
    preset: str, sets: Sequence[str] = (), *, attack: str = "gm", defenses: Sequence[str] = ("none",), **options: Any
) -> Plan:
    """The plan of one request. options: of Request, such as only=True."""
    asked = Request(protocols=(preset,), attacks=(attack,), defenses=tuple(defenses), set=tuple(sets), **options)
    return plan([asked])
