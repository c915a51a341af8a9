"""What tracking costs a run: 8 worker processes finish 400 trials, the parent logs them to SQLite.

    python benchmarks/tracking_load.py [--trials 400] [--jobs 8] [--seconds 9] [--tracking URI]

The workers are those of a run; their victims only sleep (`--seconds`, 9 is a victim of `quick` on a quiet core). The
records are made up, but as large as those of a 40 epoch protocol: 40 epochs, 8 restarts of 250 crafting steps. Two
figures, both as parts of the wall time from the first trial to the last record in MLflow:

    held up    the run itself waited for tracking: `Tracker.add` with every record, `Tracker.close` at the end
    busy       the tracking thread had anything to do, beside the run
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.execution.engines.local import Local
from bench.execution.schedule import Schedule
from bench.foundation.progress import Heartbeat, say
from bench.request.protocol_file import resolve
from bench.storage.record import Record, parse
from bench.views.mlflow import sync as syncing
from bench.views.mlflow.server import resolve_uri

DEFENSES = ("none", "friends-u", "friends-b", "friends-g", "noise-b", "epic-0.1", "spectral", "deepknn", "mixup", "abl")


def record(number: int, trials: int, seconds: float) -> Record:
    """Trial `number` of `trials`, cell after cell of ten as a run does them, just finished."""
    each = -(-trials // len(DEFENSES))
    defense, trial = DEFENSES[number // each], number % each
    now = datetime.now(UTC)
    protocol, _ = resolve("quick", [])
    curve = [1.0 / (step + 1) for step in range(250)]
    made = {
        "schema": 1, "key": hashlib.sha256(f"{number}".encode()).hexdigest(),
        "cell": hashlib.sha256(defense.encode()).hexdigest(), "attack": "gm", "defense": defense, "protocol": "quick",
        "trial": trial, "seed": 0, "status": "done", "error": None, "success": float(trial % 3 == 0),
        "clean_accuracy": 0.5 + trial / 1000, "outcome": {"target_margin": 0.3, "backdoor": None},
        "seconds": {"surrogates": 45.0, "craft": 17.0, "train": seconds, "evaluate": 0.2},
        "reused": {"surrogates": True, "poisons": True},
        "poisons": {"losses": [curve] * 8, "final_losses": [0.1 + i for i in range(8)]},
        "history": [{"loss": 2 / (e + 1), "accuracy": e / 40, "samples": 1000.0} for e in range(40)],
        "settings": {"protocol": protocol.as_dict(), "attack": {"steps": 250}, "defense": {"mu": 16}},
        "knowledge": [], "data": {"fingerprint": "f"}, "code": {"version": "0"}, "memory_peak_mib": 900.0,
        "started": (now - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "finished": now.isoformat(timespec="seconds"),
    }  # fmt: skip
    return parse(json.dumps(made).encode())


def nap(unit: tuple[int, float], heartbeat: Heartbeat) -> None:
    time.sleep(unit[1])


@dataclass
class Load:
    """Seconds: of it all, that the run waited in every `add` and in `close`, that the tracking thread was
    busy, of these computing (less on a machine that has other work).
    left: records that were not logged; said: its complaints."""

    wall: float
    adds: list[float]
    closing: float
    busy: float
    computing: float
    syncs: int
    left: int
    said: list[str]

    @property
    def held_up(self) -> float:
        return sum(self.adds) + self.closing


def measure(trials: int, jobs: int, seconds: float, uri: str, out: Path) -> Load:
    """Finish the trials in `jobs` processes while a tracker logs them to `uri`."""
    spent: list[tuple[float, float]] = []
    real = syncing.sync

    def timed(*args: Any) -> syncing.SyncReport:
        began, computed = time.perf_counter(), time.thread_time()
        try:
            return real(*args)
        finally:
            spent.append((time.perf_counter() - began, time.thread_time() - computed))

    starter, engine = Local(jobs, quiet=True), Local(jobs)
    syncing.sync = timed
    try:
        with starter.open(out), engine.open(out):
            # Processes are started before the clock: that is no trial's time.
            list(starter.run(Schedule.of("start", [(i, 1.0) for i in range(jobs)]), nap))
            began = time.perf_counter()
            said: list[str] = []
            tracker = syncing.Tracker(uri, out, said.append)
            adds: list[float] = []
            units = [(number, seconds) for number in range(trials)]
            for done in engine.run(Schedule.of("trials", units), nap):
                made = record(done.unit[0], trials, seconds)
                clock = time.perf_counter()
                tracker.add(made)
                adds.append(time.perf_counter() - clock)
            clock = time.perf_counter()
            left = tracker.close(600)
            end = time.perf_counter()
    finally:
        syncing.sync = real
    return Load(end - began, adds, end - clock, *map(sum, zip(*spent, strict=True)), len(spent), left, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=9.0)
    parser.add_argument("--tracking", metavar="URI")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(resolve_uri(options.tracking, Path(folder)))
        load = measure(options.trials, options.jobs, options.seconds, uri, Path(folder))
    for line in load.said:
        say(line)
    print(f"{options.trials} trials of {options.seconds:g} s in {options.jobs} processes: {load.wall:.1f} s")
    waits = f"all adds {sum(load.adds):.4f} s, longest {max(load.adds):.4f} s, close {load.closing:.1f} s"
    print(f"held up: {100 * load.held_up / load.wall:.2f} % ({waits})")
    works = f"{load.busy:.1f} s in {load.syncs} syncs, of these computing {load.computing:.1f} s"
    print(f"busy: {100 * load.busy / load.wall:.2f} % ({works})")
    print(f"not logged: {load.left}")


if __name__ == "__main__":
    main()
