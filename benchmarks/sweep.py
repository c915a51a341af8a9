"""A sweep in wall time: two attacks against four defenses on `quick`, with one worker and with two.

Each contender runs the same command in an output folder of its own, from nothing, in turns; the time is that of the
whole command, start of Python and table included. Crafting is counted by the poisons that were made: once for each
attack and trial, whatever the number of defenses, and none by a victim. All contenders must make the same records.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.storage.records import Records, comparable

ATTACKS, DEFENSES = "gm,metapoison", "none,friends-b,noise-b,epic-0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--attack", default=ATTACKS, help=f"default: {ATTACKS}")
    parser.add_argument("--defense", default=DEFENSES, help=f"default: {DEFENSES}")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=[1, 2], help="workers to try; the first is the reference"
    )
    parser.add_argument("--repeats", type=int, default=1, help="rounds, in which each contender runs once")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    seconds: dict[int, list[float]] = {jobs: [] for jobs in args.jobs}
    reference: dict[str, Any] = {}
    for _ in range(args.repeats):
        for jobs in args.jobs:
            with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
                seconds[jobs].append(sweep(args, jobs, Path(folder)))
                found = {record["key"]: comparable(record) for record in Records(Path(folder) / "records").all()}
                crafted = len(list((Path(folder) / "store" / "poisons").rglob("*.safetensors")))
            reference = reference or found
            assert found == reference, f"{jobs} workers made other records"
            wanted = len({(r["attack"], r["trial"]) for r in found.values() if r["poisons"]["n"]})
            print(
                f"{jobs} workers: {seconds[jobs][-1]:.0f} s, {len(found)} trials, {crafted} sets of poisons ({wanted})"
            )
            assert crafted >= wanted
    first = args.jobs[0]
    ratios = {
        jobs: statistics.median(one / other for one, other in zip(seconds[first], seconds[jobs], strict=True))
        for jobs in args.jobs
    }
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    for jobs, ratio in ratios.items():
        print(f"{jobs} workers: {statistics.median(seconds[jobs]):.0f} s, {ratio:.2f} times as fast as {first}")
    if args.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios, "trials": len(reference)}))


def sweep(args: argparse.Namespace, jobs: int, out: Path) -> float:
    """Wall seconds of the command."""
    command = [sys.executable, "-W", "ignore", "-m", "bench", "sweep", "--attack", args.attack]
    command += ["--defense", args.defense, "--protocol", args.protocol, "--trials", str(args.trials)]
    command += ["--jobs", str(jobs), "--device", "cpu", "--out", str(out), "--tracking", "none"]
    command += [word for item in args.set for word in ("--set", item)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
