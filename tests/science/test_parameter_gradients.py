"""Gradients by weights and by pixels, against plain double backward and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.science.classifier import Classifier
from bench.science.gradients import ParameterGradients, cosine_distance, inner

SIZES = {"convnet": 8, "resnet18": 8, "resnet20": 8, "mobilenet-v2": 8, "vgg11": 8, "lenet": 16, "alexnet": 16}
SAMPLES = 3


def samples(size: int, n: int = SAMPLES, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, size, size, dtype=dtype, generator=chance), torch.arange(n) % 3


def plain_gradients(model: Classifier, pixels: Tensor, labels: Tensor, graph: bool = False) -> dict[str, Tensor]:
    """grad_theta of the mean cross-entropy of the network as it is."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = F.cross_entropy(model(pixels), labels)
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), create_graph=graph), strict=True))


def plain_pixel_gradient(model: Classifier, pixels: Tensor, labels: Tensor, direction: dict[str, Tensor]) -> Tensor:
    """d/d pixels of <direction, grad_theta>, through the graph of the backward pass."""
    leaf = pixels.clone().requires_grad_(True)
    gradients = plain_gradients(model, leaf, labels, graph=True)
    return torch.autograd.grad(sum((gradients[name] * direction[name]).sum() for name in gradients), leaf)[0]  # type: ignore[arg-type]


def random_direction(weights: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(w.shape, dtype=w.dtype, generator=chance) for name, w in weights.items()}


def assert_equal_weights(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Equal up to `tolerance` of the largest entry of all."""
    assert set(found) == set(expected)
    scale = max(value.abs().max().item() for value in expected.values())
    assert scale > 0
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max().item() <= tolerance * scale, name


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert expected.abs().max() > 0
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(params=SIZES)
def network(
    request: pytest.FixtureRequest, make_model: Callable[..., Classifier]
) -> tuple[Classifier, ParameterGradients, Tensor, Tensor]:
    """A registered network in float64 with its source of gradients and a few samples."""
    model = make_model(request.param, size=SIZES[request.param]).double()
    return model, ParameterGradients(model), *samples(SIZES[request.param])


@pytest.mark.slow
def test_mean_and_pixel_gradients_are_those_of_plain_double_backward(
    network: tuple[Classifier, ParameterGradients, Tensor, Tensor],
) -> None:
    model, source, pixels, labels = network
    expected = plain_gradients(model, pixels, labels)
    assert_equal_weights(source.mean(pixels, labels), expected)
    direction = random_direction(expected)
    slope = plain_pixel_gradient(model, pixels, labels, direction)
    assert relative_error(source.pixel_gradient(pixels, labels, direction), slope) < 1e-9


def assert_slope_is_that_of_two_passes(
    source: ParameterGradients, pixels: Tensor, labels: Tensor, chunk: int, tolerance: float = 1e-10
) -> None:
    """`slope` against `mean`, then `pixel_gradient`, which are compared with plain double backward elsewhere."""
    outer = partial(cosine_distance, target=random_direction(source.weights, 7))
    loss, direction = outer(source.mean(pixels, labels))
    found, slope = source.slope(pixels, labels, outer, chunk)
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative_error(slope, source.pixel_gradient(pixels, labels, direction)) < tolerance
    assert not slope.requires_grad
    assert not found.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [2, SAMPLES])
def test_slope_in_one_pass_is_that_of_two(
    network: tuple[Classifier, ParameterGradients, Tensor, Tensor], chunk: int
) -> None:
    assert_slope_is_that_of_two_passes(*network[1:], chunk)


def sequence(*layers: nn.Module) -> nn.Module:
    """Layers that end in 5 channels, pooled to 20 features."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


class Outside(nn.Module):
    """Convolution and norm that are called by a forward of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Any) -> Any:
        return F.adaptive_avg_pool2d(torch.tanh(self.norm(self.convolution(x))), 2).flatten(1)


BODIES = {
    "plain": lambda: sequence(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Tanh()),
    "biased": lambda: sequence(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Tanh()),
    "norm first": lambda: sequence(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.Tanh(), nn.BatchNorm2d(5)),
    "not affine": lambda: sequence(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), nn.Tanh()),
    "other eps": lambda: sequence(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=0.3), nn.Softplus()),
    "grouped": lambda: sequence(nn.Conv2d(3, 10, 1), nn.Conv2d(10, 5, 3, groups=5), nn.BatchNorm2d(5), nn.Tanh()),
    "two norms": lambda: sequence(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5), nn.Tanh()),
    "nested": lambda: sequence(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), nn.Tanh()),
    "outside": Outside,
}


@pytest.fixture
def smooth(
    wrap: Callable[..., Classifier], scramble: Callable[[nn.Module, int], nn.Module]
) -> Iterator[Callable[..., Classifier]]:
    def make(body: str = "biased") -> Classifier:
        torch.manual_seed(0)
        return scramble(wrap(BODIES[body](), 20), 0).eval().double()  # type: ignore[return-value]

    with torch.random.fork_rng():
        yield make


@pytest.mark.parametrize("body", BODIES)
def test_gradients_are_exact_wherever_batchnorm_stands(smooth: Callable[..., Classifier], body: str) -> None:
    model = smooth(body)
    source, (pixels, labels) = ParameterGradients(model), samples(8)
    expected = plain_gradients(model, pixels, labels)
    assert_equal_weights(source.mean(pixels, labels), expected)
    direction = random_direction(expected)
    slope = plain_pixel_gradient(model, pixels, labels, direction)
    assert relative_error(source.pixel_gradient(pixels, labels, direction), slope) < 1e-10


def test_pixel_gradient_is_that_of_finite_differences(smooth: Callable[..., Classifier]) -> None:
    source, (pixels, labels) = ParameterGradients(smooth("other eps")), samples(8)
    direction = random_direction(source.weights)
    slope = source.pixel_gradient(pixels, labels, direction)
    for place in [(0, 0, 1, 1), (1, 2, 4, 7), (2, 1, 0, 0), (2, 2, 5, 3)]:
        step = torch.zeros_like(pixels)
        step[place] = 1e-5
        up, down = (inner(direction, source.mean(pixels + sign * step, labels)) for sign in (1, -1))
        assert slope[place].item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-6, abs=1e-9)


def test_pixel_gradient_of_the_cosine_is_that_of_finite_differences(smooth: Callable[..., Classifier]) -> None:
    source, (pixels, labels) = ParameterGradients(smooth()), samples(8)
    aim = source.mean(*samples(8, 1, seed=3))
    slope = source.pixel_gradient(pixels, labels, cosine_distance(source.mean(pixels, labels), aim)[1])
    step = torch.randn(pixels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    up, down = (cosine_distance(source.mean(pixels + h * step, labels), aim)[0] for h in (1e-6, -1e-6))
    assert (slope * step).sum().item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_change_nothing(smooth: Callable[..., Classifier], chunk: int) -> None:
    source, (pixels, labels) = ParameterGradients(smooth()), samples(8, 7)
    direction = random_direction(source.weights)
    assert_equal_weights(source.mean(pixels, labels, chunk), source.mean(pixels, labels, 100), 1e-12)
    torch.testing.assert_close(
        source.pixel_gradient(pixels, labels, direction, chunk),
        source.pixel_gradient(pixels, labels, direction, 100), rtol=1e-12, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("body", BODIES)
def test_slope_is_exact_in_any_chunks_and_wherever_batchnorm_stands(
    smooth: Callable[..., Classifier], body: str, chunk: int
) -> None:
    assert_slope_is_that_of_two_passes(ParameterGradients(smooth(body)), *samples(8, 7), chunk)


@pytest.mark.parametrize("name", ["convnet", "mobilenet-v2"])
def test_slope_in_single_precision_is_that_of_two_passes(make_model: Callable[..., Classifier], name: str) -> None:
    pixels, labels = samples(8, dtype=torch.float32)
    pixels = pixels.to(memory_format=torch.channels_last)
    assert_slope_is_that_of_two_passes(ParameterGradients(make_model(name, size=8)), pixels, labels, 100, 1e-4)


class InBfloat16(Classifier):
    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(pixels).float()


@pytest.mark.parametrize("chunk", [2, 100])
def test_slope_follows_a_networks_own_arithmetic(make_model: Callable[..., Classifier], chunk: int) -> None:
    model, (pixels, labels) = make_model(size=8), samples(8, dtype=torch.float32)
    outer = partial(cosine_distance, target=random_direction(ParameterGradients(model).weights))
    loss, expected = ParameterGradients(model).slope(pixels, labels, outer)
    model.__class__ = InBfloat16
    rounded, found = ParameterGradients(model).slope(pixels, labels, outer, chunk)
    assert found.dtype == torch.float32
    assert 1e-4 < relative_error(found, expected) < 0.25  # eight bits, and ReLUs that switch
    assert rounded.item() == pytest.approx(loss.item(), abs=0.01)


@pytest.mark.parametrize("name", ["convnet", "lenet"])
def test_single_precision_is_near_double_precision(make_model: Callable[..., Classifier], name: str) -> None:
    model = make_model(name, size=16)
    pixels, labels = samples(16)
    expected = plain_gradients(model.double(), pixels, labels)
    direction = random_direction(expected)
    slope = plain_pixel_gradient(model, pixels, labels, direction)
    source = ParameterGradients(model.float())
    found = source.mean(pixels.float(), labels)
    assert_equal_weights({name: value.double() for name, value in found.items()}, expected, 1e-4)
    half = source.pixel_gradient(pixels.float(), labels, {name: value.float() for name, value in direction.items()})
    assert relative_error(half.double(), slope) < 1e-4


def plain_norms(model: Classifier, pixels: Tensor, labels: Tensor) -> Tensor:
    """Norm of each image's own gradient, one backward pass per image."""
    weights = [p for p in model.parameters() if p.requires_grad]
    norms = []
    for pixel, label in zip(pixels, labels, strict=True):
        parts = torch.autograd.grad(F.cross_entropy(model(pixel[None]), label[None]), weights)
        norms.append(torch.cat([part.flatten() for part in parts]).norm())
    return torch.stack(norms)


def plain_curvature(
    model: Classifier, pixels: Tensor, labels: Tensor, direction: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian times `direction`, through the graph of the backward pass."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = plain_gradients(model, pixels, labels, graph=True)
    slope = sum((gradients[name] * direction[name]).sum() for name in gradients)
    return dict(zip(weights, torch.autograd.grad(slope, list(weights.values())), strict=True))  # type: ignore[arg-type]


@pytest.mark.slow
def test_norms_are_those_of_every_image_on_its_own(
    network: tuple[Classifier, ParameterGradients, Tensor, Tensor],
) -> None:
    model, _, pixels, labels = network
    source = ParameterGradients(model.to(memory_format=torch.contiguous_format))  # as vmap wants it in float64
    torch.testing.assert_close(source.norms(pixels, labels), plain_norms(model, pixels, labels), rtol=1e-9, atol=0)


@pytest.mark.slow
def test_curvature_is_the_hessian_times_the_direction(
    network: tuple[Classifier, ParameterGradients, Tensor, Tensor],
) -> None:
    model, source, pixels, labels = network
    direction = random_direction(source.weights)
    assert_equal_weights(
        source.curvature(pixels, labels, direction), plain_curvature(model, pixels, labels, direction), 1e-9
    )


def test_logits_are_those_of_the_network(network: tuple[Classifier, ParameterGradients, Tensor, Tensor]) -> None:
    model, source, pixels, _ = network
    found = source.logits(pixels)
    assert not found.requires_grad
    torch.testing.assert_close(found, model(pixels).detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["convnet", "vgg11", "mobilenet-v2"])
def test_norms_in_single_precision_take_networks_in_any_memory_order(
    make_model: Callable[..., Classifier], name: str
) -> None:
    model = make_model(name, size=SIZES[name])
    pixels, labels = samples(SIZES[name], dtype=torch.float32)
    expected = plain_norms(model, pixels, labels)
    for order in (torch.channels_last, torch.contiguous_format):
        source = ParameterGradients(model.to(memory_format=order))
        for view in (pixels, pixels.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(source.norms(view, labels, 2), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("body", BODIES)
def test_norms_and_curvature_are_exact_wherever_batchnorm_stands(smooth: Callable[..., Classifier], body: str) -> None:
    model = smooth(body)
    source, (pixels, labels) = ParameterGradients(model), samples(8)
    direction = random_direction(source.weights)
    torch.testing.assert_close(source.norms(pixels, labels), plain_norms(model, pixels, labels), rtol=1e-10, atol=0)
    expected = plain_curvature(model, pixels, labels, direction)
    assert_equal_weights(source.curvature(pixels, labels, direction), expected)
    torch.testing.assert_close(source.logits(pixels), model(pixels).detach(), rtol=1e-12, atol=1e-14)


def test_curvature_is_that_of_finite_differences(smooth: Callable[..., Classifier]) -> None:
    source, (pixels, labels) = ParameterGradients(smooth("other eps")), samples(8)
    direction = random_direction(source.weights)

    def moved(step: float) -> dict[str, Tensor]:
        return source.at({n: w + step * direction[n] for n, w in source.weights.items()}).mean(pixels, labels)

    up, down = moved(1e-5), moved(-1e-5)
    expected = {name: (up[name] - down[name]) / 2e-5 for name in up}
    assert_equal_weights(source.curvature(pixels, labels, direction), expected, 1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_norms_do_not_depend_on_the_chunk(smooth: Callable[..., Classifier], chunk: int) -> None:
    source, (pixels, labels) = ParameterGradients(smooth()), samples(8, 7)
    torch.testing.assert_close(source.norms(pixels, labels, chunk), source.norms(pixels, labels), rtol=1e-12, atol=0)


def other_weights(source: ParameterGradients, seed: Any = 5) -> dict[str, Tensor]:
    noise = random_direction(source.weights, seed)
    return {name: value + 0.1 * noise[name] for name, value in source.weights.items()}


@pytest.mark.parametrize("body", BODIES)
def test_at_other_weights_it_is_a_network_with_these_weights_and_the_same_statistics(
    smooth: Callable[..., Classifier], body: str
) -> None:
    model = smooth(body)
    source, (pixels, labels) = ParameterGradients(model), samples(8)
    before, weights = source.mean(pixels, labels), other_weights(source)
    moved = source.at(weights)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    direction, loaded = random_direction(weights), ParameterGradients(model)
    assert_equal_weights(moved.mean(pixels, labels), plain_gradients(model, pixels, labels))
    assert_equal_weights(moved.curvature(pixels, labels, direction), plain_curvature(model, pixels, labels, direction))
    slope = plain_pixel_gradient(model, pixels, labels, direction)
    assert relative_error(moved.pixel_gradient(pixels, labels, direction), slope) < 1e-10
    torch.testing.assert_close(moved.norms(pixels, labels), loaded.norms(pixels, labels), rtol=1e-10, atol=0)
    torch.testing.assert_close(moved.logits(pixels), model(pixels).detach(), rtol=1e-12, atol=1e-14)
    assert all(torch.equal(moved.weights[name], weights[name]) for name in weights)
    assert not any(value.requires_grad for value in moved.weights.values())
    with pytest.raises(AssertionError):
        assert_equal_weights(before, moved.mean(pixels, labels))


def test_at_other_weights_the_source_itself_stays_where_it_was(make_model: Callable[..., Classifier]) -> None:
    model = make_model().double()
    source, (pixels, labels) = ParameterGradients(model), samples(8)
    before = source.mean(pixels, labels), source.logits(pixels)
    moved = source.at(other_weights(source))
    back = moved.at(source.weights)
    assert_equal_weights(source.mean(pixels, labels), before[0], 0.0)
    assert torch.equal(source.logits(pixels), before[1])
    assert_equal_weights(back.mean(pixels, labels), before[0], 0.0)


def test_at_other_weights_frozen_ones_keep_theirs(smooth: Callable[..., Classifier]) -> None:
    model = smooth("plain")
    model.body[0].requires_grad_(False)  # type: ignore[index]
    source, (pixels, labels) = ParameterGradients(model), samples(8)
    weights = other_weights(source)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    assert_equal_weights(source.at(weights).mean(pixels, labels), plain_gradients(model, pixels, labels))


def test_another_criterion_is_differentiated_in_its_place(smooth: Callable[..., Classifier]) -> None:
    model = smooth()
    source, (pixels, labels) = ParameterGradients(model), samples(8)
    weights = dict(model.named_parameters())

    def hinge(logits: Tensor, labels: Tensor) -> Tensor:
        return (1 - logits.gather(1, labels[:, None])).square().sum()

    slopes = torch.autograd.grad(hinge(model(pixels), labels) / len(pixels), list(weights.values()))
    found = source.mean(pixels, labels, criterion=hinge)
    assert_equal_weights(found, dict(zip(weights, slopes, strict=True)))
    assert_equal_weights(source.mean(pixels, labels, 2, criterion=hinge), found, 1e-12)


def freeze_body(model: Classifier) -> None:
    model.body.requires_grad_(False)


def freeze_norms(model: Classifier) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def freeze_convolutions(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(False)


@pytest.mark.parametrize("freeze", [freeze_body, freeze_norms, freeze_convolutions])
def test_only_trainable_weights_are_matched(make_model: Callable[..., Classifier], freeze: Callable[..., None]) -> None:
    model = make_model().double()
    freeze(model)
    source, (pixels, labels) = ParameterGradients(model), samples(8)
    expected = plain_gradients(model, pixels, labels)
    assert_equal_weights(source.mean(pixels, labels), expected)
    direction = random_direction(expected)
    slope = plain_pixel_gradient(model, pixels, labels, direction)
    assert relative_error(source.pixel_gradient(pixels, labels, direction), slope) < 1e-9


def test_a_network_without_trainable_weights_is_refused(make_small: Callable[..., Classifier]) -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        ParameterGradients(make_small().requires_grad_(False))


def test_dropout_is_off_even_if_the_network_is_in_train_mode(make_small: Callable[..., Classifier]) -> None:
    model = make_small(dropout=0.5).double().train()
    found = ParameterGradients(model).mean(*samples(8))
    assert_equal_weights(found, plain_gradients(model.eval(), *samples(8)))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_and_the_pixels_are_left_as_they_were(
    make_model: Callable[..., Classifier],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
    training: bool,
) -> None:
    model = make_model().train(training)
    model.head.bias.requires_grad_(False)
    before, (pixels, labels) = snapshot(model), samples(8, dtype=torch.float32)
    kept = pixels.clone()
    source = ParameterGradients(model)
    source.pixel_gradient(pixels, labels, source.mean(pixels, labels), chunk=2)
    assert_untouched(model, before)
    assert torch.equal(pixels, kept)
    assert not pixels.requires_grad
    assert pixels.grad is None


def test_results_carry_no_graph(make_small: Callable[..., Classifier]) -> None:
    source, (pixels, labels) = ParameterGradients(make_small()), samples(8, dtype=torch.float32)
    found = source.mean(pixels.requires_grad_(True), labels)
    assert not any(value.requires_grad for value in found.values())
    assert not source.pixel_gradient(pixels, labels, found).requires_grad


def vectors(*values: list[Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in zip("ab", values, strict=True)}


def flattened(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in weights.values()])


def test_cosine_distance_and_its_slope_are_those_of_torch() -> None:
    own, aim = (random_direction(vectors([[0.0] * 3] * 2, [0.0]), seed) for seed in (1, 2))
    flat = flattened(own).requires_grad_(True)
    expected = 1 - F.cosine_similarity(flat, flattened(aim), dim=0)
    slope = torch.autograd.grad(expected, flat)[0]
    loss, direction = cosine_distance(own, aim)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-14)
    torch.testing.assert_close(flattened(direction), slope, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("factor", "distance"), [(3.0, 0.0), (-0.1, 2.0)])
def test_cosine_distance_is_0_for_equal_and_2_for_opposite_directions(factor: float, distance: float) -> None:
    own = vectors([1.0, 2.0], [3.0])
    loss, direction = cosine_distance(own, {name: factor * value for name, value in own.items()})
    assert loss.item() == pytest.approx(distance, abs=1e-12)
    assert all(value.abs().max() < 1e-12 for value in direction.values())


def test_cosine_distance_is_1_for_orthogonal_gradients_over_all_weights_together() -> None:
    assert cosine_distance(vectors([1.0, 0.0], [1.0]), vectors([1.0, 5.0], [-1.0]))[0].item() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_cosine_distance_stays_between_0_and_2(seed: int) -> None:
    own, aim = (random_direction(vectors([0.0] * 4, [0.0]), seed + shift) for shift in (0, 100))
    assert 0 <= cosine_distance(own, aim)[0].item() <= 2


def test_inner_sums_over_all_weights() -> None:
    assert inner(vectors([1.0, 2.0], [3.0]), vectors([4.0, 5.0], [6.0])).item() == 32
