"""Units in processes that this command did not start, perhaps on other machines: what they share is the output folder.

Below it every stage has a folder of its own. Units report there how far they are, and count their attempts there,
whoever starts them again. It vanishes when the command ends, and what still runs then stops.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from bench.execution.engines.base import KILLED, MOST_ATTEMPTS, Done, Work, attempt
from bench.foundation.files import take_lock
from bench.foundation.progress import Heartbeat
from bench.foundation.scratch import LOCK

LOOK_EVERY = 1.0  # seconds between looks at whether the command still wants the work
SHARE = "fix: an --out folder that all machines share, with locks"
_one_at_a_time = threading.Lock()  # random state and thread counts are the process's


class Unwanted(Exception):
    """The command that sent the unit has ended."""


@dataclass(frozen=True)
class Post:
    """Where an attempt at a unit reports. folder: of the stage; index: of the unit in it; work_folder: the command's
    working directory, so that relative paths of plug-ins and images mean the same."""

    folder: Path
    index: int
    threads: int
    work_folder: Path

    @property
    def attempts(self) -> Path:
        return self.folder / f"{self.index}.attempts"


class _Watched(Heartbeat):
    """A heartbeat that stops the work when nobody waits for it any more."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._looked = time.monotonic()

    def __call__(self, step: str, done: int, of: int) -> None:
        if time.monotonic() - self._looked > LOOK_EVERY:
            self._looked = time.monotonic()
            if not self.path.parent.is_dir():
                raise Unwanted("the command that sent it has ended")
        super().__call__(step, done, of)


def attempt_there(unit: Any, work: Work, post: Post) -> Done:
    """`attempt` in another process: given up when it was cut off too often, and one at a time in a process."""
    if not post.folder.is_dir():
        return Done(unit, None, f"machine '{platform.node()}' does not see '{post.folder}'; {SHARE}")
    with _one_at_a_time:
        if tried(post) >= MOST_ATTEMPTS:
            return Done(unit, None, KILLED)
        with contextlib.suppress(FileNotFoundError), post.attempts.open("ab") as file:
            file.write(b".")
        with contextlib.chdir(post.work_folder if post.work_folder.is_dir() else "."):
            done = attempt(unit, work, _Watched(post.folder / f"{post.index}.json"), post.threads)
        post.attempts.unlink(missing_ok=True)
        return done


def tried(post: Post) -> int:
    """How many attempts at the unit were begun and cut off: a process that is killed cannot take its mark away."""
    return post.attempts.stat().st_size if post.attempts.exists() else 0


@dataclass(frozen=True)
class Seen:
    """What a worker finds. folder, lock: whether it sees the folder of the command, and that its lock is held."""

    folder: bool
    lock: bool
    cuda: bool
    machine: str


def look(folder: Path) -> Seen:
    """Run it on a worker."""
    import torch

    held = False
    if (folder / LOCK).is_file():
        try:
            take_lock(folder / LOCK, timeout=0).release()
        except Timeout:
            held = True
    return Seen(folder.is_dir(), held, torch.cuda.is_available(), f"{platform.node()} ({os.getpid()})")
