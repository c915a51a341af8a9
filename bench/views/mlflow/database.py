"""SQLite files as MLflow's stores: their addresses, how one comes to be, and how it is written fast."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.foundation.errors import BadInput
from bench.foundation.files import room_for

SQLITE = "sqlite:///"


def uri_of(file: Path) -> str:
    """The address of a SQLite file. What an address would take for the begin of its query is quoted; BadInput where
    the SQLAlchemy at hand, an old one, cannot read that."""
    path = str(file.resolve())
    if not set("?%") & set(path):
        return f"{SQLITE}{path}"
    uri = f"{SQLITE}{quote(path)}"
    with contextlib.suppress(ImportError):  # then no SQLite file is used at all
        if file_of(uri) != Path(path):
            raise BadInput(f"tracking: '{path}' cannot be written as an address; fix: no ? or % in --out")
    return uri


def file_of(uri: str) -> Path | None:
    """The SQLite file at an address; None for a server, and for a database in memory."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    name = make_url(uri).database
    return Path(name) if name and name != ":memory:" and not name.startswith("file:") else None


def ensure(file: Path) -> None:
    """Have MLflow's tables in the file. They are made beside it and put in place in one step: killed in the middle,
    MLflow leaves a file that it never opens again. One that was left like this is made again."""
    if file.exists() and not _half_made(file):
        return
    from mlflow.store.db import utils

    with room_for(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (*file.parent.glob(f".{file.name}.*.tmp*"), file.with_name(f"{file.name}-journal")):
            leftover.unlink(missing_ok=True)
        aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
        try:
            engine = utils.create_sqlalchemy_engine(uri_of(aside))
            try:
                utils._initialize_tables(engine)
            finally:
                engine.dispose()
            os.replace(aside, file)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _half_made(file: Path) -> bool:
    """Whether nothing is in the file but empty tables of MLflow: a whole one has an experiment at least."""
    try:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            rows = (
                connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()  # noqa: S608
                for name in tables
                if name != "alembic_version"
            )
            return (not tables or bool({"experiments", "alembic_version"} & set(tables))) and not any(rows)
    except sqlite3.Error:  # no database, or one that is in use: MLflow says so
        return False


@contextlib.contextmanager
def no_stray_folder(uri: str) -> Iterator[None]:
    """MLflow makes the folder of a SQLite file by its address as it is written, quoted: remove that one again."""
    folder = Path(uri.removeprefix(SQLITE)).parent
    stray = [place for place in (folder, *folder.parents) if uri.startswith(SQLITE) and not place.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for place in stray if "%" in uri else []:
                place.rmdir()


@contextlib.contextmanager
def unhurried_disk() -> Iterator[None]:
    """Let SQLite leave the file to the disk cache: MLflow commits several times a run, which takes three times as long
    as the rest. Only a power cut can then damage it; for a store that can be rebuilt."""
    from sqlalchemy import Engine, event

    event.listen(Engine, "connect", _relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", _relax)


def _relax(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous = OFF")
