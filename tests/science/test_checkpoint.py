"""A training or a crafting that is killed goes on from its last checkpoint and ends with the same bits."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.authoring.tiny import Killed, Mortal, World
from bench.defenses.deep_knn import neighbour_votes
from bench.defenses.diffusion.schedule import Denoiser, denoise_images
from bench.defenses.diffusion.unet import fit_unet, new_unet
from bench.defenses.friends import FriendsSettings, friendly_noise
from bench.defenses.neural_cleanse import NeuralCleanseSettings, Triggers, search
from bench.foundation.errors import DiskFull, TrialFailed
from bench.foundation.registry import find
from bench.foundation.settings import Settings
from bench.science.checkpoint import clock, resumable
from bench.science.classifier import Classifier
from bench.science.composition import Composition
from bench.science.dataset import Images
from bench.science.defense import Defense, Job, Services
from bench.science.memory import Reader, Unstorable, Writer, survey
from bench.science.training import Recipe, Run, Trained, to_pixels, train
from bench.science.victim import train_behind
from bench.storage import making as storage
from bench.storage.making import making
from bench.storage.store import Store, decode, encode
from tests.aftermath import ROOT

RECIPE = Recipe(epochs=3, batch=8, lr=0.05, drops=(), shift=1)  # three steps an epoch


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "store", said.append)


def files(store: Store) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file())


def killed(store: Store, after: int, work: Callable[[], Any], key: str = "ab" * 32) -> None:
    """Work with a checkpoint at every step, until it is killed after so many."""
    with contextlib.suppress(Killed), making(store, key, functools.partial(Mortal, left=after)):
        work()
        raise AssertionError("it has ended before")


def finished(store: Store, work: Callable[[], Any], key: str = "ab" * 32) -> Any:
    with making(store, key):
        return work()


@pytest.fixture
def training(make_small: Callable[..., Classifier], make_images: Callable[..., Images]) -> Callable[..., Trained]:
    def go(hooks: Defense | None = None, seed: int = 3, **more: Any) -> Trained:
        services = Services(RECIPE, 3, lambda *_: make_small(), lambda *_: None)
        return train(make_small(dropout=0.2), make_images(), RECIPE, seed=seed, hooks=hooks, services=services, **more)

    return go


def assert_same(one: Trained, other: Trained) -> None:
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    assert one.history == other.history
    assert torch.equal(one.suspected, other.suspected)


@pytest.mark.parametrize("after", [1, 3, 5, 9], ids=["in the first epoch", "between epochs", "mid-epoch", "at the end"])
def test_a_killed_training_ends_with_the_same_bits(
    training: Callable[..., Trained], store: Store, said: list[str], after: int
) -> None:
    whole = training()
    killed(store, after, training)
    assert len(files(store)) == 1
    assert_same(whole, finished(store, training))
    assert said == ["training: goes on where it was killed, 0 s are kept"]
    assert files(store) == []


def test_only_what_was_not_kept_is_done_again(training: Callable[..., Trained], store: Store) -> None:
    steps = 0

    class Counting(Defense):
        def loss(self, losses: Tensor, batch: Any, run: Run) -> Tensor:
            nonlocal steps
            steps += 1
            return losses.mean()

    killed(store, 5, lambda: training(Counting(Settings(), "counting")))
    steps = 0
    finished(store, lambda: training(Counting(Settings(), "counting")))
    assert steps == 9 - 5


def test_momentum_comes_back_bit_for_bit_and_in_its_order_in_memory(make_model: Callable[..., Classifier]) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tree = {"optimizer": optimizer}
    anchors = dict(survey(tree))
    fresh = Writer(anchors)
    written = fresh.node(tree, "")
    assert fresh.tensors == {}  # there is no momentum yet
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    writer = Writer(anchors)
    written = writer.node(tree, "")
    data = encode({name: tensor.contiguous() for name, tensor in writer.tensors.items()}, {"state": written})
    before = [optimizer.state[weight]["momentum_buffer"] for weight in model.parameters()]
    other = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tensors, meta = decode(data)
    Reader(tensors).into({"optimizer": other}, meta["state"])
    for weight, buffer in zip(model.parameters(), before, strict=True):
        restored = other.state[weight]["momentum_buffer"]
        assert torch.equal(restored, buffer) and restored.stride() == buffer.stride()


class Twice(Defense):
    """Two trainings; counts the steps of both."""

    def __init__(self) -> None:
        super().__init__(Settings(), "twice")
        self.steps = 0

    def jobs(self, data: Images, services: Services) -> list[Job]:
        return [Job(data), Job(data.subset(torch.arange(len(data) - 2)))]

    def loss(self, losses: Tensor, batch: Any, run: Run) -> Tensor:
        self.steps += 1
        return losses.mean() * (1 + self.steps / 10)


@pytest.mark.parametrize("after", [9, 10, 13], ids=["end of the first", "between", "in the second"])
def test_of_several_trainings_those_that_ended_are_kept(
    make_small: Callable[..., Classifier], make_images: Callable[..., Images], store: Store, after: int
) -> None:
    def go() -> list[Trained]:
        services = Services(RECIPE, 3, lambda *_: make_small(), lambda *_: None)
        return train_behind(Twice(), make_images(), RECIPE, make_small, seed=1, services=services)[0]

    whole = go()
    killed(store, after, go)
    for one, other in zip(whole, finished(store, go), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", ["friends-b", "epic-0.3", "adv-training", "noisy-sgd", "abl", "friends-b+epic-0.3"])
def test_a_defense_goes_on_with_its_state(training: Callable[..., Trained], store: Store, name: str) -> None:
    def instance() -> Defense:
        parts: list[Defense] = []
        for part in name.split("+"):
            plugin = find("defense", part)
            settings = {**plugin.variant, **({"start": 1} if "start" in plugin.make.Settings.model_fields else {})}
            parts.append(plugin.make(plugin.make.Settings(**settings), part))
        return parts[0] if len(parts) == 1 else Composition(parts, name)

    whole = training(instance())
    killed(store, 5, lambda: training(instance()))
    killed(store, 3, lambda: training(instance()))
    assert_same(whole, finished(store, lambda: training(instance())))


@pytest.mark.parametrize(
    ("name", "after"), [("gm", 1), ("gm", 3), ("cp", 1), ("pf-original", 1), ("sleeper", 9), ("metapoison", 1)]
)
def test_a_killed_crafting_ends_with_the_same_poisons(store: Store, name: str, after: int) -> None:
    def go() -> Any:
        return World(find("attack", name)).craft()

    whole = go()
    killed(store, after, go)
    poisons = finished(store, go)
    assert torch.equal(poisons.images, whole.images)
    assert poisons.provenance == whole.provenance


def test_a_killed_denoiser_ends_with_the_same_bits(store: Store) -> None:
    images = torch.randint(0, 256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def fit() -> dict[str, Tensor]:
        return fit_unet(images, 8, 6, 4, seed=3).state_dict()

    whole = fit()
    killed(store, 2, fit)
    killed(store, 2, fit)
    again = finished(store, fit)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_killed_denoising_ends_with_the_same_images(store: Store) -> None:
    images = torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    network = new_unet(8, seed=0).eval()
    denoiser = Denoiser(network.noise, network.alphas, {}, "untrained")

    @torch.no_grad()
    def go() -> Tensor:
        return denoise_images(denoiser, images, torch.arange(10), 100, seed=3, chunk=3)

    whole = go()
    killed(store, 2, go)
    assert torch.equal(finished(store, go), whole)


def test_a_killed_search_for_triggers_ends_with_the_same(
    store: Store, make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model, images = make_small(), make_images()
    settings = NeuralCleanseSettings(epochs=8, steps=2, patience=1, threshold=0.3)

    def go() -> Triggers:
        return search(model, to_pixels(images.images), 3, settings, torch.Generator().manual_seed(1))

    whole = go()
    killed(store, 3, go)
    killed(store, 2, go)
    again = finished(store, go)
    assert whole.epochs == again.epochs > 5
    for name in ("masks", "patterns", "norms", "met"):
        assert torch.equal(getattr(whole, name), getattr(again, name)), name


def test_killed_friendly_noise_ends_with_the_same(
    store: Store, make_small: Callable[..., Classifier], make_images: Callable[..., Images]
) -> None:
    model, images, settings = make_small(), make_images(), FriendsSettings(batch=4, steps=3)

    def go() -> Tensor:
        return friendly_noise(model, images, settings, torch.Generator().manual_seed(1))

    whole = go()
    killed(store, 2, go)
    killed(store, 2, go)
    assert torch.equal(finished(store, go), whole)


def test_killed_votes_of_neighbours_end_as_the_same(store: Store) -> None:
    chance = torch.Generator().manual_seed(1)
    features, labels = torch.randn(30, 4, generator=chance), torch.randint(0, 3, (30,), generator=chance)

    def go() -> Tensor:
        return neighbour_votes(features, labels, 5, 3, chunk=7)

    whole = go()
    killed(store, 3, go)
    assert torch.equal(finished(store, go), whole)


def test_seconds_count_what_was_spent_before_the_kill(store: Store) -> None:
    def go() -> float:
        began, state = clock(), {"step": 0}
        kept = resumable("work", state)
        while state["step"] < 4:
            time.sleep(0.1)
            state["step"] += 1
            kept.step()
        kept.end()
        return clock() - began

    killed(store, 3, go)
    began = time.perf_counter()
    seconds = finished(store, go)
    assert seconds > time.perf_counter() - began + 0.25


def test_a_defense_that_cannot_be_kept_starts_again_and_says_so(
    training: Callable[..., Trained], store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Defense):
        def epoch(self, run: Run, epoch: int) -> None:
            self.thing = object()

    monkeypatch.setattr(storage, "INTERVAL", 0.0)
    assert_same(training(Odd(Settings(), "odd")), finished(store, lambda: training(Odd(Settings(), "odd"))))
    assert said == ["training behind odd: no checkpoints (defense.thing is a object), it starts again if it is killed"]
    assert files(store) == []


def test_what_is_made_while_the_training_runs_cannot_be_restored(make_small: Callable[..., Classifier]) -> None:
    anchors = dict(survey({"side": {}}))
    with pytest.raises(Unstorable, match="was not there when the work was set up"):
        Writer(anchors).node({"side": {"network": make_small()}}, "")


def test_a_damaged_checkpoint_is_set_aside_aloud_and_the_training_starts_anew(
    training: Callable[..., Trained], store: Store, said: list[str]
) -> None:
    killed(store, 5, training)
    (path,) = files(store)
    path.write_bytes(path.read_bytes()[:-9] + b"something")
    assert_same(training(), finished(store, training))
    assert len(said) == 1 and "is damaged (checksum differs)" in said[0] and "starts anew" in said[0]
    assert files(store) == []


def test_the_checkpoint_of_another_seed_is_not_taken(
    training: Callable[..., Trained], store: Store, said: list[str]
) -> None:
    killed(store, 5, training, "ab" * 32)
    (other,) = files(store)
    killed(store, 5, lambda: training(seed=4), "ab" * 32)
    (mine,) = set(files(store)) - {other}
    mine.write_bytes(other.read_bytes())
    assert_same(training(seed=4), finished(store, lambda: training(seed=4), "ab" * 32))
    assert "it belongs to" in said[0]


def test_a_checkpoint_that_does_not_fit_fails_the_trial_once(store: Store) -> None:
    def go(state: dict[str, Any]) -> None:
        kept = resumable("work", state)
        kept.step()

    killed(store, 1, lambda: go({"network": nn.Linear(2, 2)}))
    with pytest.raises(TrialFailed, match="does not fit"):
        finished(store, lambda: go({"network": nn.Linear(3, 2)}))
    assert files(store) == []


def test_a_full_disk_costs_checkpoints_and_not_the_training(
    training: Callable[..., Trained], store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskFull("disk full: cannot write it")

    monkeypatch.setattr(storage, "INTERVAL", 0.0)
    monkeypatch.setattr(Store, "put", full)
    assert_same(training(), finished(store, training))
    assert "the work goes on: disk full" in said[0]


def test_a_training_after_sigkill_ends_with_the_same_bits(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from bench.authoring.tiny import World
from bench.foundation.registry import find
from bench.science.evaluation import predict
from bench.storage import making
from bench.storage.store import Store

class Mortal(making.Making):
    def write(self, name, made):
        super().write(name, made)
        if len(sys.argv) > 1:
            os.kill(os.getpid(), {int(signal.SIGKILL)})

making.INTERVAL = 0.0
with making.making(Store(Path({str(tmp_path)!r}), lambda line: None), "ab" * 32, Mortal):
    world = World(find("defense", "friends-b"))
    print(predict(world.defend(), world.clean.test.images, "cpu").tolist())
"""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ})

    whole = run().stdout
    for _ in range(5):
        assert run("die").returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*.safetensors"))
    assert run().stdout == whole != ""
