"""A benchmark for clean-label data poisoning: attacks and defenses as plug-ins, one runner, tracked numbers.

    run, sweep            attacks against defenses; trial records as a data frame
    records, leaderboard  records and cells as data frames
    craft                 the poisons of an attack, as tensors
    defend                a defense on images of your own
    check                 the contract test of a plug-in

Everything is loaded when it is first used, so that `import bench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api.defend import defend
    from bench.api.results import leaderboard, records
    from bench.api.runs import craft, run, sweep
    from bench.authoring.contract import check

__version__ = "0.1.0"
__all__ = ["check", "craft", "defend", "leaderboard", "records", "run", "sweep"]

_HOMES = {
    **dict.fromkeys(("run", "sweep", "craft"), "bench.api.runs"),
    **dict.fromkeys(("records", "leaderboard"), "bench.api.results"),
    "defend": "bench.api.defend",
    "check": "bench.authoring.contract",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bench' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
