"""Share of idle worker time of a sweep of two attacks and four defenses: what is left of workers x wall time, from the
first start of a unit to the last end, when the seconds in units are taken off, and those that units waited for a lock.

    python benchmarks/idle.py [--jobs 2] [--trials 5] [--set train.epochs=4]

An older revision is measured by the same file: `PYTHONPATH=CHECKOUT python benchmarks/idle.py`. Every unit notes its
times; the records are made from nothing, unless --out names a folder whose records tell how long tasks take. The
slowest unit of each kind and what ran last are printed: they tell what waited for what.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.execution import runner
from bench.execution.engines.local import Local
from bench.execution.plan import plan
from bench.execution.tasks import Task
from bench.execution.tasks import work as work_of
from bench.foundation.progress import Heartbeat
from bench.request.request import Request
from bench.storage.store import Store

ATTACKS, DEFENSES = "gm,bp", "none,friends-b,noise-b,epic-0.1"
LOG = "IDLE_LOG"


def noted(task: Task, heartbeat: Heartbeat) -> Any:
    """Do the task, and note its begin, its end and the seconds that it waited for locks of the store."""
    waited: list[float] = []
    lock = Store.lock

    @contextlib.contextmanager
    def timed(store: Store, key: str) -> Iterator[None]:
        began = time.perf_counter()
        with lock(store, key):
            waited.append(time.perf_counter() - began)
            yield

    Store.lock = timed  # type: ignore[method-assign]
    began = time.time()
    try:
        return work_of(task, heartbeat)
    finally:
        Store.lock = lock  # type: ignore[method-assign]
        with open(os.environ[LOG], "a") as file:
            file.write(json.dumps([str(task), began, time.time(), sum(waited)]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", default=ATTACKS, help=f"default: {ATTACKS}")
    parser.add_argument("--defense", default=DEFENSES, help=f"default: {DEFENSES}")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="with records of the same work and another seed, to order by them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sets = (*options.set, f"trials={options.trials}")
    with tempfile.TemporaryDirectory(prefix="idle-") as folder:
        out = Path(folder) / "out"
        shutil.copytree(options.out / "records", out / "records") if options.out else out.mkdir()
        os.environ[LOG] = f"{folder}/log"
        request = Request(
            protocols=(options.protocol,), attacks=tuple(options.attack.split(",")),
            defenses=tuple(options.defense.split(",")), set=sets, seed=options.seed,
        )  # fmt: skip
        runner.work = noted  # type: ignore[assignment]
        engine = Local(options.jobs, quiet=True)
        runner.execute(plan([request]), out, engine, print, lambda record: None)
        report(Path(os.environ[LOG]), options.jobs)


def report(log: Path, jobs: int) -> None:
    units = [json.loads(line) for line in log.read_text().splitlines()]
    first, last = min(began for _, began, _, _ in units), max(end for _, _, end, _ in units)
    whole = jobs * (last - first)
    busy, waited = sum(end - began for _, began, end, _ in units), sum(wait for *_, wait in units)
    print(f"{len(units)} units, {jobs} workers, {last - first:.1f} s; load {os.getloadavg()[0]:.1f}")
    print(f"idle: {100 * (1 - busy / whole):.1f} %, waiting for locks: {100 * waited / whole:.1f} %")
    for kind in dict.fromkeys(name.split()[0] for name, *_ in units):
        times = [end - began for name, began, end, _ in units if name.split()[0] == kind]
        print(f"{kind}: {len(times)}, {sum(times) / len(times):.2f} s each, {max(times):.2f} s at most")
    for name, _, end, _ in sorted(units, key=lambda unit: unit[2])[-jobs:]:
        print(f"{last - end:.1f} s before the end: {name}")
    for name, began, end, wait in sorted(units, key=lambda unit: -unit[3])[:5]:
        if wait > 0.1:
            print(f"waited {wait:.1f} of {end - began:.1f} s for a lock: {name}")


if __name__ == "__main__":
    main()
