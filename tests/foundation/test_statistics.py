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
    MOST_RANKED,
    _wilson,
    covering,
    interval,
    mcnemar,
    mean_interval,
    over_seeds,
    paired_difference,
    paired_test,
    spread,
    typical_change,
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


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20, 60, 100])
def test_the_test_of_a_typical_change_is_scipys_of_signed_ranks(n: int) -> None:
    changes = np.random.default_rng(n).normal(-0.4, 1, n)
    assert typical_change(changes.tolist())[2] == pytest.approx(stats.wilcoxon(changes, method="exact").pvalue)


def test_beyond_a_hundred_changes_ranks_are_as_good_as_normal() -> None:
    changes = stats.norm.ppf((np.arange(150) + 0.5) / 150) - 0.15
    exact = stats.wilcoxon(changes, method="exact").pvalue
    assert 0.001 < exact < 0.2 and typical_change(changes.tolist())[2] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("n", [6, 9, 30])
def test_the_interval_of_a_typical_change_holds_the_shifts_that_the_test_does_not_refute(n: int) -> None:
    changes = np.random.default_rng(n).standard_t(2, n)  # with changes far out
    typical, ends, _ = typical_change(changes.tolist())
    assert ends is not None and ends[0] < typical < ends[1]
    for end, inside in ((ends[0], 1e-6), (ends[1], -1e-6)):
        assert stats.wilcoxon(changes - end - inside, method="exact").pvalue > 0.05
        assert stats.wilcoxon(changes - end + inside, method="exact").pvalue <= 0.05


def test_a_typical_change_by_hand() -> None:
    # Means of pairs of 1, 2 and 6: 1, 1.5, 2, 3.5, 4, 6.
    assert typical_change([6.0, 1.0, 2.0]) == (2.75, None, 0.25)
    assert typical_change([0.0] * 10) == (0.0, (0.0, 0.0), 1.0)  # a defense that changes nothing
    assert typical_change([-1.0] * 7 + [-1e39]) == (-1.0, (-5e38, -1.0), 2 * 0.5**8)  # one far out


def test_very_many_changes_are_judged_by_students_t() -> None:
    changes = np.random.default_rng(0).normal(-0.05, 1, MOST_RANKED + 1)
    mean, ends, p = typical_change(changes.tolist())
    assert mean == pytest.approx(changes.mean()) and ends == mean_interval(changes.tolist())
    assert p == pytest.approx(stats.ttest_1samp(changes, 0).pvalue)


def test_equally_many_trials_of_each_seed_are_judged_by_the_means_of_the_seeds() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, (5, 20)) + np.arange(5)[:, None] / 4
    ends, p = over_seeds(values.ravel().tolist(), np.repeat(range(5), 20).tolist())
    means = stats.ttest_1samp(values.mean(1), 0)
    assert ends == pytest.approx(tuple(means.confidence_interval())) and p == pytest.approx(means.pvalue)


def test_unequal_seeds_by_hand() -> None:
    # Mean 0.5; the deviations of the seeds add up to 1, 0 and -1, so the error is sqrt(3 / 2 * 2) / 8.
    values, seeds = [1.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.0, 0.0], [3, 3, 3, 3, 4, 4, 5, 5]
    half = stats.t.ppf(0.975, 2) * math.sqrt(3) / 8
    assert over_seeds(values, seeds)[0] == pytest.approx((0.5 - half, 0.5 + half))


def test_seeds_that_agree_by_chance_do_not_make_an_interval_narrow() -> None:
    ends = interval(20, 40)
    assert over_seeds([1.0, 0.0] * 20, [0] * 20 + [1] * 20)[0] == (0.5, 0.5)
    assert covering(ends, [1.0, 0.0] * 20, [0] * 20 + [1] * 20) == ends
    assert covering(ends, [1.0, 0.0] * 20, [7] * 40) == ends and covering(None, [1.0, 0.0], [7, 7]) is None
    assert covering(None, [1.0, 0.0], [0, 1], (0.0, 1.0)) == (0.0, 1.0)


def test_over_seeds_that_differ_the_interval_covers_and_that_of_independent_trials_does_not() -> None:
    """Rates of seeds that vary by a tenth of a trial's variance, 5 seeds of 20 trials; benchmarks/seeds.py has more."""
    chance, samples, mean = np.random.default_rng(0), 600, 0.4
    seeds = np.repeat(range(5), 20).tolist()
    covered = {"shown": 0, "as if independent": 0}
    for rates in chance.beta(9 * mean, 9 * (1 - mean), (samples, 5)):
        values = (chance.random(100) < rates.repeat(20)).astype(float).tolist()
        naive = interval(sum(values), 100)
        shown = covering(naive, values, seeds, (0.0, 1.0))
        assert shown is not None
        covered["shown"] += shown[0] <= mean <= shown[1]
        covered["as if independent"] += naive[0] <= mean <= naive[1]
    assert covered["shown"] / samples > 0.93 and covered["as if independent"] / samples < 0.85
