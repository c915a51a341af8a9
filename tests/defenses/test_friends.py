"""Friendly noise: the objective and its gradient, the steps, when it is added, and the published settings."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.defenses import friends
from bench.defenses.friends import Friends, FriendsSettings, friendly_noise
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.settings import build
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.seeds import torch_stream
from bench.science.training import Batch, Recipe, Run, train
from tests.plugins import make_defense

GENTLE: dict[str, Any] = {"released": {"objective": "released", "lr": 3.0}, "paper": {"objective": "paper", "lr": 1.0}}
"""Learning rates that move the noise of a `sensitive` network but leave most of it inside zeta."""


def settings_of(**changes: Any) -> FriendsSettings:
    return FriendsSettings(**{"steps": 5, "noise": "bernoulli", **changes})


def noise_of(model: Classifier, data: Images, stream: int = 0, **changes: Any) -> Tensor:
    return friendly_noise(model, data, settings_of(**changes), torch_stream("cpu", stream))


class Spy(Friends):
    """Friends that keeps what went in and out of every pixel stage, and the friendly noise of every epoch."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(settings_of(**settings), "friends")
        self.steps: list[Any] = []
        self.friendly: dict[Any, Any] = {}

    def epoch(self, run: Run, epoch: int) -> None:
        super().epoch(run, epoch)
        self.friendly[epoch] = run.side["friendly"].clone() if "friendly" in run.side else None

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        before = batch.pixels.clone()
        batch = super().batch(batch, run, stage)
        if stage == "pixel":
            self.steps.append((run.current_epoch, batch.rows.clone(), before, batch.pixels.clone()))
        else:
            assert torch.equal(before, batch.pixels)
        return batch


@pytest.fixture
def trained(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], services: Services
) -> Callable[..., Spy]:
    """A spy after a training of four epochs on 20 grey-ish images that no noise can push out of range."""

    def go(spy: Spy, data: Images | None = None, seed: int = 0) -> Spy:
        data = data or make_images(20, low=70, high=180)
        services_of = getattr(spy, "services", services)
        list(spy.jobs(data, services_of))
        recipe = Recipe(epochs=4, batch=8, lr=0.02, drops=(), shift=1)
        train(make_small(), data, recipe, seed=seed, hooks=spy, services=services_of)
        return spy

    return go


@pytest.fixture
def make_sensitive(
    wrap: Callable[..., Classifier], scramble: Callable[[nn.Module, int], nn.Module]
) -> Callable[..., Classifier]:
    """Networks whose outputs answer to small noise, in eval mode."""

    def make(seed: int = 0, dropout: float = 0.0) -> Classifier:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            body = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Dropout(dropout)
            )
            model = scramble(wrap(body, 128), seed).eval()
        model.head.weight.data *= 8  # type: ignore[operator, union-attr]
        return model  # type: ignore[return-value]

    return make


@pytest.fixture
def model(make_sensitive: Callable[..., Classifier]) -> Classifier:
    return make_sensitive()


@pytest.mark.parametrize("objective", GENTLE)
@pytest.mark.parametrize("batch", [1, 4, 7, 16])
def test_the_noise_does_not_depend_on_the_batch(
    model: Classifier, make_images: Callable[..., Images], batch: int, objective: str
) -> None:
    whole = noise_of(model, make_images(18), batch=18, **GENTLE[objective]).int()
    parts = noise_of(model, make_images(18), batch=batch, **GENTLE[objective]).int()
    assert (whole.abs() < 16).float().mean() > 0.9
    assert (whole - parts).abs().max() <= 1
    assert (whole != parts).float().mean() < 0.01


def test_1024_images_at_eight_times_the_rate_are_eight_batches_of_128(
    model: Classifier, make_images: Callable[..., Images], slopes: list[Any]
) -> None:
    """The released form, a mean over the batch, has to scale its learning rate; ours does not depend on the batch."""
    data = make_images(1024, low=70, high=180)
    whole = noise_of(model, data, batch=1024, lr=10.0).int()
    many = [position for _, position, _ in slopes]
    slopes.clear()
    assert (noise_of(model, data, batch=128, lr=10.0).int() - whole).abs().max() <= 1
    few = [position for _, position, _ in slopes]
    assert (len(many), len(few)) == (5, 40)
    for step, position in enumerate(many):
        torch.testing.assert_close(torch.cat(few[step::5]), position, rtol=0, atol=5e-5)
    assert (many[0] - many[-1]).abs().mean() > 0.004

    def released(start: Tensor, pixels: Tensor, rate: float) -> Tensor:
        noise = start.clone().requires_grad_(True)
        sgd = torch.optim.SGD([noise], lr=rate, momentum=0.9, nesterov=True)
        for _ in range(5):
            inside = noise.clamp(-16 / 255, 16 / 255)
            outputs = [F.log_softmax(model(x), 1) for x in ((pixels + inside).clamp(0, 1), pixels)]
            loss = F.kl_div(*outputs, reduction="batchmean", log_target=True) - inside.square().mean()  # type: ignore[arg-type, misc]
            noise.grad = torch.autograd.grad(loss, noise)[0]
            sgd.step()
        return (noise.detach().clamp(-16 / 255, 16 / 255) * 255).round().int()

    pixels = data.images.float() / 255
    found = [released(many[0], pixels, 8 * 10.0)]
    found.append(torch.cat([released(many[0][i : i + 128], pixels[i : i + 128], 10.0) for i in range(0, 1024, 128)]))
    for noise in found:
        assert (noise - whole).abs().max() <= 1 and (noise != whole).float().mean() < 0.01


def test_the_noise_of_an_image_does_not_depend_on_later_images(
    model: Classifier, make_images: Callable[..., Images]
) -> None:
    data = make_images(10)
    alone = noise_of(model, data.subset(torch.arange(4)), **GENTLE["released"]).int()
    assert (noise_of(model, data, **GENTLE["released"])[:4].int() - alone).abs().max() <= 1


@pytest.mark.parametrize("zeta", [1, 4, 16, 32, 127])
def test_the_noise_stays_within_zeta(model: Classifier, make_images: Callable[..., Images], zeta: int) -> None:
    noise = noise_of(model, make_images(6), zeta=zeta, lr=1e5, lambda_=100.0)
    assert noise.dtype == torch.int8
    assert noise.shape == (6, 3, 8, 8)
    assert noise.int().abs().max() == zeta


@pytest.mark.parametrize("training", [True, False])
def test_the_network_and_the_data_are_left_as_they_were(
    model: Classifier,
    make_images: Callable[..., Images],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
    training: bool,
) -> None:
    model.train(training)
    model.head.bias.requires_grad_(False)
    before, data = snapshot(model), make_images(6)
    images = data.images.clone()
    noise_of(model, data)
    assert_untouched(model, before)
    assert torch.equal(data.images, images)


def test_the_noise_is_made_in_eval_mode(
    make_sensitive: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model, data = make_sensitive(dropout=0.5), make_images(6)
    training, evaluating = (noise_of(model.train(mode), data, **GENTLE["released"]) for mode in (True, False))
    assert torch.equal(training, evaluating)


def test_the_noise_depends_on_its_stream_alone(model: Classifier, make_images: Callable[..., Images]) -> None:
    torch.manual_seed(0)
    first = noise_of(model, make_images(6))
    torch.manual_seed(1)
    assert torch.equal(first, noise_of(model, make_images(6)))
    assert not torch.equal(first, noise_of(model, make_images(6), stream=1))


@pytest.fixture
def slopes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every (loss, noise, gradient) that is taken while the fixture is in use."""
    taken, plain = [], torch.autograd.grad

    def spy(loss: Tensor, leaf: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, ...]:
        result = plain(loss, leaf, *rest, **more)
        taken.append((loss.item(), leaf.detach().clone(), result[0].clone()))
        return result

    monkeypatch.setattr(torch.autograd, "grad", spy)
    return taken


def friendly_loss(model: Classifier, pixels: Tensor, noise: Tensor, zeta: int, weight: float, objective: str) -> Tensor:
    """The objective, from probabilities: a sum over images divided by the reference batch of 128."""
    inside = noise.clamp(-zeta / 255, zeta / 255)
    clean, moved = (F.softmax(model(x), 1) for x in (pixels, (pixels + inside).clamp(0, 1)))
    if objective == "released":
        divergence = (clean * (clean / moved).log()).sum(1)
        reward = (inside**2).sum((1, 2, 3)) / inside[0].numel()
    else:
        divergence = (moved * (moved / clean).log()).sum(1)
        reward = (inside**2).sum((1, 2, 3)).sqrt()
    return (divergence - weight * reward).sum() / 128


@pytest.mark.parametrize("objective", GENTLE)
@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_loss_and_gradient_are_those_of_the_formulas(
    model: Classifier, make_images: Callable[..., Images], slopes: list[Any], objective: str, weight: float
) -> None:
    data = make_images(5)
    noise_of(model, data, lambda_=weight, zeta=12, **GENTLE[objective])
    reference, pixels = model.double(), data.images.double() / 255
    assert len(slopes) == 5
    for loss, noise, slope in list(slopes):
        leaf = noise.double().requires_grad_(True)
        expected = friendly_loss(reference, pixels, leaf, 12, weight, objective)
        (exact,) = torch.autograd.grad(expected, leaf)
        assert loss == pytest.approx(expected.item(), rel=1e-4, abs=1e-8)
        assert ((slope - exact).norm() / exact.norm()).item() < 1e-3


def test_the_two_objectives_differ(model: Classifier, make_images: Callable[..., Images], slopes: list[Any]) -> None:
    for objective in ("released", "paper"):
        noise_of(model, make_images(5), objective=objective, steps=1)
    (_, start, released), (_, same, paper) = slopes
    assert torch.equal(start, same)
    assert ((released - paper).norm() / released.norm()).item() > 0.01


def test_the_noise_starts_uniform_between_8_levels(
    model: Classifier, make_images: Callable[..., Images], slopes: list[Any]
) -> None:
    noise_of(model, make_images(40))
    start = slopes[0][1] * 255
    assert start.abs().max() <= 8
    counts = torch.histc(start, bins=8, min=-8, max=8) / start.numel()
    assert (counts - 1 / 8).abs().max() < 0.015


def test_the_noise_starts_within_a_small_zeta(
    model: Classifier, make_images: Callable[..., Images], slopes: list[Any]
) -> None:
    noise_of(model, make_images(40), zeta=3)
    assert 2.9 < (slopes[0][1] * 255).abs().max() <= 3


def test_the_steps_are_those_of_nesterov_sgd_and_the_end_is_clamped(
    model: Classifier, make_images: Callable[..., Images], slopes: list[Any]
) -> None:
    found = noise_of(model, make_images(5), lr=20.0, zeta=12)
    noise = slopes[0][1].double().requires_grad_(True)
    sgd = torch.optim.SGD([noise], lr=20.0, momentum=0.9, nesterov=True)
    for _, position, slope in slopes:
        torch.testing.assert_close(position.double(), noise.detach(), rtol=0, atol=1e-5)
        noise.grad = slope.double()
        sgd.step()
    assert 0.05 < (noise.detach().abs() > 12 / 255).double().mean() < 0.95
    expected = (noise.detach() * 255).clamp(-12, 12)
    assert (found.double() - expected).abs().max() <= 0.5 + 1e-3


def test_friendly_noise_is_large_but_changes_outputs_little(
    model: Classifier, make_images: Callable[..., Images]
) -> None:
    data = make_images(12, low=70, high=180)
    noise = noise_of(model, data, objective="paper", lr=3.0, steps=20).float()
    order = torch.randperm(noise[0].numel(), generator=torch_stream("cpu", 0))
    shuffled = noise.flatten(1)[:, order].view_as(noise)
    assert noise.abs().mean() > 12
    assert divergence(model, data, noise) < 0.1 * divergence(model, data, shuffled)


def test_released_steps_bring_the_outputs_back(model: Classifier, make_images: Callable[..., Images]) -> None:
    data = make_images(12, low=70, high=180)
    start, end = (noise_of(model, data, lr=lr, steps=20).float() for lr in (1e-9, 3.0))
    assert divergence(model, data, end) < 0.2 * divergence(model, data, start)


def divergence(model: Classifier, data: Images, levels: Tensor) -> float:
    """KL(f(x) || f(x + levels / 255)), mean over images."""
    pixels = data.images.double() / 255
    with torch.no_grad():
        clean, moved = (F.log_softmax(copy.deepcopy(model).double()(x), 1) for x in (pixels, pixels + levels / 255))
    return F.kl_div(moved, clean, log_target=True, reduction="batchmean").item()


@pytest.mark.parametrize("start", [0, 2, 3])
def test_friendly_noise_starts_at_its_epoch_and_then_stays(trained: Callable[..., Spy], start: int) -> None:
    spy = trained(Spy(start=start))
    assert [epoch for epoch in range(4) if spy.friendly[epoch] is not None] == list(range(start, 4))
    for epoch in range(start, 4):
        assert torch.equal(spy.friendly[epoch], spy.friendly[start])


def test_friendly_noise_belongs_to_its_row_and_random_noise_is_redrawn(trained: Callable[..., Spy]) -> None:
    spy = trained(Spy(start=1, mu=10))
    draws: set[Any] = set()
    for epoch, rows, before, after in spy.steps:
        fixed = spy.friendly[epoch][rows].float() / 255 if epoch >= 1 else 0
        random = after - before - fixed
        torch.testing.assert_close(random.abs(), torch.full_like(random, 10 / 255), rtol=0, atol=1e-6)
        signs = {tuple(image.flatten().tolist()) for image in random > 0}
        assert not signs & draws
        draws |= signs
    assert len(draws) == 4 * 20


def test_friendly_noise_stays_with_its_rows_when_samples_are_left_out(trained: Callable[..., Spy]) -> None:
    class Leaving(Spy):
        def epoch(self, run: Run, epoch: int) -> None:
            super().epoch(run, epoch)
            run.active[::3] = epoch < 2

    spy = trained(Leaving(start=1, noise="none"))
    left_out = set(range(0, 20, 3))
    for epoch, rows, before, after in spy.steps:
        assert epoch < 2 or not left_out & set(rows.tolist())
        if epoch >= 1:
            torch.testing.assert_close(after - before, spy.friendly[epoch][rows].float() / 255, rtol=0, atol=1e-6)


@pytest.fixture
def crafted(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], make_run: Callable[..., Run]
) -> Callable[..., Tensor]:
    """A run whose friendly noise is given, and a batch of its first rows."""

    def make(level: int, pixel: int, **settings: Any) -> Tensor:
        data = make_images(6)
        data = data.with_images(torch.full_like(data.images, pixel))
        run = make_run(make_small(), data, owner="friends")
        run.side["friendly"] = torch.full(data.images.shape, level, dtype=torch.int8)
        run.side["noise"] = run.stream("noise")
        rows = torch.arange(6)
        batch = Batch(run.pixels(rows), data.labels, rows, data.ids)
        return Friends(settings_of(**settings)).batch(batch, run, "pixel").pixels

    return make


@pytest.mark.parametrize(("level", "pixel", "result"), [(16, 100, 116), (-16, 100, 84), (16, 250, 255), (-16, 10, 0)])
def test_an_image_with_friendly_noise_is_clipped(
    crafted: Callable[..., Tensor], level: int, pixel: int, result: int
) -> None:
    pixels = crafted(level, pixel, noise="none")
    torch.testing.assert_close(pixels * 255, torch.full_like(pixels, result), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("level", "pixel", "middle"), [(16, 250, 255), (-16, 10, 0)])
def test_random_noise_comes_after_the_clip_and_is_not_clipped(
    crafted: Callable[..., Tensor], level: int, pixel: int, middle: int
) -> None:
    found = (crafted(level, pixel, noise="bernoulli", mu=16) * 255).round().unique().tolist()
    assert found == [middle - 16, middle + 16]


def test_images_with_friendly_noise_stay_in_range_and_within_zeta(
    trained: Callable[..., Spy], make_images: Callable[..., Images]
) -> None:
    data = make_images(20)
    assert (data.images == 0).any() and (data.images == 255).any()
    spy = trained(Spy(start=1, noise="none", zeta=20, lr=1e4), data)
    for epoch, _, before, after in spy.steps:
        assert after.min() >= 0 and after.max() <= 1
        assert (after - before).abs().max() <= (20 / 255 + 1e-6 if epoch >= 1 else 0)
    assert max((after - before).abs().max() for _, _, before, after in spy.steps) > 19.9 / 255


def test_outputs_that_are_not_finite_fail_the_trial(model: Classifier, make_images: Callable[..., Images]) -> None:
    model.head.weight.data.fill_(float("inf"))
    with pytest.raises(TrialFailed, match="friendly noise.*not finite"):
        noise_of(model, make_images(6))


def test_all_of_it_depends_on_the_seed_alone(trained: Callable[..., Spy]) -> None:
    first, again, other = trained(Spy(start=1)), trained(Spy(start=1)), trained(Spy(start=1), seed=1)
    assert torch.equal(first.friendly[3], again.friendly[3])
    assert torch.equal(first.steps[-1][3], again.steps[-1][3])
    assert not torch.equal(first.friendly[3], other.friendly[3])


def expected_noise(model: Classifier, data: Images, spy: Spy, epoch: int) -> Tensor:
    stream = torch_stream("cpu", 0, "plugin", "friends", 0, epoch, "friendly")
    return friendly_noise(model, data, spy.settings, stream)


def test_a_source_model_makes_the_noise(
    make_sensitive: Callable[..., Classifier],
    make_images: Callable[..., Images],
    services: Services,
    trained: Callable[..., Spy],
) -> None:
    calls, source = [], make_sensitive(5)

    def fit(data: Images, name: str, epochs: int, *who: str | int) -> Classifier:
        calls.append((data, name, epochs))
        return source

    spy = Spy(start=2, source_model="lenet", **GENTLE["released"])
    spy.services = dataclasses.replace(services, fit=fit)  # type: ignore[attr-defined]
    data = make_images(20, low=70, high=180)
    trained(spy, data)
    assert [call[1:] for call in calls] == [("lenet", 2)]
    assert torch.equal(calls[0][0].images, data.images)
    assert torch.equal(spy.friendly[2], expected_noise(source, data, spy, 2))
    assert not torch.equal(spy.friendly[2], expected_noise(make_sensitive(6), data, spy, 2))


def test_without_a_source_model_the_victim_of_that_moment_makes_the_noise(
    trained: Callable[..., Spy], make_images: Callable[..., Images], make_small: Callable[..., Classifier]
) -> None:
    class Copying(Spy):
        def epoch(self, run: Run, epoch: int) -> None:
            if epoch == 2:
                self.victim = copy.deepcopy(run.model)
            super().epoch(run, epoch)

    spy, data = Copying(start=2, lr=300.0), make_images(20, low=70, high=180)
    trained(spy, data)
    assert torch.equal(spy.friendly[2], expected_noise(spy.victim, data, spy, 2))
    assert not torch.equal(spy.friendly[2], expected_noise(make_small().eval(), data, spy, 2))


def test_the_hooks_work_with_the_services_of_the_run(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], services: Services
) -> None:
    """A training that is started without iterating over `jobs` first."""
    spy = Spy(start=1)
    recipe = Recipe(epochs=2, batch=8, lr=0.02, drops=())
    train(make_small(), make_images(8), recipe, seed=0, hooks=spy, services=services)
    assert spy.friendly[1] is not None


def test_unless_it_is_set_the_batch_is_that_of_the_device(
    model: Classifier, make_images: Callable[..., Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    data, stream = make_images(10), torch_stream("cpu", 0)
    # How many images suit a device is no setting, and 128 of them would be slow.
    monkeypatch.setattr(friends, "images_at_once", lambda device: {"cpu": 4}[device.type])
    friendly_noise(model, data, settings_of(steps=1), stream, lambda _, done, of: seen.append(done))
    assert seen == [4, 8, 10]


def test_progress_counts_images(model: Classifier, make_images: Callable[..., Images]) -> None:
    seen = []
    settings, stream = settings_of(batch=4, steps=1), torch_stream("cpu", 0)
    friendly_noise(model, make_images(10), settings, stream, lambda *progress: seen.append(progress))
    assert seen == [("friendly noise", done, 10) for done in (4, 8, 10)]


def test_the_effect_is_what_the_noise_does(model: Classifier, make_images: Callable[..., Images]) -> None:
    data = make_images(30, low=70, high=180)
    noise = noise_of(model, data, lr=3.0, zeta=12)
    seen = friends.effect(model, data.images, noise, 12)
    reference = copy.deepcopy(model).double()
    with torch.no_grad():
        before, after = (reference((data.images + e).double() / 255).argmax(1) for e in (0 * noise, noise))
    assert seen["divergence"] == pytest.approx(divergence(model, data, noise.float()), rel=1e-3)
    assert seen["unchanged"] == pytest.approx((before == after).double().mean().item())
    assert seen["size"] == pytest.approx(noise.double().abs().mean().item())
    assert seen["at the bound"] == pytest.approx(((noise == 12) | (noise == -12)).double().mean().item())


def effects(model: Classifier, data: Images, **changes: Any) -> dict[float, dict[str, float]]:
    """Of the noise of each rate of the paper's grid, beginning where the search begins."""
    settings = {rate: settings_of(lr=rate, **changes) for rate in (100.0, 50.0, 20.0, 10.0)}
    found = {}
    for rate, chosen in settings.items():
        stream = torch_stream("cpu", 0)
        some = data.subset(torch.randperm(len(data), generator=stream)[:512])
        found[rate] = friends.effect(model, some.images, friendly_noise(model, some, chosen, stream), chosen.zeta)
    return found


@pytest.mark.parametrize("unchanged", [0.0, 0.5, 0.9, 1.1])
def test_the_search_takes_the_highest_rate_whose_noise_is_friendly(
    model: Classifier, make_images: Callable[..., Images], monkeypatch: pytest.MonkeyPatch, unchanged: float
) -> None:
    notes: list[dict[str, float]] = []
    data = make_images(40, low=70, high=180)
    monkeypatch.setattr(friends, "UNCHANGED", unchanged)
    noise = friendly_noise(model, data, settings_of(lr="search"), torch_stream("cpu", 0), note=notes.append)
    tried = effects(model, data)
    allowed = [rate for rate, of in tried.items() if of["unchanged"] >= unchanged]
    best = max(allowed) if allowed else max(tried, key=lambda r: tried[r]["unchanged"])
    assert len({of["size"] for of in tried.values()}) == 4
    stream = torch_stream("cpu", 0)
    torch.randperm(len(data), generator=stream)
    assert torch.equal(noise, friendly_noise(model, data, settings_of(lr=best), stream))
    assert notes[0]["lr"] == best and notes[0] == {"lr": best, **friends.effect(model, data.images, noise, 16)}


def test_the_search_looks_at_no_more_images_than_it_says(
    model: Classifier, make_images: Callable[..., Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(friends, "TRIED_ON", 6)
    monkeypatch.setattr(friends, "UNCHANGED", 1.1)  # so that every rate is tried
    seen: list[int] = []
    real = friends._noise_of_all

    def spy(model: Classifier, data: Images, *more: Any) -> Tensor:
        seen.append(len(data))
        return real(model, data, *more)

    monkeypatch.setattr(friends, "_noise_of_all", spy)
    noise_of(model, make_images(20), lr="search")
    assert seen == [6, 6, 6, 6, 20]


VARIANTS = [("friends-u", "uniform", 16), ("friends-b", "bernoulli", 16), ("friends-g", "gaussian", 16)]


@pytest.mark.parametrize(("name", "noise", "zeta"), [*VARIANTS, ("friendly", "none", 32)])
def test_the_variants_have_the_published_settings(name: str, noise: str, zeta: int) -> None:
    settings = make_defense(name).settings
    assert (settings.noise, settings.zeta) == (noise, zeta)
    assert (settings.mu, settings.start, settings.steps) == (16, 5, 20)


def test_an_unknown_source_model_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match="unknown model 'lenett'.*did you mean 'lenet'"):
        build(FriendsSettings, {"source_model": "lenett"}, "defense")
