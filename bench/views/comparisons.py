"""What is measured of a cell against another one, on the trials that both finished."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.foundation.statistics import (
    Ends,
    covering,
    mean_interval,
    over_seeds,
    paired_difference,
    paired_test,
    typical_change,
)
from bench.storage.record import Record
from bench.views.cells import common_trials, trial_means, trial_seeds, trials_with_margin


@dataclass(frozen=True)
class Drop:
    """Clean accuracy lost against the undefended cell, mean over n common trials; interval: 95 % (Student)."""

    mean: float
    interval: Ends | None
    n: int


@dataclass(frozen=True)
class MarginChange:
    """The typical change of the target's margin over n common trials, in logits (see `statistics.typical_change`):
    below 0 the target moved away from the attacker's class. interval: 95 %, None for few trials; p: of the signed-rank
    test."""

    typical: float
    interval: Ends | None
    p: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        return {"margin": self.typical, "margin_low": low, "margin_high": high, "margin_p": self.p, "margin_n": self.n}


@dataclass(frozen=True)
class Comparison:
    """Success less that of the baseline on n common trials, with a 95 % interval, and the p of a paired test; p is None
    where there is no spread to judge by. margin: None where no record tells it."""

    baseline: str
    n: int
    difference: float
    low: float
    high: float
    test: str
    p: float | None
    margin: MarginChange | None

    def as_dict(self) -> dict[str, Any]:
        nothing = dict.fromkeys(("margin", "margin_low", "margin_high", "margin_p", "margin_n"))
        return {**asdict(self), **nothing, **(self.margin.as_dict() if self.margin else {})}


def drop_and_cost(ours: Sequence[Record], undefended: Sequence[Record]) -> tuple[Drop | None, float | None]:
    """Drop of clean accuracy and cost of training against the undefended cell, on common trials."""
    pairs = common_trials(ours, undefended)
    if not pairs:
        return None, None
    mine = [record for record, _ in pairs]
    differences = [(bare["clean_accuracy"] or 0.0) - (record["clean_accuracy"] or 0.0) for record, bare in pairs]
    lost = trial_means(mine, differences)
    seconds, bare_seconds = (sum(pair[side]["seconds"].get("train", 0.0) for pair in pairs) for side in (0, 1))
    cost = seconds / bare_seconds if bare_seconds > 0 else None
    return Drop(statistics.fmean(lost), covering(mean_interval(lost), lost, trial_seeds(mine)), len(lost)), cost


def compare(ours: Sequence[Record], base: Sequence[Record], label: str) -> Comparison | None:
    """None without a common trial. Over several seeds intervals cover, and p is at least, what these say."""
    pairs = common_trials(ours, base)
    if not pairs:
        return None
    successes = [[pair[side]["success"] or 0.0 for pair in pairs] for side in (0, 1)]
    mine = [record for record, _ in pairs]
    rates, base_rates = (trial_means(mine, each) for each in successes)
    several = len(pairs) > len(rates) and set().union(*successes) <= {0.0, 1.0}
    test, p = paired_test(rates, base_rates, several)
    gain, *ends = paired_difference(rates, base_rates, several)
    seeds, changes = trial_seeds(mine), [a - b for a, b in zip(rates, base_rates, strict=True)]
    low, high = covering((ends[0], ends[1]), changes, seeds, (-1.0, 1.0)) or ends
    if len(set(seeds)) > 1:
        test, p = f"{test} and t over seeds", p if p is None else max(p, over_seeds(changes, seeds)[1])
    return Comparison(label, len(rates), gain, low, high, test, p, _margins(pairs))


def _margins(pairs: Sequence[tuple[Record, Record]]) -> MarginChange | None:
    records, differences = trials_with_margin(pairs)
    if not records:
        return None
    changes, seeds = trial_means(records, differences), trial_seeds(records)
    typical, ends, p = typical_change(changes)
    if len(set(seeds)) > 1:
        p = max(p, over_seeds(changes, seeds)[1])
    return MarginChange(typical, covering(ends, changes, seeds), p, len(changes))
