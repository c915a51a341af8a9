"""A plug-in's code as a guest: what it changes is put back, what it prints is no result, what ends it is a failure."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from bench.foundation.errors import TrialFailed
from bench.foundation.guests import LEFT_THREADS, guest
from bench.foundation.signals import Stopped, ending_cleanly

CHANGES: dict[str, Callable[[], object]] = {
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's gradients": lambda: torch.set_grad_enabled(False),
    "torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's determinism": lambda: torch.use_deterministic_algorithms(True),
    "torch's precision": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "torch's random state": lambda: torch.manual_seed(99),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.mkldnn.enabled": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "numpy's random state": lambda: np.random.rand(1),
    "random state": random.random,
    "the environment": lambda: os.environ.update(A_GUEST_WAS_HERE="1"),
    "the working folder": lambda: os.chdir("/"),
    "filters of warnings": lambda: warnings.simplefilter("error"),
    "the handler of SIGTERM": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_guest_changes_is_put_back_and_named(what: str) -> None:
    with guest() as changes:
        CHANGES[what]()
    assert what in changes  # torch may load more of itself, which sets variables and filters of its own
    with guest() as changes:
        pass
    assert changes == []


def test_the_environment_is_never_empty_while_it_is_put_back() -> None:
    missing, stop = [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            if "A_SETTING_OF_THE_USER" not in os.environ:
                missing.append(1)

    reader = threading.Thread(target=read, daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SETTING_OF_THE_USER", "1")
        reader.start()
        for number in range(50):
            with guest():
                os.environ[f"A_GUEST_WAS_HERE_{number}"] = "1"
        stop.set()
        reader.join()
    assert missing == []


def test_it_is_put_back_when_the_guest_fails_too() -> None:
    with pytest.raises(ZeroDivisionError), guest():
        torch.set_default_dtype(torch.float64)
        1 / 0  # noqa: B018
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), GeneratorExit()])
def test_a_guest_that_would_end_the_process_fails(error: BaseException) -> None:
    with pytest.raises(TrialFailed, match=type(error).__name__), guest():
        raise error


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is heard, as in a shell; pytest's worker processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_by_the_user_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), guest():
        raise KeyboardInterrupt  # as Python's own handler does
    with ending_cleanly(), pytest.raises(Stopped) as stopped, guest():
        os.kill(os.getpid(), signal.SIGINT)
    assert stopped.value.code == 130


@pytest.mark.usefixtures("heard")
def test_an_interrupt_that_no_signal_brought_is_a_failure_of_the_guest() -> None:
    with ending_cleanly(), pytest.raises(TrialFailed, match="KeyboardInterrupt"), guest():
        raise KeyboardInterrupt


def test_what_a_guest_prints_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with guest():
        print("python")
        print("python's own", file=sys.__stdout__)
        os.write(1, b"descriptor\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    print("after")
    printed = capfd.readouterr()
    assert printed.out == "before\nafter\n"
    assert set(printed.err.split("\n")) >= {"python", "descriptor", "child"}


def test_a_thread_that_a_guest_leaves_is_noted_and_one_that_has_ended_is_not() -> None:
    end = threading.Event()
    with guest() as changes:
        finished = threading.Thread(target=lambda: None)
        finished.start()
        finished.join()
        threading.Thread(target=end.wait, name="left").start()
    assert changes == ["thread 'left'"] and LEFT_THREADS[-1].name == "left"
    end.set()
    LEFT_THREADS.pop().join()
