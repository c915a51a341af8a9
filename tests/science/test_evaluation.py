"""Evaluation: intervals and tests against scipy.stats, success, backdoor rates, rejections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from bench.foundation.statistics import interval, paired_difference
from bench.science.classifier import Classifier
from bench.science.dataset import Dataset, Images
from bench.science.evaluation import (
    REJECTED,
    ModelPredictor,
    backdoor_rates,
    decide,
    evaluate,
    predict,
)
from bench.science.poisons import Shown
from bench.science.threat import Trial


class Table:
    """Looks the scores of an image up by its first pixel's level."""

    def __init__(self, scores: list[list[float]]) -> None:
        self.table = torch.tensor(scores)

    def scores(self, pixels: Tensor) -> Tensor:
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        return self.table[(pixels[:, 0, 0, 0] * 255).round().long()]


def favour(predictions: list[int], classes: Any = 3) -> Table:
    """A table that predicts predictions[row] for the image whose first pixel is `row`."""
    return Table([[float(c == p) for c in range(classes)] for p in predictions])


@pytest.fixture
def numbered(make_dataset: Callable[..., Dataset]) -> Dataset:
    """A data set whose test image in row i starts with the level i; labels 0, 1, 2, 0, ..."""
    dataset = make_dataset(12)
    dataset.test.images[:, :, 0, 0] = torch.arange(12, dtype=torch.uint8)[:, None]
    return dataset


def trial_of(dataset: Dataset, *rows: int, adversarial: Any = 1) -> Trial:
    bases = dataset.train.ids[dataset.train.labels == adversarial][:2]
    return Trial(0, dataset.test.ids[list(rows)], 0, adversarial, bases)


RIGHT = [row % 3 for row in range(12)]


@pytest.mark.parametrize("n", range(1, 26))
def test_the_interval_is_that_of_scipy_exactly(n: int) -> None:
    for k in range(n + 1):
        exact = stats.binomtest(k, n).proportion_ci(confidence_level=0.95, method="exact")
        assert interval(k, n) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_the_interval_has_its_tails_by_the_binomial_distribution() -> None:
    low, high = interval(3, 20, confidence=0.9)
    assert stats.binom.sf(2, 20, low) == pytest.approx(0.05)
    assert stats.binom.cdf(3, 20, high) == pytest.approx(0.05)


def test_no_success_in_twenty_still_allows_a_rate_of_17_percent() -> None:
    low, high = interval(0, 20)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert round(high, 3) == 0.168


def test_the_interval_of_nothing_is_everything() -> None:
    assert interval(0, 0) == (0, 1)


def test_the_interval_of_fractions_lies_between_those_of_whole_counts() -> None:
    for low, middle, high in zip(interval(3, 9), interval(3.5, 9), interval(4, 9), strict=True):
        assert low < middle < high


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (1, 0.5)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        interval(k, n)


def rates_by_counting(clean: Sequence[int], triggered: Sequence[int], true: int, adversarial: int) -> dict[str, float]:
    pairs = list(zip(clean, triggered, strict=True))
    right = [t for c, t in pairs if c == true]
    return {
        "asr_all": sum(t == adversarial for _, t in pairs) / len(pairs),
        "asr_excluding": sum(t == adversarial for t in right) / len(pairs),
        "asr_conditional": sum(t == adversarial for t in right) / len(right) if right else 0.0,
        "base_rate": sum(c == adversarial for c, _ in pairs) / len(pairs),
        "n": len(pairs),
        "n_conditional": len(right),
    }


def test_backdoor_rates_are_those_of_their_definitions_in_every_case() -> None:
    for clean, triggered in itertools.product(itertools.product(range(3), repeat=3), repeat=2):
        found = backdoor_rates(torch.tensor(clean), torch.tensor(triggered), 0, 2)
        assert vars(found) == pytest.approx(rates_by_counting(clean, triggered, 0, 2))


@pytest.mark.parametrize(("clean", "triggered"), [([], []), ([0], [0, 1]), ([[0]], [[0]])])
def test_backdoor_rates_need_equal_non_empty_lists(clean: list[Any], triggered: list[Any]) -> None:
    with pytest.raises(ValueError, match="equal, non-empty"):
        backdoor_rates(torch.tensor(clean), torch.tensor(triggered), 0, 1)


def test_success_is_the_target_class(numbered: Dataset) -> None:
    outcome = evaluate(favour([1, *RIGHT[1:]]), numbered, trial_of(numbered, 0), "cpu")
    assert (outcome.success, outcome.target_predictions) == (1.0, [1])
    assert outcome.clean_accuracy == 11 / 12


def test_another_wrong_class_is_no_success(numbered: Dataset) -> None:
    outcome = evaluate(favour([2, *RIGHT[1:]]), numbered, trial_of(numbered, 0), "cpu")
    assert (outcome.success, outcome.target_predictions) == (0.0, [2])


def test_a_target_predicted_right_is_no_success(numbered: Dataset) -> None:
    outcome = evaluate(favour(RIGHT), numbered, trial_of(numbered, 0), "cpu")
    assert (outcome.success, outcome.clean_accuracy) == (0.0, 1.0)


def test_success_over_several_targets_is_their_share_in_their_order(numbered: Dataset) -> None:
    predictions = list(RIGHT)
    predictions[9], predictions[0] = 1, 2
    outcome = evaluate(favour(predictions), numbered, trial_of(numbered, 9, 0, 3, 6), "cpu")
    assert outcome.target_predictions == [1, 2, 0, 0]
    assert outcome.success == 0.25


def test_ties_go_to_the_lower_class(numbered: Dataset) -> None:
    outcome = evaluate(Table([[0.0, 5.0, 5.0]] * 12), numbered, trial_of(numbered, 0), "cpu")
    assert outcome.target_predictions == [1]
    outcome = evaluate(Table([[5.0, 5.0, 0.0]] * 12), numbered, trial_of(numbered, 0), "cpu")
    assert (outcome.target_predictions, outcome.success) == ([0], 0.0)


def test_the_margin_is_the_adversarial_score_over_the_best_other(numbered: Dataset) -> None:
    scores = [[0.0, 0.0, 0.0] for _ in range(12)]
    scores[0], scores[3] = [2.0, 1.5, -1.0], [0.0, 4.0, 1.0]
    outcome = evaluate(Table(scores), numbered, trial_of(numbered, 0, 3), "cpu")
    assert outcome.target_margin == pytest.approx((-0.5 + 3.0) / 2)


def shown_of(dataset: Dataset, looks: list[int], twins: list[int], patch: bool = True) -> Shown:
    """Images that look like the test images in rows `looks` and were made from those in rows `twins` (-1: none)."""
    ids = torch.tensor([dataset.test.ids[row].item() if row >= 0 else -1 for row in twins])
    marks = (torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(len(looks), 2, dtype=torch.long)) if patch else ()
    return Shown(dataset.test.images[torch.tensor(looks)], ids, *marks)


def test_with_a_trigger_the_triggered_images_are_judged(numbered: Dataset) -> None:
    predictions = list(RIGHT)
    predictions[3] = 1
    shown = shown_of(numbered, [1, 2, 4], [0, 3, 6])
    outcome = evaluate(favour(predictions), numbered, trial_of(numbered, 9), "cpu", shown)
    assert outcome.target_predictions == [1, 2, 1]
    assert outcome.success == pytest.approx(2 / 3)
    assert vars(outcome.backdoor) == pytest.approx(rates_by_counting([0, 1, 0], [1, 2, 1], 0, 1))
    assert outcome.clean_accuracy == 11 / 12


@pytest.mark.parametrize(
    ("twins", "patch"), [([0, 3, 6], False), ([-1, -1, -1], True), ([0, -1, 6], True), ([-1, -1, -1], False)]
)
def test_images_without_a_patch_or_of_unknown_origin_have_no_backdoor_rates(
    numbered: Dataset, twins: list[int], patch: bool
) -> None:
    shown = shown_of(numbered, [1, 2, 4], twins, patch)
    outcome = evaluate(favour(RIGHT), numbered, trial_of(numbered, 9), "cpu", shown)
    assert outcome.backdoor is None
    assert outcome.target_predictions == [1, 2, 1]
    assert outcome.success == pytest.approx(2 / 3)
    assert outcome.clean_accuracy == 1.0
    assert outcome.target_margin == pytest.approx((1 - 1 + 1) / 3)


def test_rates_compare_each_image_with_its_own_twin_wherever_it_stands(numbered: Dataset) -> None:
    predictions = [2, 1, 2, 0, 1, 2, 1, 1, 2, 0, 1, 2]
    looks, twins = [4, 0, 1, 3], [9, 6, 3, 0]
    outcome = evaluate(favour(predictions), numbered, trial_of(numbered, 0), "cpu", shown_of(numbered, looks, twins))
    clean, hit = [predictions[row] for row in twins], [predictions[row] for row in looks]
    assert vars(outcome.backdoor) == pytest.approx(rates_by_counting(clean, hit, 0, 1))
    assert outcome.success == outcome.backdoor.asr_all == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_an_error(numbered: Dataset, bad: float) -> None:
    scores = [[1.0, 0.0, 0.0] for _ in range(12)]
    scores[7][2] = bad
    with pytest.raises(ValueError, match="not finite"):
        evaluate(Table(scores), numbered, trial_of(numbered, 0), "cpu")


def test_predictions_do_not_depend_on_the_chunk(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    predictor, images = ModelPredictor(make_model()), make_images(11).images
    whole = predict(predictor, images, "cpu")
    assert whole.shape == (11, 3)
    torch.testing.assert_close(predict(predictor, images, "cpu", chunk=4), whole)


def test_a_model_is_judged_in_eval_mode_and_without_a_graph(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model = make_small(dropout=0.5).train()
    predictor, images = ModelPredictor(model), make_images(6).images
    first = predict(predictor, images, "cpu")
    assert torch.equal(first, predict(predictor, images, "cpu"))
    assert not first.requires_grad
    torch.testing.assert_close(first, model(images.float() / 255).detach())


def test_an_outcome_becomes_plain_values(numbered: Dataset) -> None:
    shown = shown_of(numbered, [0], [0])
    plain = evaluate(favour(RIGHT), numbered, trial_of(numbered, 0), "cpu", shown).as_dict()
    assert plain["success"] == 0.0
    assert plain["backdoor"]["n"] == 1


class Refusing(Table):
    """A table that rejects the images whose first pixel is one of `rejected`."""

    def __init__(self, predictions: list[int], rejected: list[int]) -> None:
        super().__init__(favour(predictions).table.tolist())
        self.rejected = torch.tensor(rejected)

    def rejects(self, pixels: Tensor) -> Tensor:
        return torch.isin((pixels[:, 0, 0, 0] * 255).round().long(), self.rejected)


def test_a_rejected_image_is_of_no_class_whatever_its_scores(numbered: Dataset) -> None:
    scores, predictions = decide(Refusing(RIGHT, [2, 7]), numbered.test.images, "cpu")
    assert predictions.tolist() == [REJECTED if row in (2, 7) else row % 3 for row in range(12)]
    assert torch.equal(scores, predict(favour(RIGHT), numbered.test.images, "cpu"))


def test_rejected_images_are_neither_correct_nor_a_success(numbered: Dataset) -> None:
    predictions = list(RIGHT)
    predictions[0], predictions[3] = 1, 1
    trial = trial_of(numbered, 0, 3, 6)
    free = evaluate(favour(predictions), numbered, trial, "cpu")
    assert (free.success, free.clean_accuracy) == (pytest.approx(2 / 3), 10 / 12)
    assert (free.rejected, free.rejected_shown) == (0, 0)
    held = evaluate(Refusing(predictions, [0, 6, 11]), numbered, trial, "cpu")
    assert held.target_predictions == [REJECTED, 1, REJECTED]
    assert (held.success, held.clean_accuracy) == (pytest.approx(1 / 3), 8 / 12)  # the first was wrong before
    assert (held.rejected, held.rejected_shown) == (pytest.approx(3 / 12), pytest.approx(2 / 3))
    assert held.target_margin == free.target_margin  # of the scores, rejected or not


def test_a_rejected_image_is_no_success_in_any_rate_of_a_trigger(numbered: Dataset) -> None:
    """Twin rows 0, 3, 6, 9 look, with the trigger, like rows 1, 4, 7, 10, all of the target class 1."""
    looks, twins = [1, 4, 7, 10], [0, 3, 6, 9]
    shown = shown_of(numbered, looks, twins)
    outcome = evaluate(Refusing(RIGHT, [1, 4, 6]), numbered, trial_of(numbered, 9), "cpu", shown)
    # Two of four triggered images are rejected; of the other two, one has a twin that is rejected.
    assert vars(outcome.backdoor) == pytest.approx(
        {"asr_all": 0.5, "asr_excluding": 0.25, "asr_conditional": 1 / 3, "base_rate": 0.0, "n": 4, "n_conditional": 3}
    )
    assert (outcome.success, outcome.rejected, outcome.rejected_shown) == (0.5, 3 / 12, 0.5)
    assert outcome.clean_accuracy == 9 / 12


def test_all_rejected_leaves_nothing(numbered: Dataset) -> None:
    outcome = evaluate(Refusing(RIGHT, list(range(12))), numbered, trial_of(numbered, 0), "cpu")
    assert (outcome.success, outcome.clean_accuracy, outcome.rejected, outcome.rejected_shown) == (0, 0, 1, 1)


def successes(both: int, mine: int, theirs: int, neither: int) -> tuple[list[float], list[float]]:
    """Two lists of paired successes with these counts."""
    return (
        [1.0] * (both + mine) + [0.0] * (theirs + neither),
        [1.0] * both + [0.0] * mine + [1.0] * theirs + [0.0] * neither,
    )


@pytest.mark.parametrize(
    ("counts", "published"),
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((54, 0, 0, 0), (-0.0664, 0.0664))],
)
def test_the_paired_difference_is_newcombes(counts: tuple[int, int, int, int], published: tuple[float, float]) -> None:
    """Newcombe (1998), Table II, method 10."""
    gain, low, high = paired_difference(*successes(*counts))
    assert gain == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert (low, high) == pytest.approx(published, abs=1e-4)


def test_the_paired_difference_of_rates_is_students() -> None:
    ours, theirs = [0.5, 0.42, 0.31, 0.9], [0.1, 0.12, 0.2, 0.05]
    gain, low, high = paired_difference(ours, theirs)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert gain == pytest.approx(sum(ours) / 4 - sum(theirs) / 4)


def test_a_paired_difference_turns_round_with_its_sides() -> None:
    for counts in [(3, 10, 1, 6), (0, 20, 0, 0), (5, 0, 5, 5), (0, 0, 0, 7)]:
        ours, theirs = successes(*counts)
        gain, low, high = paired_difference(ours, theirs)
        turned = paired_difference(theirs, ours)
        assert turned == pytest.approx((-gain, -high, -low))
        assert -1 <= low <= gain <= high <= 1


def test_a_paired_difference_needs_equal_non_empty_lists() -> None:
    for ours, theirs in [([], []), ([1.0], [1.0, 0.0])]:
        with pytest.raises(ValueError, match="two equal"):
            paired_difference(ours, theirs)
