"""The training loop: order of batches, hooks, schedules, inactive samples, failures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.settings import Settings, build
from bench.science.classifier import Classifier, build_model
from bench.science.dataset import Images
from bench.science.defense import Defense
from bench.science.seeds import torch_stream
from bench.science.training import Batch, Recipe, Run, make_optimizer, to_pixels, train

PLAIN: dict[str, Any] = {"augment": "none", "flip": False, "precision": "float32"}


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"epochs": 2, "batch": 8, "lr": 0.05, "drops": (), "shift": 1, **changes})


class Recorder(Defense):
    """Writes down every call of the loop and what it was given."""

    def __init__(self) -> None:
        super().__init__(Settings(), "recorder")
        self.calls: list[Any] = []
        self.batches: list[Any] = []
        self.rates: list[Any] = []

    def setup(self, run: Run) -> None:
        self.calls.append("setup")

    def epoch(self, run: Run, epoch: int) -> None:
        self.calls.append(f"epoch {epoch}")

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        self.calls.append(stage)
        seen = (batch.pixels.clone(), batch.ids.tolist(), batch.rows.tolist(), batch.labels)
        self.batches.append((run.current_epoch, stage, *seen))
        return batch

    def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
        self.calls.append("loss")
        self.rates.append(run.optimizer.param_groups[0]["lr"])
        return losses.mean()

    def ids(self, epoch: int, stage: str = "pixel") -> list[int]:
        return [name for e, s, _, ids, _, _ in self.batches if (e, s) == (epoch, stage) for name in ids]


class Drawing(Defense):
    """Draws numbers at every hook and changes nothing."""

    def setup(self, run: Run) -> None:
        torch.rand(5, generator=run.stream("setup"))

    def epoch(self, run: Run, epoch: int) -> None:
        torch.rand(5, generator=run.stream("epoch"))

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        torch.rand(batch.pixels.shape, generator=run.stream(stage))
        torch.rand(3)
        return batch


@pytest.fixture
def trained(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> Callable[..., Tensor]:
    """The weights after training a small network, and what was recorded."""

    def go(
        hooks: Any = None,
        *,
        seed: int = 0,
        n: int = 24,
        dropout: float = 0.0,
        data: Images | None = None,
        **changes: Any,
    ) -> Tensor:
        model = make_small(dropout=dropout)
        result = train(model, data or make_images(n), recipe(**changes), seed=seed, hooks=hooks)
        return weights_of(result.model)

    return go


def test_the_same_seed_gives_the_same_bits(trained: Callable[..., Tensor]) -> None:
    assert torch.equal(trained(), trained())


def test_another_seed_gives_other_weights(trained: Callable[..., Tensor]) -> None:
    assert not torch.equal(trained(), trained(seed=1))


@pytest.mark.parametrize("defense", [Defense, Drawing])
def test_a_defense_that_changes_nothing_leaves_the_weights_bit_identical(
    trained: Callable[..., Tensor], defense: type[Any]
) -> None:
    assert torch.equal(trained(), trained(defense(Settings(), "idle")))


@pytest.mark.parametrize("defense", [None, Defense, Drawing])
def test_dropout_depends_on_the_seed_and_not_on_the_world(
    trained: Callable[..., Tensor], defense: type[Any] | None
) -> None:
    torch.manual_seed(5)
    first = trained(dropout=0.5)
    torch.manual_seed(6)
    assert torch.equal(first, trained(defense and defense(Settings(), "idle"), dropout=0.5))
    assert not torch.equal(first, trained(dropout=0.5, seed=1))


def test_dropout_masks_differ_between_steps(
    make_images: Callable[..., Images], make_small: Callable[..., Classifier]
) -> None:
    masks = []
    model = make_small(dropout=0.5)
    model.body[-1].register_forward_hook(lambda module, given, out: masks.append((out == 0) & (given[0] != 0)))  # type: ignore[index]
    train(model, make_images(16), recipe(**PLAIN), seed=0)
    assert len(masks) == 4
    assert all(not torch.equal(masks[i], masks[j]) for i in range(4) for j in range(i))


def test_training_leaves_the_global_generator_alone(trained: Callable[..., Tensor]) -> None:
    before = torch.get_rng_state()
    trained(dropout=0.5)
    assert torch.equal(before, torch.get_rng_state())


def test_training_happens_in_place_and_ends_in_eval_mode(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model = make_small()
    result = train(model, make_images(), recipe(), seed=0)
    assert result.model is model
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert len(result.history) == 2
    assert result.seconds > 0


def test_training_learns_colours(make_small: Callable[..., Classifier], make_images: Callable[..., Images]) -> None:
    history = train(make_small(), make_images(48), recipe(epochs=12, lr=0.02), seed=0).history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.8


def test_hooks_are_called_in_the_documented_order(trained: Callable[..., Tensor]) -> None:
    recorder = Recorder()
    trained(recorder, n=7, batch=3)
    step = ["pixel", "view", "loss"]
    assert recorder.calls == ["setup", "epoch 0", *step, *step, "epoch 1", *step, *step]


def test_each_epoch_sees_each_sample_once_in_a_new_order(
    trained: Callable[..., Tensor], make_images: Callable[..., Images]
) -> None:
    data, recorder = make_images(24), Recorder()
    trained(recorder, data=data)
    assert sorted(recorder.ids(0)) == sorted(recorder.ids(1)) == sorted(data.ids.tolist())
    assert recorder.ids(0) != recorder.ids(1)
    assert recorder.ids(0) == recorder.ids(0, "view")


def test_a_batch_holds_clean_pixels_labels_rows_and_ids_of_the_same_samples(
    trained: Callable[..., Tensor], make_images: Callable[..., Images]
) -> None:
    data, recorder = make_images(24), Recorder()
    trained(recorder, data=data)
    for _, stage, pixels, ids, rows, labels in recorder.batches:
        assert ids == data.ids[rows].tolist()
        assert torch.equal(labels, data.labels[rows])
        if stage == "pixel":
            torch.testing.assert_close(pixels, data.images[rows].float() / 255)


def test_augmentation_lies_between_the_two_stages_and_is_redrawn(
    trained: Callable[..., Tensor], make_images: Callable[..., Images]
) -> None:
    data, recorder = make_images(8), Recorder()
    trained(recorder, data=data)
    pixel, view, _, later = (pixels[torch.tensor(rows).argsort()] for _, _, pixels, _, rows, _ in recorder.batches)
    assert (view - pixel).abs().amax((1, 2, 3)).min() > 0.01
    assert (view - later).abs().max() > 0.01


def test_without_augmentation_both_stages_see_the_same_pixels(trained: Callable[..., Tensor]) -> None:
    recorder = Recorder()
    trained(recorder, **PLAIN)
    for before, after in zip(recorder.batches[::2], recorder.batches[1::2], strict=True):
        assert torch.equal(before[2], after[2])


def test_inactive_samples_are_not_trained_on(
    trained: Callable[..., Tensor], make_images: Callable[..., Images]
) -> None:
    class Deactivate(Recorder):
        def epoch(self, run: Run, epoch: int) -> None:
            if epoch == 1:
                run.active[run.data.rows_of(dropped)] = False

    data, recorder = make_images(24), Deactivate()
    dropped = data.ids[torch.tensor([3, 9, 20])]
    trained(recorder, data=data, epochs=3)
    assert set(recorder.ids(0)) == set(data.ids.tolist())
    for epoch in (1, 2):
        assert set(recorder.ids(epoch)) == set(data.ids.tolist()) - set(dropped.tolist())


def test_inactive_samples_have_no_influence_at_all(
    trained: Callable[..., Tensor], make_images: Callable[..., Images]
) -> None:
    class Keep(Defense):
        def epoch(self, run: Run, epoch: int) -> None:
            run.active[12:] = False

    data = make_images(24)
    other = data.with_images(torch.cat((data.images[:12], 255 - data.images[12:])))
    assert torch.equal(trained(Keep(Settings())), trained(Keep(Settings()), data=other))
    assert not torch.equal(trained(), trained(data=other))


def test_a_sampler_of_the_defense_makes_the_batches(
    trained: Callable[..., Tensor], make_images: Callable[..., Images]
) -> None:
    class Sampler(Recorder):
        def setup(self, run: Run) -> None:
            def sample(rows: Tensor, stream: torch.Generator) -> list[Tensor]:
                first = torch.randint(len(rows), (1,), generator=stream)
                return [rows[first], rows[:0], rows[[5, 5, 7]]]

            run.sampler = sample

        def epoch(self, run: Run, epoch: int) -> None:
            run.active[0] = False

        def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
            return losses.sum()  # the mean of none is no number

    data, recorder, again = make_images(24), Sampler(), Sampler()
    assert torch.equal(trained(recorder, data=data), trained(again, data=data))
    sizes = [len(ids) for _, stage, _, ids, _, _ in recorder.batches if stage == "pixel"]
    assert sizes == [1, 0, 3] * 2
    rows = [rows for _, stage, _, _, rows, _ in recorder.batches if stage == "pixel"]
    assert rows[2] == rows[5] == [6, 6, 8]  # of the 23 that are active
    assert rows == [rows for _, stage, _, _, rows, _ in again.batches if stage == "pixel"]


def test_what_a_training_suspects_is_handed_back_by_id(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    class Suspicious(Defense):
        def epoch(self, run: Run, epoch: int) -> None:
            run.suspected[[2, 3 + epoch]] = True

    data = make_images(24).subset(torch.arange(23, -1, -1))
    result = train(make_small(), data, recipe(), seed=0, hooks=Suspicious(Settings()))
    assert result.suspected.tolist() == data.ids[[2, 3, 4]].tolist()
    assert train(make_small(), data, recipe(), seed=0).suspected.tolist() == []


def test_a_defense_may_swap_the_images(trained: Callable[..., Tensor], make_images: Callable[..., Images]) -> None:
    class Swap(Defense):
        def epoch(self, run: Run, epoch: int) -> None:
            run.data = other

    other = make_images(24, seed=3)
    assert torch.equal(trained(Swap(Settings())), trained(data=other))


def test_a_defense_may_shorten_or_change_the_recipe_in_setup(trained: Callable[..., Tensor]) -> None:
    class Change(Defense):
        def setup(self, run: Run) -> None:
            run.recipe = run.recipe.model_copy(update={"epochs": 1, "batch": 4, "lr": 0.01})

    assert torch.equal(trained(Change(Settings())), trained(epochs=1, batch=4, lr=0.01))


@pytest.mark.parametrize("key", ["augment", "shift", "momentum", "weight_decay"])
def test_every_part_of_a_recipe_replaced_in_setup_counts(trained: Callable[..., Tensor], key: str) -> None:
    change = {key: {"augment": "none", "shift": 3, "momentum": 0.5, "weight_decay": 0.1}[key]}

    class Change(Defense):
        def setup(self, run: Run) -> None:
            run.recipe = run.recipe.model_copy(update=change)

    assert torch.equal(trained(Change(Settings())), trained(**change))


def test_a_defense_may_replace_model_and_optimizer(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    class Replace(Defense):
        def setup(self, run: Run) -> None:
            run.model = make_small(seed=7)
            run.optimizer = make_optimizer(run.model, run.recipe)

    given, expected = make_small(), make_small(seed=7)
    before = weights_of(given)
    found = train(given, make_images(), recipe(), seed=0, hooks=Replace(Settings()))
    train(expected, make_images(), recipe(), seed=0)
    assert torch.equal(weights_of(found.model), weights_of(expected))
    assert torch.equal(weights_of(given), before)


def test_a_replaced_model_is_the_one_that_is_trained(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    class Replace(Defense):
        def setup(self, run: Run) -> None:
            run.model = make_small(seed=7)

    expected = make_small(seed=7)
    found = train(make_small(), make_images(), recipe(), seed=0, hooks=Replace(Settings()))
    train(expected, make_images(), recipe(), seed=0)
    assert torch.equal(weights_of(found.model), weights_of(expected))


class LinearSoftmax:
    """Softmax regression in float64, trained with SGD written out by hand (Sutskever's Nesterov as in torch)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight, self.bias = weight.double().numpy().copy(), bias.double().numpy().copy()
        self.speed = [np.zeros_like(self.weight), np.zeros_like(self.bias)]

    def step(self, x: np.ndarray, y: np.ndarray, lr: float, momentum: float, decay: float, nesterov: bool) -> None:
        z = x @ self.weight.T + self.bias
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        error = (p - y) / len(x)
        for i, (value, slope) in enumerate(((self.weight, error.T @ x), (self.bias, error.sum(0)))):
            slope = slope + decay * value
            self.speed[i] = momentum * self.speed[i] + slope
            value -= lr * (slope + momentum * self.speed[i] if nesterov else self.speed[i])


def one_hot(labels: Tensor, classes: Any = 3) -> np.ndarray:
    return np.eye(classes)[labels.numpy()]


@pytest.fixture
def linear(wrap: Callable[..., Classifier]) -> Callable[..., Classifier]:
    def make() -> Classifier:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return wrap(nn.Flatten(), 3 * 8 * 8)

    return make


def normalised(model: Classifier, data: Images) -> np.ndarray:
    return model.normalise(to_pixels(data.images)).flatten(1).detach().double().numpy()


@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_of_sgd_are_those_written_out_by_hand(
    linear: Callable[..., Classifier], make_images: Callable[..., Images], nesterov: bool
) -> None:
    data, model = make_images(12), linear()
    hand = LinearSoftmax(model.head.weight.data, model.head.bias.data)
    x, y = normalised(model, data), one_hot(data.labels)
    for rate in (0.1, 0.1, 0.01):
        hand.step(x, y, rate, 0.8, 0.02, nesterov)
    sgd = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.02, "nesterov": nesterov}
    train(model, data, recipe(epochs=3, batch=12, drops=(2,), **sgd, **PLAIN), seed=0)
    np.testing.assert_allclose(model.head.weight.detach().numpy(), hand.weight, atol=2e-6)
    np.testing.assert_allclose(model.head.bias.detach().numpy(), hand.bias, atol=2e-6)


class Double(Defense):
    """Shows every sample twice in its batch, which leaves the mean gradient alone."""

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        if stage == "view":
            batch.pixels, batch.labels = batch.pixels.repeat(2, 1, 1, 1), batch.labels.repeat(2)
        return batch


def test_a_batch_may_change_its_size(
    linear: Callable[..., Classifier], make_images: Callable[..., Images], weights_of: Callable[[nn.Module], Tensor]
) -> None:
    plain, doubled = linear(), linear()
    train(plain, make_images(), recipe(), seed=0)
    train(doubled, make_images(), recipe(), seed=0, hooks=Double(Settings()))
    torch.testing.assert_close(weights_of(doubled), weights_of(plain), rtol=1e-4, atol=1e-5)


def test_soft_labels_are_those_of_the_mixed_cross_entropy(
    linear: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    class Soften(Defense):
        def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
            if stage == "view":
                hard = nn.functional.one_hot(batch.labels, 3).float()
                batch.labels = 0.7 * hard + 0.3 * hard.roll(1, 1)
            return batch

    data, model = make_images(12), linear()
    hand = LinearSoftmax(model.head.weight.data, model.head.bias.data)
    y = one_hot(data.labels)
    hand.step(normalised(model, data), 0.7 * y + 0.3 * np.roll(y, 1, 1), 0.1, 0.9, 5e-4, True)
    history = train(model, data, recipe(epochs=1, batch=12, lr=0.1, **PLAIN), seed=0, hooks=Soften(Settings())).history
    np.testing.assert_allclose(model.head.weight.detach().numpy(), hand.weight, atol=2e-6)
    assert 0 <= history[0]["accuracy"] <= 1


def test_the_loss_hook_decides_what_is_minimised(
    linear: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    class Ascend(Defense):
        def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
            return -2 * losses.mean()

    data, model = make_images(12), linear()
    hand = LinearSoftmax(model.head.weight.data, model.head.bias.data)
    hand.step(normalised(model, data), one_hot(data.labels), -0.2, 0.9, 0.0, True)
    train(model, data, recipe(epochs=1, batch=12, lr=0.1, weight_decay=0.0, **PLAIN), seed=0, hooks=Ascend(Settings()))
    np.testing.assert_allclose(model.head.weight.detach().numpy(), hand.weight, atol=2e-6)


def test_history_holds_mean_loss_and_accuracy_before_each_step(
    linear: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    data, model = make_images(12), linear()
    logits = model(to_pixels(data.images))
    history = train(model, data, recipe(epochs=1, batch=12, **PLAIN), seed=0).history
    assert history[0]["loss"] == pytest.approx(nn.functional.cross_entropy(logits, data.labels).item(), rel=1e-5)
    assert history[0]["accuracy"] == pytest.approx((logits.argmax(1) == data.labels).float().mean().item())
    assert history[0]["samples"] == 12


def test_step_schedule_falls_to_a_tenth_at_each_drop(trained: Callable[..., Tensor]) -> None:
    recorder = Recorder()
    trained(recorder, n=6, epochs=5, lr=0.5, drops=(2, 4))
    np.testing.assert_allclose(recorder.rates, [0.5, 0.5, 0.05, 0.05, 0.005], rtol=1e-9)


def test_one_cycle_rises_to_the_rate_and_falls_to_zero(trained: Callable[..., Tensor]) -> None:
    recorder = Recorder()
    trained(recorder, n=15, batch=5, epochs=10, lr=0.2, schedule="one-cycle", drops=(2,))
    done = np.arange(30) / 30
    np.testing.assert_allclose(recorder.rates, np.interp(done, [0, 0.3, 1], [0.2 / 25, 0.2, 0]), rtol=1e-6)


def test_lr_scale_multiplies_the_scheduled_rate(trained: Callable[..., Tensor]) -> None:
    class Scale(Recorder):
        def epoch(self, run: Run, epoch: int) -> None:
            run.lr_scale = (1.0, 0.5, 0.25)[epoch]

    recorder = Scale()
    trained(recorder, n=6, epochs=3, lr=0.4, drops=(2,))
    np.testing.assert_allclose(recorder.rates, [0.4, 0.2, 0.01], rtol=1e-9)


def test_a_defense_that_leaves_no_sample_fails_the_trial(trained: Callable[..., Tensor]) -> None:
    class Empty(Defense):
        def epoch(self, run: Run, epoch: int) -> None:
            run.active[:] = epoch == 0

    with pytest.raises(TrialFailed, match="epoch 1: the defense left no training sample"):
        trained(Empty(Settings()))


def test_a_loss_that_is_not_finite_fails_the_trial(trained: Callable[..., Tensor]) -> None:
    class Poison(Defense):
        def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
            batch.pixels = batch.pixels * (math.nan if run.current_epoch == 1 else 1)
            return batch

    with pytest.raises(TrialFailed, match="epoch 1: the training loss is not finite.*train.lr"):
        trained(Poison(Settings()))


def test_a_loss_hook_that_is_not_finite_in_the_last_step_fails_the_trial(trained: Callable[..., Tensor]) -> None:
    class Poison(Defense):
        def loss(self, losses: Tensor, batch: Batch, run: Run) -> Tensor:
            return losses.mean() * math.nan

    with pytest.raises(TrialFailed):
        trained(Poison(Settings()), epochs=1, batch=24)


def test_training_stops_at_the_first_epoch_that_is_not_finite(trained: Callable[..., Tensor]) -> None:
    recorder = Recorder()
    with pytest.raises(TrialFailed):
        trained(recorder, epochs=50, lr=100.0, momentum=0.99, weight_decay=1.0)
    assert recorder.calls.count("setup") == 1
    assert f"epoch {49}" not in recorder.calls


@pytest.mark.parametrize(("n", "sizes"), [(9, [4, 5]), (8, [4, 4]), (10, [4, 4, 2]), (5, [5]), (4, [4]), (3, [3])])
def test_a_last_batch_of_one_joins_the_one_before(trained: Callable[..., Tensor], n: int, sizes: list[int]) -> None:
    recorder = Recorder()
    trained(recorder, n=n, batch=4, epochs=1)
    assert [len(ids) for _, stage, _, ids, _, _ in recorder.batches if stage == "pixel"] == sizes


def test_report_counts_epochs(make_small: Callable[..., Classifier], make_images: Callable[..., Images]) -> None:
    seen = []
    train(make_small(), make_images(), recipe(), seed=0, report=lambda *progress: seen.append(progress))
    assert [(done, of) for done, of, _ in seen] == [(1, 2), (2, 2)]
    assert set(seen[0][2]) == {"loss", "accuracy", "samples"}


def test_a_defense_has_a_stream_for_each_job_epoch_and_name(
    make_run: Callable[..., Run], make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    run = make_run(make_small(), make_images(), owner="mine", seed=3)

    def drawn(*names: str) -> tuple[float, float, float, float]:
        return tuple(torch.rand(4, generator=run.stream(*names)).tolist())

    stream = torch_stream("cpu", 3, "plugin", "mine", 0, 0, "noise")
    assert drawn("noise") == tuple(torch.rand(4, generator=stream).tolist())
    seen = {drawn("noise"), drawn("other")}
    run.current_epoch = 1
    seen.add(drawn("noise"))
    run.job = 1
    seen.add(drawn("noise"))
    run.owner = "yours"
    seen.add(drawn("noise"))
    assert len(seen) == 5


def test_pixels_are_levels_over_255() -> None:
    images = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8)
    torch.testing.assert_close(to_pixels(images).double(), images.double() / 255, rtol=0, atol=1e-7)
    assert images[0, 0, 0, 5] == 5


def test_a_batch_of_one_image_is_normalised_by_the_running_statistics(make_images: Callable[..., Images]) -> None:
    class KeepsOne(Defense):
        """Leaves one image of the first epoch's."""

        name = "keeps-one"
        Settings = Settings

        def epoch(self, run: Run, epoch: int) -> None:
            run.active[epoch > 0 :] = False
            run.active[0] = True

    model = build_model("vgg11", classes=3, size=8, normalisation=((0.5,) * 3, (0.5,) * 3), seed=0)  # ends at 1x1
    images = make_images(6, size=8)
    result = train(model, images, recipe(epochs=3, batch=2, shift=0), seed=0, hooks=KeepsOne(Settings(), "keeps-one"))
    assert [figures["samples"] for figures in result.history] == [1, 1, 1]
    assert all(layer.training for layer in model.train().modules() if isinstance(layer, nn.BatchNorm2d))


def test_a_recipe_of_one_image_per_step_is_refused_before_any_work() -> None:
    with pytest.raises(BadInput, match="batch.*2"):
        build(Recipe, {"batch": 1}, "train")
