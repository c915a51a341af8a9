"""What an engine is: it does the units of a schedule and yields what became of each, in the order in which they end.

A unit that fails costs only itself; one whose process is killed is tried once more. Units write records and artefacts
below the output folder; nothing but an engine's `Done` comes back.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.execution.schedule import Schedule
from bench.foundation.errors import BadInput, DiskFull, TrialFailed
from bench.foundation.guests import guest
from bench.foundation.progress import Heartbeat

Work = Callable[[Any, Heartbeat], Any]
"""A function of (unit, heartbeat) that a worker process can import."""

MOST_ATTEMPTS = 2
KILLED = "its process was killed twice (out of memory?)"


@dataclass(frozen=True)
class Done:
    """What became of a unit: its result, or why there is none, in one line. disk_full: no other unit can succeed."""

    unit: Any
    result: Any
    error: str | None
    trace: str = ""
    disk_full: bool = False


class Engine(ABC):
    """width: units at a time, as far as it is known; threads: of arithmetic in each. `str(engine)`
    says where the work is done."""

    width: int = 1
    threads: int = 1

    @abstractmethod
    def device(self) -> str:
        """What units compute on: `cpu`, or `cuda` (of the worker, whichever it is)."""

    @abstractmethod
    def open(self, out: Path) -> AbstractContextManager[None]:
        """Be ready for `run`, with output below `out`. BadInput when no work can be done there."""

    @abstractmethod
    def run(self, schedule: Schedule, work: Work) -> Generator[Done, None, None]:
        """Yield a Done for every unit of a new schedule, but for those that stand on one that failed. Leaving the
        iterator early stops what is running."""


def attempt(unit: Any, work: Work, heartbeat: Heartbeat, threads: int) -> Done:
    """Do the unit in this process; whatever it raises becomes one line and a trace."""
    torch.set_num_threads(threads)
    try:
        with guest():
            return Done(unit, work(unit, heartbeat), None)
    except DiskFull as error:
        return Done(unit, None, str(error), traceback.format_exc(), disk_full=True)
    except (TrialFailed, BadInput) as error:
        return Done(unit, None, str(error), traceback.format_exc())
    except Exception as error:
        line = " ".join(str(error).split()) or "no message"
        return Done(unit, None, f"{type(error).__name__}: {line}", traceback.format_exc())
    finally:
        heartbeat.path.unlink(missing_ok=True)
