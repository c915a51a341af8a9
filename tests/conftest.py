"""Tiny data sets, networks, runs and scenes that tests share, as factories."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.cli import main
from bench.foundation import registry
from bench.science.attack import Scene
from bench.science.augmentation import Augmentation
from bench.science.classifier import Classifier, Normalise, build_model
from bench.science.dataset import Dataset, Images
from bench.science.defense import Services
from bench.science.threat import Threat, Trial
from bench.science.training import Recipe, Run, make_optimizer
from bench.views.mlflow.server import connect
from tests.aftermath import RUN

torch.set_num_threads(1)

MEAN, STD = (0.48, 0.45, 0.41), (0.25, 0.22, 0.27)


@pytest.fixture(autouse=True)
def registry_as_it_was() -> Iterator[None]:
    """Plug-ins that a test loads from files are gone after it."""
    for kind in registry.KINDS:
        registry.names(kind)
    before = {kind: dict(plugins) for kind, plugins in registry._found.items()}
    modules = set(registry._of_file)
    yield
    registry._found.update(before)
    for module in set(registry._of_file) - modules:
        del registry._of_file[module]
        sys.modules.pop(module, None)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of `aftermath.RUN`, untracked, with which nothing happened. Do not change it: copy it."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([*RUN, "--tracking", "none", "--out", str(out), "--jobs", "1", "--json"]) == 0
    return out


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's schema and nothing of ours: making one takes seconds, copying it does not."""
    pytest.importorskip("mlflow")
    file = tmp_path_factory.mktemp("blank") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def make_images() -> Callable[..., Images]:
    """Noisy images, each class around its own colour, balanced labels in turn; ids differ from rows."""

    def make(n: int = 24, size: int = 8, classes: int = 3, seed: int = 0, low: int = 0, high: int = 255) -> Images:
        chance = torch.Generator().manual_seed(seed)
        labels = torch.arange(n) % classes
        colours = torch.rand(classes, 3, 1, 1, generator=torch.Generator().manual_seed(99))
        pixels = 0.25 + 0.5 * colours[labels] + 0.2 * torch.randn(n, 3, size, size, generator=chance)
        images = (pixels.clamp(0, 1) * (high - low) + low).to(torch.uint8)
        return Images(images, labels, 7 * torch.randperm(n, generator=chance) + 3)

    return make


@pytest.fixture
def make_dataset(make_images: Callable[..., Images]) -> Callable[..., Dataset]:
    def make(n: int = 30, classes: int = 3, size: int = 8) -> Dataset:
        train, test = make_images(n, size, classes, seed=1), make_images(n, size, classes, seed=2)
        return Dataset("tiny", tuple(f"class {i}" for i in range(classes)), train, test)

    return make


def scramble_batchnorm(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics and an affine map that are far from the identity."""
    chance = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            shape = module.running_mean.shape
            module.running_mean.copy_(0.3 * torch.randn(shape, generator=chance))
            module.running_var.copy_(0.5 + torch.rand(shape, generator=chance))
            if module.affine:
                module.weight.data.copy_(0.5 + torch.rand(shape, generator=chance))
                module.bias.data.copy_(0.3 * torch.randn(shape, generator=chance))
    return model


@pytest.fixture
def scramble() -> Callable[[nn.Module, int], nn.Module]:
    return scramble_batchnorm


@pytest.fixture
def make_model() -> Callable[..., Classifier]:
    """A registered network in eval mode, with BatchNorm away from the identity."""

    def make(name: str = "convnet", classes: int = 3, size: int = 8, seed: int = 0) -> Classifier:
        model = build_model(name, classes=classes, size=size, normalisation=(MEAN, STD), seed=seed)
        scramble_batchnorm(model, seed)
        return model.eval()

    return make


@pytest.fixture
def wrap() -> Callable[..., Classifier]:
    """A classifier around any body that ends in `width` flat features."""

    def make(body: nn.Module, width: int, classes: int = 3) -> Classifier:
        return Classifier(Normalise(MEAN, STD), body, nn.Linear(width, classes))

    return make


@pytest.fixture
def make_small(wrap: Callable[..., Classifier]) -> Callable[..., Classifier]:
    """A network of one convolution, quick enough to train many times."""

    def make(seed: int = 0, dropout: float = 0.0, classes: int = 3) -> Classifier:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            body = nn.Sequential(
                nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
                nn.AdaptiveAvgPool2d(2), nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []),
            )  # fmt: skip
            return wrap(body, 24, classes)

    return make


@pytest.fixture
def make_smooth(wrap: Callable[..., Classifier]) -> Callable[..., Classifier]:
    """A network that is smooth in pixels and weights, in float64 and eval mode: two resolutions and 24 features."""

    def make(seed: int = 0) -> Classifier:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            body = nn.Sequential(
                nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Softplus(),
                nn.Conv2d(5, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.Tanh(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            )  # fmt: skip
            model = wrap(body, 24)
        scramble_batchnorm(model, seed)
        return model.eval().double()

    return make


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A run as the training loop would build it, for calling single hooks."""

    def make(model: Classifier, data: Images, owner: str = "defense", seed: int = 0, **recipe: Any) -> Run:
        settings = Recipe(**recipe)
        return Run(
            model, data, settings, seed, 0, make_optimizer(model, settings), settings.augmentation(MEAN),
            torch.ones(len(data), dtype=torch.bool), torch.zeros(len(data), dtype=torch.bool), owner=owner,
        )  # fmt: skip

    return make


@pytest.fixture
def services() -> Services:
    def fit(*_: object) -> Classifier:
        raise AssertionError("this test does not expect another training")

    return Services(Recipe(), 3, fit, lambda what, done, of: None)


@pytest.fixture
def make_scene(make_images: Callable[..., Images]) -> Callable[..., Scene]:
    """A scene with `n` bases of class 1 and one target of class 0."""

    def make(
        surrogates: Sequence[Classifier] = (), n: int = 6, size: int = 8, eps: int = 16, seed: int = 0,
        train: Images | None = None, augment: str = "bilinear", k: int = 1,
    ) -> Scene:  # fmt: skip
        train = make_images(30, size) if train is None else train
        rows = torch.nonzero(train.labels == 1).flatten()[:n]
        bases = train.subset(rows)
        target = make_images(3, size, seed=5)
        trial = Trial(0, target.ids[:1], 0, 1, bases.ids)
        augmentation = Augmentation(augment, 1, True, MEAN)
        return Scene(
            train, bases, target.images[:1], trial, Threat(eps=eps, surrogates=k), augmentation,
            lambda: list(surrogates), seed, lambda done, of, figures: None,
        )  # fmt: skip

    return make


@pytest.fixture
def snapshot() -> Callable[[nn.Module], dict[str, Any]]:
    """Everything about a network that a borrower must leave alone."""

    def take(model: nn.Module) -> dict[str, Any]:
        return {
            "state": {name: value.clone() for name, value in model.state_dict().items()},
            "modes": [module.training for module in model.modules()],
            "grads": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        }

    return take


@pytest.fixture
def assert_untouched(snapshot: Callable[[nn.Module], dict[str, Any]]) -> Callable[[nn.Module, dict[str, Any]], None]:
    def check(model: nn.Module, before: dict[str, Any]) -> None:
        after = snapshot(model)
        assert after["modes"] == before["modes"]
        assert after["grads"] == before["grads"]
        assert list(after["state"]) == list(before["state"])
        for name, value in before["state"].items():
            assert torch.equal(after["state"][name], value), name

    return check


@pytest.fixture
def weights_of() -> Callable[[nn.Module], Tensor]:
    """All weights and buffers as one vector, for bitwise comparison."""

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([value.double().flatten() for value in model.state_dict().values()])

    return flat


@pytest.fixture
def numbered_dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    """The tiny data set with ids as data sets have them: 0, 1, 2... in the order of the files."""
    tiny = make_dataset()
    train, test = (replace(images, ids=torch.arange(len(images))) for images in (tiny.train, tiny.test))
    return Dataset(tiny.name, tiny.classes, train, test)
