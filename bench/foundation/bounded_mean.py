"""The interval of the mean of values in [0, 1], whatever their distribution: Gaffke's bound on both sides.

The upper end is a quantile of D0 1 + D1 x1 + ... + Dn xn, with D uniform on the simplex (Dirichlet(1, ..., 1)); the
lower end mirrors it. Of values of 0 or 1 these are Clopper and Pearson's ends. N. Gaffke, "Three test statistics for a
nonparametric one-sided hypothesis on the mean of a nonnegative variable", 2005; Learned-Miller and Thomas, "A new
confidence interval for the mean of a bounded random variable", 2019, and Phan, Thomas and Learned-Miller, ICML 2021, on
why it covers. Rivals that estimate how much trials differ (Korn and Graubard's effective number) do not where a few
trials that were not drawn differ from the rest: benchmarks/coverage.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

_ANGLES, _WEIGHTS = (math.pi / 4 * half for half in np.polynomial.legendre.leggauss(64))
_TANGENTS = np.tan(_ANGLES + math.pi / 4)
_WEIGHTS = _WEIGHTS * (1 + _TANGENTS**2) / math.pi
HALVINGS, STEPS = 16, 40


def interval_of_mean(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """(0, 1) for no values. ValueError for values outside [0, 1]."""
    if not all(0 <= value <= 1 for value in values):
        raise ValueError("values outside [0, 1]")
    tail = (1 - confidence) / 2
    return 1 - _upper_of([1 - value for value in values], tail), _upper_of(values, tail)


def _upper_of(values: Sequence[float], tail: float) -> float:
    knots, counts = np.unique([*values, 1.0], return_counts=True)
    return float(upper(knots, counts[None].astype(float), tail)[0])


def upper(knots: Floats, counts: Floats, tail: float) -> Floats:
    """Upper ends [samples] of several samples at once. knots [values], increasing, the last of them 1; counts [samples,
    values]: how often each sample has each, and once more 1."""
    n = counts.sum(1)
    mean = counts @ knots / n
    variance = (counts @ knots**2 / n - mean**2).clip(0) / (n + 1)
    ends = np.ones_like(mean)
    for sample in np.flatnonzero((counts > 0).sum(1) == 2):  # a beta distribution
        (below, _), (many, few) = knots[counts[sample] > 0], counts[sample][counts[sample] > 0]
        ends[sample] = below + (1 - below) * special.betaincinv(few, many, 1 - tail)
    more = np.flatnonzero((counts > 0).sum(1) > 2)
    if len(more):
        ends[more] = _solved(knots, counts[more], mean[more], variance[more], tail)
    return ends


def _solved(knots: Floats, counts: Floats, mean: Floats, variance: Floats, tail: float) -> Floats:
    """Where `above` is `tail`: the secant method on its logarithm, kept between what is too low and too high, from the
    quantile of the beta distribution of equal mean and variance."""
    size = mean * (1 - mean) / variance - 1
    old = special.betaincinv(mean * size, (1 - mean) * size, 1 - tail)
    low, high = mean, np.ones_like(mean)
    error_old = np.log(above(old, knots, counts) / tail)
    new = np.where(error_old > 0, old + 0.01 * (high - old), old - 0.01 * (old - low))
    for _ in range(STEPS):
        error = np.log(above(new, knots, counts) / tail)
        done = np.abs(error) < 1e-9
        if done.all():
            break
        low, high = np.where(error > 0, new, low), np.where(error < 0, new, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            guess = new - error * (new - old) / (error - error_old)
        guess = np.where((guess > low) & (guess < high), guess, (low + high) / 2)
        old, error_old, new = new, error, np.where(done, new, guess)
    return new


def above(levels: Floats, knots: Floats, counts: Floats) -> Floats:
    """Probability [samples] that the mean of the knots, weighted by the counts and a uniform D, is above a level.

    That is P(sum of (knot - level) E > 0) with E of gamma distributions, from their cumulant function by the inversion
    integral on the vertical line through its saddle point, where nothing oscillates.
    """
    centred = np.where(counts > 0, knots - levels[:, None], 0.0)
    below = (counts * centred).sum(1) < 0
    centred = np.where(below[:, None], centred, -centred)  # the lesser tail
    furthest = centred.max(1)
    beyond_all = furthest <= 0
    centred = np.where(beyond_all[:, None], 1.0, centred)  # whatever is defined
    low, high = np.zeros_like(levels), 1 / np.where(beyond_all, 1.0, furthest)
    for _ in range(HALVINGS):
        s = (low + high) / 2
        beyond = (counts * centred / (1 - centred * s[:, None])).sum(1) > 0
        low, high = np.where(beyond, low, s), np.where(beyond, s, high)
    s = (low + high) / 2
    slopes = centred / (1 - centred * s[:, None])
    height = np.exp(-(counts * np.log1p(-centred * s[:, None])).sum(1))
    width = 1 / np.sqrt((counts * slopes**2).sum(1))
    along = width[:, None] * _TANGENTS
    curve = np.exp(-(counts[:, :, None] * np.log(1 - 1j * slopes[:, :, None] * along[:, None, :])).sum(1))
    tail = height * width * ((curve / (s[:, None] + 1j * along)).real @ _WEIGHTS)
    tail = np.where(beyond_all, 0.0, tail)
    return np.where(below, tail, 1 - tail).clip(1e-300, 1.0)
