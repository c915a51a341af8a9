import pytest
import torch
from torch import nn

from bench.errors import BadInput
from bench.models.base import Normalise, build_model, frozen
from bench.registry import find, names

SMALLEST = {"alexnet": 16, "lenet": 16}
WEIGHTS = {"convnet": 279_466, "resnet18": 11_170_000, "mobilenet-v2": 2_240_000, "vgg11": 9_220_000}


def build(name, size=None, seed=0, classes=3):
    size = size or SMALLEST.get(name, 8)
    return build_model(name, classes=classes, size=size, normalisation=((0.5,) * 3, (0.25,) * 3), seed=seed)


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("extra", [0, 1, 7])
def test_every_network_takes_its_smallest_and_larger_pictures(name, extra):
    size = SMALLEST.get(name, 8) + extra
    model = build(name, size).eval()
    with torch.no_grad():
        pixels = torch.rand(2, 3, size, size)
        features = model.features(pixels)
        assert features.shape == (2, model.head.in_features)
        torch.testing.assert_close(model(pixels), features @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize("name", [name for name in names("model") if hasattr(find("model", name).make, "smallest")])
def test_a_picture_too_small_for_the_network_is_refused_with_its_limit(name):
    smallest = find("model", name).make.smallest
    with pytest.raises(BadInput, match=f"at least {smallest} pixels, not {smallest - 1}"):
        build(name, smallest - 1)


@pytest.mark.parametrize(("name", "count"), WEIGHTS.items())
def test_networks_have_the_published_number_of_weights(name, count):
    found = sum(p.numel() for p in build(name, classes=10).parameters())
    assert found == pytest.approx(count, rel=0.01)


def test_the_first_layer_normalises_each_channel():
    pixels = torch.rand(2, 3, 4, 4)
    found = Normalise((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))(pixels)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.6), (0.3, 0.7))):
        torch.testing.assert_close(found[:, channel], (pixels[:, channel] - mean) / std)


@pytest.mark.parametrize("name", ["convnet", "lenet", "mobilenet-v2"])
def test_weights_depend_on_the_seed_alone(name, weights_of):
    torch.manual_seed(1)
    first = weights_of(build(name))
    torch.manual_seed(2)
    assert torch.equal(first, weights_of(build(name)))
    assert not torch.equal(first, weights_of(build(name, seed=1)))


def test_building_a_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build("lenet")
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_network_offers_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'resnet18'"):
        build("resnet-18")


def test_frozen_gives_eval_mode_without_gradients_and_puts_all_back(make_small, snapshot, assert_untouched):
    model = make_small().train()
    model.body[1].eval()
    model.head.bias.requires_grad_(False)
    before = snapshot(model)
    with frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
    assert_untouched(model, before)


def test_frozen_puts_all_back_after_an_error(make_small, snapshot, assert_untouched):
    models = make_small().train(), make_small(1).eval()
    before = [snapshot(model) for model in models]
    with pytest.raises(RuntimeError), frozen(*models):
        raise RuntimeError
    for model, state in zip(models, before, strict=True):
        assert_untouched(model, state)


def test_frozen_does_not_move_batchnorm(make_small, snapshot, assert_untouched):
    model = make_small().train()
    before = snapshot(model)
    with frozen(model):
        model(torch.rand(4, 3, 8, 8))
    assert_untouched(model, before)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
