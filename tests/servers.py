"""Real servers for tests: MLflow's tracking server, something between it and its clients, and PostgreSQL."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.views.mlflow.server import SERVER


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def tracking_server(backend: str, folder: Path) -> Iterator[str]:
    """`mlflow server` on the database `backend`, with its files in `folder`; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--backend-store-uri", backend]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **SERVER}
        )
    try:
        while True:  # pytest's own time limit ends it
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
                time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Between:
    """Passes requests on to the server at `to`, each after `delay` seconds; the first `most`, then it is gone."""

    def __init__(self, to: str, *, port: int = 0, delay: float = 0.0, most: int | None = None) -> None:
        self.to, self.delay, self.most = to.removeprefix("http://"), delay, most
        self.requests = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *_: object) -> None:
        self.most = 0  # what still comes in gets no answer
        self._http.shutdown()
        self._http.server_close()

    def _handler(between: Between) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                between.requests += 1
                if between.most is not None and between.requests > between.most:
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                time.sleep(between.delay)
                there = http.client.HTTPConnection(between.to, timeout=60)
                keep = {
                    name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
                }
                there.request(self.command, self.path, body, keep)
                answer = there.getresponse()
                content = answer.read()
                with contextlib.suppress(OSError):  # the client may have lost patience
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                there.close()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def postgres_programs() -> Path | None:
    """The folder with `initdb` and `postgres`."""
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which("initdb", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)]))
    return Path(found).resolve().parent if found else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of our own on a unix socket in a temporary folder; its address. Skips the test where none can be."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (no initdb)")
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    # It refuses to run as root; nobody can, in a folder of its own outside pytest's, which only root may enter.
    who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        try:
            if who:
                shutil.chown(folder, "nobody", "nogroup")
            initdb = [programs / "initdb", "-D", folder / "data", "-U", "bench", "-A", "trust", "-E", "UTF8", "-N"]
            made = subprocess.run([*initdb, "--locale=C"], cwd=folder, capture_output=True, text=True, **who)  # type: ignore[call-overload]
        except (LookupError, PermissionError) as error:
            pytest.skip(f"PostgreSQL refuses to run as root, and there is no other user to run it as: {error}")
        assert made.returncode == 0, made.stderr
        options = ["-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-F"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([programs / "postgres", *options], cwd=folder, stdout=log, stderr=log, **who)  # type: ignore[call-overload]
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    psycopg2.connect(host=str(folder), user="bench", dbname="postgres").close()
                    break
                except psycopg2.OperationalError:
                    assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.1)
            yield f"postgresql+psycopg2://bench@/postgres?host={folder}"  # SQLAlchemy 2.1 would take psycopg 3
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
