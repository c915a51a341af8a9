"""Sleeper Agent and its adaptive variants, in a workshop that records what it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attacks import sleeper_agent
from bench.attacks.crafting.descent import craft as engine
from bench.attacks.crafting.matching import through
from bench.attacks.sleeper_agent import SleeperAgent, in_turn, largest_gradients, retraining_steps
from bench.science.attack import Scene
from bench.science.augmentation import Draw
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.gradients import Matcher
from bench.science.poisons import Poisons
from bench.science.training import to_pixels
from bench.science.workshop import Workshop
from tests.attacks.finite_differences import assert_slope
from tests.plugins import make_attack


def make(name: str = "sleeper", **settings: Any) -> Any:
    return make_attack(name, **{"steps": 4, "retrain": 0, **settings})


class Recorder:
    """A workshop whose retrained networks are fresh ones, and whose transforms add a constant; keeps every call."""

    def __init__(self, make_small: Callable[..., Classifier], scene: Scene, kept: dict[Any, Any] | None = None) -> None:
        self.retrained: list[dict[str, Any]] = []
        self.transforms: list[dict[str, Any]] = []
        self.asked: list[Any] = []
        self.parts: list[str] = []
        self.noisy: list[tuple[int, Tensor]] = []  # (seed of the stream, pixels before the transform)
        self.kept = {} if kept is None else kept
        self.made: list[Any] = []
        self.make_small, self.scene = make_small, scene

    def retrain(self, data: Images, *who: int, which: list[int], behind: str = "", **settings: Any) -> list[Classifier]:
        models = [self.make_small(100 + 10 * len(self.retrained) + k).eval() for k in which]
        call = {"data": data, "who": who, "which": which, "behind": behind, "settings": settings, "models": models}
        self.retrained.append(call)
        return models

    def keep(self, name: str, inputs: dict[str, str], make: Callable[..., Any]) -> Tensor:
        key = (name, tuple(sorted(inputs.items())))
        if key not in self.kept:
            self.made.append(key)
            self.kept[key] = make()
        return self.kept[key]

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        self.parts.append(name)
        yield

    def transform(self, defense: str, data: Images, ids: Tensor, **settings: Any) -> Callable[..., Tensor]:
        self.transforms.append({"defense": defense, "data": data, "ids": ids, "settings": settings})

        def noise(pixels: Tensor, stream: torch.Generator) -> Tensor:
            self.noisy.append((stream.initial_seed(), pixels.detach().clone()))
            return pixels + 0.1

        return noise

    def poisons_of(self, attack: str, **settings: Any) -> Poisons:
        self.asked.append((attack, settings))
        rows = torch.nonzero(self.scene.train.labels == 1).flatten()[-3:]
        bases = self.scene.train.subset(rows)
        return Poisons.from_perturbation(bases, torch.full(bases.images.shape, 5 / 255), 16)

    def workshop(self) -> Workshop:
        return Workshop(
            retrain=self.retrain, keep=self.keep, timed=self.timed, transform=self.transform,  # type: ignore[arg-type]
            poisons_of=self.poisons_of,  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.fixture
def world(
    make_scene: Callable[..., Scene], make_small: Callable[..., Classifier]
) -> Callable[..., tuple[Scene, Recorder]]:
    """A scene with a recording workshop and one surrogate of one convolution."""

    def build(k: int = 1, kept: dict[str, Any] | None = None, **options: Any) -> tuple[Scene, Recorder]:
        models = [make_small(seed).eval() for seed in range(k)]
        scene = make_scene(models, k=k, **{"n": 4, **options})
        recorder = Recorder(make_small, scene, kept)
        return replace(scene, workshop=recorder.workshop()), recorder

    return build


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """The pixels that the crafting engine shows at every step, by step over all restarts, and what it got back."""
    shown = {}

    def watching(
        scene: Scene,
        settings: Any,
        std: Tensor,
        gradient: Callable[..., Any],
        score: Callable[..., Any],
        memory: Any = None,
    ) -> tuple[Tensor, list[list[float]], list[float]]:
        def look(pixels: Tensor, step: int) -> tuple[float, Tensor]:
            result = gradient(pixels, step)
            shown[step] = (pixels.clone(), *result)
            return result

        return engine(scene, settings, std, look, score, memory)

    monkeypatch.setattr(sleeper_agent, "craft", watching)  # the module: a step shows its pixels to nobody
    return shown


@pytest.fixture
def matchers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What all matchers are made of that the attack makes: (models, pixels, wanted, labels); labels only at first."""
    made = []

    class Watched(Matcher):
        def __init__(
            self, models: list[Classifier], pixels: Tensor, wanted: Tensor, labels: Tensor, chunk: int
        ) -> None:
            made.append((list(models), pixels, wanted, labels))
            super().__init__(models, pixels, wanted, labels, chunk)

        def with_models(self, models: dict[int, Classifier], pixels: Tensor, wanted: Tensor) -> Matcher:
            made.append((models, pixels, wanted, None))  # type: ignore[arg-type]
            return super().with_models(models, pixels, wanted)

    monkeypatch.setattr(sleeper_agent, "Matcher", Watched)  # the module: what is matched is shown to nobody
    return made


# The matcher.


def matching_case(
    make_smooth: Callable[..., Classifier], n: Any = 4
) -> tuple[Matcher, list[Classifier], Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    pixels = torch.rand(n, 3, 8, 8, dtype=torch.float64, generator=chance)
    aims = torch.rand(5, 3, 8, 8, dtype=torch.float64, generator=chance)
    models = [make_smooth(0), make_smooth(1)]
    return Matcher(models, aims, torch.full((5,), 2), torch.ones(n, dtype=torch.long), 3), models, pixels, aims


def test_the_matcher_gives_the_gradient_of_the_sum_and_the_mean_loss(make_smooth: Callable[..., Classifier]) -> None:
    matcher, models, pixels, aims = matching_case(make_smooth)
    loss, slope = matcher.slope(pixels)
    assert_slope(lambda at: 2 * matcher.loss(at), pixels, slope)

    def gradient(model: Classifier, some: Tensor, label: int) -> Tensor:
        labels = torch.full((len(some),), label)
        parts = torch.autograd.grad(F.cross_entropy(model(some), labels), list(model.parameters()))
        return torch.cat([part.flatten() for part in parts])

    each = [1 - F.cosine_similarity(gradient(m, pixels, 1), gradient(m, aims, 2), dim=0).item() for m in models]
    assert loss == pytest.approx(sum(each) / 2, rel=1e-10)
    assert matcher.loss(pixels) == pytest.approx(loss, rel=1e-12)


def test_a_matcher_with_another_network_in_one_place_is_one_made_of_these(
    make_smooth: Callable[..., Classifier],
) -> None:
    matcher, models, pixels, aims = matching_case(make_smooth)
    before = matcher.slope(pixels)
    other, wanted = make_smooth(7), torch.full((5,), 2)
    found = matcher.with_models({1: other}, aims, wanted).slope(pixels)
    labels = torch.ones(4, dtype=torch.long)
    expected = Matcher([models[0], other], aims, wanted, labels, 3).slope(pixels)
    assert found[0] == expected[0] != before[0]
    assert torch.equal(found[1], expected[1])
    assert torch.equal(matcher.slope(pixels)[1], before[1])


@pytest.mark.parametrize("kind", ["identity", "affine", "augmentation", "clamp"])
def test_through_a_transform_the_gradient_is_that_of_finite_differences(
    make_smooth: Callable[..., Classifier], make_scene: Callable[..., Scene], kind: str
) -> None:
    matcher, _, pixels, _ = matching_case(make_smooth)
    augmentation = make_scene().augmentation
    drawn = augmentation.draw(len(pixels), torch.Generator().manual_seed(0))
    transform = {
        "identity": lambda leaf: leaf,
        "affine": lambda leaf: 0.5 * leaf.flip(3) + 0.1,
        "augmentation": lambda leaf: augmentation(leaf, drawn),
        "clamp": lambda leaf: (leaf + 0.1).clamp(0, 1),
    }[kind]
    loss, slope = through(pixels, transform, matcher.slope)
    assert loss == pytest.approx(matcher.loss(transform(pixels)), rel=1e-12)
    assert_slope(lambda at: 2 * matcher.loss(transform(at)), pixels, slope)


# Selection of the bases.


def by_loop(models: Sequence[Classifier], train: Images, label: int) -> dict[int, float]:
    """The mean over networks of every image's own gradient norm, for images of a class; by row of `train`."""
    scores = {}
    for row in torch.nonzero(train.labels == label).flatten().tolist():
        pixels, own = train.images[row : row + 1].float() / 255, train.labels[row : row + 1]
        norms = []
        for model in models:
            parts = torch.autograd.grad(F.cross_entropy(model(pixels), own), list(model.parameters()))
            norms.append(torch.cat([part.flatten() for part in parts]).norm().item())
        scores[row] = sum(norms) / len(norms)
    return scores


@pytest.mark.parametrize("k", [1, 2])
def test_bases_are_the_images_with_the_largest_gradients(world: Callable[..., tuple[Scene, Recorder]], k: int) -> None:
    scene, _ = world(k)
    scores = by_loop(scene.surrogates(), scene.train, 1)
    expected = sorted(scores, key=scores.get, reverse=True)[:4]  # type: ignore[arg-type]
    assert largest_gradients(scene, scene.surrogates(), 4).tolist() == expected
    poisons = make(steps=1).craft(scene)
    assert poisons.ids.tolist() == scene.train.ids[expected].tolist()
    assert set(expected) != set(scene.train.rows_of(scene.bases.ids).tolist())


def test_random_selection_keeps_the_bases_of_the_trial(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    scene, recorder = world()
    poisons = make(steps=1, selection="random").craft(scene)
    assert torch.equal(poisons.ids, scene.bases.ids)
    assert not recorder.made


def test_ties_go_to_the_lower_row(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    scene, _ = world()
    same = scene.train.images[:1].expand_as(scene.train.images).contiguous()
    scene = replace(scene, train=scene.train.with_images(same))
    assert largest_gradients(scene, scene.surrogates(), 4).tolist() == scene.adversarial_rows[:4].tolist()


def test_trials_with_the_same_class_share_the_selection(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    kept: dict[Any, Any] = {}
    for seed, adversarial, expected in ((0, 1, 1), (1, 1, 0), (2, 2, 1), (3, 1, 0)):
        scene, recorder = world(kept=kept, seed=seed)
        scene = replace(scene, trial=replace(scene.trial, target_class=adversarial))
        poisons = make(steps=1).craft(scene)
        assert len(recorder.made) == expected
        assert set(poisons.labels.tolist()) == {adversarial}
    pools = [scene.train.subset(scene.train.labels == label).digest for label in (1, 2)]
    assert set(kept) == {("base_selection", (("pool", pool),)) for pool in pools}


# Sources.


def test_sources_are_the_true_class_with_the_trigger_pasted_once(
    world: Callable[..., tuple[Scene, Recorder]], matchers: list[Any], make_images: Callable[..., Images]
) -> None:
    scene, _ = world()
    make(steps=6, retrain=2).craft(scene)
    assert len(matchers) == 3
    for _, pixels, wanted, _ in matchers:
        assert torch.equal(pixels, matchers[0][1])
        assert torch.equal(wanted, torch.full((10,), 1))
    clean = scene.train.images[scene.train.labels == 0]
    assert_patched(scene, matchers[0][1], clean)


def assert_patched(scene: Scene, pixels: Tensor, clean: Tensor) -> None:
    patch = scene.threat.trigger(8).patch
    side, places = patch.shape[-1], set()
    for found, image in zip((pixels * 255).round().to(torch.uint8), clean, strict=True):
        fits = [
            (x, y)
            for x in range(9 - side)
            for y in range(9 - side)
            if torch.equal(found[:, y : y + side, x : x + side], patch)
        ]
        assert len(fits) == 1
        ((x, y),) = fits
        rest = found.clone()
        rest[:, y : y + side, x : x + side] = image[:, y : y + side, x : x + side]
        assert torch.equal(rest, image)
        places.add((x, y))
    assert len(places) > 1


def test_a_number_of_sources_takes_that_many_distinct_ones(
    world: Callable[..., tuple[Scene, Recorder]], matchers: list[Any]
) -> None:
    scene, _ = world()
    make(steps=1, sources=4).craft(scene)
    pixels = matchers[0][1]
    assert len(pixels) == 4
    clean = to_pixels(scene.train.images[scene.train.labels == 0])
    apart = (pixels[:, None] != clean[None]).flatten(2).sum(2)
    assert len(set(apart.argmin(1).tolist())) == 4
    assert apart.min(1).values.max() <= 3 * 2 * 2


def test_more_sources_than_there_are_is_the_whole_class(
    world: Callable[..., tuple[Scene, Recorder]], matchers: list[Any]
) -> None:
    scene, _ = world()
    make(steps=1, sources=1000).craft(scene)
    assert len(matchers[0][1]) == 10


def test_no_poison_carries_the_trigger(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    scene, _ = world()
    poisons = make(steps=10, lr=1.0).craft(scene)
    poisons.check(scene.train, scene.threat.eps, scene.train.ids[scene.adversarial_rows], 4)
    patch = scene.threat.trigger(8).patch.long()
    side = patch.shape[-1]
    windows = poisons.images.long().unfold(2, side, 1).unfold(3, side, 1)
    apart = (windows - patch[:, None, None]).abs().amax((1, 4, 5))
    assert apart.min() > scene.threat.eps


# Retraining.


@pytest.mark.parametrize(
    ("steps", "times", "expected"),
    [(250, 4, [50, 100, 150, 200]), (250, 0, []), (10, 1, [5]), (250, 1, [125]), (100, 3, [25, 50, 75])],
)
def test_the_retraining_steps_are_evenly_spread(steps: int, times: int, expected: list[Any]) -> None:
    assert retraining_steps(steps, times) == expected


@pytest.mark.parametrize(("steps", "times"), [(1, 4), (2, 4), (4, 4), (5, 4), (3, 2), (100, 99)])
def test_retraining_steps_lie_strictly_inside(steps: int, times: int) -> None:
    found = retraining_steps(steps, times)
    assert found == sorted(set(found))
    assert len(found) <= times
    assert all(0 < step < steps for step in found)


def test_by_default_surrogates_are_retrained_at_50_100_150_and_200(
    world: Callable[..., tuple[Scene, Recorder]], watched: dict[Any, Any]
) -> None:
    scene, recorder = world(n=3)
    poisons = make(steps=250, retrain=4, augment=False, sources=2).craft(scene)
    assert [call["who"] for call in recorder.retrained] == [(0, 50), (0, 100), (0, 150), (0, 200)]
    assert poisons.provenance["retrained_at"] == [50, 100, 150, 200]
    assert recorder.parts.count("retraining") == 4


def test_retraining_is_on_the_training_set_with_the_poisons_as_they_are(
    world: Callable[..., tuple[Scene, Recorder]], watched: dict[Any, Any]
) -> None:
    scene, recorder = world()
    poisons = make(steps=9, retrain=2, restarts=2).craft(scene)
    assert [call["who"] for call in recorder.retrained] == [(r, step) for r in (0, 1) for step in (3, 6)]
    rows = scene.train.rows_of(poisons.ids)
    rest = torch.ones(len(scene.train), dtype=torch.bool)
    rest[rows] = False
    for call in recorder.retrained:
        restart, step = call["who"]
        current = watched[9 * restart + step][0]
        data = call["data"]
        assert torch.equal(data.images[rows], torch.floor(current * 255 + 0.5).to(torch.uint8))
        assert torch.equal(data.images[rest], scene.train.images[rest])
        assert torch.equal(data.labels, scene.train.labels) and torch.equal(data.ids, scene.train.ids)
        assert (data.images.long() - scene.train.images.long()).abs().max() <= scene.threat.eps
        assert not torch.equal(data.images, scene.train.images)
        assert (call["behind"], call["settings"]) == ("", {})
    assert len({call["data"].digest for call in recorder.retrained}) == 4


@pytest.mark.parametrize("retrained", [0, 1, 2, 9])
def test_each_stretch_is_crafted_for_the_networks_of_its_time_and_restarts_begin_with_the_clean_ones(
    world: Callable[..., tuple[Scene, Recorder]], watched: dict[Any, Any], matchers: list[Any], retrained: int
) -> None:
    scene, recorder = world(k=2)
    make(steps=9, retrain=2, restarts=2, augment=False, retrained=retrained).craft(scene)
    calls, now = iter(recorder.retrained), []
    _, pixels, wanted, labels = matchers[0]
    for step in range(18):
        if step % 9 == 0:
            now = list(scene.surrogates())
        elif step % 9 in (3, 6):
            call = next(calls)
            assert call["which"] == ([0, 1] if retrained != 1 else [step % 9 // 3 - 1])
            for k, model in zip(call["which"], call["models"], strict=True):
                now[k] = model
        shown_pixels, loss, slope = watched[step]
        expected = Matcher(now, pixels, wanted, labels, 256).slope(shown_pixels)
        assert loss == pytest.approx(expected[0], abs=1e-6)
        torch.testing.assert_close(slope, expected[1])
    assert next(calls, None) is None
    assert len(matchers) == 1 + 4


def test_a_restart_is_judged_by_the_networks_that_it_ended_with(
    world: Callable[..., tuple[Scene, Recorder]], matchers: list[Any]
) -> None:
    scene, recorder = world(k=2)
    poisons = make(steps=6, retrain=2, restarts=2, retrained=1).craft(scene)
    _, pixels, wanted, labels = matchers[0]
    finals = poisons.provenance["final_losses"]
    best = finals.index(min(finals))
    models = [call["models"][0] for call in recorder.retrained[2 * best : 2 * best + 2]]
    judged = Matcher(models, pixels, wanted, labels, 256).loss(to_pixels(poisons.images))
    assert judged == pytest.approx(finals[best], abs=1e-5)


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (0, 3, [[0, 1, 2]] * 4),
        (1, 1, [[0]] * 4),
        (1, 3, [[0], [1], [2], [0]]),
        (2, 3, [[0, 1], [0, 2], [1, 2], [0, 1]]),
        (3, 3, [[0, 1, 2]] * 4),
        (7, 2, [[0, 1]] * 4),
    ],
)
def test_surrogates_are_retrained_in_turn(count: int, total: Any, expected: list[list[int]]) -> None:
    assert [in_turn(turn, count, total) for turn in range(4)] == expected


def test_without_retraining_none_is_asked_for(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    scene, recorder = world()
    poisons = make(steps=5, retrain=0).craft(scene)
    assert recorder.retrained == [] and poisons.provenance["retrained_at"] == []


def test_poisons_depend_on_the_seed_alone(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    torch.manual_seed(1)
    first = make(retrain=1).craft(world()[0])
    torch.manual_seed(2)
    again, other = make(retrain=1).craft(world()[0]), make(retrain=1).craft(world(seed=1)[0])
    assert torch.equal(first.images, again.images)
    assert first.provenance == again.provenance
    assert not torch.equal(first.images, other.images)


def test_crafting_brings_the_gradients_together(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    scene, _ = world(n=6)
    poisons = make(steps=40, augment=False).craft(scene)
    losses = poisons.provenance["losses"][0]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.1


def test_surrogates_and_scene_are_left_as_they_were(
    world: Callable[..., tuple[Scene, Recorder]],
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    scene, _ = world()
    model, images = scene.surrogates()[0], scene.train.images.clone()
    before = snapshot(model)
    make(retrain=1).craft(scene)
    assert_untouched(model, before)
    assert torch.equal(scene.train.images, images)


def test_the_published_settings_are_the_defaults() -> None:
    for name in ("sleeper", "sleeper-adaptive-noise", "sleeper-adaptive-friends"):
        attack = make_attack(name)
        settings = attack.settings
        assert (settings.steps, settings.restarts, settings.lr, settings.retrain) == (250, 1, 0.1, 4)
        assert (settings.sources, settings.selection, settings.augment) == (0, "gradient-norm", True)
        assert attack.shows_trigger and attack.selects_bases and isinstance(attack, SleeperAgent)


# The adaptive variants.


def test_noise_is_in_the_crafting_at_every_step_and_before_the_augmentation(
    world: Callable[..., tuple[Scene, Recorder]], watched: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, recorder = world()
    seen = []

    class Watching:
        def draw(self, n: int, stream: torch.Generator) -> Draw:
            return scene.augmentation.draw(n, stream)

        def __call__(self, pixels: Tensor, draw: Draw) -> Tensor:
            seen.append(pixels.detach().clone())
            return scene.augmentation(pixels, draw)

    make("sleeper-adaptive-noise", steps=5).craft(replace(scene, augmentation=Watching()))  # type: ignore[arg-type]
    (call,) = recorder.transforms
    assert (call["defense"], call["settings"]) == ("noise-b", {"mu": 16})
    assert torch.equal(call["data"].images, scene.train.images)
    assert call["ids"].tolist() == scene.train.ids[largest_gradients(scene, scene.surrogates(), 4)].tolist()
    assert len({seed for seed, _ in recorder.noisy}) == 5
    for step in range(5):
        assert torch.equal(recorder.noisy[step][1], watched[step][0])
        torch.testing.assert_close(seen[step], watched[step][0] + 0.1)


def test_the_stream_of_the_noise_is_not_that_of_the_augmentation(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    scene, recorder = world()
    seeds = []

    class Watching:
        def draw(self, n: int, stream: torch.Generator) -> Draw:
            seeds.append(stream.initial_seed())
            return scene.augmentation.draw(n, stream)

        def __call__(self, pixels: Tensor, draw: Draw) -> Tensor:
            return scene.augmentation(pixels, draw)

    make("sleeper-adaptive-noise", steps=3).craft(replace(scene, augmentation=Watching()))  # type: ignore[arg-type]
    assert not set(seeds) & {seed for seed, _ in recorder.noisy}


def test_friendly_noise_is_made_for_the_poisons_of_plain_sleeper(world: Callable[..., tuple[Scene, Recorder]]) -> None:
    scene, recorder = world()
    make("sleeper-adaptive-friends", steps=2).craft(scene)
    (call,) = recorder.transforms
    ((asked, settings),) = recorder.asked
    assert asked == "sleeper"
    assert settings == make(steps=2).settings.model_dump()  # crafted as it is crafted itself
    assert (call["defense"], call["settings"]) == ("friends-b", {"mu": 16})
    poisoned = recorder.poisons_of("sleeper").applied_to(scene.train)
    assert torch.equal(call["data"].images, poisoned.images)


@pytest.mark.parametrize("name", ["sleeper-adaptive-noise", "sleeper-adaptive-friends"])
def test_with_all_switches_off_it_is_plain_sleeper(world: Callable[..., tuple[Scene, Recorder]], name: str) -> None:
    scene, recorder = world()
    poisons = make(name, in_crafting=False, retrain=1).craft(scene)
    assert recorder.transforms == [] and recorder.asked == []
    plain = make(retrain=1).craft(world()[0])
    assert torch.equal(poisons.images, plain.images)
    assert poisons.provenance["adapted_to"] in ("noise-b", "friends-b")


@pytest.mark.parametrize(("name", "defense"), [("noise", "noise-b"), ("friends", "friends-b")])
def test_in_surrogates_retrains_behind_the_defense(
    world: Callable[..., tuple[Scene, Recorder]], name: str, defense: str
) -> None:
    scene, recorder = world()
    make(f"sleeper-adaptive-{name}", in_crafting=False, in_surrogates=True, mu=9, retrain=2).craft(scene)
    assert [(c["behind"], c["settings"]) for c in recorder.retrained] == [(defense, {"mu": 9})] * 2
    scene, recorder = world()
    make(f"sleeper-adaptive-{name}", retrain=2).craft(scene)
    assert [(c["behind"], c["settings"]) for c in recorder.retrained] == [("", {})] * 2


@pytest.mark.parametrize("name", ["sleeper-adaptive-noise", "sleeper-adaptive-friends"])
def test_in_sources_puts_random_noise_on_the_patched_images(
    world: Callable[..., tuple[Scene, Recorder]], matchers: list[Any], name: str
) -> None:
    scene, recorder = world()
    make(name, in_crafting=False, in_sources=True, mu=9, steps=3, retrain=1).craft(scene)
    make(steps=3, retrain=1).craft(world()[0])
    (call,) = recorder.transforms
    assert (call["defense"], call["settings"]) == ("noise-b", {"mu": 9})
    assert len(recorder.noisy) == 1
    noisy, _, plain, _ = matchers
    torch.testing.assert_close(noisy[1], plain[1] + 0.1)
    assert torch.equal(matchers[0][1], matchers[1][1])


def test_the_gradient_passes_through_the_noise(
    world: Callable[..., tuple[Scene, Recorder]], watched: dict[Any, Any], matchers: list[Any]
) -> None:
    scene, _ = world()
    make("sleeper-adaptive-noise", steps=2, augment=False).craft(scene)
    _, pixels, wanted, labels = matchers[0]
    matcher = Matcher(scene.surrogates(), pixels, wanted, labels, 256)
    for shown_pixels, loss, slope in watched.values():
        expected = matcher.slope(shown_pixels + 0.1)
        assert loss == pytest.approx(expected[0], abs=1e-6)
        torch.testing.assert_close(slope, expected[1])


@pytest.mark.parametrize(("key", "value"), [("mu", 0), ("mu", 256), ("defense", "friends-u"), ("retrain", -1)])
def test_settings_out_of_bounds_are_refused(key: str, value: int) -> None:
    from bench.foundation.errors import BadInput

    with pytest.raises(BadInput, match=f"attack.{key}"):
        make("sleeper-adaptive-noise", **{key: value})
