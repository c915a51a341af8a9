"""Networks: normalisation, stages, features, freezing, and what each size of image needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.foundation.errors import BadInput
from bench.foundation.registry import find, names
from bench.models.resnet20 import Shortcut
from bench.science.classifier import Classifier, Normalise, build_model, frozen
from bench.science.dataset import Images
from bench.science.training import Recipe, make_optimizer, train

SMALLEST = {"alexnet": 16, "lenet": 16}
WEIGHTS = {
    "convnet": 279_466,
    "convnet4": 251_872,
    "resnet18": 11_170_000,
    "resnet20": 269_722,
    "mobilenet-v2": 2_240_000,
    "vgg11": 9_220_000,
}


def build(name: str, size: int | None = None, seed: int = 0, classes: int = 3) -> Classifier:
    size = size or SMALLEST.get(name, 8)
    return build_model(name, classes=classes, size=size, normalisation=((0.5,) * 3, (0.25,) * 3), seed=seed)


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_every_network_takes_its_smallest_and_larger_images(name: str, extra: int) -> None:
    size = SMALLEST.get(name, 8) + extra
    model = build(name, size).eval()
    with torch.no_grad():
        pixels = torch.rand(2, 3, size, size)
        features = model.features(pixels)
        assert features.shape == (2, model.head.in_features)
        torch.testing.assert_close(model(pixels), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("name", [name for name in names("model") if hasattr(find("model", name).make, "smallest")])
def test_an_image_too_small_for_the_network_is_refused_with_its_limit(name: str) -> None:
    smallest = find("model", name).make.smallest
    with pytest.raises(BadInput, match=f"at least {smallest} pixels, not {smallest - 1}"):
        build(name, smallest - 1)


@pytest.mark.parametrize(("name", "count"), WEIGHTS.items())
def test_networks_have_the_published_number_of_weights(name: str, count: int) -> None:
    found = sum(p.numel() for p in build(name, classes=10).parameters())
    assert found == pytest.approx(count, rel=0.01)


def test_the_first_layer_normalises_each_channel() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    found = Normalise((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))(pixels)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.6), (0.3, 0.7))):
        torch.testing.assert_close(found[:, channel], (pixels[:, channel] - mean) / std)


@pytest.mark.parametrize("name", ["convnet", "lenet", "mobilenet-v2"])
def test_weights_depend_on_the_seed_alone(name: str, weights_of: Callable[[nn.Module], Tensor]) -> None:
    torch.manual_seed(1)
    first = weights_of(build(name))
    torch.manual_seed(2)
    assert torch.equal(first, weights_of(build(name)))
    assert not torch.equal(first, weights_of(build(name, seed=1)))


def test_building_a_network_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build("lenet")
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_network_offers_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'resnet18'"):
        build("resnet-18")


def test_frozen_gives_eval_mode_without_gradients_and_puts_all_back(
    make_small: Callable[..., Classifier],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    model = make_small().train()
    model.body[1].eval()  # type: ignore[index]
    model.head.bias.requires_grad_(False)
    before = snapshot(model)
    with frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    assert_untouched(model, before)


def test_frozen_puts_all_back_after_an_error(
    make_small: Callable[..., Classifier],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    models = make_small().train(), make_small(1).eval()
    before = [snapshot(model) for model in models]
    with pytest.raises(RuntimeError), frozen(*models):
        raise RuntimeError
    for model, state in zip(models, before, strict=True):
        assert_untouched(model, state)


def test_frozen_does_not_move_batchnorm(
    make_small: Callable[..., Classifier],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    model = make_small().train()
    before = snapshot(model)
    with frozen(model):
        model(torch.rand(4, 3, 8, 8))
    assert_untouched(model, before)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_frozen_features_stay_in_eval_mode_whatever_train_is_called_with(make_small: Callable[..., Classifier]) -> None:
    model = make_small(dropout=0.5)
    assert model.freeze_features() is model
    for mode in (True, False, True):
        model.train(mode)
        assert model.training is mode and model.head.training is mode
        assert not any(module.training for module in model.body.modules())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_frozen_features_have_no_gradient_and_are_not_in_the_optimiser(make_small: Callable[..., Classifier]) -> None:
    model = make_small().freeze_features().train()
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is None for p in model.body.parameters())
    assert model.head.weight.grad is not None
    (group,) = make_optimizer(model, Recipe()).param_groups
    assert {id(p) for p in group["params"]} == {id(model.head.weight), id(model.head.bias)}


def test_training_with_frozen_features_changes_the_head_alone(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model = make_small(dropout=0.3).freeze_features()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, make_images(12), Recipe(epochs=2, batch=5, drops=(), shift=1), seed=0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("head.")), name
    assert model.features_frozen


@pytest.mark.parametrize("name", names("model"))
def test_features_of_another_network_are_taken_and_the_head_is_left(name: str) -> None:
    model, other = build(name, seed=0), build(name, seed=1)
    with torch.no_grad():
        other.normalise.mean += 0.1
        for buffer in other.body.buffers():
            buffer += 1
    head, theirs = model.head.weight.clone(), {n: v.clone() for n, v in other.state_dict().items()}
    model.take_features(other)
    assert torch.equal(model.head.weight, head)
    for name, value in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, theirs[name]), name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, theirs[n]) for n, value in other.state_dict().items())


def test_features_of_another_architecture_or_width_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch|Missing key"):
        build("convnet").take_features(build("vgg11"))


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("size", [16, 32])
def test_stages_are_one_for_each_resolution_and_end_in_the_features(name: str, size: int) -> None:
    model = build(name, size).eval()
    pixels = torch.rand(2, 3, size, size)
    with torch.no_grad():
        stages = model.stages(pixels)
        assert torch.equal(stages[-1], model.features(pixels))
    assert len(stages) >= 3
    assert all(stage.ndim == 2 and len(stage) == 2 for stage in stages)
    for one, following in zip(stages, stages[1:], strict=False):
        assert one.shape != following.shape or not torch.equal(one, following), "a stage is given twice"


def test_the_stages_of_the_convnet_are_the_ends_of_its_resolutions() -> None:
    model, pixels = build("convnet", 16).eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        stages = model.stages(pixels)
        ends = [model.body[:stop](model.normalise(pixels)).flatten(1) for stop in (3, 9, 15, 17)]  # type: ignore[index]
    assert [stage.shape[1] for stage in stages] == [32 * 256, 64 * 64, 128 * 16, 128]
    for stage, end in zip(stages, ends, strict=True):
        torch.testing.assert_close(stage, end)


def test_the_stages_of_resnet18_are_those_of_its_four_resolutions() -> None:
    stages = build("resnet18", 32).eval().stages(torch.rand(1, 3, 32, 32))
    assert [stage.shape[1] for stage in stages] == [64 * 1024, 128 * 256, 256 * 64, 512 * 16, 512]


def test_a_shortcut_without_weights_thins_the_image_and_adds_empty_channels() -> None:
    x = torch.rand(2, 4, 6, 6)
    found = Shortcut(4, 2)(x)
    assert found.shape == (2, 8, 3, 3)
    assert torch.equal(found[:, 2:6], x[:, :, ::2, ::2])
    assert not found[:, :2].any() and not found[:, 6:].any()


def test_a_body_that_is_no_sequence_has_its_features_alone(wrap: Callable[..., Classifier]) -> None:
    class Body(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    model, pixels = wrap(Body(), 3), torch.rand(2, 3, 8, 8)
    (stage,) = model.stages(pixels)
    assert torch.equal(stage, model.features(pixels))
