"""A tiny world to try a plug-in in, in seconds: three classes of coloured noise that a small network tells apart."""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.foundation.errors import BadInput
from bench.foundation.registry import Plugin, find
from bench.foundation.settings import Settings, build
from bench.science.attack import Scene
from bench.science.classifier import Classifier, build_model
from bench.science.dataset import Dataset, Images
from bench.science.defense import Defense, Services
from bench.science.evaluation import Predictor
from bench.science.poisons import Poisons
from bench.science.seeds import derive, torch_stream
from bench.science.threat import Threat, draw_trial
from bench.science.training import Recipe, train
from bench.science.workshop import Transform, Workshop
from bench.storage.making import Making, making
from bench.storage.store import Made, Store

T = TypeVar("T")

SIZE, CLASSES = 16, 3
THREAT = Threat(eps=8, budget=0.1, surrogates=2)
RECIPE = Recipe(epochs=3, batch=16, schedule="one-cycle", augment="bilinear", shift=2)

FAST: dict[str, Any] = {"steps": 2, "restarts": 2, "start": 1, "epochs": 1, "repair_epochs": 1}
"""Settings of these names are cut down where a plug-in has them and allows the value."""

FAST_OF: dict[str, dict[str, Any]] = {"cp": {"solver_steps": 20}}
"""The same for single plug-ins, over `FAST`: for names that mean something else elsewhere."""


def tiny_dataset() -> Dataset:
    """16 training and 5 test images of 16x16 pixels per class; ids are rows."""
    stream = torch_stream("cpu", 5, "contract")

    def split(per_class: int) -> Images:
        labels = torch.arange(CLASSES).repeat_interleave(per_class)
        noise = torch.randint(0, 96, (len(labels), 3, SIZE, SIZE), generator=stream)
        colour = 80 * torch.nn.functional.one_hot(labels, 3).view(-1, 3, 1, 1)
        return Images((noise + colour + 30).to(torch.uint8), labels, torch.arange(len(labels)))

    return Dataset("contract", ("red", "green", "blue"), split(16), split(5))


def fast_settings(plugin: Plugin, **chosen: Any) -> Settings:
    """The settings of a variant, cut down so that it takes seconds, with those that are `chosen`."""
    settings_class, values = plugin.make.Settings, dict(plugin.variant)
    for name, value in {**FAST, **FAST_OF.get(plugin.name, {})}.items():
        if name in settings_class.model_fields:
            with contextlib.suppress(BadInput):  # out of this plug-in's bounds
                build(settings_class, {**values, name: value}, plugin.kind)
                values[name] = value
    return build(settings_class, {**values, **chosen}, plugin.kind)


class State:
    """All that a network must come back with when it was lent."""

    def __init__(self, network: Classifier) -> None:
        self.network = network
        self.weights = {name: value.clone() for name, value in network.state_dict().items()}
        self.modes = [module.training for module in network.modules()]
        self.requires_grad = [parameter.requires_grad for parameter in network.parameters()]

    def change(self) -> str:
        """What has changed since, in words; '' for nothing."""
        current = State(self.network)
        for name, value in self.weights.items():
            if not torch.equal(value, current.weights[name]):
                return f"changes '{name}' of a borrowed model"
        if self.modes != current.modes:
            return "leaves a borrowed model in another mode (train or eval)"
        return "leaves a borrowed model with other requires_grad" if self.requires_grad != current.requires_grad else ""


class World:
    """A plug-in and what it works with. Every craft and defend gets fresh data and networks.

    clean: the data set, which is never lent; lent: the copy that the last call worked on; networks: the networks that
    were lent, each with its state at that time.
    """

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.clean = tiny_dataset()
        self.trial = draw_trial(self.clean, THREAT, 0, 0)
        self.lent = self.clean
        self.networks: list[State] = []

    def craft(self) -> Poisons:
        """Poisons of the attack, made with fast settings."""
        self.lent = data = copy.deepcopy(self.clean)
        surrogates = [self.network(k) for k in range(THREAT.surrogates)]
        self.networks += [State(network) for network in surrogates]
        scene: Scene = Scene(
            train=data.train,
            bases=data.train.subset(data.train.rows_of(self.trial.base_ids)),
            targets=data.test.images[data.test.rows_of(self.trial.target_ids)],
            trial=self.trial,
            threat=THREAT,
            augmentation=RECIPE.augmentation(data.normalisation[0]),
            surrogates=lambda: surrogates,
            seed=1,
            report=lambda done, total, figures: must(0 < done <= total, f"reports step {done} of {total}"),
            workshop=Workshop(
                self.retrain,
                self.snapshots,
                transform=self.transform,
                poisons_of=lambda name, **_: craft_with(find("attack", name), scene),
            ),
        )
        return craft_with(self.plugin, scene)

    def defense(self) -> Defense:
        """An instance of the defense with fast settings."""
        defense: Defense = self.plugin.make(fast_settings(self.plugin), self.plugin.name)
        return defense

    def defend(self, defense: Defense | None = None, seed: int = 1) -> Predictor:
        """What the defense, or this instance of it, makes of the clean training set."""
        defense = defense or self.defense()
        self.lent = data = copy.deepcopy(self.clean)
        defense.external()
        defense.must_take(SIZE)
        services = Services(
            RECIPE,
            CLASSES,
            self.fit,
            lambda phase, done, total: must(0 < done <= total, f"reports {done} of {total}"),
            "lenet",
            seed,
            poison_rate=THREAT.budget,
            clean_holdout=self.clean.train.subset(torch.arange(0, len(self.clean.train), 4)),
            public=lambda: copy.deepcopy(self.clean.test),
        ).only(defense.needs)
        trained = [
            train(self.network(7), job.data, RECIPE, seed=seed, hooks=defense, job=number, services=services)
            for number, job in enumerate(defense.jobs(data.train, services))
        ]
        must(bool(trained), "asks for no training")
        return defense.finish(trained, services)

    def network(self, seed: int, model: str = "lenet") -> Classifier:
        normalisation = self.clean.normalisation
        return build_model(model, classes=CLASSES, size=SIZE, normalisation=normalisation, seed=seed).eval()

    def fit(self, data: Images, model: str, epochs: int, *names: str | int) -> Classifier:
        """A network that is trained for an epoch or not at all, and lent."""
        recipe = RECIPE.model_copy(update={"epochs": min(epochs, 1)})
        network = self.network(derive(2, *names), model)
        trained = train(network, data, recipe, seed=derive(3, *names)).model
        self.networks.append(State(trained))
        return trained

    def retrain(self, data: Images, *names: str | int, which: Sequence[int], **_: Any) -> list[Classifier]:
        return [self.fit(data, "lenet", 1, k, *names) for k in which]

    def snapshots(self) -> list[list[Classifier]]:
        return [[self.network(10 * k + age) for age in range(3)] for k in range(THREAT.surrogates)]

    def transform(self, defense: str, data: Images, ids: Tensor, **settings: Any) -> Transform:
        plugin = find("defense", defense)
        services = Services(RECIPE, CLASSES, self.fit, lambda *_: None, "lenet")
        made: Defense = plugin.make(fast_settings(plugin, **settings), defense)
        return made.attacker_view(data, ids, services, torch_stream("cpu", 6, defense))


class Killed(BaseException):
    """Stands in for SIGKILL: no plug-in catches it."""


@dataclass
class Mortal(Making):
    """Work with a checkpoint at every step, which is killed after so many of them."""

    left: int = 4
    interval: float = 0.0

    def write(self, name: str, made: Made) -> None:
        super().write(name, made)
        self.left -= 1
        if not self.left:
            raise Killed


def killed_again_and_again(work: Callable[[], T], every: int) -> tuple[T, int]:
    """What comes of work that is killed at every so-manieth checkpoint, and how often it was."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), lambda line: None)
        for kills in range(100):
            with contextlib.suppress(Killed), making(store, "tiny", functools.partial(Mortal, left=every)):
                return work(), kills
    raise AssertionError("never comes to its end when it is killed now and then: it does not do the same every time")


def craft_with(plugin: Plugin, scene: Scene) -> Poisons:
    poisons: Poisons = plugin.make(fast_settings(plugin)).craft(scene)
    return poisons


def must(kept: bool, otherwise: str) -> None:
    """AssertionError with the text `otherwise` unless a rule is kept."""
    if not kept:
        raise AssertionError(otherwise)
