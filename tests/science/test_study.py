"""Seeds, streams and keys of a study: what must differ does, and what is compared in pairs does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.science.dataset import Images
from bench.science.networks import Fit
from bench.science.study import Study
from bench.science.training import Batch, Run, train
from bench.science.workspace import Workspace
from tests.plans import prepare
from tests.tiny import SETS


@pytest.fixture(scope="module")
def study() -> Study:
    return prepare("quick", SETS, attack="random-noise", only=True).study


def test_victims_have_a_seed_of_their_trial_and_study(study: Study) -> None:
    other = prepare("quick", SETS, attack="random-noise", only=True, seed=1).study
    seeds = {each.case(index).victim_seed for each in (study, other) for index in range(4)}
    assert len(seeds) == 8


def test_victims_share_their_seed_whichever_attack_and_defense_they_stand_in(study: Study) -> None:
    other = prepare("quick", SETS, attack="none", defenses=["noise-b"], only=True).study
    assert [study.case(i).victim_seed for i in range(3)] == [other.case(i).victim_seed for i in range(3)]


def test_a_network_that_a_defense_trains_is_kept_under_its_training_set(study: Study, tmp_path: Path) -> None:
    space = Workspace.at(study, tmp_path, lambda *_: None, print)
    fit, data = Fit(space.networks, 1, study.protocol.train), study.dataset.train
    whole, half = (
        fit(data, "convnet", 1, "warm-up"),
        fit(data.subset(torch.arange(0, len(data), 2)), "convnet", 1, "warm-up"),
    )
    assert not torch.equal(whole.head.weight, half.head.weight)
    assert torch.equal(whole.head.weight, fit(data, "convnet", 1, "warm-up").head.weight)


class Looking:
    """Keeps the augmented pixels of every step."""

    name = "looking"

    def __init__(self) -> None:
        self.views: list[tuple[Tensor, Tensor]] = []

    def setup(self, run: Run) -> None: ...

    def epoch(self, run: Run, epoch: int) -> None: ...

    def batch(self, batch: Batch, run: Run, phase: str) -> Batch:
        if phase == "view":
            self.views.append((batch.rows.clone(), batch.pixels.clone()))
        return batch

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        return losses.mean()


def test_every_epoch_draws_its_own_augmentation(study: Study, tmp_path: Path) -> None:
    """One image, so that order and batches are the same in every epoch."""
    space = Workspace.at(study, tmp_path, lambda *_: None, print)
    one = study.dataset.train.subset(torch.zeros(8, dtype=torch.long))
    data = Images(one.images, one.labels, torch.arange(8))
    looking, recipe = Looking(), study.protocol.train.model_copy(update={"augment": "crop", "shift": 3, "epochs": 3})
    network = space.networks.start(space.networks.start_in_scenario("convnet", 0))
    train(network, data, recipe, seed=0, hooks=looking)
    first, second, third = (pixels for _, pixels in looking.views)
    assert not torch.equal(first, second) and not torch.equal(second, third)
