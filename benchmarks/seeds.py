"""Coverage and mean width of 95 % intervals of a success rate over the trials of several seeds, by simulation.

    python benchmarks/seeds.py [--samples 4000] [--json]

A seed draws its rate from a beta distribution, its trials succeed independently at that rate. `between` is the share
of the variance of a trial that lies between seeds: 0 where seeds do not matter. Compared: Clopper and Pearson's
interval on all trials, as if they were independent; Student's t on the seeds' rates; what `leaderboard --pool` shows,
which covers both; and Gaffke's bound on the seeds' rates, which victims of a trial are counted by and which needs no
distribution. Rows are the least coverage of the mean rates 0.05, 0.2, 0.5 and 0.8, and the mean width.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.foundation.bounded_mean import interval_of_mean

Array = NDArray[np.float64]
Ends = tuple[Array, Array]
SEEDS, TRIALS, BETWEEN = (2, 3, 5, 10), (10, 20), (0.0, 0.02, 0.05, 0.1, 0.2)
MEANS = (0.05, 0.2, 0.5, 0.8)
BOUNDED = 60  # samples of which the bound is computed: it is slow


def on_trials(k: Array, n: int) -> Ends:
    with np.errstate(invalid="ignore"):
        low = np.where(k <= 0, 0.0, special.betaincinv(np.maximum(k, 1e-12), n - k + 1, 0.025))
        return low, np.where(k >= n, 1.0, special.betaincinv(k + 1, np.maximum(n - k, 1e-12), 0.975))


def on_seeds(rates: Array) -> Ends:
    count = rates.shape[1]
    half = special.stdtrit(count - 1, 0.975) * rates.std(1, ddof=1) / np.sqrt(count)
    return (rates.mean(1) - half).clip(0, 1), (rates.mean(1) + half).clip(0, 1)


def judged(ends: Ends, truth: float) -> tuple[float, float]:
    low, high = ends
    return float(((low <= truth + 1e-12) & (high >= truth - 1e-12)).mean()), float((high - low).mean())


def once(chance: np.random.Generator, seeds: int, trials: int, between: float, mean: float, samples: int) -> Any:
    size = 1 / between - 1 if between else 0.0
    rates = (
        chance.beta(mean * size, (1 - mean) * size, (samples, seeds)) if between else np.full((samples, seeds), mean)
    )
    seen = chance.binomial(trials, rates) / trials
    naive, clustered = on_trials(seen.sum(1) * trials, seeds * trials), on_seeds(seen)
    both = np.minimum(naive[0], clustered[0]), np.maximum(naive[1], clustered[1])
    bounds = np.array([interval_of_mean(list(each), 0.95) for each in seen[:BOUNDED]])
    return {
        "trials as if independent": judged(naive, mean),
        "t on seeds": judged(clustered, mean),
        "both covered": judged(both, mean),
        "bound on seeds": judged((bounds[:, 0], bounds[:, 1]), mean),
    }


def simulated(samples: int) -> Iterator[tuple[dict[str, float], dict[str, tuple[float, float]]]]:
    chance = np.random.default_rng(0)
    for seeds in SEEDS:
        for trials in TRIALS:
            for between in BETWEEN:
                found = [once(chance, seeds, trials, between, mean, samples) for mean in MEANS]
                yield (
                    {"seeds": seeds, "trials": trials, "between": between},
                    {
                        name: (min(each[name][0] for each in found), float(np.mean([each[name][1] for each in found])))
                        for name in found[0]
                    },
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    show: Callable[..., None] = print
    for what, found in simulated(asked.samples):
        if asked.json:
            show(json.dumps({**what, **found}), flush=True)
            continue
        methods = "; ".join(f"{name} {100 * c:.1f} % ({w:.2f})" for name, (c, w) in found.items())
        place = f"{what['seeds']} seeds x {what['trials']} trials, {what['between']:g} between"
        show(f"{place}: {methods}", flush=True)


if __name__ == "__main__":
    main()
