"""Did a change of the code change a number? A small fixed study, compared bit for bit with what another revision gave.

    git worktree add ../before REVISION
    PYTHONPATH=../before python benchmarks/frozen_study.py before.jsonl
    python benchmarks/frozen_study.py after.jsonl --against before.jsonl

gm, sleeper-adaptive-friends, metapoison, bp in transfer; filters, strip, denoising, compositions, friends-b, controls:
three minutes on two cores. Bits are those of one kind of CPU: run both on the same machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SHORT = ["train.epochs=4", "surrogate.epochs=4"]
GM = ["attack.steps=8", "attack.restarts=2"]
QUICK_DENOISER = ["defense.denoise-0.1.steps=20", "defense.denoise-0.1.width=8"]
QUICK_SEARCH = ["defense.neural-cleanse.epochs=2", "defense.neural-cleanse.steps=2"]
RUNS = (
    ("quick", "gm", ["friends-b", "spectral", "strip", "epic-0.1+friends-b"], 2, [*GM, *SHORT]),
    (
        *("quick", "gm", ["denoise-0.1", "mixup", "abl", "spectral+friends-u", "neural-cleanse"], 2),
        [*GM, *SHORT, *QUICK_DENOISER, *QUICK_SEARCH],
    ),
    ("quick", "sleeper-adaptive-friends", ["friends-b"], 1, ["attack.steps=6", "attack.retrain=1", *SHORT]),
    (
        *("quick-transfer", "bp", ["friends-b", "deepknn"], 2),
        ["attack.steps=20", "train.epochs=4", "pretrain.epochs=4"],
    ),
    ("quick", "metapoison", ["none"], 1, ["attack.steps=4", "attack.ages=[2,4]", *SHORT]),
)
# What may differ: times, machine and revision; and keys, which hash the code.
LEFT_OUT = {"seconds", "reused", "memory_peak_mib", "started", "finished", "environment", "revision", "cached"}
LEFT_OUT |= {"key", "cell", "code", "digest", "surrogates", "places"}


def frozen(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that no refactoring may change."""
    kept = {name: value for name, value in record.items() if name not in LEFT_OUT}
    kept["poisons"] = {name: value for name, value in record["poisons"].items() if name != "key"}
    return kept


def study(out: Path) -> list[dict[str, Any]]:
    records = []
    for protocol, attack, defenses, trials, sets in RUNS:
        command = [
            sys.executable,
            "-m",
            "bench",
            "run",
            "--json",
            "--tracking",
            "none",
            "--seed",
            "5",
            "--out",
            str(out),
        ]
        command += ["--protocol", protocol, "--attack", attack, "--trials", str(trials)]
        command += [part for name in defenses for part in ("--defense", name)]
        command += [part for item in sets for part in ("--set", item)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        records += [frozen(record) for record in json.loads(output)]
    return records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", type=Path, help="file for the records, one per line")
    parser.add_argument("--against", type=Path, help="records of another revision")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = study(Path(folder))
    options.to.write_text("".join(f"{json.dumps(record, sort_keys=True)}\n" for record in records))
    if options.against is None:
        return 0
    before = [json.loads(line) for line in options.against.read_text().splitlines()]
    unequal = [
        f"{b['attack']} x {b['defense']} trial {b['trial']}: {', '.join(n for n in b if b[n] != a.get(n))}"
        for b, a in zip(before, records, strict=True)
        if a != b
    ]
    print("\n".join([*unequal, f"{len(records)} records, {len(unequal)} differ"]))
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
