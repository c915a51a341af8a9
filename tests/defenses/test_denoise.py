"""Denoising: the diffusion step, the fitted network, denoisers from elsewhere, and a whole trial."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.defenses.denoise import Denoise, DenoisedImages, DenoiseSettings
from bench.defenses.diffusion import sources, unet
from bench.defenses.diffusion.improved_unet import ImprovedUNet, Shape
from bench.defenses.diffusion.schedule import (
    Denoiser,
    cosine_schedule,
    denoise_images,
    names_by_content,
    noise_by_name,
    noise_of,
    one_shot,
    step_for,
)
from bench.defenses.diffusion.sources import loaded, outside
from bench.defenses.diffusion.unet import fit_unet
from bench.execution.engines.local import Local
from bench.execution.plan import Plan
from bench.execution.runner import execute
from bench.foundation.errors import BadInput, TrialFailed
from bench.foundation.settings import build
from bench.science.classifier import build_model
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.identity import identities
from bench.science.training import Recipe, Run, train
from bench.storage.records import DEPENDS_ON_THE_DAY
from tests.plans import prepare
from tests.tiny import SETS

TABLE = {0.1: (475, 225, 58, 27), 0.25: (1158, 597, 145, 73), 0.5: (1984, 1158, 259, 145), 1.0: (2809, 1984, 396, 259)}
"""sigma -> t* of cosine T = 4000 at s = 2 sigma and s = sigma, of linear T = 1000 at the same."""


def linear_schedule(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> torch.Tensor:
    """abar of Ho et al. (2020), section 4."""
    return (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0)


@pytest.mark.parametrize("sigma", TABLE)
def test_the_step_is_the_first_with_noise_enough(sigma: float) -> None:
    cosine, linear = cosine_schedule(), linear_schedule()
    assert (len(cosine), len(linear)) == (4000, 1000)
    found = [step_for(schedule, k * sigma) for schedule in (cosine, linear) for k in (2, 1)]
    assert tuple(found) == TABLE[sigma]
    for schedule, k in ((cosine, 2), (linear, 1)):
        step = step_for(schedule, k * sigma)
        assert noise_of(schedule)[step] >= k * sigma > noise_of(schedule)[step - 1]


def test_a_noise_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(TrialFailed, match="ends at 157"):
        step_for(linear_schedule(), 1000)


# One-shot denoising.


def denoiser_of(predict: Callable[..., Any], alphas: Tensor | None = None, **more: Any) -> Any:
    return Denoiser(predict, cosine_schedule() if alphas is None else alphas, {"source": "test"}, "test", **more)


def test_a_denoiser_that_knows_the_noise_gives_the_image_back(make_images: Callable[..., Images]) -> None:
    images, chance = make_images(6).images, torch.Generator().manual_seed(1)
    noise = torch.randn(6, 3, 8, 8, generator=chance)
    pixels = images.float() / 255
    found = one_shot(denoiser_of(lambda x, step: noise), pixels, noise, 1158)
    assert torch.allclose(found, pixels, atol=1e-5)
    assert not torch.allclose(
        one_shot(denoiser_of(lambda x, step: 0.9 * noise), pixels, noise, 1158), pixels, atol=0.01
    )


@pytest.mark.parametrize("sigma", TABLE)
def test_what_the_network_sees_has_noise_sigma_in_units_of_the_pixels(sigma: float) -> None:
    """x_t / sqrt(abar), back on [0, 1], is the image with noise of deviation sigma: doubled once and only once."""
    seen = {}

    def look(x: Tensor, step: int) -> Tensor:
        seen[step] = x
        return torch.zeros_like(x)

    found = denoiser_of(look)
    step = step_for(found.alphas, 2 * sigma)
    pixels, chance = torch.full((4, 3, 32, 32), 0.7), torch.Generator().manual_seed(0)
    one_shot(found, pixels, torch.randn(pixels.shape, generator=chance), step)
    noisy = (seen[step] / math.sqrt(float(found.alphas[step])) + 1) / 2
    assert float(noisy.mean()) == pytest.approx(0.7, abs=4 * sigma / math.sqrt(noisy.numel()))
    assert float(noisy.std()) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("sigma", TABLE)
def test_gaussian_images_come_back_as_their_posterior_mean(sigma: float) -> None:
    """For pixels N(m, d^2), each apart, E[x | x + sigma z] is known in closed form."""
    schedule, mean, deviation = cosine_schedule(), 0.1, 0.05  # of [-1, 1]
    chance = torch.Generator().manual_seed(0)

    def predict(x: Tensor, step: int) -> Tensor:
        kept, added = float(schedule[step]) ** 0.5, float(1 - schedule[step]) ** 0.5
        clean = mean + kept * deviation**2 / (kept**2 * deviation**2 + added**2) * (x - kept * mean)
        return (x - kept * clean) / added

    pixels = (1 + mean + deviation * torch.randn(4, 3, 8, 8, generator=chance)) / 2
    noise = torch.randn(pixels.shape, generator=chance)
    step = step_for(schedule, 2 * sigma)
    true = float(noise_of(schedule)[step]) / 2  # the grid's, a little above sigma
    prior, noisy = (deviation / 2) ** 2, pixels + true * noise
    expected = (prior * noisy + true**2 * (1 + mean) / 2) / (prior + true**2)
    assert torch.allclose(one_shot(denoiser_of(predict), pixels, noise, step), expected.clamp(0, 1), atol=1e-5)


def test_values_that_are_not_finite_end_the_trial() -> None:
    with pytest.raises(TrialFailed, match="not finite"):
        one_shot(denoiser_of(lambda x, step: x / 0), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), 100)


@pytest.mark.parametrize(("levels", "more"), [(0.4, 0), (0.6, 1), (-0.4, 0), (-0.6, -1)])
def test_pixels_stay_in_range_and_are_rounded(levels: float, more: int) -> None:
    images, ids = torch.tensor([0, 9, 128, 255]).repeat(48).view(1, 3, 8, 8).to(torch.uint8), torch.tensor([5])

    def predict(x: Tensor, step: int) -> Tensor:
        """Leaves the image and a share of a level: at abar 0.5, image and noise have the same weight."""
        return noise_by_name(3, [5], images) - levels / 127.5

    out = denoise_images(denoiser_of(predict, linear_schedule(1, 0.5)), images, ids, 0, 3, 1)
    assert torch.equal(out.int(), (images.int() + more).clamp(0, 255))


def smooth(x: Tensor, step: int) -> Tensor:
    """Predicts as noise what differs from the image's mean."""
    return x - x.mean((1, 2, 3), keepdim=True)


def test_neither_chunk_nor_order_nor_other_images_matter(make_images: Callable[..., Images]) -> None:
    data = make_images(10)
    whole = denoise_images(denoiser_of(smooth), data.images, data.ids, 1158, 4, 10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    mixed = denoise_images(denoiser_of(smooth), data.images[order], data.ids[order], 1158, 4, 3)
    assert (whole[order].int() - mixed.int()).abs().max() <= 1
    other = denoise_images(denoiser_of(smooth), data.images, data.ids, 1158, 5, 10)
    assert (whole.int() - other.int()).abs().max() > 8


def test_every_image_has_noise_of_its_own() -> None:
    noise = noise_by_name(0, [1, 2, 1, "1"], torch.zeros(4, 3, 16, 16))
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert abs(float((noise[0] * noise[1]).mean())) < 0.15
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_sizes_that_the_denoiser_cannot_take_are_named() -> None:
    for size, network, words in [(10, {"multiple": 4}, "multiples of 4"), (16, {"size": 32}, "images of 32 pixels")]:
        with pytest.raises(TrialFailed, match=words):
            denoiser_of(smooth, **network).must_take(size)  # type: ignore[arg-type]
    denoiser_of(smooth, multiple=4, size=32).must_take(32)


# The fitted network.


@pytest.mark.slow
def test_a_little_training_takes_out_most_of_the_noise() -> None:
    """Images of one colour each, in noise of half the range."""

    def plain(n: int, seed: int) -> Tensor:
        colours = torch.randint(40, 216, (n, 3, 1, 1), generator=torch.Generator().manual_seed(seed))
        return colours.expand(n, 3, 8, 8).to(torch.uint8).contiguous()

    public, mine = plain(64, 1), plain(16, 2)
    network = fit_unet(public, 16, 300, 16, 0)
    cleaned = denoise_images(
        denoiser_of(network.noise, network.alphas), mine, torch.arange(16), step_for(cosine_schedule(), 1.0), 0, 16
    )
    error, spread = (cleaned.float() - mine).square().mean(), mine.float().var(0).mean()
    assert error < 0.15 * (255 * 0.5) ** 2  # what the noise was
    assert error < 0.9 * spread  # what the mean image would leave


def test_the_fit_depends_on_its_seed_alone(make_images: Callable[..., Images]) -> None:
    public = make_images(12).images
    torch.manual_seed(0)
    first = fit_unet(public, 8, 3, 4, 0).state_dict()
    torch.manual_seed(1)
    again, other = fit_unet(public, 8, 3, 4, 0).state_dict(), fit_unet(public, 8, 3, 4, 1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_fit_that_diverges_is_said(make_images: Callable[..., Images], monkeypatch: pytest.MonkeyPatch) -> None:
    # The module itself: no images and no settings that are allowed make this fit diverge.
    monkeypatch.setattr(unet, "cosine_schedule", lambda: cosine_schedule() * torch.nan)
    monkeypatch.setattr(unet, "step_for", lambda alphas, s: 1)
    with pytest.raises(TrialFailed, match="not finite after 2 steps"):
        fit_unet(make_images(12).images, 8, 2, 4, 0)


# The defense.

QUICK: dict[str, Any] = {"steps": 2, "width": 8, "batch": 4}


class Keeper:
    """`services.keep` of a study: makes each thing once, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.things: dict[str, Any] = {}

    def __call__(
        self, name: str, inputs: dict[str, Any], make: Callable[..., Any], external: bool = False
    ) -> dict[str, Tensor]:
        key = json.dumps([name, inputs], sort_keys=True)
        self.asked.append((name, external))
        if key not in self.things:
            self.things[key] = make()
        return self.things[key]

    def made(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(key)[1] for key in self.things if json.loads(key)[0] == name]


@pytest.fixture
def world(make_images: Callable[..., Images]) -> tuple[Services, Images, dict[Any, Any]]:
    """Services with a keeper and notes, and a training set."""
    notes: dict[Any, Any] = {}
    public = make_images(12, 16, classes=5, seed=8)
    services = Services(
        Recipe(epochs=4, batch=8, drops=(), shift=1), 3, lambda *_: None, lambda *_: None, "lenet", 1, Keeper(),  # type: ignore[arg-type]
        notes.__setitem__, public=lambda: public,
    )  # fmt: skip
    return services, make_images(12, 16), notes


def defense(**changes: Any) -> Denoise:
    return Denoise(build(DenoiseSettings, {**QUICK, **changes}, "defense"), "denoise")


def after(guard: Denoise, data: Images, services: Services, seed: Any = 7) -> tuple[list[Images], Any]:
    """A training behind the defense; the training set of every epoch, and what `finish` gives."""
    sets = []

    class Spy(type(guard)):  # type: ignore[misc]
        def epoch(self, run: Run, epoch: int) -> None:
            super().epoch(run, epoch)
            sets.append(run.data)

    guard.__class__ = Spy
    (job,) = guard.jobs(data, services)
    model = build_model("lenet", classes=3, size=16, normalisation=((0.5,) * 3, (0.25,) * 3), seed=seed)
    trained = train(model, job.data, services.recipe, seed=seed, hooks=guard, services=services)
    return sets, guard.finish([trained], services)


def test_one_network_serves_all_noise_levels_and_variants(world: tuple[Services, Images, dict[Any, Any]]) -> None:
    services, data, _ = world
    for changes in ({"sigma": 0.1}, {"sigma": 0.5, "scale": 1}, {"warm_start": 0.25}, {"denoise_test": True}):
        after(defense(**changes), data, services)
    (network,) = services.keep.made("denoiser")  # type: ignore[attr-defined]
    assert set(network) == {"source", "public", "width", "steps", "batch"}
    assert {external for name, external in services.keep.asked if name == "denoiser"} == {True}  # type: ignore[attr-defined]
    assert {external for name, external in services.keep.asked if name == "denoised images"} == {False}  # type: ignore[attr-defined]
    kept = services.keep.made("denoised images")  # type: ignore[attr-defined]
    assert [(inputs["sigma"], inputs["scale"]) for inputs in kept] == [(0.1, 2), (0.5, 1), (0.25, 2)]


def test_the_denoised_set_is_shared_by_trials_and_keeps_labels_and_ids(
    world: tuple[Services, Images, dict[Any, Any]],
) -> None:
    services, data, notes = world
    (job,) = defense().jobs(data, services)
    (again,) = defense().jobs(data, replace(services, seed=99, keep=Keeper()))
    assert torch.equal(job.data.images, again.data.images)
    assert torch.equal(job.data.labels, data.labels) and torch.equal(job.data.ids, data.ids)
    assert (job.data.images.int() - data.images.int()).abs().float().mean() > 2
    poisoned = data.with_images(data.images.clone().index_fill_(0, torch.tensor([0]), 0))
    (other,) = defense().jobs(poisoned, services)
    assert not torch.equal(other.data.images[1:], job.data.images[1:])  # a set of its own has noise of its own
    assert notes["denoise"]["step"] == 1158 and notes["denoise"]["steps"] == 4000
    assert notes["denoise"]["noise"] == pytest.approx(0.5, rel=0.01)


def test_a_warm_start_trains_on_the_raw_set_first(world: tuple[Services, Images, dict[Any, Any]]) -> None:
    services, data, _ = world
    sets, _ = after(defense(warm_start=0.5), data, services)
    (job,) = defense().jobs(data, services)
    raw = [torch.equal(seen.images, data.images) for seen in sets]
    assert raw == [True, True, False, False]
    assert all(torch.equal(seen.images, job.data.images) for seen in sets[2:])
    sets, _ = after(defense(warm_start=0.99), data, services)
    assert torch.equal(sets[-1].images, job.data.images)  # one epoch is left, however small the rest
    sets, _ = after(defense(warm_start=0.01), data, services)
    assert torch.equal(sets[0].images, job.data.images)
    sets, _ = after(defense(), data, services)
    assert all(torch.equal(seen.images, job.data.images) for seen in sets)


def test_pretrained_features_are_learned_on_the_public_images_with_their_own_classes(
    world: tuple[Services, Images, dict[Any, Any]], make_run: Callable[..., Run]
) -> None:
    services, data, _ = world
    guard = defense(init="pretrained")
    features = []
    for seed in (1, 2):
        model = build_model("lenet", classes=3, size=16, normalisation=((0.5,) * 3, (0.25,) * 3), seed=seed)
        head = model.head.weight.clone()
        run = make_run(model, data)
        run.services = services
        guard.epoch(run, 0)
        assert torch.equal(model.head.weight, head)
        features.append(torch.cat([value.flatten() for value in model.body.state_dict().values()]))
        guard.epoch(run, 1)
    assert torch.equal(*features)
    (kept,) = services.keep.things.values()  # type: ignore[attr-defined]
    assert kept["head.weight"].shape[0] == 5
    assert [external for _, external in services.keep.asked] == [True, True]  # type: ignore[attr-defined]
    run.model.body = nn.Sequential(nn.Flatten())
    with pytest.raises(TrialFailed, match="replaced the layers"):
        guard.epoch(run, 0)


def test_both_ways_with_test_images_are_judged(world: tuple[Services, Images, dict[Any, Any]]) -> None:
    services, data, _ = world
    _, raw = after(defense(), data, services)
    _, denoised = after(defense(denoise_test=True), data, services)
    pixels = data.images.float() / 255
    assert list(raw.variants) == ["denoised test images"] and list(denoised.variants) == ["raw test images"]
    assert torch.equal(raw.scores(pixels), denoised.variants["raw test images"].scores(pixels))
    assert torch.equal(raw.variants["denoised test images"].scores(pixels), denoised.scores(pixels))
    assert not torch.allclose(raw.scores(pixels), denoised.scores(pixels))


def test_the_noise_of_a_test_image_depends_on_nothing_but_the_image(make_images: Callable[..., Images]) -> None:
    class Look:
        def scores(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1)

    pixels = make_images(7).images.float() / 255
    shown = DenoisedImages(Look(), denoiser_of(smooth), 1158, 3, 2)
    whole = shown.scores(pixels)
    assert torch.allclose(shown.scores(pixels.flip(0)).flip(0), whole, atol=1e-6)
    assert torch.allclose(torch.cat([shown.scores(image[None]) for image in pixels]), whole, atol=1e-6)
    assert len(set(names_by_content(pixels))) == 7
    assert not torch.allclose(DenoisedImages(Look(), denoiser_of(smooth), 1158, 4, 2).scores(pixels), whole, atol=0.1)


def test_images_of_a_side_that_does_not_divide_are_refused(
    world: tuple[Services, Images, dict[Any, Any]], make_images: Callable[..., Images]
) -> None:
    services, _, _ = world
    with pytest.raises(TrialFailed, match="images of 10 pixels; allowed: multiples of 4"):
        list(defense().jobs(make_images(6, 10), replace(services, public=lambda: make_images(6, 10))))


def test_public_images_are_wanted_only_where_they_are_used() -> None:
    assert defense().wants_public and defense(source="a/b", init="pretrained").wants_public
    assert not defense(source="a/b").wants_public
    assert defense().external() == {}


def test_a_trial_runs_from_end_to_end_in_composition(tmp_path: Path) -> None:
    sets = [
        *SETS,
        "trials=1",
        "public_dataset.train_per_class=4",
        *(f"defense.denoise-0.25.{k}={v}" for k, v in QUICK.items()),
    ]
    plan = prepare("quick", sets, attack="random-noise", defenses=["denoise-0.25+noise-b"], only=True)
    (record,) = execute(plan, tmp_path, Local(1, quiet=True), lambda line: None, lambda record: None)
    assert record["status"] == "done", record["error"]
    assert set(record["variants"]) == {"denoised test images"}
    assert record["knowledge"] == ["external_model"]
    assert record["external"]["public"]["name"] == "photographs"
    assert record["notes"]["denoise"]["step"] == 1158
    assert record["seconds"]["external"] > 0


# Models from elsewhere.


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing-here", "allowed: 'fit', a diffusers folder"),
        ("no/where/at/all", "allowed: 'fit', a diffusers folder"),
        ("missing.pt", "file not found: 'missing.pt'"),
    ],
)
def test_a_source_that_is_not_there_is_named_before_any_work(
    source: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = types.ModuleType("diffusers")
    present.__spec__ = ModuleSpec("diffusers", None)
    monkeypatch.setitem(sys.modules, "diffusers", present)
    with pytest.raises(BadInput, match=words):
        defense(source=source).external()


def test_without_the_package_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BadInput, match=r"pip install 'poisoning-bench\[diffusion\]'"):
        outside("google/ddpm-cifar10-32")


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


@pytest.fixture
def save_model(diffusers: Any, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """A tiny diffusion model on the disk, as a pipeline or all in one folder."""

    def save(split: bool = False, predicted: str = "epsilon", steps: int = 50, **changes: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            **{
                "sample_size": 16, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
                **changes,
            }
        )  # fmt: skip
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=steps, prediction_type=predicted)
        unet.save_pretrained(tmp_path / "unet" if split else tmp_path)
        scheduler.save_pretrained(tmp_path / "scheduler" if split else tmp_path)
        return unet.eval(), scheduler

    return save


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction", "sample"])
def test_a_diffusers_model_gives_what_its_own_scheduler_says(
    save_model: Callable[..., tuple[Any, Any]], tmp_path: Path, predicted: str
) -> None:
    unet, scheduler = save_model(split=predicted == "sample", predicted=predicted)
    before = torch.random.get_rng_state()
    found = loaded(str(tmp_path), torch.device("cpu"))
    assert torch.equal(before, torch.random.get_rng_state())
    chance = torch.Generator().manual_seed(2)
    pixels, noise = torch.rand(3, 3, 16, 16, generator=chance), torch.randn(3, 3, 16, 16, generator=chance)
    for step in (0, 20, 49):
        noisy = scheduler.add_noise(2 * pixels - 1, noise, torch.tensor(step))
        with torch.no_grad():
            guess = unet(noisy, step).sample
        expected = scheduler.step(guess, step, noisy, generator=chance).pred_original_sample.clamp(-1, 1)
        assert torch.allclose(2 * one_shot(found, pixels, noise, step) - 1, expected, atol=1e-4)
    assert (found.size, found.multiple) == (16, 2)


def test_the_files_of_a_diffusers_model_are_part_of_the_identity(
    save_model: Callable[..., tuple[Any, Any]], tmp_path: Path, diffusers: Any
) -> None:
    save_model()
    before = outside(str(tmp_path))["denoiser"]
    assert before["diffusers"] == diffusers.__version__ and len(before["files"]) == 3
    assert outside(str(tmp_path))["denoiser"] == before
    save_model(steps=60)
    after = outside(str(tmp_path))["denoiser"]["files"]
    assert {name for name in after if after[name] != before["files"][name]} == {"scheduler_config.json"}


def test_a_folder_without_safe_weights_is_refused(save_model: Callable[..., tuple[Any, Any]], tmp_path: Path) -> None:
    save_model()
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(BadInput, match="file not found: '.*diffusion_pytorch_model.safetensors'"):
        outside(str(tmp_path))
    weights.write_bytes(b"not these")
    with pytest.raises(BadInput, match="has weights that cannot be read .SafetensorError"):
        outside(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"), [({"in_channels": 1, "out_channels": 1}, "3 channels"), ({"num_class_embeds": 4}, "uncond")]
)
def test_a_model_of_another_kind_is_refused(
    save_model: Callable[..., tuple[Any, Any]], tmp_path: Path, changes: dict[str, int], words: str
) -> None:
    save_model(**changes)
    with pytest.raises(BadInput, match=words):
        outside(str(tmp_path))


def test_a_model_of_the_hub_is_fetched_without_pickles_or_named_with_the_fix(
    save_model: Callable[..., tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    save_model()
    asked = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        if name == "who/cares":
            raise OSError("no network")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    here = outside(str(tmp_path))["denoiser"]
    assert outside("an/owner") == outside("an/owner", "v2") == {"denoiser": {**here, "revision": tmp_path.name}}
    for elsewhere in (str(tmp_path), "fit", "model.pt"):
        with pytest.raises(BadInput, match="defense.revision 'v2' is for a model of the hub"):
            outside(elsewhere, "v2")
    with pytest.raises(BadInput, match="'who/cares' is not a folder and cannot be downloaded .OSError.; fix: "):
        outside("who/cares")
    assert [revision for _, revision, _ in asked] == [None, "v2", None]
    assert asked[0] == ("an/owner", None, ["*config.json", "*diffusion_pytorch_model.safetensors"])


def test_a_trial_with_a_diffusers_model_runs_and_one_of_another_size_says_so(
    save_model: Callable[..., tuple[Any, Any]],
    tmp_path: Path,
    make_images: Callable[..., Images],
    world: tuple[Services, Images, dict[Any, Any]],
) -> None:
    services, data, _ = world
    save_model()
    without = replace(services, public=None)
    _, found = after(defense(source=str(tmp_path), sigma=0.025, scale=1), data, without)
    assert found.scores(data.images.float() / 255).shape == (12, 3)
    with pytest.raises(TrialFailed, match="takes images of 16 pixels, not 8"):
        list(defense(source=str(tmp_path), sigma=0.025, scale=1).jobs(make_images(6, 8), without))


def planned(source: Path | str, *more: str, defense: str = "denoise-0.1") -> Plan:
    """A plan with a denoiser from outside; the images have 16 pixels."""
    sets = [*SETS, "trials=1", f"defense.{defense.partition('+')[0]}.source={source}", *more]
    return prepare("quick", sets, attack="random-noise", defenses=[defense], only=True)


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes a configuration of a model; None takes an entry away."""

    def change(folder: Path) -> None:
        values = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return change


def rewrite(make: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    """Changes the weights of a model; `make` changes them in place, or gives others."""

    def change(folder: Path) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        path = folder / "diffusion_pytorch_model.safetensors"
        weights = safetensors.load_file(path)
        made = make(weights)
        path.write_bytes(safetensors.save(weights if not isinstance(made, dict) else made))

    return change


def cut(name: str, length: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, length)


def replaced(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def pipe(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    path.unlink()
    os.mkfifo(path)


BIAS, CONFIG, SCHEDULE = "conv_out.bias", "config.json", "scheduler_config.json"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a weight is missing": (rewrite(lambda weights: weights.pop(BIAS)), "'conv_out.bias' is missing"),
    "a weight is unknown": (rewrite(lambda weights: weights.update(x=torch.ones(1))), "'x' is unknown"),
    "a weight has another shape": (
        rewrite(lambda weights: weights.update({BIAS: torch.ones(6)})), r"shape \[6\], not \[3\]",
    ),
    "no weights": (rewrite(lambda weights: {}), "'conv_in.weight' is missing, and"),
    "whole numbers": (
        rewrite(lambda weights: {name: value.int() for name, value in weights.items()}), "named tensors",
    ),
    "NaN": (rewrite(lambda weights: weights[BIAS].fill_(torch.nan)), "holds NaN or infinity"),
    "too large": (rewrite(lambda weights: weights["conv_out.weight"].fill_(3e38)), "not finite"),
    "truncated": (cut("diffusion_pytorch_model.safetensors", 5000), "weights that cannot be read"),
    "empty": (cut("diffusion_pytorch_model.safetensors", 0), "weights that cannot be read"),
    "a pipe": (pipe, "file not found: '.*safetensors'"),
    "no JSON": (replaced(CONFIG, "{"), "'config.json' that cannot be read .JSONDecodeError"),
    "nested": (replaced(CONFIG, "[" * 100_000), "'config.json' that cannot be read .RecursionError"),
    "a list": (replaced(SCHEDULE, "[]"), "'scheduler_config.json' that is no configuration"),
    "one channel out": (edit(CONFIG, out_channels=1), "3 channels in, 1 out"),
    "widths are text": (edit(CONFIG, block_out_channels="8"), "no network can be made"),
    "widths are missing": (edit(CONFIG, block_out_channels=None), "no network can be made"),
    "more than the memory": (edit(CONFIG, block_out_channels=[2**20, 2**20]), "is not the network of its config.json"),
    "groups do not divide": (edit(CONFIG, norm_num_groups=3), "no network can be made"),
    "side is text": (edit(CONFIG, sample_size="a"), "sample_size = 'a'"),
    "another image size": (edit(CONFIG, sample_size=24), "takes images of 24 pixels, not 16"),
    "no steps": (edit(SCHEDULE, num_train_timesteps=0), "num_train_timesteps = 0; allowed: 1 to"),
    "steps without end": (edit(SCHEDULE, num_train_timesteps=10**12), "num_train_timesteps = 1000000000000"),
    "unknown schedule": (edit(SCHEDULE, beta_schedule="x"), "gives no schedule"),
    "schedule of NaN": (edit(SCHEDULE, beta_end=float("nan")), "does not fall from 1 to 0"),
    "schedule that rises": (edit(SCHEDULE, beta_end=-0.1), "does not fall from 1 to 0"),
    "too little noise": (edit(SCHEDULE, num_train_timesteps=2), "schedule ends at .*; fix: a smaller defense.sigma"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_model_is_refused_when_the_plan_is_made(
    how: str, save_model: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    break_it, words = BROKEN[how]
    save_model(steps=1000)
    planned(tmp_path)
    break_it(tmp_path)
    with pytest.raises(BadInput, match=words) as error:
        planned(tmp_path)
    assert "fix: " in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_makes_another_shape_is_refused() -> None:
    for wrong in (lambda x, step: x[:, :1], lambda x, step: x[..., :1], lambda x, step: x[:1]):
        with pytest.raises(TrialFailed, match=r"makes \[.*\] of images \[2, 3, 8, 8\]"):
            one_shot(denoiser_of(wrong), torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), 100)


def test_a_model_in_half_precision_is_cast(save_model: Callable[..., tuple[Any, Any]], tmp_path: Path) -> None:
    unet, _ = save_model()
    rewrite(lambda weights: {name: value.half() for name, value in weights.items()})(tmp_path)
    found = loaded(str(tmp_path), torch.device("cpu"))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(found.predict(x, 20), unet.half().float()(x, 20).sample, atol=1e-5)


def test_the_names_that_published_models_have_for_attention_are_read(
    save_model: Callable[..., tuple[Any, Any]], tmp_path: Path
) -> None:
    unet, _ = save_model(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
    )
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(name: str) -> str:
        for new, before in old.items():
            name = name.replace(new, before)
        return name

    rewrite(lambda weights: {rename(name): value for name, value in weights.items()})(tmp_path)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = unet(x, 20).sample
        assert torch.allclose(loaded(str(tmp_path), torch.device("cpu")).predict(x, 20), expected, atol=1e-5)


def test_images_that_the_fitted_network_cannot_take_are_refused_when_the_plan_is_made() -> None:
    with pytest.raises(BadInput, match="on images of 10 pixels; allowed: multiples of 4; fix: "):
        defense().must_take(10)
    defense().must_take(16)


def test_a_model_is_tried_once_in_a_process(
    save_model: Callable[..., tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(steps=1000)
    planned(tmp_path)
    monkeypatch.setattr(sources, "one_shot", None)
    planned(tmp_path, "train.epochs=3")


@pytest.fixture
def spelled(save_model: Callable[..., tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One model of diffusers, as its place may be written, and a copy of it."""
    save_model(steps=1000)
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"))
    (tmp_path / "link").symlink_to(tmp_path)
    return [str(tmp_path), f"{tmp_path}/", f"../{tmp_path.name}", "./", "link", f"../{copy.name}"]


def one_key(sources: list[str], defense: str = "denoise-0.1") -> str:
    """The key of the cell, which must be the same for all of these places."""
    plans = [planned(source, defense=defense) for source in sources]
    keys = {identities(plan.study).cell_key(plan.cells[0].attack, plan.cells[0].defense) for plan in plans}
    (key,) = keys
    return key


def test_a_model_is_in_the_key_by_its_content_not_by_its_place(spelled: list[str], tmp_path: Path) -> None:
    key, composed = one_key(spelled), one_key(spelled, "denoise-0.1+noise-b")
    edit(SCHEDULE, beta_end=0.03)(tmp_path)
    assert one_key(spelled[:4]) != key and one_key(spelled[:4], "denoise-0.1+noise-b") != composed


def test_a_checkpoint_is_in_the_key_by_its_content_not_by_its_name(small_network: ImprovedUNet, tmp_path: Path) -> None:
    for name in ("one.pt", "other.pt"):
        torch.save(small_network.state_dict(), tmp_path / name)
    shutil.copy(tmp_path / "one.pt", tmp_path / "other.pt")
    one, other = (defense(source=str(tmp_path / name)) for name in ("one.pt", "other.pt"))
    assert one.external() == other.external() and one.by_content() == other.by_content()
    assert loaded(one.settings.source, torch.device("cpu")).identity["source"].startswith("improved-diffusion:")


def test_the_noise_does_not_depend_on_where_a_model_lies(
    spelled: list[str], world: tuple[Services, Images, dict[Any, Any]]
) -> None:
    services, data, _ = world
    ways = [defense(source=source, sigma=0.1) for source in spelled]
    (first, *others) = (next(iter(way.jobs(data, replace(services, keep=Keeper())))).data.images for way in ways)
    assert all(torch.equal(first, other) for other in others)


def test_records_say_where_a_model_lay_in_a_field_that_is_not_compared(spelled: list[str], tmp_path: Path) -> None:
    records = []
    for number, source in enumerate((spelled[0], spelled[-1])):
        plan = planned(source, defense="denoise-0.1+noise-b")
        out = tmp_path / f"out{number}"
        records += execute(plan, out, Local(1, quiet=True), lambda line: None, lambda record: None)
    one, other = ({name: value for name, value in r.items() if name not in DEPENDS_ON_THE_DAY} for r in records)
    assert records[0]["status"] == "done" and one == other
    assert records[0]["settings"]["defense"]["denoise-0.1"]["source"].startswith("diffusers:")
    assert [record["places"] for record in records] == [
        {"defense.denoise-0.1.source": source} for source in (spelled[0], spelled[-1])
    ]


def test_the_published_network_has_the_published_size() -> None:
    """52.5 million parameters, as the released unconditional CIFAR-10 model."""
    with torch.device("meta"):
        network = ImprovedUNet(Shape())
    assert sum(parameter.numel() for parameter in network.parameters()) == 52_546_438
    names = network.state_dict()
    for name, shape in {
        "time_embed.2.weight": (512, 512),
        "input_blocks.0.0.weight": (128, 3, 3, 3),
        "input_blocks.4.0.op.weight": (128, 128, 3, 3),
        "input_blocks.5.0.skip_connection.weight": (256, 128, 1, 1),
        "input_blocks.5.1.qkv.weight": (768, 256, 1),
        "middle_block.1.proj_out.bias": (256,),
        "output_blocks.3.1.conv.weight": (256, 256, 3, 3),
        "output_blocks.7.2.conv.bias": (256,),
        "output_blocks.15.0.out_layers.3.weight": (128, 128, 3, 3),
        "out.2.weight": (6, 128, 3, 3),
    }.items():
        assert tuple(names[name].shape) == shape, name


SMALL = Shape(channels=32, widths=(1, 2), blocks=1, attention=(1,), heads=4)


def as_in_diffusers(network: ImprovedUNet) -> dict[str, Tensor]:
    """The weights of an improved-diffusion network of shape SMALL under the names of diffusers' UNet2DModel."""
    mine = network.state_dict()
    places = {
        "input_blocks.1.0": "down_blocks.0.resnets.0",
        "input_blocks.3.0": "down_blocks.1.resnets.0",
        "input_blocks.3.1": "down_blocks.1.attentions.0",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        **{f"output_blocks.{i}.0": f"up_blocks.0.resnets.{i}" for i in (0, 1)},
        **{f"output_blocks.{i}.1": f"up_blocks.0.attentions.{i}" for i in (0, 1)},
        **{f"output_blocks.{2 + i}.0": f"up_blocks.1.resnets.{i}" for i in (0, 1)},
    }
    parts = {
        "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "conv_shortcut", "norm": "group_norm", "proj_out": "to_out.0",
    }  # fmt: skip
    whole = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
        "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv", "out.0": "conv_norm_out", "out.2": "conv_out",
    }  # fmt: skip
    theirs = {}
    for name, value in mine.items():
        layer, _, kind = name.rpartition(".")
        if layer in whole:
            theirs[f"{whole[layer]}.{kind}"] = value
            continue
        place = next(place for place in places if layer.startswith(f"{place}."))
        part = layer.removeprefix(f"{place}.")
        if part == "qkv":
            split = value.view(4, 3, -1, *value.shape[1:])  # heads, (query, key, value), channels of a head
            for i, role in enumerate(("to_q", "to_k", "to_v")):
                one = split[:, i].flatten(0, 1)
                theirs[f"{places[place]}.{role}.{kind}"] = one[..., 0] if kind == "weight" else one
        else:
            value = value[..., 0] if part == "proj_out" and kind == "weight" else value
            theirs[f"{places[place]}.{parts[part]}.{kind}"] = value
    return theirs


def test_the_improved_network_computes_what_diffusers_does_with_its_weights(diffusers: Any) -> None:
    torch.manual_seed(3)
    network = ImprovedUNet(SMALL).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    oracle = diffusers.UNet2DModel(
        sample_size=16, out_channels=6, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=16,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        resnet_time_scale_shift="scale_shift", flip_sin_to_cos=True, freq_shift=0, norm_num_groups=32, norm_eps=1e-5,
        attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    oracle.load_state_dict(as_in_diffusers(network))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for time in (0.0, 12.25, 750.0):
            mine, theirs = network(x, torch.full((2,), time)), oracle(x, torch.full((2,), time)).sample
            assert mine.std() > 0.1
            assert torch.allclose(mine, theirs, atol=1e-4)


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> ImprovedUNet:
    """The published checkpoint's shape, made small in the module that reads it: a checkpoint says no shape of its own,
    and the published one is 200 MB."""
    monkeypatch.setattr(sources, "Shape", lambda: SMALL)
    torch.manual_seed(0)
    return ImprovedUNet(SMALL).eval()


def test_a_checkpoint_of_the_right_names_is_loaded(small_network: ImprovedUNet, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_network.state_dict(), path)
    before = torch.random.get_rng_state()
    found = loaded(str(path), torch.device("cpu"))
    assert torch.equal(before, torch.random.get_rng_state())
    x, step = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 1158
    with torch.no_grad():
        expected = small_network(x, torch.full((2,), 289.5))[:, :3]  # the network counts to 1000
        assert torch.allclose(found.predict(x, step), expected, atol=1e-5)
    assert torch.equal(found.alphas, cosine_schedule()) and found.size == 32
    (digest,) = outside(str(path))["denoiser"]["files"].values()
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("stored", "weights"),
    [(lambda name, value: (name, value.half()), torch.float16), (lambda name, value: (f"module.{name}", value), None),
     (lambda name, value: (name, value.double()), torch.float64)],
)  # fmt: skip
def test_a_checkpoint_of_any_precision_and_of_several_devices_is_loaded(
    small_network: ImprovedUNet, tmp_path: Path, stored: Callable[..., Any], weights: torch.dtype | None
) -> None:
    path = tmp_path / "model.pt"
    torch.save(dict(stored(*item) for item in small_network.state_dict().items()), path)
    x, step = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 1158
    if weights is not None:
        small_network = copy.deepcopy(small_network).to(weights).float()
    with torch.no_grad():
        found = loaded(str(path), torch.device("cpu")).predict(x, step)
        assert torch.allclose(found, small_network(x, torch.full((2,), 289.5))[:, :3], atol=1e-5)


def test_a_checkpoint_with_nan_is_refused(small_network: ImprovedUNet, tmp_path: Path) -> None:
    state = dict(small_network.state_dict())
    state["out.2.bias"] = state["out.2.bias"] * float("nan")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(BadInput, match="holds NaN or infinity"):
        outside(str(tmp_path / "model.pt"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("out.2.bias"), "'out.2.bias' is missing"),
        (lambda state: state.update(label_emb=torch.zeros(1)), "'label_emb' is unknown"),
        (
            lambda state: state.update({"out.2.bias": torch.zeros(3)}),
            r"'out.2.bias' has the shape \[3\], not \[6\]",
        ),
        (lambda state: state.update({"out.2.bias": 3}), "named tensors"),
        (lambda state: state.update({"out.2.bias": torch.zeros(6, dtype=torch.int64)}), "named tensors"),
        (lambda state: state.update({"out.2.bias": torch.zeros(6).to_sparse()}), "named tensors"),
        (lambda state: state.update({"module.out.2.bias": torch.zeros(6)}), "'module.out.2.bias' is unknown"),
        (lambda state: state.update({"out.2.bias": torch.zeros(1).expand(10**12)}), "has the shape"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_in_one_line(
    small_network: ImprovedUNet, tmp_path: Path, change: Callable[..., Any], words: str
) -> None:
    state = dict(small_network.state_dict())
    change(state)
    path = tmp_path / "other.pt"
    torch.save(state, path)
    with pytest.raises(BadInput, match=words) as error:
        outside(str(path))
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_cut_short_or_a_pipe_or_of_another_size_is_refused_when_the_plan_is_made(
    small_network: ImprovedUNet, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_network.state_dict(), path)
    with pytest.raises(BadInput, match=r"model.pt' takes images of 32 pixels, not 16; fix: "):
        planned(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadInput, match="is not a checkpoint of tensors .*; fix: "):
        planned(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadInput, match="file not found: .*; fix: "):
        planned(path)


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(
    small_network: ImprovedUNet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile.pt"
    torch.save({"out.2.bias": Hostile()}, path)
    with pytest.raises(BadInput, match="not a checkpoint of tensors"):
        outside(str(path))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(BadInput, match="not a checkpoint of tensors"):
        outside(str(path))
    assert "executed" not in capsys.readouterr().out
