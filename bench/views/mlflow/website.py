"""MLflow's own web pages over a database, for as long as somebody looks at them: on a port that is free, without a line
of the server's log, and gone with the command."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO

from bench.foundation.errors import BadInput
from bench.foundation.secrets import redacted
from bench.views.mlflow.server import SERVER, ensure_home

PORT, TRIES = 5000, 100
PAUSE, PATIENCE = 0.1, 10.0  # seconds between looks whether it answers; that it may take to end
QUIET = ("--uvicorn-opts", "--log-level warning")


def free_port(host: str, port: int | None) -> int:
    """`port`; without one, the first from 5000 on that nobody listens on. BadInput, before anything is started, where
    that cannot be had."""
    for candidate in range(PORT, PORT + TRIES) if port is None else (port,):
        if (found := _listen(host, candidate)) is not None:
            return found
    if port is None:
        raise BadInput(f"ui: ports {PORT} to {PORT + TRIES - 1} are all in use; fix: --port 0, for any that is free")
    raise BadInput(f"ui: port {port} is in use by another program; fix: leave --port out, or --port 0, for a free one")


class Website:
    """A server that answers at `address`."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address, self._process = address, process

    def wait(self) -> None:
        """Until the command is interrupted. BadInput when the server ends by itself."""
        code = self._process.wait()
        raise BadInput(f"ui: MLflow's server has ended (exit code {code}); fix: the same command again")


@contextlib.contextmanager
def website(uri: str, host: str, port: int) -> Iterator[Website]:
    """A server of the database at `uri`, once it answers; it ends with the block. BadInput, with the cause from its
    log, when it ends before."""
    ensure_home()
    # The address of the database is not an argument, which everybody on this machine can read.
    environment = {**SERVER, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "ui", "--host", host, "--port", str(port), *QUIET]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while not _answers(_reachable(host), port):
                if process.poll() is not None:
                    raise BadInput(redacted(f"ui: MLflow's server ended at once: {_cause(log)}", uri))
                time.sleep(PAUSE)
            yield Website(f"http://{_in_address(_reachable(host))}:{port}", process)
        finally:
            process.terminate()  # it passes this on to its own workers
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _listen(host: str, port: int) -> int | None:
    """The port, where a server could listen on it now, and None where another does. 0: one that the system chooses."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: ended ones do not count
            attempt.bind(address)
            attempt.listen()
            return int(attempt.getsockname()[1])
    except (socket.gaierror, UnicodeError):
        raise BadInput(f"ui: --host '{host}' is not known; fix: 127.0.0.1, or 0.0.0.0 for all networks") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        reason = {
            errno.EADDRNOTAVAIL: f"--host '{host}' is no address of this machine; fix: 127.0.0.1, or 0.0.0.0",
            errno.EACCES: f"port {port} is kept for the system; fix: --port 1024 or above",
        }
        raise BadInput(f"ui: {reason.get(error.errno or 0, f'{host}:{port}: {error.strerror}')}") from None


def _reachable(host: str) -> str:
    """Where a browser on this machine finds a server that listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _answers(host: str, port: int) -> bool:
    """Not through a proxy, which the environment may name."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _cause(log: BinaryIO) -> str:
    """The last error that the log names; where it names none, its last line."""
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: ", line)]
    return (errors or lines or ["it said nothing"])[-1]
