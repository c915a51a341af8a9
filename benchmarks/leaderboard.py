"""Seconds and memory of `python -m bench leaderboard` over many trial records on disk, start of Python included.

    python benchmarks/leaderboard.py [--records 10000 100000] [--repeats 5] [--forms json] [--json]

The records are made up, sealed, with the fields and the size of real ones (40 epochs of history, 100 steps of
crafting, 40 base ids: 8 kB): one file each, and once more as lines of one file. The files have just been written, so
they are in the disk cache; Python's modules are compiled. wall: as a user waits; cpu: user and system time of the
command, which other work on the machine changes less; mib: the most memory that the command held.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.storage.record import checked, sealed

ROOT = Path(__file__).resolve().parent.parent
TRIALS, ATTACKS = 20, 5
FORMS = ("table", "json", "html", "table of one file")
SETTINGS = {
    "protocol": {
        "name": "made-up", "version": 1, "model": "convnet",
        "dataset": {"name": "photographs", "size": 16, "train_per_class": 100, "test_per_class": 100},
        **dict.fromkeys(("train", "surrogate"), {"epochs": 30, "batch": 64, "lr": 0.1, "drops": [30, 50, 70]}),
        "threat": {"scenario": "from-scratch", "eps": 10, "budget": 0.04, "surrogate": "", "surrogates": 4},
    },
    "attack": {"steps": 100, "restarts": 1, "lr": 0.1, "decay": True, "init": "noise"},
    "defense": {"mu": 16, "zeta": 16, "start": 5},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed calls of each format, after one that is not timed"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="which to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    results = [measure(records, args.repeats, args.forms) for records in args.records]
    if args.json:
        print(json.dumps(results))


def measure(records: int, repeats: int, forms: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        size = write(Path(folder), records)
        print(f"{records} records, {size / records / 1e3:.1f} kB each; load {os.getloadavg()[0]:.1f}")
        found = {}
        for name in forms:
            place = f"{folder}/records.jsonl" if name.endswith("one file") else folder
            form = name.partition(" ")[0]
            timed = [call(place, form) for _ in range(repeats + 1)][1:]
            wall, cpu, mib = zip(*timed, strict=True)
            found[name] = {"wall": statistics.median(wall), "cpu": statistics.median(cpu), "mib": max(mib)}
            print(f"{name:18} wall {found[name]['wall']:.2f} s, cpu {found[name]['cpu']:.2f} s, {max(mib):.0f} MiB")
    return {"records": records, "bytes": size, "found": found}


def write(out: Path, n: int) -> int:
    """Make n records under out/records and in out/records.jsonl; how many bytes they have."""
    total = 0
    with (out / "records.jsonl").open("wb") as lines:
        for number in range(n):
            record = make(number)
            folder = out / "records" / record["protocol"] / record["attack"] / record["defense"]
            folder.mkdir(parents=True, exist_ok=True)
            text = sealed(checked(record))
            (folder / f"{record['trial']:04d}-{record['key'][:16]}.json").write_bytes(text)
            total += lines.write(text)
    return total


def make(number: int) -> dict[str, Any]:
    """The record with this number: cells of 20 trials, five attacks against ever more defenses."""
    cell, trial = divmod(number, TRIALS)
    defense, attack = divmod(cell, ATTACKS)
    chance = random.Random(number)
    cell_key, poisons_key = _hash("cell", attack, defense), _hash("poisons", attack, trial)
    return {
        "schema": 1, "variants": {}, "notes": {}, "external": {}, "key": _hash(cell_key, trial), "cell": cell_key,
        "attack": f"attack-{attack}", "defense": f"defense-{defense}" if defense else "none", "protocol": "made-up",
        "trial": trial, "seed": 0, "status": "done", "error": None,
        "success": float(chance.random() < 1 / (1 + defense)), "clean_accuracy": chance.gauss(0.5, 0.01),
        "outcome": {"target_predictions": [chance.randrange(10)], "target_margin": chance.gauss(0, 5)},
        "filter": {"dropped": 0, "poisons_dropped": 0, "precision": None, "recall": 0.0},
        "draw": {"index": trial, "target_ids": [trial], "source_class": 8, "target_class": 5,
                 "base_ids": list(range(500, 540))},
        "seeds": {"attack": chance.getrandbits(62), "victim": chance.getrandbits(62)},
        "poisons": {"key": poisons_key, "n": 40, "eps": 10, "max_change": 10,
                    "losses": [[chance.random() for _ in range(100)]]},
        "surrogates": {"keys": [_hash("surrogate", k) for k in range(4)], "shared_by": "all trials of this seed"},
        "history": [{"loss": chance.random(), "accuracy": chance.random(), "samples": 1000.0} for _ in range(40)],
        "settings": SETTINGS, "knowledge": [], "adapted_to": [],
        "data": {"name": "photographs", "fingerprint": _hash("data"), "train": 1000, "test": 1000,
                 "classes": [f"class {i}" for i in range(10)]},
        "code": {"version": "0.1.0", "fingerprint": _hash("code", defense)}, "revision": _hash("revision")[:40],
        "environment": {"python": "3.11", "torch": "2.15.0", "device": "cpu", "device_name": "made up", "cores": 2},
        "seconds": {"surrogates": 70.0, "craft": 16.0, "train": 9 + chance.random(), "evaluate": 0.1},
        "reused": {"poisons": True, "surrogates": True}, "memory_peak_mib": 800.0,
        "started": "2026-01-01T00:00:00+00:00", "finished": f"2026-01-01T00:{trial:02d}:10+00:00",
    }  # fmt: skip


def call(place: str, form: str) -> tuple[float, float, float]:
    """Wall and processor seconds, and the most memory in MiB, of one call."""
    command = [sys.executable, "-m", "bench", "leaderboard", "--format", form]
    command += [place] if place.endswith(".jsonl") else ["--out", place]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def _hash(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


if __name__ == "__main__":
    main()
