"""Where runs are kept: which store, a client of it, and one writer at a time."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from bench.foundation import commands
from bench.foundation.errors import BadInput
from bench.foundation.files import take_lock
from bench.foundation.secrets import redacted
from bench.views.mlflow.database import ensure, file_of, no_stray_folder, uri_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_PATIENCE = 120.0  # seconds to wait for another process that syncs

# Only where the user has not chosen: leave a dead server in seconds, print no chatter, send no usage data to anyone.
QUIET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

SERVER = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""For a UI that one person looks at, where the user has not chosen: starts in a quarter of the time, tells nobody."""


def resolve_uri(option: str | None, out: Path) -> str | None:
    """Where to track: `option`, else MLFLOW_TRACKING_URI, else a SQLite file under `out`; None when that says `none`.

    BadInput for a folder (MLflow's file store is gone) and when MLflow is not installed.
    """
    uri = option or os.environ.get("MLFLOW_TRACKING_URI") or default_uri(out)
    if uri.lower() == "none":
        return None
    if not re.match(r"(?!file:)(?!sqlite:(?!///))[A-Za-z][\w+.-]*://", uri):
        name = "--tracking" if option else "MLFLOW_TRACKING_URI"
        raise BadInput(
            f"{name} '{redacted(uri)}' is no database or server, and MLflow writes no folders; fix: {default_uri(out)}"
        )
    needed = ["mlflow"] if uri.startswith("http") else ["mlflow", "sqlalchemy"]  # mlflow-skinny has no SQLAlchemy
    if any(importlib.util.find_spec(module) is None for module in needed):
        raise BadInput("tracking needs MLflow, which is not installed; fix: pip install mlflow, or --tracking none")
    return uri


def default_uri(out: Path) -> str:
    return uri_of(out / "mlflow.db")


def ensure_home() -> None:
    """MLflow is not to be imported where there is no home folder, as for a user whom the system does not know: then it
    is what containers give such users, in which nobody else can have put anything."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def keep_quiet() -> None:
    """What MLflow is told through the environment, before it is imported. A run does so before plug-ins run: they are
    guests that have what they change in the environment put back, and must not be held to account for this."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # stdout carries results


def connect(uri: str) -> MlflowClient:
    """A client that keeps quiet and does not wait long for a dead server."""
    ensure_home()
    keep_quiet()
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # for a process that has imported MLflow before
        logging.getLogger(name).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    if (file := file_of(uri)) is not None:
        ensure(file)
    with no_stray_folder(uri):
        client = MlflowClient(uri, uri)
        client.tracking_uri  # noqa: B018
    return client


@contextlib.contextmanager
def only_writer(uri: str, out: Path) -> Iterator[None]:
    """One sync at a time: processes that create a SQLite store together break it for good. The lock lies beside the
    SQLite file, since several output folders may share it, under a name that is nobody else's."""
    file = file_of(uri) or out / "mlflow"
    path = file.with_name(f".{file.name}.bench-lock")
    try:
        held = take_lock(path, LOCK_PATIENCE)
    except Timeout:
        raise BadInput(
            f"another process holds {path}; fix: wait, then {commands.bench('sync', '--out', out)}"
        ) from None
    try:
        yield
    finally:
        held.release()
