"""Gradient matching: what it lowers, on which networks, and on what its poisons depend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks.crafting.matching import MatchingSettings
from bench.attacks.gradient_matching import GradientMatching
from bench.science.attack import Scene
from bench.science.augmentation import Draw
from bench.science.classifier import Classifier, build_model
from bench.science.dataset import Images
from bench.science.poisons import Poisons
from bench.science.training import Recipe, train
from tests.plugins import make_attack

FAST: dict[str, Any] = {"steps": 30, "restarts": 1}


def craft(scene: Scene, **settings: Any) -> Poisons:
    return GradientMatching(MatchingSettings(**{**FAST, **settings})).craft(scene)


@pytest.fixture
def surrogate(make_images: Callable[..., Images]) -> Callable[..., Classifier]:
    """A ConvNet after three epochs on the scene's training set."""

    def make(seed: int = 0) -> Classifier:
        data = make_images(30)
        model = build_model("convnet", classes=3, size=8, normalisation=((0.5,) * 3, (0.25,) * 3), seed=seed)
        recipe = Recipe(epochs=3, batch=10, lr=0.02, drops=(), augment="none", flip=False, precision="float32")
        return train(model, data, recipe, seed=seed).model

    return make


@pytest.fixture
def scene(make_scene: Callable[..., Scene], surrogate: Callable[..., Classifier]) -> Scene:
    return make_scene([surrogate()])


def matching_loss(model: Classifier, scene: Scene, images: Tensor) -> float:
    """1 - cos of the two training gradients, by plain autograd."""

    def gradient(pixels: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(model(pixels.float() / 255), labels)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])

    aim = gradient(scene.targets, torch.tensor([scene.trial.target_class]))
    return 1 - F.cosine_similarity(gradient(images, scene.bases.labels), aim, dim=0).item()


@pytest.mark.parametrize("augment", [True, False])
def test_crafting_brings_the_gradients_together(scene: Scene, augment: bool) -> None:
    poisons = craft(scene, augment=augment)
    losses = poisons.provenance["losses"][0]
    assert len(losses) == 30
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.05
    model = scene.surrogates()[0]
    assert matching_loss(model, scene, poisons.images) < matching_loss(model, scene, scene.bases.images) - 0.05


def test_the_reported_final_loss_is_that_of_the_stored_images(scene: Scene) -> None:
    poisons = craft(scene)
    expected = matching_loss(scene.surrogates()[0], scene, poisons.images)
    assert poisons.provenance["final_losses"] == pytest.approx([expected], abs=1e-4)


def test_restarts_keep_the_lowest_final_loss(scene: Scene) -> None:
    poisons = craft(scene, steps=3, restarts=3)
    finals = poisons.provenance["final_losses"]
    assert len(set(finals)) == 3
    assert matching_loss(scene.surrogates()[0], scene, poisons.images) == pytest.approx(min(finals), abs=1e-4)


def test_poisons_are_clean_label_and_within_eps(scene: Scene) -> None:
    poisons = craft(scene)
    poisons.check(scene.train, scene.threat.eps, scene.bases.ids)
    assert torch.equal(poisons.ids, scene.bases.ids)
    assert 0 < poisons.distance(scene.train) <= 16


def test_poisons_depend_on_the_seed_alone(
    make_scene: Callable[..., Scene], surrogate: Callable[..., Classifier]
) -> None:
    torch.manual_seed(1)
    first = craft(make_scene([surrogate()]), steps=6)
    torch.manual_seed(2)
    again, other = craft(make_scene([surrogate()]), steps=6), craft(make_scene([surrogate()], seed=1), steps=6)
    assert torch.equal(first.images, again.images)
    assert first.provenance == again.provenance
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("augment", [True, False])
def test_the_chunk_does_not_change_the_poisons(scene: Scene, augment: bool) -> None:
    whole = craft(scene, steps=6, augment=augment)
    parts = craft(scene, steps=6, augment=augment, chunk=4)
    apart = (whole.images.long() - parts.images.long()).abs()
    assert (apart > 2).float().mean() < 0.01
    assert parts.provenance["losses"][0][0] == pytest.approx(whole.provenance["losses"][0][0], abs=1e-5)
    assert parts.provenance["final_losses"] == pytest.approx(whole.provenance["final_losses"], abs=1e-2)


def test_two_surrogates_are_both_matched(
    make_scene: Callable[..., Scene], surrogate: Callable[..., Classifier]
) -> None:
    models = [surrogate(0), surrogate(1)]
    scene = make_scene(models, k=2)
    poisons = craft(scene, augment=False)
    final = [matching_loss(model, scene, poisons.images) for model in models]
    before = [matching_loss(model, scene, scene.bases.images) for model in models]
    assert sum(final) < sum(before) - 0.1
    assert poisons.provenance["final_losses"] == pytest.approx([sum(final) / 2], abs=1e-4)


def test_several_targets_are_matched_by_their_mean_gradient(scene: Scene, make_images: Callable[..., Images]) -> None:
    several = dataclasses.replace(scene, targets=make_images(9, seed=5).images[::3])
    poisons = craft(several, steps=2)

    def mean_target(model: Classifier) -> float:
        return matching_loss_to_many(model, several, poisons.images)

    assert poisons.provenance["final_losses"] == pytest.approx([mean_target(scene.surrogates()[0])], abs=1e-4)


def matching_loss_to_many(model: Classifier, scene: Scene, images: Tensor) -> float:
    weights = list(model.parameters())

    def gradient(pixels: Tensor, label: Tensor) -> Tensor:
        parts = torch.autograd.grad(F.cross_entropy(model(pixels[None].float() / 255), label.view(1)), weights)
        return torch.cat([part.flatten() for part in parts])

    aim = sum(gradient(image, torch.tensor(scene.trial.target_class)) for image in scene.targets)
    own = sum(gradient(image, label) for image, label in zip(images, scene.bases.labels, strict=True))
    return 1 - F.cosine_similarity(own, aim, dim=0).item()  # type: ignore[arg-type]


def test_surrogates_and_scene_are_left_as_they_were(
    scene: Scene,
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    model = scene.surrogates()[0]
    before, train_before, targets = snapshot(model), scene.train.images.clone(), scene.targets.clone()
    craft(scene, steps=3)
    assert_untouched(model, before)
    assert torch.equal(scene.train.images, train_before)
    assert torch.equal(scene.targets, targets)


def test_augmentation_is_redrawn_at_every_step_and_can_be_turned_off(scene: Scene) -> None:
    draws = []

    class Counting:
        def draw(self, n: int, stream: torch.Generator) -> Draw:
            draws.append(scene.augmentation.draw(n, stream))
            return draws[-1]

        def __call__(self, pixels: Tensor, draw: Draw) -> Tensor:
            return scene.augmentation(pixels, draw)

    counted = dataclasses.replace(scene, augmentation=Counting())  # type: ignore[arg-type]
    craft(counted, steps=4, restarts=2)
    assert len({tuple(draw.dx.tolist()) for draw in draws}) == 8
    draws.clear()
    craft(counted, steps=2, augment=False)
    assert not draws


def test_a_victim_without_augmentation_is_crafted_for_as_if_it_were_turned_off(
    make_scene: Callable[..., Scene], surrogate: Callable[..., Classifier]
) -> None:
    models = [surrogate()]
    through, without = (craft(make_scene(models, augment="none"), steps=4, augment=on) for on in (True, False))
    assert torch.equal(through.images, without.images)


def test_the_published_settings_are_the_defaults() -> None:
    settings = make_attack("gm").settings
    assert (settings.steps, settings.restarts, settings.lr) == (250, 8, 0.1)
    assert settings.decay
    assert settings.augment
