"""Bullseye Polytope and Poison Frogs: their losses, the exact gradients of these, and what they do to features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import poison_frogs
from bench.attacks.bullseye_polytope import BullseyePolytope
from bench.attacks.poison_frogs import ForwardBackward, PoisonFrogs, collisions
from bench.science.attack import Scene
from bench.science.classifier import Classifier
from bench.science.dataset import Images
from bench.science.poisons import Poisons
from bench.science.training import to_pixels
from tests.attacks.finite_differences import assert_slope, objective_of
from tests.plugins import make_attack


def moved(scene: Scene, seed: Any = 3) -> Tensor:
    """Pixels in float64 near the bases."""
    chance = torch.Generator().manual_seed(seed)
    return scene.base_pixels().double() + 0.03 * torch.randn(
        scene.bases.images.shape, dtype=torch.float64, generator=chance
    )


def features(model: Classifier, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.features(pixels)


def targets_of(scene: Scene, make_images: Callable[..., Images], count: int) -> Scene:
    return replace(scene, targets=make_images(9, seed=5).images[:count])


@pytest.fixture
def smooth_scene(make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier]) -> Scene:
    return make_scene([make_smooth(0), make_smooth(1)], k=2, n=4)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "bp": (BullseyePolytope, {}),
    "bp of two layers": (BullseyePolytope, {"layers": 2}),
    "bp-original": (BullseyePolytope, {"form": "original"}),
    "bp-end2end": (BullseyePolytope, {"form": "original", "layers": 64}),
    "pf": (PoisonFrogs, {}),
    "pf of two layers": (PoisonFrogs, {"layers": 2}),
    "pf-mean": (PoisonFrogs, {"mean": True}),
}


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_finite_differences(
    smooth_scene: Scene, monkeypatch: pytest.MonkeyPatch, case: str, augment: bool
) -> None:
    kind, settings = CASES[case]
    attack = kind(kind.Settings(**settings, augment=augment))
    gradient, _ = objective_of(attack, smooth_scene, monkeypatch)
    pixels = moved(smooth_scene)
    assert_slope(lambda at: gradient(at, 3)[0], pixels, gradient(pixels, 3)[1])


def by_hand(case: str, models: Sequence[Classifier], pixels: Tensor, targets: Tensor) -> float:
    """The losses as the papers write them, feature by feature."""
    total = 0.0
    for model in models:
        own, aims = features(model, pixels), features(model, to_pixels(targets))
        centre = sum(aims) / len(aims)
        if case in ("bp", "pf-mean"):
            total += float(((sum(own) / len(own) - centre) ** 2).sum()) / len(centre)  # type: ignore[arg-type, attr-defined]
        elif case == "bp-original":
            total += float((sum(own) / len(own) - centre).norm() / centre.norm())  # type: ignore[attr-defined]
        else:
            total += sum(float(((one - centre) ** 2).sum()) for one in own) / len(own) / len(centre)  # type: ignore[arg-type]
    return total / len(models)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", ["bp", "bp-original", "pf", "pf-mean"])
def test_the_loss_is_that_of_the_papers(
    smooth_scene: Scene, make_images: Callable[..., Images], monkeypatch: pytest.MonkeyPatch, case: str, count: int
) -> None:
    kind, settings = CASES[case]
    scene = targets_of(smooth_scene, make_images, count)
    gradient, score = objective_of(kind(kind.Settings(**settings, augment=False)), scene, monkeypatch)
    pixels = moved(scene)
    expected = by_hand(case, scene.surrogates(), pixels, scene.targets)
    assert gradient(pixels, 0)[0] == pytest.approx(expected, rel=1e-10)
    assert score(pixels) == pytest.approx(expected, rel=1e-10)


def test_end_to_end_is_the_mean_over_all_stages(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_smooth()
    scene = make_scene([model], n=4)
    gradient, _ = objective_of(make_attack("bp-end2end"), scene, monkeypatch)
    pixels, each = moved(scene), []
    with torch.no_grad():
        for own, aim in zip(model.stages(pixels), model.stages(to_pixels(scene.targets)), strict=True):
            each.append(float((own.mean(0) - aim[0]).norm() / aim[0].norm()))
    assert len(each) == 3
    assert gradient(pixels, 0)[0] == pytest.approx(sum(each) / 3, rel=1e-10)


def test_augmentation_is_redrawn_at_every_step(smooth_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, _ = objective_of(make_attack("bp"), smooth_scene, monkeypatch)
    pixels = moved(smooth_scene)
    assert len({gradient(pixels, step)[0] for step in (0, 1, 2, 0)}) == 3


FAST: dict[str, Any] = {"steps": 60, "restarts": 1}


@pytest.fixture
def scene(make_scene: Callable[..., Scene], make_model: Callable[..., Classifier]) -> Scene:
    return make_scene([make_model("convnet")], n=6)


def distances(scene: Scene, poisons: Poisons) -> tuple[Tensor, float]:
    """Of every poison's feature, and of the mean feature, from the target's; relative to the target's norm."""
    model = scene.surrogates()[0]
    own, aim = features(model, to_pixels(poisons.images)), features(model, to_pixels(scene.targets))[0]
    return (own - aim).norm(dim=1) / aim.norm(), ((own.mean(0) - aim).norm() / aim.norm()).item()


def test_pf_brings_every_poison_near_and_bp_only_the_mean(
    make_scene: Callable[..., Scene], make_model: Callable[..., Classifier]
) -> None:
    scene = make_scene([make_model("convnet")], n=6, eps=60)
    clean, clean_mean = distances(scene, scene.poisons(torch.zeros_like(scene.base_pixels())))
    pf, pf_mean = distances(scene, make_attack("pf", **FAST, augment=False).craft(scene))
    bp, bp_mean = distances(scene, make_attack("bp", **FAST, augment=False).craft(scene))
    assert (pf < clean).all()
    assert bp_mean < clean_mean
    assert bp_mean < pf_mean
    assert pf.square().mean() < bp.square().mean()
    assert bp_mean < 0.5 * bp.mean()


@pytest.mark.parametrize("augment", [True, False])
def test_pf_of_the_mean_is_bp(scene: Scene, augment: bool) -> None:
    settings = {"steps": 8, "restarts": 2, "augment": augment}
    mine, theirs = make_attack("pf-mean", **settings).craft(scene), make_attack("bp", **settings).craft(scene)
    assert torch.equal(mine.images, theirs.images)
    assert mine.provenance["final_losses"] == pytest.approx(theirs.provenance["final_losses"], rel=1e-6)
    assert not torch.equal(mine.images, make_attack("pf", **settings).craft(scene).images)


@pytest.mark.parametrize("name", ["bp", "bp-original", "bp-end2end", "pf", "pf-mean", "pf-original"])
def test_poisons_are_within_eps_and_lower_the_loss_of_their_attack(
    scene: Scene,
    name: str,
    snapshot: Callable[[nn.Module], dict[str, Any]],
    assert_untouched: Callable[[nn.Module, dict[str, Any]], None],
) -> None:
    model = scene.surrogates()[0]
    before = snapshot(model)
    steps = {"steps": 20} if name == "pf-original" else {"steps": 20, "restarts": 1}
    poisons = make_attack(name, **steps).craft(scene)
    poisons.check(scene.train, scene.threat.eps, scene.bases.ids)
    losses = poisons.provenance["losses"][0]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert_untouched(model, before)


def test_the_published_settings_are_the_variants() -> None:
    published = {"form": "original", "rule": "adam", "lr": 0.04, "steps": 1200, "restarts": 1, "init": "base"}
    for name in ("bp-original", "bp-end2end"):
        settings = make_attack(name).settings.as_dict()
        assert {key: settings[key] for key in published} == published
        assert not settings["augment"] and not settings["decay"]
    settings = make_attack("bp").settings
    assert (settings.steps, settings.restarts, settings.lr, settings.rule) == (250, 8, 0.1, "sign-adam")
    frogs = make_attack("pf-original").settings
    assert (frogs.steps, frogs.lr, frogs.watermark, frogs.beta, frogs.tolerance) == (120, 1e-3, 0.3, 0.0, 1e-5)


# Forward-backward splitting.


def test_collisions_are_those_of_finite_differences(smooth_scene: Scene) -> None:
    models = smooth_scene.surrogates()
    aims = [features(model, to_pixels(smooth_scene.targets))[0] for model in models]
    pixels = moved(smooth_scene)
    value, slope = collisions(models, pixels, aims)
    expected = [
        sum(float(((features(m, pixels[i : i + 1])[0] - a) ** 2).sum()) for m, a in zip(models, aims, strict=True))
        for i in range(len(pixels))
    ]
    assert value.tolist() == pytest.approx(expected)
    assert_slope(lambda at: collisions(models, at, aims)[0].sum().item(), pixels, slope)


def one_by_one(scene: Scene, settings: Any) -> tuple[Tensor, list[list[float]], int]:
    """Algorithm 1 on each poison alone; also the objectives of its accepted steps, and how often one was rejected."""
    models, target = scene.surrogates(), to_pixels(scene.targets).mean(0)
    std = models[0].normalise.std[0]
    aims = [features(model, to_pixels(scene.targets)).mean(0) for model in models]
    finals, tracks, rejections = [], [], 0
    for base in scene.base_pixels():

        def project(pixels: Tensor, base: Any = base) -> Tensor:
            return (base + (pixels - base).clamp(-scene.eps, scene.eps)).clamp(0, 1)

        def judge(pixels: Tensor, base: Any = base) -> tuple[float, Tensor]:
            value, slope = collisions(models, pixels[None], aims)
            return value.item() + settings.beta / 2 * ((pixels - base) / std).square().sum().item(), slope[0]

        pixels = project(settings.watermark * target + (1 - settings.watermark) * base)
        (objective, slope), step = judge(pixels), settings.lr
        track = [objective]
        for _ in range(settings.steps):
            forward = (pixels - base) / std - step * std * slope
            trial = project(base + std * forward / (1 + step * settings.beta))
            after, new_slope = judge(trial)
            if after < objective:
                small = objective - after <= settings.tolerance * objective
                pixels, slope, objective = trial, new_slope, after
                track.append(objective)
                if small:
                    break
            else:
                step *= 0.2
                rejections += 1
        finals.append(pixels)
        tracks.append(track)
    return torch.stack(finals), tracks, rejections


@pytest.mark.parametrize(
    "settings",
    [{"lr": 1e-3, "steps": 8}, {"lr": 1000.0, "steps": 15}, {"lr": 1.0, "beta": 0.05, "steps": 15}, {"tolerance": 0.1}],
)
def test_pf_original_is_algorithm_1_poison_by_poison(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier], settings: dict[str, float]
) -> None:
    scene = make_scene([make_smooth(0).float(), make_smooth(1).float()], k=2, n=4, eps=100)
    poisons = ForwardBackward(ForwardBackward.Settings(**{"steps": 12, **settings})).craft(scene)  # type: ignore[arg-type]
    expected, tracks, rejections = one_by_one(scene, ForwardBackward.Settings(**{"steps": 12, **settings}))  # type: ignore[arg-type]
    found, wanted = poisons.images.long(), scene.poisons(expected - scene.base_pixels()).images.long()
    assert (found != wanted).float().mean() < 0.01
    assert (found - wanted).abs().max() <= 1
    for track in tracks:
        assert track == sorted(track, reverse=True)
    assert rejections or settings.get("lr", 0) < 1000


def test_pf_original_never_raises_its_objective(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier]
) -> None:
    scene = make_scene([make_smooth().float()], n=5)
    poisons = ForwardBackward(ForwardBackward.Settings(lr=30.0, steps=25)).craft(scene)
    (losses,) = poisons.provenance["losses"]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert poisons.provenance["final_losses"] == [losses[-1]]


def test_pf_original_gives_a_poison_alone_what_it_gets_among_others(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier]
) -> None:
    scene = make_scene([make_smooth().float()], n=5)
    attack = ForwardBackward(ForwardBackward.Settings(lr=5.0, steps=20))
    together = attack.craft(scene).images.long()
    rows = scene.train.rows_of(scene.bases.ids)
    for i, row in enumerate(rows):
        alone = attack.craft(scene.choosing(row[None])).images[0].long()
        assert (alone - together[i]).abs().max() <= 1
        assert (alone != together[i]).float().mean() < 0.02


def test_pf_original_starts_at_the_blend_inside_the_ball(
    make_scene: Callable[..., Scene], make_smooth: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, seen = make_scene([make_smooth().float()], n=5, eps=8), []

    def watched(models: list[Classifier], pixels: Tensor, aims: list[Tensor]) -> tuple[Tensor, Tensor]:
        seen.append(pixels.clone())
        return collisions(models, pixels, aims)

    monkeypatch.setattr(poison_frogs, "collisions", watched)  # the module: a step shows its pixels to nobody
    ForwardBackward(ForwardBackward.Settings(steps=3, watermark=0.4)).craft(scene)
    base, target = scene.base_pixels(), to_pixels(scene.targets)
    blend = 0.4 * target + 0.6 * base
    torch.testing.assert_close(seen[0], base + (blend - base).clamp(-8 / 255, 8 / 255))
    assert ((blend - base).abs() > 8 / 255).any()
    for pixels in seen:
        assert (pixels - base).abs().max() <= 8 / 255 + 1e-6
        assert pixels.min() >= 0 and pixels.max() <= 1
