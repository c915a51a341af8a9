"""Anti-backdoor learning: phases, isolation, unlearning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from bench.defenses.abl import Abl, AblSettings
from bench.foundation.errors import BadInput
from bench.foundation.settings import build
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.training import Recipe, Run, train
from tests.plugins import make_defense

RECIPE = Recipe(epochs=17, batch=8, lr=0.05, drops=(15,), augment="crop", shift=1, flip=False)


@pytest.mark.parametrize(("epochs", "turns"), [(85, (20, 80)), (17, (4, 16)), (30, (7, 28)), (3, (1, 2)), (2, (1, 1))])
def test_the_phases_are_20_60_5_of_85(epochs: int, turns: tuple[int, int]) -> None:
    assert make_defense("abl").turns(epochs) == turns


def test_the_phases_of_a_training(make_small: Callable[..., Classifier], make_images: Callable[..., Images]) -> None:
    seen = []

    class Watching(Abl):
        def epoch(self, run: Run, epoch: int) -> None:
            super().epoch(run, epoch)
            seen.append((run.augmentation.kind, int(run.active.sum()), run.side["phase"]))

    hooks = Watching(AblSettings(isolation=0.1), "abl")
    result = train(make_small(), make_images(40), RECIPE, seed=0, hooks=hooks)
    assert len(result.suspected) == 4
    assert seen[:4] == [("none", 40, 0)] * 4
    assert seen[4:16] == [("crop", 36, 1)] * 12
    assert seen[16] == ("crop", 4, 2)


def test_the_isolated_are_those_with_the_lowest_loss(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> None:
    run = make_run(make_model(), make_images(50))
    found = make_defense("abl", isolation=0.2).isolated(run)
    losses = F.cross_entropy(run.model(run.data.images.float() / 255), run.data.labels, reduction="none")
    assert int(found.sum()) == 10
    assert losses[found].max() <= losses[~found].min() + 1e-6


@pytest.mark.parametrize("mean", [0.2, 0.49, 0.51, 3.0])
def test_the_losses_of_the_first_phase(
    mean: float, make_model: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> None:
    run = make_run(make_model(), make_images(6))
    run.side["phase"] = 0
    for rule, value, slope in [
        ("lga", mean if mean > 0.5 else -mean, 1.0 if mean > 0.5 else -1.0),
        ("flooding", abs(mean - 0.5) + 0.5, 1.0 if mean > 0.5 else -1.0),
    ]:
        losses = torch.full((4,), mean, requires_grad=True)
        loss = make_defense("abl", rule=rule).loss(losses, None, run)
        assert loss.item() == pytest.approx(value)
        assert torch.autograd.grad(loss, losses)[0].sum().item() == pytest.approx(slope)


def test_unlearning_climbs_up_to_the_cap(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> None:
    run = make_run(make_model(), make_images(6))
    run.side["phase"] = 2
    for mean, slope in [(2.0, -1.0), (12.0, 0.0)]:
        losses = torch.full((4,), mean, requires_grad=True)
        loss = make_defense("abl", cap=10.0).loss(losses, None, run)
        assert torch.autograd.grad(loss, losses)[0].sum().item() == pytest.approx(slope)


def test_unlearning_raises_the_loss_of_the_isolated(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    data = make_images(40)
    kept = {}

    class Watching(Abl):
        def epoch(self, run: Run, epoch: int) -> None:
            super().epoch(run, epoch)
            kept["isolated"] = run.side.get("isolated")
            if run.side["phase"] == 2 and "before" not in kept:
                kept["before"] = self.mean(run)

        def mean(self, run: Run) -> float:
            run.model.eval()
            rows = torch.nonzero(kept["isolated"]).flatten()  # type: ignore[arg-type]
            return F.cross_entropy(run.model(run.pixels(rows)), run.data.labels[rows]).item()

    defense = Watching(AblSettings(isolation=0.2, last=0.3, unlearn_lr=0.5), "abl")
    model = train(make_small(), data, RECIPE, seed=0, hooks=defense).model
    rows = torch.nonzero(kept["isolated"]).flatten()  # type: ignore[arg-type]
    after = F.cross_entropy(model(data.images[rows].float() / 255), data.labels[rows]).item()
    assert after > kept["before"] + 0.1  # type: ignore[operator]


def test_shares_that_leave_nothing_between_are_refused() -> None:
    with pytest.raises(BadInput, match="smaller shares"):
        build(AblSettings, {"first": 0.6, "last": 0.5}, "defense")
