"""What MLflow's client cannot do, or does slowly: trials written straight into the tables of a database, and artefacts
that follow a folder which was moved.

A trial is a run, whole or not there. Through the client it takes a dozen statements for every table.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.views.mlflow.mapping import Point

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from bench.views.mlflow.patience import Paced

NAMES = ("SqlRun", "SqlTag", "SqlParam", "SqlMetric", "SqlLatestMetric")
Row = dict[str, Any]


@dataclass(frozen=True)
class NewRun:
    """A run that has ended. begin, end: milliseconds; status: FINISHED or FAILED."""

    name: str
    begin: int
    end: int
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[Point]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def artefacts(self, place: str) -> str:
        """Where its artefacts are, in an experiment that keeps them at `place`."""
        return f"{place.rstrip('/')}/{self.id}/artifacts"


class Tables:
    """Of the database behind a client."""

    def __init__(self, engine: Engine, models: Any) -> None:
        self._engine, self._models = engine, models

    @classmethod
    def of(cls, client: Paced) -> Tables | None:
        """None for a server, and for an MLflow whose tables are not those that are known here."""
        if str(client.tracking_uri).startswith(("http", "databricks")):
            return None
        try:
            from mlflow.store.tracking.dbmodels import models

            tables = cls(client._tracking_client.store.engine, models)
            return tables if tables._known() else None
        except (ImportError, AttributeError):
            return None

    def _known(self) -> bool:
        """Whether every table has the columns that are written, and needs no other."""
        example = NewRun("", 0, 0, "FINISHED", {"t": ""}, {"p": ""}, [("m", 0.0, 0, 0)])
        for name, rows in _rows(example, "0", "").items():
            columns = getattr(self._models, name).__table__.columns
            needed = {c.name for c in columns if not c.nullable and c.default is None and c.server_default is None}
            if not needed <= set(rows[0]) <= set(columns.keys()):
                return False
        return True

    def add(self, runs: Sequence[NewRun], experiment: str, place: str) -> None:
        """All of them or, when it fails, none. place: of the experiment's artefacts."""
        from sqlalchemy import insert

        written = [_rows(run, experiment, place) for run in runs]
        with self._engine.begin() as connection:
            for name in NAMES:
                if rows := [row for tables in written for row in tables[name]]:
                    connection.execute(insert(getattr(self._models, name).__table__), rows)

    def move(self, experiment: str, old: str, new: str) -> None:
        """Artefacts of the experiment and of its runs are now below `new`."""
        from sqlalchemy import func, update

        experiments, runs = self._models.SqlExperiment.__table__, self._models.SqlRun.__table__
        mine = runs.c.experiment_id == int(experiment)
        there = runs.c.artifact_uri.startswith(f"{old}/", autoescape=True)
        moved = func.replace(runs.c.artifact_uri, f"{old}/", f"{new}/")
        with self._engine.begin() as connection:
            changed = update(experiments).where(experiments.c.experiment_id == int(experiment))
            connection.execute(changed.values(artifact_location=new))
            connection.execute(update(runs).where(mine, there).values(artifact_uri=moved))


def _rows(run: NewRun, experiment: str, place: str) -> dict[str, list[Row]]:
    """As MLflow's client leaves them."""
    mine = {"run_uuid": run.id}
    row = {
        **mine, "name": run.name, "source_type": "UNKNOWN", "source_name": "", "entry_point_name": "",
        "user_id": run.tags.get("mlflow.user", "unknown"), "status": run.status, "start_time": run.begin,
        "end_time": run.end, "deleted_time": None, "source_version": "", "lifecycle_stage": "active",
        "artifact_uri": run.artefacts(place), "experiment_id": int(experiment),
    }  # fmt: skip
    tags = {**run.tags, "mlflow.runName": run.name}
    points = list(dict.fromkeys(run.points))
    latest: dict[str, Point] = {}
    for point in points:
        name, value, stamp, step = point
        if name not in latest or (step, stamp, value) > (latest[name][3], latest[name][2], latest[name][1]):
            latest[name] = point
    return {
        "SqlRun": [row],
        "SqlTag": [{**mine, "key": name, "value": value} for name, value in tags.items()],
        "SqlParam": [{**mine, "key": name, "value": value} for name, value in run.params.items()],
        "SqlMetric": [{**mine, **metric} for metric in _metrics(points)],
        "SqlLatestMetric": [{**mine, **metric} for metric in _metrics(list(latest.values()))],
    }


def _metrics(points: Sequence[Point]) -> Iterator[Row]:
    for name, value, stamp, step in points:
        yield {"key": name, "value": value, "timestamp": stamp, "step": step, "is_nan": False}
