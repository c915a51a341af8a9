"""A command that is told to end (SIGTERM, SIGHUP) ends as after Ctrl-C: its processes stop and its folders go.

An interrupt that comes from a signal is Stopped: a bare KeyboardInterrupt was raised by a plug-in. Where Python happens
to be in a destructor or a callback of a weak reference, it ignores what is raised there: then the signal comes again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)
PAUSE = 0.02  # seconds until an interrupt that Python ignored comes again


class Stopped(KeyboardInterrupt):
    """code: what the command exits with, 128 and the number of the signal, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.code = 128 + number


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within, Ctrl-C and the first SIGTERM or SIGHUP raise Stopped; later ones of those two are ignored for good, while
    this process clears up. What is ignored already (`nohup`) stays so; outside the main thread, which alone hears
    signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *SIGNALS)}
    heard = [number for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, _stop if number in SIGNALS else _interrupt)
    hook, again = sys.unraisablehook, _Again(sys.unraisablehook)
    sys.unraisablehook = again
    try:
        yield
    finally:
        again.cancel()
        if sys.unraisablehook is again:
            sys.unraisablehook = hook
        for number in heard:
            if signal.getsignal(number) in (_stop, _interrupt):
                signal.signal(number, handlers[number])


class _Again:
    """Hears of exceptions that Python ignores. A Stopped comes again from outside; others go to `others`."""

    def __init__(self, others: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self.others = others
        self.timers: list[threading.Timer] = []

    def __call__(self, ignored: sys.UnraisableHookArgs) -> None:
        error = ignored.exc_value
        if not isinstance(error, Stopped):
            self.others(ignored)
            return
        if error.number in SIGNALS:
            signal.signal(error.number, _stop)
        timer = threading.Timer(PAUSE, os.kill, (os.getpid(), error.number))
        timer.daemon = True
        self.timers.append(timer)
        timer.start()

    def cancel(self) -> None:
        for timer in self.timers:
            timer.cancel()
            timer.join()


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Stopped(number)


def _stop(number: int, _: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)
