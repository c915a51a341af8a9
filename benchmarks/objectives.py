"""Plots how every attack's own objective falls during crafting, from trial records; needs matplotlib (MLflow has it).

    python benchmarks/objectives.py results/runs/records --to objectives.png

One panel an attack: each line is the kept restart of one trial; the thick line is the median.
Exits with 1 if the objective of any trial did not fall. It is averaged over eight steps, since MetaPoison's surrogates
take turns; where surrogates are retrained it becomes another objective, which must fall anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROUND = 8  # steps that are averaged: MetaPoison's surrogates take turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+", help="a folder of records, or a records.jsonl")
    parser.add_argument("--to", type=Path, required=True, help="image file")
    args = parser.parse_args()
    curves: dict[str, list[list[list[float]]]] = {}
    seen = set()
    for record in (record for path in args.records for record in read(path)):
        poisons = record.get("poisons") or {}
        if not poisons.get("losses") or poisons["key"] in seen:
            continue
        seen.add(poisons["key"])
        best = min(range(len(poisons["losses"])), key=lambda i: poisons["final_losses"][i])
        line, turns = poisons["losses"][best], [0, *poisons.get("retrained_at", []), None]
        parts = [rolling(line[begin:end]) for begin, end in zip(turns, turns[1:], strict=False)]
        curves.setdefault(record["attack"], []).append(parts)
    if not curves:
        sys.exit("no crafting losses in these records")
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False)
    rose = []
    for axis, (attack, trials) in zip(axes.flat, sorted(curves.items()), strict=False):
        smooth = [[value for part in parts for value in part] for parts in trials]
        for line in smooth:
            axis.plot(line, color="#7aa6c2", linewidth=0.6, alpha=0.7)
        shortest = min(map(len, smooth))
        axis.plot([statistics.median(line[i] for line in smooth) for i in range(shortest)], color="#0b3c5d")
        axis.set_title(f"{attack} (n = {len(trials)})", fontsize=9)
        axis.tick_params(labelsize=7)
        fell = sum(all(part[-1] < part[0] for part in parts) for parts in trials)
        rose += [attack] if fell < len(trials) else []
        ends = ", ".join(
            " -> ".join(f"{statistics.median(parts[k][i] for parts in trials):.4g}" for i in (0, -1))
            for k in range(len(trials[0]))
        )
        print(f"{attack:26} fell in {fell}/{len(trials)} trials; median {ends}")
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    figure.supxlabel("crafting step", fontsize=9)
    figure.supylabel("objective", fontsize=9)
    figure.tight_layout()
    figure.savefig(args.to, dpi=110)
    sys.exit(1 if rose else 0)


def read(path: Path) -> list[dict]:
    if path.is_dir():
        return [json.loads(file.read_text()) for file in sorted(path.glob("**/*.json"))]
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def rolling(line: list[float]) -> list[float]:
    """Means over the last steps of a round, as far as there are that many."""
    return [statistics.fmean(line[max(i - ROUND + 1, 0) : i + 1]) for i in range(min(ROUND, len(line)) - 1, len(line))]


if __name__ == "__main__":
    main()
