"""Intervals and paired tests on the results of trials. Needs no torch: views of records start quickly.

The distributions are scipy.special's; scipy.stats, which takes a second to import, is the oracle of the tests.

A trial may have several victims: its value is their rate. Trials are independent, victims of one trial are not, so
everything here counts by trials. What is said of such rates (`rates_interval`, `several`) becomes Clopper-Pearson's
interval and McNemar's test where every rate is 0 or 1; benchmarks/coverage.py simulates it, next to its rivals.

Trials of one seed share surrogates, so over several seeds they are not independent either: `over_seeds` counts by
seeds, and what is shown covers both (`covering`). benchmarks/seeds.py simulates that.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Hashable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bench.foundation.bounded_mean import interval_of_mean

CONFIDENCE = 0.95
MOST_POINTS = 2**17  # of the distribution of a sum of signed differences
MOST_RANKED = 1000  # values, of which all pairs are taken
EXACT_RANKS = 100  # values up to which the distribution of their signed ranks is the exact one

Ends = tuple[float, float]


def interval(successes: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson interval of a rate of `successes` in n trials; (0, 1) for n = 0.

    With fractional successes (means of rates over several targets) the beta quantiles are used as they stand.
    """
    if n == 0:
        return 0.0, 1.0
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(special.betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def rates_interval(rates: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the mean of trials' rates in [0, 1], whatever their distribution; (0, 1) for none.

    Of rates of 0 or 1 it is Clopper and Pearson's; it is the narrower, the less the rates differ. See `bounded_mean`.
    """
    return interval_of_mean(rates, confidence)


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of the mean; None for fewer than two values, which tell nothing of their spread."""
    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * spread(values) / math.sqrt(n)
    return mean - half, mean + half


def spread(values: Sequence[float]) -> float:
    """`statistics.stdev`, to the last bit, several times as fast: of the values as multiples of a power of two, which
    are whole numbers. At least two values."""
    if not all(isinstance(value, float) and abs(value) < 1e9 for value in values):
        return statistics.stdev(values)
    ratios = [value.as_integer_ratio() for value in values]
    scale = max(below for _, below in ratios)
    if scale.bit_length() > 100:
        return statistics.stdev(values)
    return statistics.stdev([above * (scale // below) for above, below in ratios]) / scale


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], several: bool = False
) -> tuple[float, float, float]:
    """Mean of values - baseline over common trials (at least one), with a 95 % interval.

    several: they are rates of several victims that succeed or not; the differences' interval is that of the mean of
    bounded values. Otherwise, successes of 0 or 1: Newcombe's interval for paired proportions (1998, method 10), which
    does not collapse when all trials agree; rates over many images: Student's t on the differences, (-1, 1) for one
    trial.
    """
    _check(values, baseline)
    n, gain = len(values), math.fsum(values) / len(values) - math.fsum(baseline) / len(baseline)
    if several:
        low, high = interval_of_mean([(1 + a - b) / 2 for a, b in zip(values, baseline, strict=True)], CONFIDENCE)
        return gain, 2 * low - 1, 2 * high - 1
    if not _yes_or_no(values, baseline):
        around = mean_interval([a - b for a, b in zip(values, baseline, strict=True)])
        return (gain, max(around[0], -1.0), min(around[1], 1.0)) if around else (gain, -1.0, 1.0)
    both = sum(1 for pair in zip(values, baseline, strict=True) if pair == (1, 1))
    neither = sum(1 for pair in zip(values, baseline, strict=True) if pair == (0, 0))
    k1, k2 = sum(values), sum(baseline)
    spread = k1 * (n - k1) * k2 * (n - k2)
    tie = both * neither - (k1 - both) * (k2 - both)
    tie = tie if tie < 0 else max(tie - n / 2, 0)
    phi = tie / math.sqrt(spread) if spread else 0.0
    (low1, high1), (low2, high2) = _wilson(k1, n), _wilson(k2, n)
    down1, up1, down2, up2 = k1 / n - low1, high1 - k1 / n, k2 / n - low2, high2 - k2 / n
    low = gain - math.sqrt(max(down1**2 - 2 * phi * down1 * up2 + up2**2, 0))
    high = gain + math.sqrt(max(up1**2 - 2 * phi * up1 * down2 + down2**2, 0))
    return gain, low, high


def paired_test(values: Sequence[float], baseline: Sequence[float], several: bool = False) -> tuple[str, float | None]:
    """Name and two-sided p of the test whether values and baseline differ over common trials (at least one).

    several: they are rates of several victims that succeed or not; exact sign flips. Otherwise, successes of 0 or 1:
    exact McNemar, the binomial test on the trials that differ; rates over many images: Student's t on the differences,
    p is None where these have no spread to judge by (a single trial, or all equal and not zero).
    """
    _check(values, baseline)
    if several:
        return "exact sign flips", sign_flips(values, baseline)
    if _yes_or_no(values, baseline):
        return "exact McNemar", mcnemar(values, baseline)
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    if not any(differences):
        return "paired t", 1.0
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    if spread < 1e-12:
        return "paired t", None
    t = statistics.fmean(differences) / (spread / math.sqrt(len(differences)))
    return "paired t", float(2 * special.stdtr(len(differences) - 1, -abs(t)))


def mcnemar(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Two-sided p of McNemar's exact test on successes of 0 or 1; 1 when no trial differs."""
    more = sum(1 for a, b in zip(values, baseline, strict=True) if a > b)
    less = sum(1 for a, b in zip(values, baseline, strict=True) if a < b)
    return min(1.0, 2 * float(special.bdtr(min(more, less), more + less, 0.5))) if more + less else 1.0


def sign_flips(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Two-sided p of the permutation test that swaps values and baseline within each trial: how often, over all swaps,
    the sum of differences is as far from zero. McNemar's exact test for successes of 0 or 1.

    Differences are counted in steps that their denominators (at most 64 victims) divide; where these are too many, in
    the finest steps that fit, which makes it another exact test. The distribution of the sum is the transform of its
    characteristic function, a product of cosines.
    """
    parts = {Fraction(rate).limit_denominator(64).denominator for rate in (*values, *baseline)}
    step = min(math.lcm(*parts), max(MOST_POINTS // (2 * len(values)), 16))
    signed = [round((a - b) * step) for a, b in zip(values, baseline, strict=True)]
    sizes, counts = np.unique(np.abs(signed), return_counts=True)
    most = int(sizes @ counts)
    if not most:
        return 1.0
    points = 2 * most + 1  # sums from -most to most
    transform = np.ones(points)
    for size, count in zip(sizes, counts, strict=True):
        transform *= np.cos(2 * math.pi / points * (np.arange(points) * size % points)) ** count
    shares = np.fft.fft(transform).real / points  # of the sums 0, 1, ... most, -most, ... -1
    seen = abs(sum(signed))
    far = float(shares[seen : points - seen + 1].sum()) if seen else 1.0
    return min(max(far, 2.0 * 0.5 ** len(values)), 1.0)


def typical_change(changes: Sequence[float]) -> tuple[float, Ends | None, float]:
    """Of paired changes (at least one) of any scale: Hodges and Lehmann's estimate (the median of the means of all
    pairs), its 95 % interval, and the two-sided p of the test that it inverts, Wilcoxon's of signed ranks.

    The interval is None for fewer than six changes, for which there is none: the least p of five is 0.0625. A few
    changes far out do not move it, and it covers where Student's t does not (benchmarks/margins.py). Of more than
    `MOST_RANKED` changes: the mean and Student's t.
    """
    n = len(changes)
    if n > MOST_RANKED:
        return statistics.fmean(changes), mean_interval(changes), paired_test(changes, [0.0] * n)[1] or 0.0
    values = np.asarray(changes, dtype=float)
    first, second = _pairs(n)
    means = np.sort(values[first] / 2 + values[second] / 2)
    below = _signed_ranks(n)
    above_zero = float((means > 0).sum() + (means == 0).sum() / 2)
    p = min(1.0, 2 * float(below[math.floor(min(above_zero, len(means) - above_zero))]))
    left_out = int((below <= (1 - CONFIDENCE) / 2).sum())
    ends = (float(means[left_out - 1]), float(means[-left_out])) if left_out else None
    return float(np.median(means)), ends, p


@functools.lru_cache(maxsize=16)  # the largest have half a million
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Each of n with itself and with every later one."""
    return np.triu_indices(n)


@functools.lru_cache(maxsize=16)
def _signed_ranks(n: int) -> NDArray[np.float64]:
    """P(sum of the positive ones of n signed ranks <= 0, 1, ... n (n + 1) / 2) where signs are as good as drawn."""
    sums = np.arange(n * (n + 1) // 2 + 1)
    if n > EXACT_RANKS:
        spread = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return np.asarray(special.ndtr((sums + 0.5 - sums[-1] / 2) / spread))
    shares = (sums == 0).astype(float)
    for rank in range(1, n + 1):
        shares = (shares + np.concatenate([np.zeros(rank), shares[:-rank]])) / 2
    return np.asarray(shares.cumsum())


def over_seeds(values: Sequence[float], seeds: Sequence[Hashable]) -> tuple[Ends, float]:
    """Interval of the mean of trials' values, and two-sided p of the test that it is zero, where what all trials of a
    seed have in common (surrogates) varies from seed to seed: Student's t on the sums of the seeds' deviations, which
    are the seeds' means where all have as many trials. For at least two seeds; with two it is very wide."""
    mean = statistics.fmean(values)
    deviations: dict[Hashable, float] = {}
    for value, seed in zip(values, seeds, strict=True):
        deviations[seed] = deviations.get(seed, 0.0) + value - mean
    count = len(deviations)
    error = math.sqrt(count / (count - 1) * math.fsum(each**2 for each in deviations.values())) / len(values)
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(special.stdtr(count - 1, -abs(mean) / error)) if error else float(mean == 0)
    return (mean - half, mean + half), p


def covering(
    ends: Ends | None, values: Sequence[float], seeds: Sequence[Hashable], limits: Ends = (-math.inf, math.inf)
) -> Ends | None:
    """An interval of the mean of trials' values that also covers what `over_seeds` says, within the limits; as it is
    where all are of one seed. Both are needed: few seeds may agree by chance, and then seem to tell it exactly."""
    if len(set(seeds)) < 2:
        return ends
    between, _ = over_seeds(values, seeds)
    low, high = ends or between
    return max(min(low, between[0]), limits[0]), min(max(high, between[1]), limits[1])


def _check(values: Sequence[float], baseline: Sequence[float]) -> None:
    if len(values) != len(baseline) or not len(values):
        raise ValueError("need two equal, non-empty lists of successes")


def _yes_or_no(values: Sequence[float], baseline: Sequence[float]) -> bool:
    return set(values) | set(baseline) <= {0, 1}


def _wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a rate."""
    z = float(special.ndtri((1 + CONFIDENCE) / 2))
    middle = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return middle - half, middle + half
