"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
from bench.foundation.signals import Stopped, ending_cleanly
number = signal.Signals(int(sys.argv[1]))
signal.signal(number, getattr(signal, sys.argv[2]))
try:
    with ending_cleanly():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # impatience does not disturb the clearing up
except Stopped as error:
    sys.exit(error.code)
print("went on")
"""


def run(number: signal.Signals, before: str) -> tuple[int, str]:
    ended = subprocess.run([sys.executable, "-c", CODE, str(int(number)), before], capture_output=True, text=True)
    return ended.returncode, ended.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_raises_and_the_next_are_ignored(number: signal.Signals, code: int) -> None:
    assert run(number, "SIG_DFL") == (code, "")


def test_what_is_ignored_already_stays_ignored() -> None:
    assert run(signal.SIGHUP, "SIG_IGN") == (143, "")  # by the SIGTERM that follows
    assert run(signal.SIGTERM, "SIG_IGN") == (0, "went on\n")


IGNORED = """
import os, signal, sys, time, weakref
from bench.foundation.signals import Stopped, ending_cleanly
signal.signal(int(sys.argv[1]), signal.SIG_DFL)  # also where the tests themselves run in the background
class Thing: pass
def ignored(_):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(0.01)  # so that it is raised here, where nobody hears it
try:
    with ending_cleanly():
        for _ in range(2):
            thing = Thing()
            reference = weakref.ref(thing, ignored)
            del thing
        time.sleep(10)
        print("went on")
except Stopped as error:
    sys.exit(error.code)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_python_ignores_in_a_callback_comes_again(number: signal.Signals, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", IGNORED, str(int(number))], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")
