"""Coverage of 95 % intervals of the mean change of the target's margin, on changes that records show.

    python benchmarks/margins.py results/*/*.jsonl [--samples 4000] [--json]

Every defended cell with ten or more trials is a population of changes against its undefended cell: samples are drawn
from it with replacement, its mean is the truth. Rows are the worst and the mean coverage over these populations.
Compared: Student's t, which the leaderboard shows, and Hodges and Lehmann's estimate with the interval that inverts
Wilcoxon's signed-rank test, whose truth is the population's pseudo-median; for five trials it does not exist: the
least p of that test is 0.0625.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from bench.storage.records import read
from bench.views.cells import by_cell, common_trials, setting_of, trial_means, trials_with_margin

Array = NDArray[np.float64]
TRIALS = (5, 10, 20, 50, 100)
MOST_WALSH = 20  # trials, beyond which there are too many pairs of them


def populations(paths: list[Path]) -> list[Array]:
    cells = by_cell(read(None, paths, print, curves=False))
    bare = {setting_of(cell[0]): cell for cell in cells if cell[0]["defense"] == "none"}
    found = []
    for cell in cells:
        base = bare.get(setting_of(cell[0]), [])
        changes = (
            np.array(trial_means(*trials_with_margin(common_trials(cell, base)))) if base is not cell else np.zeros(0)
        )
        if len(changes) >= 10 and changes.std() > 0:
            found.append(changes)
    return found


def students(samples: Array) -> tuple[Array, Array]:
    n = samples.shape[1]
    half = special.stdtrit(n - 1, 0.975) * samples.std(1, ddof=1) / np.sqrt(n)
    return samples.mean(1) - half, samples.mean(1) + half


def walsh(samples: Array) -> Array:
    """Means of all pairs, each value with itself included, sorted."""
    first, second = np.triu_indices(samples.shape[1])
    return np.sort((samples[:, first] + samples[:, second]) / 2, axis=1)


def hodges_lehmann(samples: Array) -> tuple[Array, Array] | None:
    n = samples.shape[1]
    if n > MOST_WALSH:
        return None
    below = np.arange(n * (n + 1) // 2 + 1)
    shares = np.zeros(len(below))
    shares[0] = 1.0
    for rank in range(1, n + 1):  # the distribution of the sum of signed ranks
        shares = (shares + np.concatenate([np.zeros(rank), shares[:-rank]])) / 2
    left_out = int((shares.cumsum() <= 0.025).sum())
    if not left_out:
        return None
    means = walsh(samples)
    return means[:, left_out - 1], means[:, -left_out]


def covered(ends: tuple[Array, Array], truth: float) -> float:
    return float(((ends[0] <= truth + 1e-12) & (ends[1] >= truth - 1e-12)).mean())


def simulated(found: list[Array], samples: int) -> Iterator[dict[str, Any]]:
    chance = np.random.default_rng(0)
    for n in TRIALS:
        shares: dict[str, list[float]] = {}
        for changes in found:
            drawn = chance.choice(changes, (samples, n))
            shares.setdefault("Student", []).append(covered(students(drawn), float(changes.mean())))
            if ends := hodges_lehmann(drawn):
                middle = float(np.median(walsh(changes[None])))
                shares.setdefault("Hodges-Lehmann", []).append(covered(ends, middle))
        yield {"trials": n} | {name: [min(each), float(np.mean(each))] for name, each in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    show: Callable[..., None] = print
    found = populations(asked.records)
    shapes = [(float(stats.skew(changes)), float(stats.kurtosis(changes))) for changes in found]
    skews, tails = (sorted(column) for column in zip(*shapes, strict=True))
    if not asked.json:
        show(f"{len(found)} cells; skewness {skews[0]:.1f} to {skews[-1]:.1f}, excess kurtosis {tails[0]:.1f} to "
             f"{tails[-1]:.1f}")  # fmt: skip
    for row in simulated(found, asked.samples):
        if asked.json:
            show(json.dumps(row), flush=True)
            continue
        trials = row.pop("trials")
        methods = (
            f"{name} {100 * low:.1f} % at worst, {100 * mean:.1f} % in the mean" for name, (low, mean) in row.items()
        )
        show(f"{trials} trials: {'; '.join(methods)}", flush=True)


if __name__ == "__main__":
    main()
