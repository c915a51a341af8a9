"""Intervals and paired tests against scipy.stats and hand-computed values."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.foundation.statistics import (
    _wilson,
    interval,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_test,
    spread,
)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (13, 20), (20, 20), (3, 7), (431, 500)])
def test_clopper_pearson_and_wilson_are_scipys(k: int, n: int) -> None:
    test = stats.binomtest(k, n)
    assert interval(k, n) == pytest.approx(tuple(test.proportion_ci(method="exact")), abs=1e-12)
    assert _wilson(k, n) == pytest.approx(tuple(test.proportion_ci(method="wilson")), abs=1e-12)


def test_fractional_successes_take_the_beta_quantiles() -> None:
    low, high = interval(8.08, 20)
    assert low == pytest.approx(stats.beta.ppf(0.025, 8.08, 12.92))
    assert high == pytest.approx(stats.beta.ppf(0.975, 9.08, 11.92))


def test_the_interval_of_a_mean_is_students() -> None:
    values = [0.91, 0.88, 0.93, 0.90]
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([0.9]) is None


def test_mcnemar_by_hand() -> None:
    # Nine trials succeed undefended only, none behind the defense only: p = 2 / 2^9.
    ours, theirs = [1] * 4 + [0] * 9 + [0] * 7, [1] * 4 + [1] * 9 + [0] * 7
    assert mcnemar(ours, theirs) == pytest.approx(2 / 512)
    # 1 against 4 of five that differ: P(at most 1 of 5) = 6/32, two-sided 12/32.
    assert mcnemar([1, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1]) == pytest.approx(12 / 32)
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1.0
    assert mcnemar([1, 0], [0, 1]) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_tests_are_scipys(seed: int) -> None:
    chance = np.random.default_rng(seed)
    ours, theirs = (chance.random(30) < rate for rate in (0.3, 0.6))
    more, less = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    name, p = paired_test(ours.astype(float).tolist(), theirs.astype(float).tolist())
    assert name == "exact McNemar"
    assert p == pytest.approx(stats.binomtest(more, more + less).pvalue)
    rates, others = chance.random(12), chance.random(12)
    name, p = paired_test(rates.tolist(), others.tolist())
    assert name == "paired t"
    assert p == pytest.approx(stats.ttest_rel(rates, others).pvalue)


def test_rates_without_spread_have_no_p() -> None:
    assert paired_test([0.5], [0.2]) == ("paired t", None)
    assert paired_test([0.5, 0.5], [0.2, 0.2]) == ("paired t", None)
    assert paired_test([0.5, 0.25], [0.5, 0.25]) == ("paired t", 1.0)


def test_difference_and_test_of_rates_agree() -> None:
    """p < 0.05 exactly when the 95 % interval leaves zero out."""
    chance = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        ours, theirs = (chance.normal(mean, 0.1, 8).clip(0.01, 0.99).tolist() for mean in (0.4, 0.5))
        _, low, high = paired_difference(ours, theirs)
        _, p = paired_test(ours, theirs)
        assert p is not None and not math.isnan(p)
        seen.add(p < 0.05)
        assert (p < 0.05) == (low > 0 or high < 0)
    assert seen == {True, False}


@pytest.mark.parametrize("pair", [([], []), ([1.0], [])])
def test_unequal_or_empty_lists_are_refused(pair: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match="equal, non-empty"):
        paired_test(*pair)


NUMBERS = st.floats(0, 1) | st.floats(-1e12, 1e12) | st.integers(0, 10000).map(lambda k: k / 10000) | st.integers(0, 1)


@given(st.lists(NUMBERS, min_size=2, max_size=20))
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
def test_the_spread_is_that_of_the_standard_library_to_the_last_bit(values: list[float]) -> None:
    assert spread(values) == statistics.stdev(values)
