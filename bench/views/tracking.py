"""MLflow as a view of the trial records: what is on disk is the truth, this can be thrown away and replayed.

    experiment = protocol      parent run = cell (attack x defense)      child run = trial, one per record key

`sync` is the one path from records to MLflow; `Tracker` calls it from a thread, so that no training waits for a server.
A cell's numbers are computed from its child runs together with the records at hand, so a shard that knows only its own
trials never takes those of another shard away. MLflow is imported when it is first needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import logging
import math
import os
import posixpath
import re
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.foundation.errors import BadInput
from bench.views.cells import milliseconds, rank_of, scene_of, summarise
from bench.views.differences import differences, flat
from bench.views.published import published

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Record = dict[str, Any]
Images = Callable[[Record], bytes | None]
Texts = Mapping[str, str]
Point = tuple[str, float, int, int]  # a metric: name, value, milliseconds, step

EMPTY: Texts = {}
UNDEFENDED = "none"  # the defense against which acc_drop is taken
STAGES = {
    "surrogates": "surrogates_s",
    "craft": "craft_s",
    "external": "external_s",
    "train": "train_s",
    "evaluate": "evaluate_s",
}
RATES = ("asr_all", "asr_excluding", "asr_conditional", "base_rate")
OF_A_CELL = ("attack", "defense", "protocol", "seed", "cell", "settings", "knowledge", "external", "data", "code")
CURVE_POINTS = 50  # enough for a chart; every point is a row in the database
LOCK_PATIENCE = 120.0  # seconds to wait for another process that syncs
REPAIR = "make the server or the file writable (a SQLite file may also be removed), then python -m bench sync"
DRIVER = "install that driver, or name the one that you have, as in postgresql+psycopg2://"
BACK_OFF = (10.0, 300.0)  # seconds between tries at a store that fails: first and longest
REST = 10.0  # times as long as it took, at most 30 s, before the next sync of a run: many trials at once cost a third

# Only where the user has not chosen: leave a dead server in seconds, print no chatter, send no usage data to anyone.
QUIET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

FILTER = "tags.\"bench.kind\" = 'cell'"
"""What to type into the search field of the MLflow UI to see cells only: the leaderboard."""

SERVER = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""For a UI that one person looks at, where the user has not chosen: starts in a quarter of the time, tells nobody."""

DESCRIPTION = f"""\
[Show the leaderboard](LINK). One parent run is one **cell** (attack x defense, same settings and seed); its child runs
are the **trials**. Cells of one name are told apart by the settings in which they differ. The link filters with

    {FILTER}

and sorts by `success_rate`; which columns are shown is chosen in the UI. Ranks, paired tests and flags are in
`python -m bench leaderboard`.

| column | meaning |
|---|---|
| `success_rate` | `successes` / `n_trials`; success: argmax equals the target class at the final epoch |
| `success_low`, `success_high` | its 95% Clopper-Pearson interval |
| `n_trials`, `n_failed` | trials that were finished and counted; trials that could not be finished (not counted) |
| `clean_acc`, `clean_acc_std` | accuracy on the untouched test set: mean and standard deviation over trials |
| `acc_drop` | `clean_acc` of the same attack without a defense, less that of this cell |
| `train_cost` | `train_s` over that of the same attack without a defense |
| `published_success` | the success rate that a paper prints; the tag `bench.published` says where, and what differs |
| `surrogates_s`, `craft_s`, `train_s` | mean seconds a trial for the surrogates, the poisons and the victim |
| `external_s` | mean seconds for what the defender could have from elsewhere |
| `success.*`, `clean_acc.*` | of a trial: other ways to use what was trained, judged beside it |
| `asr_*`, `base_rate` | of a backdoor trial: success counted in three ways, and the rate without the trigger |

Rules: all defenses of a protocol face the same poisons and seeds, so compare them on the same trials. Attack `none` is
the clean control: nothing is poisoned, and its success rate is the base rate that an attack must beat. Tags:
`bench.knowledge` names what a plug-in was told beyond the training set, `bench.adapted_to` the defenses that the attack
was crafted against, `bench.revision` and `bench.device` what made the first trial of a cell. `eps`, `budget` and `seed`
are metrics so that they can be filtered as numbers. This page is a view of JSON records; `python -m bench sync`
rebuilds it at any time.
"""


def resolve_uri(option: str | None, out: Path) -> str | None:
    """Where to track: `option`, else MLFLOW_TRACKING_URI, else a SQLite file under `out`; None when that says `none`.

    BadInput for a folder (MLflow's file store is gone) and when MLflow is not installed.
    """
    uri = option or os.environ.get("MLFLOW_TRACKING_URI") or _own(out)
    if uri.lower() == "none":
        return None
    if not re.match(r"(?!file:)(?!sqlite:(?!///))[A-Za-z][\w+.-]*://", uri):
        name = "--tracking" if option else "MLFLOW_TRACKING_URI"
        raise BadInput(f"{name} '{uri}' is no database or server, and MLflow writes no folders; fix: {_own(out)}")
    needed = ["mlflow"] if uri.startswith("http") else ["mlflow", "sqlalchemy"]  # mlflow-skinny has no SQLAlchemy
    if any(importlib.util.find_spec(module) is None for module in needed):
        raise BadInput("tracking needs MLflow, which is not installed; fix: pip install mlflow, or --tracking none")
    return uri


def _own(out: Path) -> str:
    return f"sqlite:///{out.resolve() / 'mlflow.db'}"


@dataclass(frozen=True)
class SyncReport:
    """What a sync found: cells touched, trials logged now, trials that were there already."""

    cells: int
    trials_new: int
    trials_present: int


def sync(records: Sequence[Record], uri: str, out: Path, images: Images | None = None) -> SyncReport:
    """Bring the store at `uri` up to date with `records`; repeat it as often as you like.

    out: the output folder, for the lock and the artefacts; images: the PNG of a record's poisons, if it has one
    (asked in trial order until a cell has its image). BadInput, in one line, when the store fails.
    """
    cells: dict[tuple[str, str], dict[str, Record]] = {}
    for record in sorted(records, key=rank_of):  # of two with one key, the better
        cells.setdefault((record["protocol"], record["cell"]), {})[record["key"]] = record
    if not cells:
        return SyncReport(0, 0, 0)
    new = 0
    try:
        with _lock(uri, out), _haste(uri == _own(out)):
            client = _client(uri)
            for protocol in sorted({protocol for protocol, _ in cells}):
                book = _Book(client, protocol, None if uri.startswith(("http", "databricks")) else out)
                for (owner, cell), trials in cells.items():
                    if owner == protocol:
                        new += book.log_cell(cell, sorted(trials.values(), key=lambda r: r["trial"]), images)
                book.log_drops()
                book.name_cells()
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if isinstance(error, (OSError, ImportError)) or library in ("mlflow", "sqlalchemy", "alembic"):
            repair = DRIVER if isinstance(error, ImportError) else REPAIR
            line = f"cannot log to {uri}: {_first_line(error)}; fix: {repair}"
            raise BadInput(re.sub(r"//[^/@\s]+@", "//***@", line)) from error  # a password is not for the log
        raise
    return SyncReport(len(cells), new, sum(map(len, cells.values())) - new)


class Tracker:
    """Logs records while the training goes on: `add` returns at once, a daemon thread does the work.

    uri: from `resolve_uri`, None for no tracking; say: takes one line for the user (called from the thread too).
    """

    def __init__(self, uri: str | None, out: Path, say: Callable[[str], None]) -> None:
        self._uri, self._out, self._say = uri, out, say
        self._wake = threading.Condition()
        self._waiting: list[tuple[Record, Path | None]] = []
        self._closing = self._failing = self._said = False
        self._thread: threading.Thread | None = None

    def add(self, record: Record, image: Path | None = None) -> None:
        """Queue a finished record; image: PNG of its poisons, read when the record is logged."""
        if self._uri is None:
            return
        with self._wake:
            self._waiting.append((record, image))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def close(self, patience: float = 30.0) -> int:
        """Wait at most `patience` seconds (5 when the store has been failing); how many records are not logged."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(min(patience, 5.0) if self._failing else patience)
        with self._wake:
            left = len(self._waiting)
        if left:
            self._say(f"tracking: {left} record(s) are on disk but not in MLflow; fix: python -m bench sync")
        return left

    def _work(self) -> None:
        delay = BACK_OFF[0]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._waiting)
                batch, closing = list(self._waiting), self._closing
            if not batch:
                return
            files = {record["key"]: image for record, image in batch}
            began = time.monotonic()
            try:
                sync([record for record, _ in batch], str(self._uri), self._out, functools.partial(_image, files))
            except Exception as error:  # whatever happens to a view, the training that it shows goes on
                self._failing = True
                if not self._said:
                    self._said = True
                    self._say(f"tracking: {_first_line(error)}; the run goes on and its records are kept")
                if closing:
                    return
                with self._wake:
                    self._wake.wait_for(lambda: self._closing, timeout=delay)
                delay = min(2 * delay, BACK_OFF[1])
            else:
                self._failing, delay = False, BACK_OFF[0]
                with self._wake:
                    del self._waiting[: len(batch)]
                    self._wake.wait_for(lambda: self._closing, timeout=min(REST * (time.monotonic() - began), 30.0))


class _Book:
    """One experiment of a store, and how cells and trials are written into it.

    A run is whole when it has an end and the tag bench.complete, which is written last.
    """

    def __init__(self, client: Any, protocol: str, out: Path | None) -> None:
        """out: the folder for artefacts; None: the server knows better."""
        self.client: MlflowClient = client
        self.scenes: set[str] = set()
        self.begun: set[tuple[str, str]] = set()
        found = client.get_experiment_by_name(protocol)
        if found is None:
            place = (out.resolve() / "mlflow-artifacts").as_uri() if out is not None else None
            client.create_experiment(protocol, place)
            found = client.get_experiment_by_name(protocol)
        elif found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        text = _description(found.experiment_id)
        if found.tags.get("mlflow.note.content") != text:  # new, or of an older version of this tool
            client.set_experiment_tag(found.experiment_id, "mlflow.note.content", text)
        self.experiment = found.experiment_id

    def log_cell(self, cell: str, records: list[Record], images: Images | None) -> int:
        """Log the records of a cell that are not in the store yet, bring the cell up to date; how many were logged."""
        parent, trials, spare = self._find(cell)
        parent = parent or self._start(records[0])
        missing = []
        for record in records:
            run = trials.get(record["key"])
            if run is None or not _whole(run) or rank_of(_of_run(run)) < rank_of(record):
                missing.append(record)
                spare += [trials.pop(record["key"])] if run is not None else []
        for record in missing:
            self._log_trial(record, parent)
        for run in [*spare, *(run for run in trials.values() if not _whole(run))]:
            if run.info.status == "RUNNING":  # a killed process left it; a full sync finds its record
                self.client.set_terminated(run.info.run_id, "KILLED")
        for run in spare:
            self.client.delete_run(run.info.run_id)
        for run in trials.values():
            if run.data.tags.get("mlflow.parentRunId") != parent.info.run_id:
                self.client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.info.run_id)
        known = [_of_run(run) for run in trials.values() if _whole(run)]
        self._log_summary(parent, records, list({r["key"]: r for r in sorted(known + records, key=rank_of)}.values()))
        if images is not None and "bench.picture" not in parent.data.tags:
            png = next(filter(None, map(images, records)), None)
            if png:
                self._attach(parent, "poisons.png", png)
                self.client.set_tag(parent.info.run_id, "bench.picture", "1")
        return len(missing)

    def _find(self, cell: str) -> tuple[Run | None, dict[str, Run], list[Run]]:
        """A cell's run, its trials by record key, and the twins that clients without a common lock have left behind."""
        # Whole runs first; ids break ties, so that two clients that repair at the same time keep the same run.
        runs = sorted(self._search("bench.cell", cell), key=lambda run: (not _whole(run), run.info.run_id))
        kept: dict[str, Run] = {}
        spare = [run for run in runs if kept.setdefault(run.data.tags.get("bench.record", ""), run) is not run]
        return kept.pop("", None), kept, spare

    def log_drops(self) -> None:
        """acc_drop of all cells that share attack, protocol and seed with a touched one, if the reference is known."""
        for scene in sorted(self.scenes):
            parents = [run for run in self._search("bench.scene", scene) if "clean_acc" in run.data.metrics]
            bare = [run for run in parents if run.data.tags["bench.defense"] == UNDEFENDED]
            if bare:
                reference = max(bare, key=lambda run: run.info.end_time).data.metrics
                for run in parents:
                    if run.data.tags["bench.defense"] != UNDEFENDED:
                        own = run.data.metrics
                        more = {"acc_drop": reference["clean_acc"] - own["clean_acc"]}
                        if reference.get("train_s") and "train_s" in own:
                            more["train_cost"] = own["train_s"] / reference["train_s"]
                        self._update(run, more)

    def name_cells(self) -> None:
        """Cells that share their name with one that was begun now get what differs in their settings behind it."""
        cells: dict[tuple[str, str], list[Run]] = {}
        for run in self._search("bench.kind", "cell") if self.begun else []:
            cells.setdefault((run.data.tags["bench.attack"], run.data.tags["bench.defense"]), []).append(run)
        for (attack, defense), runs in cells.items():
            if (attack, defense) in self.begun and len(runs) > 1:
                for run, text in zip(runs, differences([run.data.params for run in runs]), strict=True):
                    name = f"{attack} x {defense} [{text or run.data.tags['bench.cell'][:8]}]"
                    if run.info.run_name != name:
                        self.client.update_run(run.info.run_id, name=name)

    def _log_trial(self, record: Record, parent: Run) -> None:
        run = self._start(record, parent)
        self._log(run, _trial_metrics(record), _params(record) | {"trial": str(record["trial"])})
        self._attach(run, "record.json", _json(record))
        status = "FINISHED" if record["status"] == "done" else "FAILED"
        self.client.set_terminated(run.info.run_id, status, milliseconds(record["finished"]))
        self.client.set_tag(run.info.run_id, "bench.complete", "1")

    def _log_summary(self, parent: Run, records: list[Record], trials: list[Record]) -> None:
        first, tags = records[0], parent.data.tags
        self.scenes.add(tags["bench.scene"])
        if "bench.complete" not in tags:
            self._log(parent, params={k: v for k, v in _params(first).items() if k not in parent.data.params})
            self._attach(parent, "config.json", _json({part: first.get(part) for part in OF_A_CELL}))
        numbers, end = _cell_metrics(first, trials), max(milliseconds(trial["finished"]) for trial in trials)
        self._update(parent, numbers, end, "done" if numbers["n_trials"] else "failed")
        if "bench.complete" not in tags:
            self.client.set_tag(parent.info.run_id, "bench.complete", "1")

    def _update(self, run: Run, metrics: Mapping[str, float], end: int = 0, status: str = "") -> None:
        """Write what has changed on a cell. Its end time only grows and is the clock of its metrics: MLflow shows the
        value with the latest time, while the step stays 0 so that charts show bars."""
        old, before = run.data.metrics, run.data.tags["bench.status"]
        status = status or before
        changed = {name: v for name, v in metrics.items() if name not in old or not math.isclose(v, old[name])}
        if changed or status != before or not _whole(run):
            stamp = max(end, (run.info.end_time or 0) + 1)
            self._log(run, [(name, v, stamp, 0) for name, v in changed.items()], tags={"bench.status": status})
            self.client.set_terminated(run.info.run_id, "FINISHED" if status == "done" else "FAILED", stamp)

    def _start(self, record: Record, parent: Run | None = None) -> Run:
        tags = {f"bench.{part}": record[part] for part in ("attack", "defense", "protocol", "status", "cell")}
        tags["bench.knowledge"] = ", ".join(record.get("knowledge") or [])
        tags["bench.adapted_to"] = ", ".join(record.get("adapted_to") or [])
        tags["bench.revision"] = record.get("revision") or ""
        surroundings = record.get("environment") or {}
        tags["bench.device"] = " ".join(filter(None, map(surroundings.get, ("device", "device_name"))))
        if parent is None:
            name = f"{record['attack']} x {record['defense']}"
            tags |= {"bench.kind": "cell", "bench.scene": scene_of(record)}
            self.begun.add((record["attack"], record["defense"]))
            found = published(record)
            tags["bench.published"] = (
                f"{found.place}; differs: {'; '.join(found.differs) or 'nothing'}" if found else ""
            )
        else:
            name = f"trial {record['trial']}"
            tags |= {"bench.kind": "trial", "bench.record": record["key"], "mlflow.parentRunId": parent.info.run_id}
            tags["bench.error"] = record.get("error") or ""
            tags["bench.reused"] = ", ".join(part for part, yes in (record.get("reused") or {}).items() if yes)
        tags = {name: str(value)[:500] for name, value in tags.items() if value}
        return self.client.create_run(self.experiment, milliseconds(record["started"]), tags, name)

    def _log(self, run: Run, points: Sequence[Point] = (), params: Texts = EMPTY, tags: Texts = EMPTY) -> None:
        """Everything in one request: a metric at a time is 30 times slower."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(*point) for point in points]
        told = [Param(*param) for param in params.items()]
        self.client.log_batch(run.info.run_id, metrics, told, [RunTag(*tag) for tag in tags.items()])

    def _attach(self, run: Run, name: str, content: bytes) -> None:
        """A file beside a run. Not through the client, which would read the whole run again to learn its place."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        place = get_artifact_repository(run.info.artifact_uri, self.client.tracking_uri)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, name).write_bytes(content)
            place.log_artifact(str(Path(folder, name)))

    def _search(self, tag: str, value: str) -> list[Run]:
        runs: list[Run] = []
        page: str | None = None
        while True:
            found = self.client.search_runs([self.experiment], f"tags.\"{tag}\" = '{value}'", page_token=page)
            runs += found
            page = found.token
            if not page:
                return runs


def _description(experiment: str) -> str:
    """The columns explained, with a link to the cells of the experiment, lowest success first."""
    query = {"searchFilter": FILTER, "orderByKey": "metrics.`success_rate`", "orderByAsc": "true"}
    return DESCRIPTION.replace("(LINK)", f"(#/experiments/{experiment}/runs?{urllib.parse.urlencode(query)})")


def _of_run(run: Run) -> Record:
    """What the figures of a cell need of a trial, read back from its run."""
    tags, metrics = run.data.tags, run.data.metrics
    return {
        "key": tags["bench.record"],
        "status": tags["bench.status"],
        "success": metrics.get("success"),
        "clean_accuracy": metrics.get("clean_acc"),
        "seconds": {stage: metrics[name] for stage, name in STAGES.items() if name in metrics},
        "finished": datetime.fromtimestamp(run.info.end_time / 1000, UTC).isoformat(),
    } | {name: tags[f"bench.{name}"] for name in ("attack", "defense", "protocol")}


def _cell_metrics(first: Record, trials: Sequence[Record]) -> dict[str, float]:
    cell = summarise(trials)
    numbers = {"n_trials": cell.n, "n_failed": cell.failed, "successes": cell.successes}
    numbers |= {"success_rate": cell.success_rate, "success_low": cell.success_low, "success_high": cell.success_high}
    numbers |= {"clean_acc": cell.clean_accuracy, "clean_acc_std": cell.clean_accuracy_deviation}
    numbers |= {name: cell.seconds.get(stage) for stage, name in STAGES.items()} | _filters(first)
    found = published(first)
    numbers |= {"published_success": found.success_rate} if found else {}
    return {name: float(value) for name, value in numbers.items() if _finite(value)}


def _filters(record: Record) -> dict[str, Any]:
    """What one filters cells by and MLflow compares as numbers only when it is a metric."""
    threat = (record.get("settings") or {}).get("protocol", {}).get("threat", {})
    return {"seed": record["seed"], "eps": threat.get("eps"), "budget": threat.get("budget")}


def _trial_numbers(record: Record) -> dict[str, float]:
    """The single numbers of a trial, those that are there and finite."""
    outcome, seconds = record.get("outcome") or {}, record.get("seconds") or {}
    numbers = {"trial": record["trial"], "success": record["success"], "clean_acc": record["clean_accuracy"]}
    numbers |= {"target_margin": outcome.get("target_margin"), "memory_peak_mib": record.get("memory_peak_mib")}
    numbers |= {name: seconds.get(stage) for stage, name in STAGES.items()} | _filters(record)
    numbers |= {name: (outcome.get("backdoor") or {}).get(name) for name in RATES}
    for variant, other in (record.get("variants") or {}).items():
        numbers[_name(f"success.{variant}")] = other["success"]
        numbers[_name(f"clean_acc.{variant}")] = other["clean_accuracy"]
    # Where the time of a stage went (`craft.retraining`, `train.networks`), where that is known.
    numbers |= {f"{re.sub(r'[^a-z]', '_', part)}_s": took for part, took in seconds.items() if "." in part}
    return {name: float(value) for name, value in numbers.items() if _finite(value)}


def _trial_metrics(record: Record) -> list[Point]:
    """All metrics of a trial; each curve is spread evenly over the time of its stage, and stages follow each other."""
    end = milliseconds(record["finished"])
    took = {stage: round(1000 * ((record.get("seconds") or {}).get(stage) or 0)) for stage in STAGES}
    trained = end - took["evaluate"]
    crafted = trained - took["train"]
    points: list[Point] = [(name, value, end, 0) for name, value in _trial_numbers(record).items()]
    for name in ("loss", "accuracy"):
        values = [epoch.get(name) for epoch in record.get("history") or []]
        points += _curve(f"train_{name}", values, crafted, trained)
    poisons = record.get("poisons") or {}
    restarts = zip(poisons.get("final_losses") or [], poisons.get("losses") or [], strict=False)
    _, best = min(restarts, key=lambda pair: pair[0] if _finite(pair[0]) else math.inf, default=(None, []))
    return points + _curve("craft_loss", best, crafted - took["craft"], crafted)


def _curve(name: str, values: Sequence[Any], begin: int, end: int) -> list[Point]:
    points = [(step, value) for step, value in enumerate(values) if _finite(value)]
    if len(points) > CURVE_POINTS:  # evenly, first and last included
        points = [points[round(i * (len(points) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
    return [(name, v, begin + (end - begin) * (step + 1) // len(values), step) for step, v in points]


def _params(record: Record) -> dict[str, str]:
    settings = {**dict(flat(record.get("settings") or {})), "seed": record["seed"]}
    return {_name(name): (v if isinstance(v, str) else json.dumps(v))[:6000] for name, v in settings.items()}


def _name(text: str) -> str:
    """A name that MLflow takes: no other signs than its own, not too long, nothing that reads as another path."""
    clean = posixpath.normpath(re.sub(r"[^\w./: -]", "_", text)).lstrip("./")
    return clean[:250].rstrip("/") or "_"


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _image(files: Mapping[str, Path | None], record: Record) -> bytes | None:
    path = files[record["key"]]
    return path.read_bytes() if path is not None and path.is_file() else None


def _whole(run: Run) -> bool:
    return "bench.complete" in run.data.tags and run.info.status in ("FINISHED", "FAILED")


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0][:400]
    return text if isinstance(error, BadInput) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _lock(uri: str, out: Path) -> Iterator[None]:
    """One sync at a time: processes that create a SQLite store together break it for good. The lock lies beside the
    SQLite file (`<out>/mlflow.lock` for the default one), since several output folders may share it."""
    base = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else out / "mlflow"
    path = base.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_PATIENCE
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BadInput(f"another process holds {path}; fix: wait for it, then bench sync") from None
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def _haste(own: bool) -> Iterator[None]:
    """Let SQLite leave our own file to the disk cache: MLflow commits nine times a run, which takes three times as long
    as the rest. Only a power cut can then damage the file, and it can be rebuilt; a shared store keeps its care."""
    if not own:
        yield
        return
    from sqlalchemy import Engine, event

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)


def _client(uri: str) -> MlflowClient:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # stdout carries results
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # for a process that has imported MLflow before
        logging.getLogger(name).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(uri, uri)
