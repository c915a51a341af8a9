"""A plug-in's code as a guest in the process: it can spoil what it was asked for, and nothing else.

What it prints goes to stderr, since stdout is for results. Settings of the process that it changes (how torch computes,
random state, environment, folder, signals, warnings) are put back. What would end the process (`sys.exit`) is a failure
in one line. Threads that it leaves running are noted, so that the command need not wait for them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from bench.foundation.errors import TrialFailed
from bench.foundation.signals import SIGNALS, Stopped

Kept = tuple[str, Callable[[], Any], Callable[[Any], object]]
"""What it is, how to read it, how to put it back."""

LEFT_THREADS: list[threading.Thread] = []
"""Threads of guests that ran on when the guest had gone, and would keep the process from ending."""


@contextlib.contextmanager
def guest() -> Iterator[list[str]]:
    """Run a plug-in's code inside. What is yielded holds, afterwards, what had to be put back, in words.

    TrialFailed in place of `sys.exit` and of anything else that is no Exception; an interrupt by the user stays one.
    """
    changes: list[str] = []
    threads = set(threading.enumerate())
    kept = [(name, read(), read, put_back) for name, read, put_back in _settings()]
    try:
        with _printing_to_stderr():
            yield changes
    except BaseException as error:
        if isinstance(error, Exception) or _by_the_user(error):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".rstrip(": ").split())
        raise TrialFailed(f"a plug-in must not end the process ({said})") from error
    finally:
        for name, before, read, put_back in kept:
            if read() != before:
                changes.append(name)
                put_back(before)
        left = [each for each in threading.enumerate() if each not in threads and not each.daemon]
        changes += [f"thread '{each.name}'" for each in left]
        LEFT_THREADS.extend(left)


def _by_the_user(error: BaseException) -> bool:
    """Whether it is an interrupt: where another handler stands, a bare KeyboardInterrupt comes from no signal."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    return isinstance(error, Stopped) or signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _settings() -> list[Kept]:
    kept: list[Kept] = [
        ("random state", random.getstate, random.setstate),
        ("the environment", lambda: dict(os.environ), _set_environment),
        ("the working folder", os.getcwd, os.chdir),
        ("filters of warnings", lambda: list(warnings.filters), _set_filters),
    ]
    if threading.current_thread() is threading.main_thread():
        kept += [_handler(number) for number in (signal.SIGINT, *SIGNALS)]
    return kept + _settings_of_libraries()


def _settings_of_libraries() -> list[Kept]:
    import numpy as np  # not before they are needed: a command that asks for help starts without them
    import torch

    kept: list[Kept] = [
        ("numpy's random state", lambda: pickle.dumps(np.random.get_state()), _set_numpy_state),
        ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("torch's default device", torch.get_default_device, _set_device),
        ("torch's gradients", torch.is_grad_enabled, torch.set_grad_enabled),
        ("torch's threads", torch.get_num_threads, torch.set_num_threads),
        ("torch's determinism", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        ("torch's precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        ("torch's anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        ("torch's random state", lambda: torch.get_rng_state().numpy().tobytes(), _set_torch_state),
    ]
    for backend, names in _BACKENDS.items():
        module = getattr(torch.backends, backend)
        kept += [_attribute(module, name) for name in names if hasattr(module, name)]
    return kept


_BACKENDS = {"cudnn": ("enabled", "benchmark", "deterministic", "allow_tf32"), "mkldnn": ("enabled", "deterministic")}


def _attribute(module: Any, name: str) -> Kept:
    what = f"torch.backends.{module.__name__.rpartition('.')[2]}.{name}"
    return what, lambda: getattr(module, name), lambda value: setattr(module, name, value)


def _handler(number: signal.Signals) -> Kept:
    return f"the handler of {number.name}", lambda: signal.getsignal(number), lambda value: signal.signal(number, value)


def _set_environment(before: dict[str, str]) -> None:
    """Never empty on the way: other threads read it."""
    os.environ.update(before)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def _set_numpy_state(state: bytes) -> None:
    import numpy as np

    np.random.set_state(pickle.loads(state))


def _set_filters(before: list[Any]) -> None:
    warnings.filters[:] = before  # type: ignore[index]


def _set_device(device: Any) -> None:
    import torch

    torch.set_default_device(None if device == torch.device("cpu") else device)  # no mode that looks at every call


def _set_torch_state(state: bytes) -> None:
    import torch

    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """Python's own prints, and what libraries and child processes write to the descriptor."""
    _flush()
    try:
        stdout = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        stdout = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        if stdout is not None:
            os.dup2(stdout, 1)
            os.close(stdout)


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()  # type: ignore[union-attr]
