"""Coverage and mean width of 95 % intervals over trials with several victims, by simulation.

    python benchmarks/coverage.py [--samples 2000] [--json]

A trial draws its rate from a distribution, its victims succeed independently at that rate. Distributions of each mean:
beta, with a share of the variance of 0 / 1 between trials from none (all trials alike) to all (a trial's victims
agree), and a mixture in which one trial in five is another kind. Rows are the worst of all means and distributions.

rate: the bound of `bounded_mean`, which the leaderboard shows; Korn and Graubard's (1998): Clopper-Pearson on the
effective number of victims; Clopper-Pearson on the number of trials; Student's t on the trials' rates.
difference: of two cells on the same trials, whose rates are drawn independently, equal, or in the same order; the bound
of `bounded_mean`, Newcombe's interval of paired proportions with rates for successes, and Student's t.
p: how often the tests say p <= 0.05 where both cells draw the same rates (so at most 0.05).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.foundation.bounded_mean import above, upper
from bench.foundation.statistics import sign_flips

Array = NDArray[Any]
TAIL = 0.025
TRIALS, VICTIMS = (5, 10, 20, 40), (1, 2, 4, 8)
MEANS = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98)
BETWEEN = (0.0, 0.05, 0.2, 0.5, 0.8, 1.0)
MIXTURE = -1.0  # instead of a share between trials
WIDTHS = 100  # samples of which the bound's ends are computed; for its coverage a probability will do


def quantiles(mean: float, between: float, u: Array) -> Array:
    """Rates of trials at the levels u in [0, 1] of their distribution."""
    if between == MIXTURE:
        if mean > 0.5:
            return 1 - quantiles(1 - mean, between, 1 - u)
        other = min(1.0, 4 * mean)
        return np.where(u > 0.8, other, (mean - other / 5) / 0.8)
    if between in (0.0, 1.0):
        return np.full_like(u, mean) if between == 0 else (u > 1 - mean).astype(float)
    size = 1 / between - 1
    return special.betaincinv(mean * size, (1 - mean) * size, u)


def clopper_pearson(k: Array, n: Array) -> tuple[Array, Array]:
    with np.errstate(invalid="ignore"):
        low = np.where(k <= 0, 0.0, special.betaincinv(np.maximum(k, 1e-12), n - k + 1, TAIL))
        high = np.where(k >= n, 1.0, special.betaincinv(k + 1, np.maximum(n - k, 1e-12), 1 - TAIL))
    return low, high


def korn_graubard(rates: Array, victims: int) -> tuple[Array, Array]:
    n = rates.shape[1]
    mean, variance = rates.mean(1), rates.var(1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = mean * (1 - mean) * n / variance
    freedom = special.stdtrit(n * victims - 1, 1 - TAIL) / special.stdtrit(n - 1, 1 - TAIL)
    effective = np.where(variance > 0, (effective * freedom**2).clip(n, n * victims), n)
    return clopper_pearson(mean * effective, effective)


def students(values: Array, lowest: float) -> tuple[Array, Array]:
    n = values.shape[1]
    half = special.stdtrit(n - 1, 1 - TAIL) * values.std(1, ddof=1) / math.sqrt(n)
    return (values.mean(1) - half).clip(lowest), (values.mean(1) + half).clip(None, 1.0)


def newcombe(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """Method 10 of Newcombe (1998), with rates for successes."""
    n, z = ours.shape[1], float(special.ndtri(1 - TAIL))
    p, q = ours.mean(1), theirs.mean(1)
    spread = p * (1 - p) * q * (1 - q)
    with np.errstate(divide="ignore", invalid="ignore"):
        tie = (ours * theirs).mean(1) - p * q
        tie = np.where(tie < 0, tie, (tie - 1 / (2 * n)).clip(0))
        phi = np.where(spread > 0, tie / np.sqrt(spread), 0.0)

    def wilson(rate: Array) -> tuple[Array, Array]:
        middle, half = rate + z * z / 2 / n, z * np.sqrt(rate * (1 - rate) / n + z * z / 4 / n / n)
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    (low1, high1), (low2, high2) = wilson(p), wilson(q)
    down1, up1, down2, up2 = p - low1, high1 - p, q - low2, high2 - q
    low = p - q - np.sqrt((down1**2 - 2 * phi * down1 * up2 + up2**2).clip(0))
    return low, p - q + np.sqrt((up1**2 - 2 * phi * up1 * down2 + down2**2).clip(0))


def bound(steps: Array, most: int, truth: float) -> tuple[float, float]:
    """Coverage and mean width of the bound on samples [samples, trials] of values steps / most in [0, 1]."""
    knots = np.arange(most + 1) / most

    def end(steps: Array, truth: float) -> tuple[Array, Array]:
        """Whether the upper end is not below the truth, and the first ends."""
        counts = (steps[:, :, None] == np.arange(most + 1)).sum(1).astype(float)
        counts[:, most] += 1
        full = (counts[:, :most].sum(1) == 0) | (truth <= 0)
        safe = np.where(full[:, None], 1.0, counts)
        levels = np.full(len(counts), min(max(truth, 1e-9), 1 - 1e-9))
        return full | (above(levels, knots, safe) >= TAIL), upper(knots, counts[:WIDTHS], TAIL)

    (over, high), (under, low) = end(steps, truth), end(most - steps, 1 - truth)
    return float((over & under).mean()), float((high - (1 - low)).mean())


def judged(ends: tuple[Array, Array], truth: float) -> tuple[float, float]:
    low, high = ends
    return float(((low <= truth + 1e-12) & (high >= truth - 1e-12)).mean()), float((high - low).mean())


def rates_once(chance: np.random.Generator, n: int, victims: int, samples: int, mean: float, between: float) -> Any:
    rates = quantiles(mean, between, chance.random((samples, n)))
    steps = chance.binomial(victims, rates.clip(0, 1))
    seen = steps / victims
    return {
        "bound": bound(steps, victims, mean),
        "Korn-Graubard": judged(korn_graubard(seen, victims), mean),
        "Clopper-Pearson on trials": judged(clopper_pearson(seen.sum(1), np.full(samples, n)), mean),
        "Student": judged(students(seen, 0.0), mean),
    }


def differences_once(
    chance: np.random.Generator, n: int, victims: int, samples: int, means: tuple[float, float], between: float,
    together: str,
) -> Any:  # fmt: skip
    first = chance.random((samples, n))
    second = first if together != "independent" else chance.random((samples, n))
    ours, theirs = (
        chance.binomial(victims, quantiles(mean, between, u).clip(0, 1))
        for mean, u in zip(means, (first, second), strict=True)
    )
    truth, a, b = means[0] - means[1], ours / victims, theirs / victims
    coverage, width = bound(ours - theirs + victims, 2 * victims, (1 + truth) / 2)
    return {
        "bound": (coverage, 2 * width),
        "Newcombe on trials": judged(newcombe(a, b), truth),
        "Student": judged(students(a - b, -1.0), truth),
    }


def worst(found: list[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Of each method the least coverage, and the mean of the mean widths."""
    return {
        name: (min(each[name][0] for each in found), float(np.mean([each[name][1] for each in found])))
        for name in found[0]
    }


def rejected(chance: np.random.Generator, n: int, victims: int, samples: int) -> float:
    """The largest share of p <= 0.05 of the sign flips among distributions of rates that both cells draw."""
    shares = []
    for mean in (0.1, 0.5):
        for between in (0.0, 0.5, MIXTURE):
            rates = quantiles(mean, between, chance.random((samples, n)))
            ours, theirs = (chance.binomial(victims, rates) / victims for _ in range(2))
            shares.append(np.mean([sign_flips(a, b) <= 0.05 for a, b in zip(ours, theirs, strict=True)]))
    return float(max(shares))


Rows = Iterator[tuple[str, int, int, dict[str, tuple[float, float]]]]


def simulated(samples: int, trials: tuple[int, ...], victims: tuple[int, ...], seed: int = 0) -> Rows:
    """(what, trials, victims, by method (worst coverage, mean width))."""
    chance = np.random.default_rng(seed)
    kinds = (*BETWEEN, MIXTURE)
    pairs = [(a, b) for i, a in enumerate(MEANS[1:7]) for b in MEANS[1:7][i:]]
    for n in trials:
        for v in victims:
            yield "rate", n, v, worst([rates_once(chance, n, v, samples, mean, k) for mean in MEANS for k in kinds])
            found = [
                differences_once(chance, n, v, samples, pair, kind, together)
                for pair in pairs
                for kind in kinds
                for together in ("independent", "in the same order")
            ]
            yield "difference", n, v, worst(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    show: Callable[..., None] = print
    for what, n, victims, found in simulated(asked.samples, TRIALS, VICTIMS):
        if asked.json:
            show(json.dumps({"what": what, "trials": n, "victims": victims, **found}), flush=True)
            continue
        methods = "; ".join(f"{name} {100 * c:.1f} % ({w:.3f})" for name, (c, w) in found.items())
        show(f"{what}, {n} trials x {victims} victims: {methods}", flush=True)
    chance = np.random.default_rng(1)
    for n in (5, 20):
        for victims in (2, 8):
            share = rejected(chance, n, victims, asked.samples)
            show(f"p <= 0.05 of sign flips, {n} trials x {victims} victims: {100 * share:.1f} %", flush=True)


if __name__ == "__main__":
    main()
