"""Intervals and tests of rates over several victims: against Clopper-Pearson, McNemar, enumeration and simulation."""

from __future__ import annotations

import itertools
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bench.foundation.bounded_mean import interval_of_mean
from bench.foundation.statistics import interval, mcnemar, paired_difference, paired_test, rates_interval, sign_flips

coverage = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "coverage.py")))


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (13, 20), (20, 20), (3, 7), (431, 500)])
def test_rates_of_0_and_1_have_clopper_and_pearsons_interval(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(method="exact")
    assert rates_interval([1.0] * k + [0.0] * (n - k)) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "victims", "rate"), [(1, 8, 0.2), (2, 3, 0.5), (5, 8, 0.1), (40, 8, 0.05), (20, 64, 0.5)]
)
def test_the_ends_are_quantiles_of_means_with_weights_drawn_from_the_simplex(n: int, victims: int, rate: float) -> None:
    chance = np.random.default_rng(n)
    rates = chance.binomial(victims, rate, n) / victims
    low, high = interval_of_mean(rates.tolist(), 0.95)
    weights = chance.dirichlet(np.ones(n + 1), 40_000)
    assert (weights @ [*rates, 1.0] > high).mean() == pytest.approx(0.025, abs=0.004)
    assert (weights @ [*rates, 0.0] < low).mean() == pytest.approx(0.025, abs=0.004)


def test_the_interval_lies_within_clopper_and_pearsons_on_trials_and_shrinks_with_their_differences() -> None:
    chance = np.random.default_rng(0)
    for n, victims in itertools.product((1, 3, 20), (2, 8)):
        rates = (chance.binomial(victims, chance.random(n)) / victims).tolist()
        (low, high), (widest_low, widest_high) = rates_interval(rates), interval(sum(rates), n)
        assert widest_low - 1e-9 <= low <= np.mean(rates) <= high <= widest_high + 1e-9
    widths = [high - low for low, high in map(rates_interval, ([0.0, 1.0] * 10, [0.25, 0.75] * 10, [0.5] * 20))]
    assert widths == sorted(widths, reverse=True) and widths[2] < 0.5 * widths[0]


def test_no_rates_say_nothing_and_others_than_rates_are_refused() -> None:
    assert rates_interval([]) == (0.0, 1.0)
    with pytest.raises(ValueError, match="outside"):
        rates_interval([1.5])


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_are_mcnemars_test_for_single_victims_and_those_of_enumeration(seed: int) -> None:
    chance = np.random.default_rng(seed)
    ours, theirs = ((chance.random(20) < rate).astype(float).tolist() for rate in (0.3, 0.6))
    assert sign_flips(ours, theirs) == pytest.approx(mcnemar(ours, theirs), abs=1e-12)
    ours, theirs = ((chance.binomial(victims, 0.5, 8) / victims).tolist() for victims in (4, 3))
    differences = np.subtract(ours, theirs)
    sums = [abs(differences @ signs) for signs in itertools.product([1, -1], repeat=8)]
    assert sign_flips(ours, theirs) == pytest.approx(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9))


def test_many_trials_and_denominators_have_a_p_as_students() -> None:
    chance = np.random.default_rng(0)
    ours, theirs = ((chance.binomial(v, p) / v).tolist() for v, p in ((chance.integers(1, 65, 500), 0.50),
                                                                     (chance.integers(1, 65, 500), 0.52)))  # fmt: skip
    assert sign_flips(ours, theirs) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, abs=0.02)


def test_several_victims_are_compared_by_trials() -> None:
    ours, theirs = [0.25] * 10, [0.75] * 10
    gain, low, high = paired_difference(ours, theirs, several=True)
    assert gain == -0.5 and low < gain < high < 0
    assert paired_test(ours, theirs, several=True) == ("exact sign flips", pytest.approx(2 / 2**10))
    assert paired_difference([0.5], [0.5], several=True) == (0.0, pytest.approx(-0.975), pytest.approx(0.975))
    assert paired_test([0.5], [0.5], several=True) == ("exact sign flips", 1.0)


@pytest.mark.parametrize("between", [0.0, 0.2, 1.0, coverage.MIXTURE])
@pytest.mark.parametrize("n", [5, 20])
def test_intervals_cover(n: int, between: float) -> None:
    """The small form of benchmarks/coverage.py: 93 % less what 400 samples leave to chance."""
    chance, samples = np.random.default_rng(0), 400
    least = 0.93 - 2 * math.sqrt(0.05 * 0.95 / samples)
    for mean in (0.02, 0.3, 0.98):
        assert coverage.rates_once(chance, n, 4, samples, mean, between)["bound"][0] >= least
    found = coverage.differences_once(chance, n, 4, samples, (0.1, 0.5), between, "in the same order")
    assert found["bound"][0] >= least


def test_the_simulation_finds_an_interval_that_does_not_cover() -> None:
    found = coverage.rates_once(np.random.default_rng(0), 10, 8, 400, 0.1, coverage.MIXTURE)
    assert found["Student"][0] < 0.9 < found["bound"][0]
