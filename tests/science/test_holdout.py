"""The clean hold-out of a defender, and who is handed it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.study import Study
from tests.plans import prepare
from tests.tiny import SETS


@pytest.fixture(scope="module")
def study() -> Study:
    return prepare("quick", [*SETS, "threat.holdout=0.3"], attack="random-noise", defenses=["none"], only=True).study


def holdout(study: Study, index: int, poison_ids: torch.Tensor) -> Images:
    case = study.case(index)
    return case.holdout(case.clean, poison_ids)


NONE = torch.zeros(0, dtype=torch.long)


def test_it_is_a_share_of_every_class_of_the_training_set_as_it_is(study: Study) -> None:
    found, data = holdout(study, 0, NONE), study.case(0).clean
    assert torch.bincount(found.labels).tolist() == [3] * len(study.dataset.classes)
    assert len(set(found.ids.tolist())) == len(found)
    rows = data.rows_of(found.ids)
    assert torch.equal(found.images, data.images[rows]) and torch.equal(found.labels, data.labels[rows])


def test_every_class_has_an_image_however_small_the_share(study: Study) -> None:
    threat = study.protocol.threat.model_copy(update={"holdout": 0.01})
    little = dataclasses.replace(study, protocol=dataclasses.replace(study.protocol, threat=threat))
    found = holdout(little, 0, NONE)
    assert found.labels.sort().values.tolist() == list(range(len(study.dataset.classes)))


def test_no_poison_is_in_it_and_nothing_else_changes(study: Study) -> None:
    """Another attack, other poisons: what both left alone stays, and each gap is filled from the same class."""
    data, clean = study.case(0).clean, holdout(study, 0, NONE)
    label = int(study.case(0).trial.target_class)
    of_class = clean.ids[clean.labels == label]
    others = data.ids[(data.labels == label) & ~torch.isin(data.ids, of_class)]
    for poisons in (of_class[:1], of_class, others):
        found = holdout(study, 0, poisons)
        assert not torch.isin(found.ids, poisons).any()
        assert torch.equal(torch.bincount(found.labels), torch.bincount(clean.labels))
        stay = clean.ids[~torch.isin(clean.ids, poisons)]
        assert torch.isin(stay, found.ids).all()


def test_it_is_drawn_for_each_trial_and_seed(study: Study) -> None:
    first = holdout(study, 0, NONE)
    assert torch.equal(first.ids, holdout(study, 0, NONE).ids)
    assert not torch.equal(first.ids, holdout(study, 1, NONE).ids)
    assert not torch.equal(first.ids, holdout(dataclasses.replace(study, seed=1), 0, NONE).ids)


@pytest.mark.parametrize(
    ("needs", "handed"),
    [
        ((), set()),
        (("poison_rate",), {"poison_rate"}),
        (("clean_holdout",), {"clean_holdout"}),
        (("external_model",), {"public"}),
        (("attack_family",), set()),
        (("external_model", "clean_holdout"), {"public", "clean_holdout"}),
    ],
)
def test_a_defense_gets_only_the_knowledge_that_it_declares(
    services: Services, make_images: Callable[..., Images], needs: tuple[str, ...], handed: set[Any]
) -> None:
    knowing = dataclasses.replace(
        services, poison_rate=0.1, clean_holdout=make_images(6), public=lambda: make_images(3)
    )
    own = knowing.only(needs)
    secrets = ("poison_rate", "clean_holdout", "public")
    assert {name for name in secrets if getattr(own, name) is not None} == handed
    rest = [field.name for field in dataclasses.fields(Services) if field.name not in secrets]
    assert all(getattr(own, name) is getattr(knowing, name) for name in rest)
