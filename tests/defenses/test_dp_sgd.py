"""DP-SGD: the step against one backward pass a sample, what one sample can do, Poisson batches, epsilon, the twin."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from torch import Tensor, nn

from bench.authoring.contract import check
from bench.defenses.dp_sgd import DpSgd, DpSgdSettings, epsilon, make_private
from bench.defenses.noisy_sgd import NoisySgd, NoisySgdSettings
from bench.defenses.shared.group_norm import group_norm_twin
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.registry import find
from bench.science.classifier import Classifier
from bench.science.composition import Composition
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.seeds import torch_stream
from bench.science.training import Recipe, Run, train

pytest.importorskip("opacus")
from opacus.accountants import RDPAccountant  # noqa: E402

from tests.plugins import make_defense

NAMES = ["convnet", "lenet", "resnet18", "resnet20", "vgg11", "mobilenet-v2", "alexnet"]
PLAIN: dict[str, Any] = {"drops": (), "augment": "none", "flip": False}


@pytest.fixture
def make_step(make_run: Callable[..., Run]) -> Callable[..., tuple[Run, Tensor]]:
    """One step on `rows`: (run, gradients that reach SGD as one vector, each parameter's shape and type)."""

    def step(
        model: Classifier, images: Images, rows: Tensor, batch: int = 5, epoch: int = 0, **settings: Any
    ) -> tuple[Run, Tensor]:
        run = make_run(model, images, owner="dp-sgd", batch=batch, lr=0.1, **PLAIN)
        defense = DpSgd(DpSgdSettings(**settings), "dp-sgd")
        defense.setup(run)
        run.current_epoch = epoch
        defense.epoch(run, epoch)
        run.sampler(torch.arange(len(images)), torch.Generator())  # type: ignore[misc]
        run.model.train()
        kind = next(run.model.parameters()).dtype
        losses = F.cross_entropy(run.model(run.pixels(rows).to(kind)), run.data.labels[rows], reduction="none")
        loss = defense.loss(losses, None, run)  # type: ignore[arg-type]
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()
        return run, torch.cat([p.grad.flatten() for p in run.model.parameters() if p.requires_grad])  # type: ignore[union-attr]

    return step


def gradients(model: Classifier, images: Images, rows: Tensor) -> Tensor:
    """Each sample's own gradient [b, weights], one backward pass a sample."""
    model = copy.deepcopy(model).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    pixels = (images.images[rows].to(torch.float32) / 255).to(weights[0].dtype)
    found = []
    for pixel, label in zip(pixels, images.labels[rows], strict=True):
        each = torch.autograd.grad(F.cross_entropy(model(pixel[None]), label[None]), weights)
        found.append(torch.cat([gradient.flatten() for gradient in each]))
    return torch.stack(found)


def own_noise(model: Classifier, seed: int, epoch: int, deviation: float) -> Tensor:
    """What N(0, deviation^2) the defense's stream gives the weights in turn."""
    stream = torch_stream("cpu", seed, "plugin", "dp-sgd", 0, epoch, "noise")
    return torch.cat(
        [
            torch.normal(0.0, deviation, p.shape, generator=stream, dtype=p.dtype).flatten()
            for p in model.parameters()
            if p.requires_grad
        ]
    )


def test_a_step_clips_each_sample_adds_noise_to_the_sum_and_divides_by_the_expected_batch(
    make_small: Callable[..., Classifier],
    make_images: Callable[..., Images],
    make_step: Callable[..., tuple[Run, Tensor]],
) -> None:
    twin = group_norm_twin(make_small()).double()
    images, rows = make_images(12), torch.tensor([0, 3, 4, 7, 8, 9, 11])
    each = gradients(twin, images, rows)
    clip = each.norm(dim=1).median().item()  # so that some are clipped and some are not
    clipped = each * (clip / each.norm(dim=1, keepdim=True)).clamp(max=1)
    start = torch.cat([p.detach().flatten() for p in twin.parameters()])
    expected = (clipped.sum(0) + own_noise(twin, 0, 2, 0.7 * clip)) / 5  # B is 5 where 7 were drawn
    run, found = make_step(twin, images, rows, batch=5, epoch=2, noise_multiplier=0.7, clip=clip)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)  # opacus adds 1e-6 to the norms
    moved = torch.cat([p.detach().flatten() for p in run.model.parameters()]) - start
    # The first step of SGD with Nesterov momentum 0.9 and weight decay 5e-4
    torch.testing.assert_close(moved, -0.1 * 1.9 * (expected + 5e-4 * start), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_network_gives_its_samples_own_gradients_and_takes_an_empty_batch(
    name: str,
    make_model: Callable[..., Classifier],
    make_images: Callable[..., Images],
    make_step: Callable[..., tuple[Run, Tensor]],
) -> None:
    size = 16 if name in ("lenet", "alexnet") else 8
    model, images, rows = make_model(name, size=size), make_images(4, size), torch.tensor([0, 2])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin = group_norm_twin(model)
    each = gradients(twin, images, rows)
    clip = 0.5 * each.norm(dim=1).max().item()
    clipped = each * (clip / each.norm(dim=1, keepdim=True)).clamp(max=1)
    _, found = make_step(copy.deepcopy(twin), images, rows, batch=4, noise_multiplier=0.0, clip=clip)
    assert (found - clipped.sum(0) / 4).norm() < 1e-3 * clipped.sum(0).norm() / 4
    _, found = make_step(twin, images, torch.tensor([], dtype=torch.int64), batch=4, noise_multiplier=0.5, clip=2.0)
    torch.testing.assert_close(found, own_noise(twin, 0, 0, 1.0) / 4)


def test_one_sample_changes_the_sum_by_at_most_the_clip(
    make_small: Callable[..., Classifier],
    make_images: Callable[..., Images],
    make_step: Callable[..., tuple[Run, Tensor]],
) -> None:
    model, images = group_norm_twin(make_small()), make_images(12)
    with torch.no_grad():
        model.head.weight.mul_(1e3)
    rows, settings = torch.arange(11), {"noise_multiplier": 0.0, "clip": 0.3, "batch": 2}
    labels = images.labels.clone()
    labels[11] = model(images.images[11:].float() / 255).argmin()  # a wrong label with a large loss
    images = type(images)(images.images, labels, images.ids)
    assert gradients(model, images, torch.tensor([11])).norm() > 100
    _, without = make_step(copy.deepcopy(model), images, rows, **settings)
    _, with_it = make_step(copy.deepcopy(model), images, torch.arange(12), **settings)
    change = 2 * (with_it - without).norm().item()  # of the sum, which is divided by the batch
    assert change == pytest.approx(0.3, rel=1e-4)
    assert change <= 0.3 * (1 + 1e-4)


def test_gradients_of_half_precision_are_clipped_to_the_clip_and_not_a_little_above() -> None:
    weights = [nn.Parameter(torch.zeros(50, 40)), nn.Parameter(torch.zeros(30))]
    optimizer = make_private(torch.optim.SGD(weights, lr=0.1), 0.0, 1.0, 1)
    chance = torch.Generator().manual_seed(0)
    for _ in range(20):
        for weight in weights:
            weight.summed_grad = None  # type: ignore[attr-defined]
            weight.grad_sample = torch.randn(1, *weight.shape, generator=chance).bfloat16()  # type: ignore[attr-defined]
        optimizer.step()
        assert torch.cat([weight.grad.flatten() for weight in weights]).norm() <= 1 + 1e-5  # type: ignore[union-attr]


def test_the_noise_on_the_mean_has_the_deviation_sigma_c_over_b_as_noisy_sgd_with_n_sigma_over_b(
    make_model: Callable[..., Classifier],
    make_images: Callable[..., Images],
    make_run: Callable[..., Run],
    make_step: Callable[..., tuple[Run, Tensor]],
) -> None:
    images, none = make_images(40), torch.tensor([], dtype=torch.int64)
    _, noise = make_step(make_model("convnet"), images, none, batch=20, noise_multiplier=1.6, clip=0.5)
    assert noise.std().item() == pytest.approx(1.6 * 0.5 / 20, rel=0.01)
    assert abs(noise.mean().item()) < 1e-3
    run = make_run(make_model("convnet"), images, lr=0.1)
    other = NoisySgd(NoisySgdSettings(clip=0.5, noise=1.6 / 20), "noisy-sgd")
    other.setup(run)
    other.epoch(run, 0)
    (0.0 * run.model(run.pixels(torch.arange(4))).sum()).backward()
    run.optimizer.step()
    theirs = torch.cat([p.grad.flatten() for p in run.model.parameters()])  # type: ignore[union-attr]
    assert noise.std().item() == pytest.approx(theirs.std().item(), rel=0.01)


def test_batches_are_drawn_sample_by_sample_with_the_rate_b_over_n(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> None:
    run = make_run(make_small(), make_images(24), batch=50, **PLAIN)
    DpSgd(DpSgdSettings(), "dp-sgd").setup(run)
    rows = 3 * torch.arange(1020)
    epochs = [run.sampler(rows, torch.Generator().manual_seed(k)) for k in range(30)]  # type: ignore[misc]
    again = run.sampler(rows, torch.Generator().manual_seed(3))  # type: ignore[misc]
    assert {len(batches) for batches in epochs} == {20}
    assert all(torch.equal(a, b) for a, b in zip(epochs[3], again, strict=True))
    batches = [batch for batches in epochs for batch in batches]
    sizes = torch.tensor([float(len(batch)) for batch in batches])
    assert sizes.mean().item() == pytest.approx(50, abs=4 * math.sqrt(50 / 600))
    assert sizes.var().item() == pytest.approx(50 * (1 - 50 / 1020), rel=0.25)  # 0 for batches of equal size
    counts = torch.bincount(torch.cat(batches), minlength=3060)[rows].double()
    assert counts.sum() == sizes.sum()  # no other row
    q = 50 / 1020
    assert counts.var().item() == pytest.approx(600 * q * (1 - q), rel=0.25)  # 0 where every epoch shows each once
    assert len(run.sampler(torch.arange(9), torch.Generator())) == 1  # type: ignore[misc]  # fewer samples than a batch: all, once
    assert torch.equal(run.sampler(torch.arange(9), torch.Generator())[0], torch.arange(9))  # type: ignore[misc]
    assert run.optimizer.expected_batch_size == 9  # type: ignore[attr-defined]


def test_without_noise_and_clipping_a_training_is_sgd_on_poisson_batches(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    images, recipe = make_images(30), Recipe(epochs=3, batch=7, lr=0.05, schedule="one-cycle", **PLAIN)
    model = group_norm_twin(make_small())
    plain = copy.deepcopy(model)
    settings = DpSgdSettings(noise_multiplier=0.0, clip=1e6)
    train(model, images, recipe, seed=4, hooks=DpSgd(settings, "dp-sgd"))
    sgd = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    pixels = images.images.float() / 255
    for epoch in range(3):
        chance = torch_stream("cpu", 4, "order", 0, epoch)
        for step in range(4):
            rows = torch.nonzero(torch.rand(30, generator=chance) < 7 / 30).flatten()
            sgd.param_groups[0]["lr"] = recipe.learning_rate(epoch, step, 4)
            sgd.zero_grad()
            (F.cross_entropy(plain(pixels[rows]), images.labels[rows], reduction="sum") / 7).backward()
            sgd.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def trained(
    model: Classifier,
    images: Images,
    seed: int = 1,
    beside: Any = (),
    services: Services | None = None,
    epochs: int = 2,
    batch: int = 8,
    **settings: Any,
) -> Classifier:
    defense = DpSgd(DpSgdSettings(**settings), "dp-sgd")
    defense.beside = beside
    recipe = Recipe(epochs=epochs, batch=batch, lr=0.05, schedule="one-cycle", augment="bilinear", shift=1)
    return train(model, images, recipe, seed=seed, hooks=defense, services=services).model


def test_a_training_follows_its_seed_and_draws_nothing_else(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (weights_of(trained(make_small(), make_images(), seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_comes_out_is_a_classifier_without_a_trace_of_opacus(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model = trained(make_model("convnet"), make_images())
    assert type(model) is Classifier
    assert not model.training
    pristine = make_model("lenet", size=16)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not {"activations", "max_batch_len", "autograd_grad_sample_hooks"} & set(vars(module))
    for parameter in model.parameters():
        assert set(vars(parameter)) == set(vars(next(pristine.parameters())))
    model.train()
    model(make_images(4).images.float() / 255).sum().backward()  # an ordinary pass
    assert all(parameter.grad is not None and not vars(parameter) for parameter in model.parameters())


def test_frozen_features_keep_their_batchnorm_and_only_the_head_is_trained(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    start = make_model("convnet").freeze_features()
    before = copy.deepcopy(start)
    model = trained(start, make_images(), norm="keep")
    for name, value in before.body.state_dict().items():
        assert torch.equal(value, model.body.state_dict()[name]), name
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not torch.equal(before.head.weight, model.head.weight)


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_has_the_same_weights_and_shapes_and_no_batchnorm(
    name: str,
    make_model: Callable[..., Classifier],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    size = 16 if name in ("lenet", "alexnet") else 8
    model = make_model(name, size=size)
    before = snapshot(model)
    twin = group_norm_twin(model)
    assert_untouched(model, before)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert (twin is model) == (name in ("lenet", "alexnet"))
    ours = {key: value for key, value in twin.state_dict().items()}
    theirs = {key: value for key, value in model.state_dict().items() if key in ours}
    assert set(ours) == set(theirs)  # the twin has fewer: no running statistics
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert [x.shape for x in twin.stages(pixels)] == [x.shape for x in model.stages(pixels)]
    twin.train()
    if name != "alexnet":  # dropout
        torch.testing.assert_close(twin(pixels)[:1], twin(pixels[:1]), rtol=1e-3, atol=1e-4)


def test_a_relu_in_place_is_none_in_the_twin(wrap: Callable[..., Classifier]) -> None:
    body = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = wrap(body, 6)
    twin = group_norm_twin(model)
    assert model.body[2].inplace  # type: ignore[index]
    assert not twin.body[2].inplace  # type: ignore[index]
    assert isinstance(twin.body[1], nn.GroupNorm)  # type: ignore[index]
    assert twin.body[1].num_groups == 2  # type: ignore[index]


def test_a_network_that_mixes_samples_is_refused_with_the_fix(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], make_model: Callable[..., Classifier]
) -> None:
    with pytest.raises(TrialFailed, match="1 BatchNorm layers.*--set defense.norm=group"):
        trained(make_small(), make_images(), norm="keep")
    trained(make_model("lenet", size=16), make_images(8, 16), norm="keep")
    pretrained = make_small()
    train(pretrained, make_images(), Recipe(epochs=1, batch=8, **PLAIN), seed=0)
    with pytest.raises(TrialFailed, match="pretrained with BatchNorm.*threat.scenario=transfer"):
        trained(pretrained, make_images())


def test_without_opacus_the_fix_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    defense = DpSgd(DpSgdSettings(), "dp-sgd")
    assert defense.external()["opacus"][0].isdigit()
    monkeypatch.setitem(sys.modules, "opacus.grad_sample.grad_sample_module", None)
    with pytest.raises(BadInput, match=r"pip install 'poisoning-bench\[dp\]'"):
        defense.external()


def integer_order_epsilon(q: float, sigma: float, steps: int, delta: float) -> float:
    """RDP of the subsampled Gaussian at whole orders (Mironov et al. 2019), to epsilon as Balle et al. (2020) do."""

    def rdp(a: int) -> float:
        terms = [
            math.log(math.comb(a, k)) + (a - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / (2 * sigma**2)
            for k in range(a + 1)
        ]
        return logsumexp(terms) / (a - 1)

    return min(steps * rdp(a) + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1) for a in range(2, 128))


@pytest.mark.parametrize(("sigma", "known"), [(0.5, 15.6), (1.0, 1.86), (2.0, 0.68)])
def test_epsilon_agrees_with_the_formula_at_whole_orders(sigma: float, known: float) -> None:
    accountant, q, steps = RDPAccountant(), 128 / 50000, 40 * 391
    accountant.history = [(sigma, q, steps)]
    found = epsilon(accountant, 1e-5)
    independent = integer_order_epsilon(q, sigma, steps, 1e-5)
    assert independent == pytest.approx(known, rel=0.01)
    assert found == pytest.approx(independent, rel=0.03)
    assert found <= independent * (1 + 1e-9)  # type: ignore[operator]  # more orders can only be tighter


def test_epsilon_without_privacy_is_none_and_with_little_noise_huge() -> None:
    accountant = RDPAccountant()
    accountant.history = [(0.0, 0.01, 10)]
    assert epsilon(accountant, 1e-5) is None
    accountant.history = [(0.05, 128 / 50000, 40 * 391)]
    assert 1e6 < epsilon(accountant, 1e-5) < 1e7  # type: ignore[operator]


@pytest.fixture
def noting() -> tuple[dict[Any, Any], Services]:
    """Services whose notes are kept."""
    notes: dict[Any, Any] = {}
    return notes, Services(Recipe(), 3, None, lambda *_: None, note=notes.__setitem__)  # type: ignore[arg-type]


def test_the_record_has_what_was_spent(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], noting: tuple[dict[Any, Any], Services]
) -> None:
    notes, services = noting
    trained(make_small(), make_images(30), services=services, epochs=3, batch=8, noise_multiplier=2.0, delta=1e-4)
    privacy = notes["privacy"]
    assert privacy["steps"] == 3 * 4
    assert privacy["sample_rate"] == pytest.approx(8 / 30)
    assert (privacy["sigma"], privacy["clip"], privacy["delta"], privacy["beside"]) == (2.0, 1.0, 1e-4, [])
    assert privacy["epsilon"] == pytest.approx(integer_order_epsilon(8 / 30, 2.0, 12, 1e-4), rel=0.03)


def test_beside_another_defense_no_epsilon_is_claimed(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], noting: tuple[dict[Any, Any], Services]
) -> None:
    notes, services = noting
    parts = [
        make_defense("dp-sgd"),
        make_defense("mixup"),
    ]
    both = Composition(parts, "dp-sgd+mixup")
    train(make_small(), make_images(), Recipe(epochs=1, batch=8, **PLAIN), seed=1, hooks=both, services=services)
    assert notes["privacy"]["epsilon"] is None
    assert notes["privacy"]["beside"] == ["mixup"]
    for other in ("maxup", "noisy-sgd", "abl"):
        with pytest.raises(BadInput, match="both own"):
            Composition.check([DpSgd, find("defense", other).make], ["dp-sgd", other])


def test_it_trains_in_single_precision_whatever_the_recipe_says(
    make_model: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    recipes = [Recipe(epochs=1, batch=8, **{**PLAIN, "precision": precision}) for precision in ("float32", "bfloat16")]
    exact, asked_for_half = (
        train(make_model("convnet"), make_images(), recipe, seed=1, hooks=DpSgd(DpSgdSettings(), "dp-sgd")).model
        for recipe in recipes
    )
    assert torch.equal(weights_of(exact), weights_of(asked_for_half))


@pytest.mark.parametrize("name", ["dp-sgd", "dp-sgd-0.05"])
def test_the_contract_is_kept(name: str) -> None:
    broken = [result for result in check(name) if not result.passed]
    assert not broken
