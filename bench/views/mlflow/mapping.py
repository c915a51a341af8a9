"""What of a record, and of a cell on the leaderboard, goes into a run, and what comes back."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bench.storage.record import Record
from bench.views.cells import milliseconds
from bench.views.comparisons import Comparison
from bench.views.curves import best_restart, is_number
from bench.views.differences import flat
from bench.views.leaderboard import Entry
from bench.views.published import Published

if TYPE_CHECKING:
    from mlflow.entities import Run

Point = tuple[str, float, int, int]  # a metric: name, value, milliseconds, step

STAGES = {stage: f"{stage}_s" for stage in ("surrogates", "craft", "external", "train", "evaluate")}
RATES = ("asr_all", "asr_excluding", "asr_conditional", "base_rate")
CURVE_POINTS = 50  # enough for a chart; every point is a row in the database
LONGEST_TAG, LONGEST_PARAM = 500, 6000  # characters
LONGEST_TARGET = 8000  # characters of a list of targets, all that MLflow takes


def cell_tags(record: Record, setting: str, row: Published | None) -> dict[str, str]:
    place = f"{row.place}; differs: {'; '.join(row.differs) or 'nothing'}" if row else ""
    return _tags(record, "cell", {"bench.scene": setting, "bench.published": place})


def trial_tags(record: Record, parent: str) -> dict[str, str]:
    reused = ", ".join(stage for stage, reused in record["reused"].items() if reused)
    more = {"bench.record": record["key"], "bench.error": record["error"], "bench.reused": reused}
    return _tags(record, "trial", more | {"mlflow.parentRunId": parent}) | target_tag(record)


def _tags(record: Record, kind: str, more: dict[str, Any]) -> dict[str, str]:
    values: Mapping[str, Any] = record
    tags = {name: values[name] for name in ("attack", "defense", "protocol", "status", "cell", "revision")}
    tags |= {name: ", ".join(values[name]) for name in ("knowledge", "adapted_to")}
    tags["device"] = " ".join(filter(None, map(record["environment"].get, ("device", "device_name"))))
    every = {f"bench.{name}": value for name, value in (tags | {"kind": kind}).items()} | more
    return {name: str(value)[:LONGEST_TAG] for name, value in every.items() if value}


def target_tag(record: Record) -> dict[str, str]:
    """By which trials of two cells are known to have the same target, when they are read back."""
    draw = record.get("draw")
    text = json.dumps([draw["target_ids"], draw["target_class"]], separators=(",", ":")) if draw else ""
    return {"bench.target": text} if 0 < len(text) <= LONGEST_TARGET else {}


def params_of(record: Record) -> dict[str, str]:
    settings = {**dict(flat(record["settings"])), "seed": record["seed"]}
    return {name_of(k): (v if isinstance(v, str) else json.dumps(v))[:LONGEST_PARAM] for k, v in settings.items()}


def read_back(run: Run, like: Record) -> Record:
    """What the leaderboard needs of a trial, from its run; like: a record of the same setting, or better of the same
    cell."""
    tags, metrics = run.data.tags, run.data.metrics
    same_cell = like["cell"] == tags["bench.cell"]
    record: Record = {
        **like,
        "key": tags["bench.record"],
        "cell": tags["bench.cell"],
        "defense": tags["bench.defense"],
        "trial": round(metrics["trial"]),
        "victim": round(metrics.get("victim", 0)),
        "status": "done" if tags["bench.status"] == "done" else "failed",
        "success": metrics.get("success"),
        "clean_accuracy": metrics.get("clean_acc"),
        "seconds": {stage: metrics[name] for stage, name in STAGES.items() if name in metrics},
        "settings": like["settings"] if same_cell else {**like["settings"], "defense": {}},
        "outcome": {
            "target_margin": metrics.get("target_margin"),
            "backdoor": {name: metrics[name] for name in RATES if name in metrics},
        },
        "revision": tags.get("bench.revision"),
        "poisons": {},
        "filter": None,
        "finished": datetime.fromtimestamp(run.info.end_time / 1000, UTC).isoformat(),
    }
    record.pop("draw", None)
    if "bench.target" in tags:
        ids, target_class = json.loads(tags["bench.target"])
        record["draw"] = {"target_ids": ids, "source_class": -1, "target_class": target_class}
    return record


def cell_metrics(entry: Entry) -> dict[str, float]:
    """The figures of a cell, as the leaderboard has them; those that are not known are left out."""
    cell, drop = entry.figures, entry.drop.mean if entry.drop else None
    numbers = {"n_trials": cell.n, "n_victims": cell.victims, "n_failed": cell.failed, "successes": cell.successes}
    numbers |= {"success_rate": cell.success_rate, "success_low": cell.success_low, "success_high": cell.success_high}
    numbers |= {"clean_acc": cell.clean_accuracy, "clean_acc_std": cell.clean_accuracy_std}
    stages = {name: cell.seconds.get(stage) for stage, name in STAGES.items()}
    changes = _changes(entry.comparison) if entry.comparison else {}
    return _numbers({**numbers, "acc_drop": drop, "train_cost": entry.train_cost, **changes, **stages})


def _changes(paired: Comparison) -> dict[str, float | None]:
    """Of success and margin, against the undefended victim."""
    success = {
        "success_change": paired.difference,
        "success_change_low": paired.low,
        "success_change_high": paired.high,
    }
    margin = paired.margin.as_dict() if paired.margin else {}
    return success | {f"margin_change{end}": margin.get(f"margin{end}") for end in ("", "_low", "_high")}


def filters_of(record: Record) -> dict[str, float]:
    """What one filters runs by and MLflow compares as numbers only when it is a metric."""
    threat = (record["settings"].get("protocol") or {}).get("threat") or {}
    return _numbers({"seed": record["seed"], "eps": threat.get("eps"), "budget": threat.get("budget")})


def trial_metrics(record: Record) -> list[Point]:
    """All metrics of a trial; each curve is spread evenly over the time of its stage, and stages follow each other."""
    end = milliseconds(record["finished"])
    took = {stage: round(1000 * record["seconds"].get(stage, 0.0)) for stage in STAGES}
    trained = end - took["evaluate"]
    crafted = trained - took["train"]
    points: list[Point] = [(name, value, end, 0) for name, value in _trial_numbers(record).items()]
    epochs = [epoch if isinstance(epoch, dict) else {} for epoch in record["history"]]
    for name in ("loss", "accuracy"):
        points += _curve(f"train_{name}", [epoch.get(name) for epoch in epochs], crafted, trained)
    _, best = best_restart(record) or (None, [])
    return points + _curve("craft_loss", best, crafted - took["craft"], crafted)


def _trial_numbers(record: Record) -> dict[str, float]:
    outcome, seconds = record["outcome"] or {}, record["seconds"]
    numbers = {"trial": record["trial"], "victim": record["victim"], "success": record["success"]}
    numbers |= {"clean_acc": record["clean_accuracy"]}
    numbers |= {"target_margin": outcome.get("target_margin"), "memory_peak_mib": record["memory_peak_mib"]}
    numbers |= {name: seconds.get(stage) for stage, name in STAGES.items()} | filters_of(record)
    numbers |= {name: (outcome.get("backdoor") or {}).get(name) for name in RATES}
    for variant, judged in record["variants"].items():
        numbers[name_of(f"success.{variant}")] = judged["success"]
        numbers[name_of(f"clean_acc.{variant}")] = judged["clean_accuracy"]
    # Where the time of a stage went (`craft.retraining`, `train.networks`), where that is known.
    numbers |= {f"{re.sub(r'[^a-z]', '_', step)}_s": took for step, took in seconds.items() if "." in step}
    return _numbers(numbers)


def _curve(name: str, values: Sequence[Any], begin: int, end: int) -> list[Point]:
    points = [(step, value) for step, value in enumerate(values) if is_number(value)]
    if len(points) > CURVE_POINTS:  # evenly, first and last included
        points = [points[round(i * (len(points) - 1) / (CURVE_POINTS - 1))] for i in range(CURVE_POINTS)]
    return [(name, v, begin + (end - begin) * (step + 1) // len(values), step) for step, v in points]


def name_of(text: str) -> str:
    """A name that MLflow takes: no other characters than its own, not too long, nothing that reads as another path."""
    clean = posixpath.normpath(re.sub(r"[^\w./: -]", "_", text)).lstrip("./")
    return clean[:250].rstrip("/") or "_"


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are known and finite."""
    return {name: float(value) for name, value in values.items() if is_number(value)}
