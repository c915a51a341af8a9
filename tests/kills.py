"""Commands that are killed with all that they started: when, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.aftermath import assert_nobody_left, members, records, start

SHARED = Path("/dev/shm")
STAGES = ("start", "plan", "surrogates", "poisons", "victims", "tracking")


@dataclass
class Kills:
    """Commands one after another in one temporary directory. pids: of all their processes that were seen."""

    temporary: Path
    pids: set[int] = field(default_factory=set)

    def finish(self, *arguments: str) -> None:
        """A command that nobody kills; it must end well."""
        assert self.kill(lambda said: False, *arguments) is None

    def kill(self, when: Callable[[str], bool], *arguments: str) -> str | None:
        """What a command had said on stderr when it was killed, once that made `when` true; None: it had ended before,
        well."""
        with self.said.open("w") as stderr:
            process = start(*arguments, env={**os.environ, "TMPDIR": str(self.temporary)}, stderr=stderr)
        self.pids.add(process.pid)
        while process.poll() is None and not when(self.said.read_text()):
            time.sleep(0.01)
        self.pids.update(members(process.pid))
        ended = process.poll()
        if ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        assert_nobody_left(process.pid)
        said = self.said.read_text()
        assert ended in (None, 0), (printed, said)
        return said if ended is None else None

    @property
    def said(self) -> Path:
        return self.temporary.with_name("said")

    def left(self, out: Path) -> list[Path]:
        """What lies in the temporary directory, in shared memory and in the scratch of the output folder."""
        # torch's compiler keeps one cache per user there, which every process that imports it makes.
        found = [path for path in self.temporary.iterdir() if not path.name.startswith("torchinductor")]
        shared = [path for pid in self.pids for path in SHARED.glob(f"*[-_]{pid}[-_]*")]
        return [*found, *shared, *(out / "scratch").glob("*")]


def after(seconds: float, begun: Callable[[str], bool] = lambda said: True) -> Callable[[str], bool]:
    """So long after what a command says has made `begun` true."""
    end: list[float] = []

    def when(said: str) -> bool:
        if not end and begun(said):
            end.append(time.monotonic() + seconds)
        return bool(end) and time.monotonic() > end[0]

    return when


def stage(stderr: str, out: Path, trials: int) -> str:
    """How far a run of so many trials had come, by what it had said, its store and its records: what it made last is of
    the stage before, and some of the victims may be there already."""
    if not stderr:
        return "start"
    if "trials to run" not in stderr:
        return "plan"
    if len(records(out)) == trials:
        return "tracking"
    if "\nto do: " not in stderr:
        return "plan"
    if any((out / "store" / "poisons").rglob("*.safetensors")):
        return "victims"
    return "poisons" if any((out / "store" / "networks").rglob("*.safetensors")) else "surrogates"
