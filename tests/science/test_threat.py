"""The threat model: how trials are drawn, budgets, and the subsets that a victim is trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.settings import build
from bench.science.dataset import Dataset, Images
from bench.science.threat import Threat, Trial, check_budget, draw_trial, victim_data, victim_size

GOLDEN = [
    (2, 0, [85, 71], [14, 31, 11]),
    (1, 0, [67, 40], [7, 5, 26]),
    (2, 1, [110, 115], [53, 62, 55]),
]  # written by the version before `threat.eligible`


def trials(dataset: Dataset, n: int, seed: int = 0, **threat: Any) -> list[Trial]:
    return [draw_trial(dataset, Threat(**{"budget": 0.1, **threat}), seed, index) for index in range(n)]


def unbalanced(*per_class: int) -> Dataset:
    labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
    images = Images(torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), labels, torch.arange(len(labels)))
    return Dataset("unbalanced", tuple(str(i) for i in range(len(per_class))), images, images)


def test_a_trial_repeats(make_dataset: Callable[..., Dataset]) -> None:
    first, again = trials(make_dataset(), 3), trials(make_dataset(), 3)
    assert [t.as_dict() for t in first] == [t.as_dict() for t in again]


def test_a_trial_does_not_depend_on_the_trials_before_it(make_dataset: Callable[..., Dataset]) -> None:
    alone = draw_trial(make_dataset(), Threat(budget=0.1), 0, 4)
    assert alone.as_dict() == trials(make_dataset(), 5)[4].as_dict()


def test_seed_and_index_give_other_trials(make_dataset: Callable[..., Dataset]) -> None:
    drawn = [json.dumps({**t.as_dict(), "index": 0}) for seed in (0, 1) for t in trials(make_dataset(90), 6, seed)]
    assert len(set(drawn)) == 12


def test_bases_are_of_the_target_class_and_targets_of_another(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(60)
    for trial in trials(dataset, 20, targets=3):
        assert trial.target_class != trial.source_class
        assert set(dataset.train.labels[dataset.train.rows_of(trial.base_ids)].tolist()) == {trial.target_class}
        assert set(dataset.test.labels[dataset.test.rows_of(trial.target_ids)].tolist()) == {trial.source_class}
        assert len(set(trial.base_ids.tolist())) == len(trial.base_ids) == 6
        assert len(set(trial.target_ids.tolist())) == len(trial.target_ids) == 3


def test_more_budget_or_targets_keep_the_classes(make_dataset: Callable[..., Dataset]) -> None:
    small, large = trials(make_dataset(60), 10), trials(make_dataset(60), 10, budget=0.3, targets=5)
    assert [(t.source_class, t.target_class) for t in small] == [(t.source_class, t.target_class) for t in large]


def test_a_named_pair_is_that_of_every_trial_and_changes_no_other_draw(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(12)
    first, second = dataset.classes[2], dataset.classes[0]
    named = trials(dataset, 20, pair=f"{first}, {second}")
    assert {(trial.source_class, trial.target_class) for trial in named} == {(2, 0)}
    for trial in named:
        assert (dataset.train.labels[torch.isin(dataset.train.ids, trial.base_ids)] == 0).all()
        assert (dataset.test.labels[torch.isin(dataset.test.ids, trial.target_ids)] == 2).all()
    for drawn, trial in zip(trials(dataset, 20), named, strict=True):
        if (drawn.source_class, drawn.target_class) == (2, 0):
            assert torch.equal(drawn.target_ids, trial.target_ids) and torch.equal(drawn.base_ids, trial.base_ids)


def among(dataset: Dataset, right: list[int], n: int, **threat: Any) -> list[Trial]:
    return [draw_trial(dataset, Threat(budget=0.1, **threat), 0, index, torch.tensor(right)) for index in range(n)]


def test_only_what_is_right_becomes_a_target_and_nothing_else_moves(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(60)
    right = dataset.test.ids[dataset.test.ids % 3 != 0].tolist()
    for trial, free in zip(among(dataset, right, 30, targets=3), trials(dataset, 30, targets=3), strict=True):
        targets, kept = trial.target_ids.tolist(), [i for i in free.target_ids.tolist() if i in right]
        assert targets[: len(kept)] == kept and set(targets) <= set(right) and len(set(targets)) == 3
        assert set(dataset.test.labels[dataset.test.rows_of(trial.target_ids)].tolist()) == {trial.source_class}
        assert {**trial.as_dict(), "target_ids": 0} == {**free.as_dict(), "target_ids": 0}


def test_where_all_are_right_trials_are_those_of_any(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(60)
    drawn = among(dataset, dataset.test.ids.tolist(), 10, targets=2)
    assert [t.as_dict() for t in drawn] == [t.as_dict() for t in trials(dataset, 10, targets=2)]


def test_right_images_are_equally_likely_targets(make_dataset: Callable[..., Dataset]) -> None:
    dataset, n = make_dataset(30), 1000
    right = dataset.test.ids[dataset.test.labels == 1][:8].tolist()
    drawn = among(dataset, right, n, pair=f"{dataset.classes[1]},{dataset.classes[0]}")
    counts = torch.tensor([sum(int(t.target_ids[0]) == each for t in drawn) for each in right])
    assert counts.sum() == n and ((counts - n / 8) ** 2 / (n / 8)).sum() < 24.3  # 0.999 quantile, 7 degrees of freedom


def test_too_few_right_images_fail_the_trial(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(30)
    with pytest.raises(TrialFailed, match="classifies 0 test images of class 'class .' right, but a trial needs 2"):
        among(dataset, [], 1, targets=2)


def test_trials_are_drawn_as_they_always_were() -> None:
    drawn = trials(unbalanced(40, 30, 50), 3, seed=7, targets=2, budget=0.02)
    assert [(t.source_class, t.target_class, t.target_ids.tolist(), t.base_ids.tolist()) for t in drawn] == GOLDEN


def test_a_pair_that_cannot_be_is_refused_in_one_line(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(12)
    one, other = dataset.classes[:2]
    for pair, said in (
        (one, "two different classes"),
        (f"{one},{one}", "two different classes"),
        (f"{one},{other},{one}", "two different classes"),
        (f"{one},{other}x", f"has no class '{other}x'"),
    ):
        with pytest.raises(BadInput, match=said):
            draw_trial(dataset, Threat(pair=pair), 0, 0)


def test_all_ordered_pairs_of_classes_are_equally_likely(make_dataset: Callable[..., Dataset]) -> None:
    dataset, n, classes = make_dataset(32, classes=4), 1200, 4
    counts = torch.zeros(classes, classes)
    for trial in trials(dataset, n, budget=0.02):
        counts[trial.source_class, trial.target_class] += 1
    expected = n / (classes * (classes - 1))
    apart = counts[~torch.eye(classes, dtype=torch.bool)]
    chi_squared = ((apart - expected) ** 2 / expected).sum().item()
    assert chi_squared < 31.3  # 0.999 quantile, 11 degrees of freedom
    assert counts.trace() == 0


def test_every_image_of_a_class_can_be_drawn(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(30)
    drawn = trials(dataset, 200)
    assert {int(i) for t in drawn for i in t.base_ids} == set(dataset.train.ids.tolist())
    assert {int(i) for t in drawn for i in t.target_ids} == set(dataset.test.ids.tolist())


@pytest.mark.parametrize(
    ("budget", "n", "count"),
    [(0.01, 50_000, 500), (0.01, 1000, 10), (0.01, 1001, 11), (0.07, 100, 7), (0.001, 10, 1), (1.0, 7, 7)],
)
def test_the_budget_is_rounded_up_but_not_by_float_error(budget: float, n: int, count: int) -> None:
    assert Threat(budget=budget).poisons(n) == count


def test_a_budget_beyond_the_smallest_class_is_refused_with_the_limit() -> None:
    with pytest.raises(BadInput, match="asks for 5 poisons.*smallest class of 'unbalanced' has 4 training images"):
        draw_trial(unbalanced(6, 4), Threat(budget=0.5), 0, 0)


def test_a_budget_of_the_whole_smallest_class_is_allowed() -> None:
    check_budget(unbalanced(6, 4), Threat(budget=0.4))


@pytest.mark.parametrize("sizes", [(6, 4), (16, 14), (20, 10), (9, 8), (334, 333, 333)])
def test_the_largest_budget_that_the_refusal_names_is_accepted(sizes: tuple[int, int]) -> None:
    dataset = unbalanced(*sizes)
    with pytest.raises(BadInput) as caught:
        check_budget(dataset, Threat(budget=0.9))
    named = float(re.search(r"at most ([0-9.e-]+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    check_budget(dataset, Threat(budget=named))


def test_more_targets_than_the_smallest_test_class_are_refused() -> None:
    with pytest.raises(BadInput, match="threat.targets 5: the smallest class has only 4"):
        draw_trial(unbalanced(6, 4), Threat(budget=0.1, targets=5), 0, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("eps", 0), ("eps", 256), ("eps", 8 / 255), ("budget", 0.0), ("budget", 1.1), ("targets", 0), ("surrogates", 0),
     ("scenario", "transfers"), ("per_class", -1), ("patch", -1), ("patch", 257), ("patch_seed", -1),
     ("placement", "middle"), ("surrogate", 3)],
)  # fmt: skip
def test_threats_out_of_bounds_are_refused(key: str, value: int) -> None:
    with pytest.raises(BadInput, match=f"threat.{key}"):
        build(Threat, {key: value}, "threat")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("lenet", ("lenet",)),
        ("convnet,lenet", ("convnet", "lenet")),
        (" convnet , lenet ", ("convnet", "lenet")),
    ],
)
def test_architectures_are_the_names_between_commas(text: str, names: tuple[str, ...]) -> None:
    assert Threat(surrogate=text).architectures == names


@pytest.mark.parametrize("budget", [0.1, 1 / 3])
def test_a_subset_holds_the_bases_and_exactly_so_many_of_each_class(
    make_dataset: Callable[..., Dataset], budget: float
) -> None:
    dataset, threat = make_dataset(60), Threat(per_class=6, budget=budget)
    assert victim_size(dataset, threat) == 18
    for index in range(10):
        trial = draw_trial(dataset, threat, 0, index)
        data = victim_data(dataset, threat, trial)
        assert len(trial.base_ids) == threat.poisons(18)
        assert torch.bincount(data.labels).tolist() == [6, 6, 6]
        assert torch.isin(trial.base_ids, data.ids).all()
        assert len(torch.unique(data.ids)) == 18
        rows = dataset.train.rows_of(data.ids)
        assert torch.equal(rows, rows.sort().values)
        assert torch.equal(data.images, dataset.train.images[rows])
        assert torch.equal(data.labels, dataset.train.labels[rows])


def test_the_others_of_a_subset_are_the_first_of_each_class(make_dataset: Callable[..., Dataset]) -> None:
    dataset, threat = make_dataset(60), Threat(per_class=5, budget=0.2)
    trial = draw_trial(dataset, threat, 0, 0)
    rows = dataset.train.rows_of(victim_data(dataset, threat, trial).ids).tolist()
    bases = dataset.train.rows_of(trial.base_ids).tolist()
    for label in range(3):
        of_class = [row for row in range(60) if row % 3 == label]
        others = [row for row in of_class if row not in bases][: 5 - len([row for row in bases if row in of_class])]
        assert sorted(row for row in rows if row in of_class) == sorted(
            others + [row for row in bases if row in of_class]
        )


def test_without_a_trial_a_subset_is_the_first_of_each_class(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(60)
    data = victim_data(dataset, Threat(per_class=4), None)
    assert torch.equal(data.ids, dataset.train.ids[:12])


def test_without_per_class_victims_get_the_whole_data_set(make_dataset: Callable[..., Dataset]) -> None:
    dataset, threat = make_dataset(60), Threat(budget=0.1)
    assert victim_data(dataset, threat, draw_trial(dataset, threat, 0, 0)) is dataset.train
    assert victim_size(dataset, threat) == 60


def test_bases_of_a_subset_are_drawn_from_the_whole_class(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(30)
    drawn = trials(dataset, 100, per_class=3, budget=0.2)
    assert all(len(trial.base_ids) == 2 for trial in drawn)
    assert {int(i) for trial in drawn for i in trial.base_ids} == set(dataset.train.ids.tolist())


def test_a_subset_larger_than_the_smallest_class_is_refused() -> None:
    check_budget(unbalanced(6, 4), Threat(per_class=4, budget=0.1))
    with pytest.raises(BadInput, match="threat.per_class 5: the smallest class has only 4 training images"):
        check_budget(unbalanced(6, 4), Threat(per_class=5, budget=0.1))


def test_the_budget_of_a_subset_is_a_share_of_the_subset() -> None:
    dataset = unbalanced(60, 40)
    check_budget(dataset, Threat(per_class=10, budget=0.5))
    with pytest.raises(BadInput, match="asks for 11 poisons of one class") as caught:
        check_budget(dataset, Threat(per_class=10, budget=0.55))
    named = float(re.search(r"at most ([0-9.e-]+)", str(caught.value)).group(1))  # type: ignore[union-attr]
    check_budget(dataset, Threat(per_class=10, budget=named))


def test_a_patch_larger_than_the_images_is_refused(make_dataset: Callable[..., Dataset]) -> None:
    check_budget(make_dataset(), Threat(patch=8))
    with pytest.raises(BadInput, match="threat.patch 9: the images have 8 pixels; allowed: at most 8"):
        check_budget(make_dataset(), Threat(patch=9))
