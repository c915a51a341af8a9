"""A store that does not answer: every call comes to an end, whatever it hangs on.

MLflow's own time limit is for a byte, not for an answer: a server that drips is waited for without end.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
LONGEST = 60.0  # seconds without an answer, beyond what MLflow itself may wait and try again


class Paced:
    """A client that tells when it was last used, and can be stopped from outside, between two calls."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._used = time.monotonic()
        self._stopped = False

    def __getattr__(self, name: str) -> Any:
        if self._stopped:
            raise TimeoutError("given up")
        self._used = time.monotonic()
        return getattr(self._client, name)

    def within(self, limit: float, work: Callable[[], T]) -> T:
        """The result of `work`, which uses this client, in a thread of its own; TimeoutError when it has made no call
        for `limit` seconds. The thread then ends with its call, if ever."""
        result: Future[T] = Future()
        threading.Thread(target=_into, args=(result, work), name="MLflow", daemon=True).start()
        try:
            while True:
                left = self._used + limit - time.monotonic()
                try:
                    return result.result(max(left, 0.0))
                except TimeoutError:
                    if result.done():
                        raise
                    if time.monotonic() > self._used + limit:
                        raise TimeoutError(f"no answer for {limit:.0f} s") from None
        finally:
            self._stopped = True


def _into(result: Future[T], work: Callable[[], T]) -> None:
    try:
        result.set_result(work())
    except BaseException as error:
        result.set_exception(error)


def limit() -> float:
    """Seconds for one call, which a user's own time limits for MLflow raise."""
    once, again = (int(os.environ.get(f"MLFLOW_HTTP_REQUEST_{name}", "0")) for name in ("TIMEOUT", "MAX_RETRIES"))
    return LONGEST + once * (again + 1)
