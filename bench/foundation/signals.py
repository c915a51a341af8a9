"""A command that is told to end (SIGTERM, SIGHUP) ends as after Ctrl-C: its processes stop and its folders go.

An interrupt that comes from a signal is Stopped: a bare KeyboardInterrupt was raised by a plug-in."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """code: what the command exits with, 128 and the number of the signal, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within, Ctrl-C and the first SIGTERM or SIGHUP raise Stopped; later ones of those two are ignored for good, while
    this process clears up. What is ignored already (`nohup`) stays so; outside the main thread, which alone hears
    signals, nothing changes.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *SIGNALS)}
    heard = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    for number in heard:
        signal.signal(number, _stop if number in SIGNALS else _interrupt)
    try:
        yield
    finally:
        for number in heard:
            if signal.getsignal(number) in (_stop, _interrupt):
                signal.signal(number, handlers[number])


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def _stop(number: int, _: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)
