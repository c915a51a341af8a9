"""What is kept of an artefact or a record while it is being made, so that a kill costs little.

A checkpoint lies below store/checkpoints under the key of what is being made, which holds the fingerprint of the code:
another version never takes it up. It is written, verified and distrusted as any artefact, and gone once that is stored.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.foundation.errors import DiskFull

if TYPE_CHECKING:
    from bench.storage.store import Made, Store

INTERVAL = 30.0  # seconds between checkpoints; 0: at every step, for tests
SHARE = 0.01  # of the time that they may take: large ones are written less often
FORGOTTEN = 30 * 86400.0  # seconds after which one that nobody has taken up is removed
KIND = "checkpoints"

_current: ContextVar[Making | None] = ContextVar("making", default=None)


def current() -> Making | None:
    """What is being made by this thread, the innermost; None outside of a study."""
    return _current.get()


@contextlib.contextmanager
def making(store: Store, key: str, make: Callable[[Store, str], Making] | None = None) -> Iterator[Making]:
    """Inside, while the lock of `key` is held, work may leave checkpoints. They stay when the process is killed or
    interrupted, or its disk is full; they are gone when it ends well, or fails: what has failed starts anew."""
    made = (make or Making)(store, key)
    before = _current.set(made)
    try:
        yield made
    except DiskFull:
        raise
    except Exception:
        made.clear()
        raise
    else:
        made.clear()
    finally:
        _current.reset(before)


@dataclass
class Making:
    """One artefact or record that is being made. beside: what the work leaves outside of itself, such as notes;
    waiting: checkpoints of work that has ended, by name, written with the next one; opened: how many works of each name
    there were; interval: seconds."""

    store: Store
    key: str
    beside: Any = None
    waiting: dict[str, Made] = field(default_factory=dict)
    opened: dict[str, int] = field(default_factory=dict)
    interval: float = field(default_factory=lambda: INTERVAL)
    tidied: bool = False

    def __post_init__(self) -> None:
        self.next_at = time.monotonic() + self.interval

    @property
    def due(self) -> bool:
        return time.monotonic() >= self.next_at

    def get(self, name: str) -> Made | None:
        """The checkpoint of that name. A damaged one is set aside, aloud."""
        try:
            found = self.store.get(KIND, self._key(name), then=", what it was of starts anew")
        except OSError:  # it cannot be read, and it is not worth a failure
            return None
        return (found.tensors, found.meta) if found is not None else None

    def write(self, name: str, made: Made) -> None:
        """Put a checkpoint on the disk, with those that wait. Where there is no room for it the work goes on without:
        a line says so, and the last one stays."""
        started = time.monotonic()
        try:
            for waiting in list(self.waiting):
                self._put(waiting, self.waiting.pop(waiting))
            self._put(name, made)
        except (DiskFull, OSError) as error:
            self.store.say(f"no checkpoint of {self.key[:8]}, the work goes on: {error}")
        if not self.tidied:
            self.tidied = True
            self._forget()
        ended = time.monotonic()
        self.next_at = ended + (max(self.interval, (ended - started) / SHARE) if self.interval else 0)

    def clear(self) -> None:
        self.waiting.clear()
        for pattern in (f"{self.key}-*", f".{self.key}-*"):
            for path in self._folder.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _put(self, name: str, made: Made) -> None:
        self.store.put(KIND, self._key(name), *made)

    def _key(self, name: str) -> str:
        return f"{self.key}-{name}"

    @property
    def _folder(self) -> Path:
        return self.store.path(KIND, self.key).parent

    def _forget(self) -> None:
        """Remove what was left of work that nobody has gone on with: of another version, or with other settings."""
        for path in self.store.path(KIND, self.key).parent.parent.glob("*/*"):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < time.time() - FORGOTTEN:
                    path.unlink()
