"""One experiment of a store, and how cells and trials are written into it.

A cell's figures are those of the leaderboard over its child runs together with the records at hand, so a shard that
knows only its own trials never takes those of another shard away.
"""

from __future__ import annotations

import hashlib
import math
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from bench.foundation.names import of_trial
from bench.storage.record import Record
from bench.views.cells import milliseconds, one_per_key, precedence, setting_of
from bench.views.differences import differences
from bench.views.leaderboard import UNDEFENDED, leaderboard
from bench.views.mlflow import mapping
from bench.views.mlflow.mapping import Point, params_of, read_back
from bench.views.mlflow.server import default_uri
from bench.views.mlflow.tables import NewRun, Tables
from bench.views.published import published

if TYPE_CHECKING:
    from mlflow.entities import Run

    from bench.views.mlflow.patience import Paced

Images = Callable[[Record], bytes | None]
Texts = Mapping[str, str]

EMPTY: Texts = {}
AT_ONCE = 50  # trials that are written together
NOTE, SIGNED, PAGE = "mlflow.note.content", "bench.note", "bench.page"  # tags of an experiment
OUR_NOTE = "[Show the leaderboard](#/experiments/"  # how every version of our page begins
OF_A_CELL = ("attack", "defense", "protocol", "seed", "cell", "settings", "knowledge", "external", "data", "code")

FILTER = "tags.\"bench.kind\" = 'cell'"
"""What to type into the search field of the MLflow UI to see cells only: the leaderboard."""


class Book:
    """A run is whole when it has an end and the tag bench.complete, which is written last."""

    def __init__(self, client: Paced, protocol: str, out: Path | None, scratch: Path) -> None:
        """out: the folder for artefacts; None: the server knows better. scratch: for files on their way there."""
        self.client, self._scratch, self._tables = client, scratch, Tables.of(client)
        self.experiment, self._place = self._open(protocol, out)
        self._at_hand: dict[str, list[Record]] = {}  # by cell
        self._trials: dict[str, list[Record]] = {}  # by cell: at hand, and read back
        self._begun: set[tuple[str, str]] = set()

    def log(self, cells: Sequence[list[Record]], images: Images | None) -> int:
        """Log the records of cells that are not in the store yet, bring all figures up to date; how many were logged.

        images: the PNG of a record's poisons, if it has one.
        """
        logged = sum(self._log_cell(records, images) for records in cells)
        for setting in sorted({setting_of(records[0]) for records in cells}):
            self._log_figures(setting)
        self._name_cells()
        return logged

    def _open(self, protocol: str, out: Path | None) -> tuple[str, str]:
        """The id of the protocol's experiment, made or restored when it is not there, with its page up to date, and the
        place of its artefacts."""
        place = (out.resolve() / "mlflow-artifacts").as_uri() if out is not None else None
        experiment = self.client.get_experiment_by_name(protocol)
        if experiment is None:
            experiment = self.client.get_experiment(self.client.create_experiment(protocol, place))
        elif experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        number, kept = str(experiment.experiment_id), str(experiment.artifact_location)
        if place and out and self._tables and kept != place and _has_moved(kept, self.client.tracking_uri, out):
            self._tables.move(number, kept, place)
            kept = place
        self._describe(number, experiment.tags)
        return number, kept

    def _describe(self, experiment: str, tags: Texts) -> None:
        """Put our page where the experiment's notes are shown, unless somebody else's notes are there: then in a tag of
        our own."""
        text, found = description(experiment), tags.get(NOTE, "")
        ours = not found or found.startswith(OUR_NOTE) and tags.get(SIGNED, _digest(found)) == _digest(found)
        wanted = {NOTE: text, SIGNED: _digest(text)} if ours else {PAGE: text}
        for name, value in wanted.items():
            if tags.get(name) != value:  # new, or of another version of this tool
                self.client.set_experiment_tag(experiment, name, value)

    def _log_cell(self, records: list[Record], images: Images | None) -> int:
        first = records[0]
        cell, setting = first["cell"], setting_of(first)
        parent, trials, spare = self._find(cell)
        parent = parent or self._start_cell(first, setting)
        if parent.data.tags.get("bench.scene") != setting:  # of an older version of this tool
            self.client.set_tag(parent.info.run_id, "bench.scene", setting)
        missing = []
        for record in records:
            run = trials.get(record["key"])
            if run is None or not _tells_all(run, record):
                missing.append(record)
                spare += [trials.pop(record["key"])] if run is not None else []
        self._log_trials(missing, parent)
        self._tidy(parent, trials, spare)
        whole = [read_back(run, first) for run in trials.values() if _whole(run)]
        self._at_hand[cell], self._trials[cell] = records, one_per_key([*records, *whole])
        if "bench.complete" not in parent.data.tags:
            self._log(parent, params={k: v for k, v in params_of(first).items() if k not in parent.data.params})
            self._attach(parent, "config.json", _json({name: first.get(name) for name in OF_A_CELL}))
        if images is not None and "bench.image" not in parent.data.tags:
            png = next(filter(None, map(images, records)), None)
            if png:
                self._attach(parent, "poisons.png", png)
                self.client.set_tag(parent.info.run_id, "bench.image", "1")
        return len(missing)

    def _find(self, cell: str) -> tuple[Run | None, dict[str, Run], list[Run]]:
        """A cell's run, its trials by record key, and the twins that clients without a common lock have left behind."""
        # Whole runs first; ids break ties, so that two clients that repair at the same time keep the same run.
        runs = sorted(self._search("bench.cell", cell), key=lambda run: (not _whole(run), run.info.run_id))
        kept: dict[str, Run] = {}
        spare = [run for run in runs if kept.setdefault(run.data.tags.get("bench.record", ""), run) is not run]
        return kept.pop("", None), kept, spare

    def _tidy(self, parent: Run, trials: Mapping[str, Run], spare: Sequence[Run]) -> None:
        """End what a killed process left, delete what is there twice, and put trials under their cell."""
        for run in [*spare, *(run for run in trials.values() if not _whole(run))]:
            if run.info.status == "RUNNING":  # a full sync finds its record
                self.client.set_terminated(run.info.run_id, "KILLED")
        for run in spare:
            self.client.delete_run(run.info.run_id)
        for run in trials.values():
            if run.data.tags.get("mlflow.parentRunId") != parent.info.run_id:
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.info.run_id)

    def _log_figures(self, setting: str) -> None:
        """The leaderboard of the cells of a setting that were touched, and of all of them when an undefended one was:
        the others are measured against it."""
        runs = {run.data.tags["bench.cell"]: run for run in self._search("bench.scene", setting)}
        touched = [cell for cell in runs if cell in self._at_hand]
        reference_moved = any(runs[cell].data.tags["bench.defense"] == UNDEFENDED for cell in touched)
        like = self._at_hand[touched[0]][0]
        records: list[Record] = []
        for cell, run in runs.items():
            if cell in self._trials:
                records += self._trials[cell]
            elif reference_moved or run.data.tags["bench.defense"] == UNDEFENDED:
                records += [read_back(trial, like) for trial in self._find(cell)[1].values() if _whole(trial)]
        ends: dict[str, int] = {}
        for record in records:
            ends[record["cell"]] = max(ends.get(record["cell"], 0), milliseconds(record["finished"]))
        for entry in leaderboard(records):
            figures = mapping.cell_metrics(entry)
            if entry.cell in self._at_hand:
                row = published(self._at_hand[entry.cell][0])
                figures |= mapping.filters_of(self._at_hand[entry.cell][0])
                figures |= {"published_success": row.success_rate} if row else {}
            self._update(runs[entry.cell], figures, ends[entry.cell], "done" if entry.figures.n else "failed")

    def _name_cells(self) -> None:
        """Cells that share their name with one that was begun now get what differs in their settings behind it."""
        cells: dict[tuple[str, str], list[Run]] = {}
        for run in self._search("bench.kind", "cell") if self._begun else []:
            cells.setdefault((run.data.tags["bench.attack"], run.data.tags["bench.defense"]), []).append(run)
        for (attack, defense), runs in cells.items():
            if (attack, defense) in self._begun and len(runs) > 1:
                for run, text in zip(runs, differences([run.data.params for run in runs]), strict=True):
                    name = f"{attack} x {defense} [{text or run.data.tags['bench.cell'][:8]}]"
                    if run.info.run_name != name:
                        self.client.update_run(run.info.run_id, name=name)

    def _start_cell(self, record: Record, setting: str) -> Run:
        self._begun.add((record["attack"], record["defense"]))
        tags, name = mapping.cell_tags(record, setting, published(record)), f"{record['attack']} x {record['defense']}"
        return self.client.create_run(self.experiment, milliseconds(record["started"]), tags, name)

    def _log_trials(self, records: Sequence[Record], parent: Run) -> None:
        if self._tables is None:
            for record in records:
                self._send(record, _trial(record, parent))
            return
        for first in range(0, len(records), AT_ONCE):
            runs = []
            for record in records[first : first + AT_ONCE]:
                runs.append(_trial(record, parent))
                self._put(runs[-1].artefacts(self._place), "record.json", _json(record))
            self._tables.add(runs, self.experiment, self._place)

    def _send(self, record: Record, trial: NewRun) -> None:
        """A trial by way of the client: it is whole when it has ended."""
        tags = {name: value for name, value in trial.tags.items() if name != "bench.complete"}
        run = self.client.create_run(self.experiment, trial.begin, tags, trial.name)
        self._attach(run, "record.json", _json(record))
        self._log(run, trial.points, trial.params, {"bench.complete": "1"})
        self.client.set_terminated(run.info.run_id, trial.status, trial.end)

    def _update(self, run: Run, metrics: Mapping[str, float], end: int, status: str) -> None:
        """Write what has changed on a cell. Its end time only grows and is the clock of its metrics: MLflow shows the
        value with the latest time, while the step stays 0 so that charts show bars."""
        old, tags = run.data.metrics, run.data.tags
        changed = {name: v for name, v in metrics.items() if name not in old or not math.isclose(v, old[name])}
        if changed or status != tags["bench.status"] or not _whole(run):
            stamp = max(end, (run.info.end_time or 0) + 1)
            self._log(run, [(name, v, stamp, 0) for name, v in changed.items()], tags={"bench.status": status})
            self.client.set_terminated(run.info.run_id, "FINISHED" if status == "done" else "FAILED", stamp)
        if "bench.complete" not in tags:
            self.client.set_tag(run.info.run_id, "bench.complete", "1")

    def _log(self, run: Run, points: Sequence[Point] = (), params: Texts = EMPTY, tags: Texts = EMPTY) -> None:
        """Everything in one request: a metric at a time is 30 times slower."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        settings = [Param(*param) for param in params.items()]
        self.client.log_batch(run.info.run_id, metrics, settings, [RunTag(*tag) for tag in tags.items()])

    def _attach(self, run: Run, name: str, content: bytes) -> None:
        self._put(run.info.artifact_uri, name, content)

    def _put(self, place: str, name: str, content: bytes) -> None:
        """A file of a run. Not through the client, which would read the whole run again to learn its place."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        (self._scratch / name).write_bytes(content)
        get_artifact_repository(place, self.client.tracking_uri).log_artifact(str(self._scratch / name))

    def _search(self, tag: str, value: str) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], f"tags.\"{tag}\" = '{value}'", page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs


def description(experiment: str) -> str:
    """The columns explained, with a link to the cells of the experiment, lowest success first."""
    query = {"searchFilter": FILTER, "orderByKey": "metrics.`success_rate`", "orderByAsc": "true"}
    text = (resources.files("bench.views.mlflow") / "page.md").read_text("utf-8")
    return Template(text).substitute(experiment=experiment, query=urllib.parse.urlencode(query), filter=FILTER)


def _has_moved(place: str, uri: str, out: Path) -> bool:
    """Whether artefacts that were kept at `place` are to follow the output folder: its own store was moved or copied
    with it, or the folder of another one is gone."""
    if uri == default_uri(out):
        return True
    address = urllib.parse.urlsplit(place)
    ours = address.scheme == "file" and address.path.endswith("/mlflow-artifacts")
    return ours and not Path(urllib.parse.unquote(address.path)).exists()


def _trial(record: Record, parent: Run) -> NewRun:
    return NewRun(
        name=of_trial(record["trial"], record["victim"]),
        begin=milliseconds(record["started"]),
        end=milliseconds(record["finished"]),
        status="FINISHED" if record["status"] == "done" else "FAILED",
        tags=mapping.trial_tags(record, parent.info.run_id) | {"bench.complete": "1"},
        params=params_of(record) | {"trial": str(record["trial"]), "victim": str(record["victim"])},
        points=mapping.trial_metrics(record),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _whole(run: Run) -> bool:
    return "bench.complete" in run.data.tags and run.info.status in ("FINISHED", "FAILED")


def _tells_all(run: Run, record: Record) -> bool:
    """Whether the run is whole, not of an older result, and names the trial's target, as older versions did not."""
    return (
        _whole(run)
        and mapping.target_tag(record).items() <= run.data.tags.items()
        and (precedence(read_back(run, record)) >= precedence(record))
    )


def _json(value: Any) -> bytes:
    return to_json(value, indent=1)
