"""The contract test of plug-ins: what every attack and defense must keep to, on a tiny data set, in seconds.

Anyone can run it on their own file: `python -m bench check my_defense.py`.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.foundation.errors import BadInput
from bench.foundation.registry import Plugin, find, names
from bench.foundation.settings import build
from bench.science.attack import Scene
from bench.science.classifier import Classifier, build_model
from bench.science.dataset import Dataset, Images
from bench.science.defense import Services
from bench.science.evaluation import Predictor, predict
from bench.science.poisons import Poisons
from bench.science.seeds import derive, torch_stream
from bench.science.threat import Threat, draw_trial
from bench.science.training import Recipe, to_pixels, train
from bench.science.workshop import Transform, Workshop

FORBIDDEN = {
    "bench.science.study",
    "bench.execution.stages",
    "bench.execution.runner",
    "bench.storage.store",
    "bench.storage.records",
    "bench.cli",
    "bench.science.lending",
    "gc",
    "inspect",
}
"""Modules through which a plug-in could look behind what it is handed."""

FORBIDDEN_NAMES = {"__closure__", "__globals__", "_getframe", "f_back", "f_locals"}
"""Attributes that do the same."""

SIZE, CLASSES = 16, 3
THREAT = Threat(eps=8, budget=0.1, surrogates=2)
RECIPE = Recipe(epochs=3, batch=16, schedule="one-cycle", augment="bilinear", shift=2)
FAST = {"steps": 2, "restarts": 2, "start": 1, "epochs": 1, "repair_epochs": 1}
"""Settings of these names are cut down, so that the test takes seconds."""


@dataclass(frozen=True)
class Result:
    """One rule, kept or broken; detail: empty, or ': what was found'."""

    plugin: str
    rule: str
    passed: bool
    detail: str = ""


def check(reference: str) -> list[Result]:
    """All rules for the attack or defense called `reference`, or defined in that file. BadInput if there is none."""
    plugin = _find(reference)
    kinds = {"defense": _defense_rules, "attack": _attack_rules}
    whole = getattr(plugin.make, "crafts", True) and getattr(plugin.make, "on_its_own", True)
    rules = kinds[plugin.kind] if whole else _no_rules
    results = []
    for rule, test in (*_common_rules(plugin), *rules(plugin)):
        try:
            test()
            results.append(Result(plugin.name, rule, True))
        except Exception as error:  # a plug-in may break in any way; that is a finding, not a crash of the test
            text = " ".join(str(error).split()) or type(error).__name__
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            results.append(Result(plugin.name, rule, False, f": {kind}{text}"))
    return results


def _find(reference: str) -> Plugin:
    if not reference.endswith(".py"):
        kinds = [kind for kind in ("attack", "defense") if reference in names(kind)]
        return find(kinds[0] if len(kinds) == 1 else "defense", reference)
    try:
        return find("defense", reference)
    except BadInput as error:
        if "registers no defense" not in str(error):
            raise
        return find("attack", reference)


Rules = Iterator[tuple[str, Callable[[], None]]]


def _must(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)


def _common_rules(plugin: Plugin) -> Rules:
    settings_class = plugin.make.Settings

    def card() -> None:
        text = plugin.make.__doc__ or ""
        _must(len(text.split()) >= 8, "the class needs a docstring: paper, threat model, what it needs, what it costs")

    def settings() -> None:
        chosen = build(settings_class, plugin.variant, plugin.kind)
        again = build(settings_class, json.loads(json.dumps(chosen.as_dict())), plugin.kind)
        _must(again == chosen, "settings change on their way through JSON")
        _must(pickle.loads(pickle.dumps(chosen)) == chosen, "settings change on their way to a worker process")
        for name, field in settings_class.model_fields.items():
            _must(bool(field.description), f"setting '{name}' has no description")

    def imports() -> None:
        source = inspect.getsource(sys.modules[plugin.make.__module__])
        found, opened = set(), set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if isinstance(node, ast.Attribute):
                opened.add(node.attr)
        reached, opened = sorted(found & FORBIDDEN), opened & FORBIDDEN_NAMES
        _must(not reached, f"imports {', '.join(reached)}: a plug-in works with what it is handed")
        _must(not opened, f"opens {', '.join(sorted(opened))}: a plug-in works with what it is handed")

    yield "has a card", card
    yield "settings have bounds and survive a round trip", settings
    yield "looks at nothing but what it is handed", imports


# The tiny world: three classes of coloured noise, which a small network can tell apart.


def tiny_dataset() -> Dataset:
    stream = torch_stream("cpu", 5, "contract")

    def split(per_class: int) -> Images:
        labels = torch.arange(CLASSES).repeat_interleave(per_class)
        noise = torch.randint(0, 96, (len(labels), 3, SIZE, SIZE), generator=stream)
        colour = 80 * torch.nn.functional.one_hot(labels, 3).view(-1, 3, 1, 1)
        return Images((noise + colour + 30).to(torch.uint8), labels, torch.arange(len(labels)))

    return Dataset("contract", ("red", "green", "blue"), split(16), split(5))


def _network(dataset: Dataset, seed: int, model: str = "lenet") -> Classifier:
    return build_model(model, classes=CLASSES, size=SIZE, normalisation=dataset.normalisation, seed=seed).eval()


def _settings(plugin: Plugin) -> Any:
    fields = plugin.make.Settings.model_fields
    fast = {name: value for name, value in FAST.items() if name in fields}
    return build(plugin.make.Settings, {**plugin.variant, **fast}, plugin.kind)


def _state(model: Classifier) -> dict[str, Any]:
    """All that a borrowed model must come back with."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "grads": [parameter.requires_grad for parameter in model.parameters()],
    }


def _unchanged(before: dict[str, Any], model: Classifier) -> None:
    after = _state(model)
    for name, value in before["weights"].items():
        _must(torch.equal(value, after["weights"][name]), f"changes '{name}' of a borrowed model")
    _must(before["modes"] == after["modes"], "leaves a borrowed model in another mode (train or eval)")
    _must(before["grads"] == after["grads"], "leaves a borrowed model with other requires_grad")


def _workshop(dataset: Dataset, scene: Callable[[], Scene]) -> Workshop:
    """What an attacker may have made, in the tiny world: networks that are trained for an epoch or not at all."""
    recipe = RECIPE.model_copy(update={"epochs": 1})

    def fit(data: Images, model: str, epochs: int, *who: str | int) -> Classifier:
        return train(_network(dataset, derive(4, *who), model), data, recipe, seed=derive(5, *who)).model

    def retrain(data: Images, *who: str | int, which: Sequence[int], **_: Any) -> list[Classifier]:
        return [fit(data, "lenet", 1, k, *who) for k in which]

    def transform(defense: str, data: Images, ids: Tensor, **settings: Any) -> Transform:
        known = find("defense", defense)
        fast = {name: value for name, value in FAST.items() if name in known.make.Settings.model_fields}
        chosen = build(known.make.Settings, {**known.variant, **fast, **settings}, "defense")
        services = Services(RECIPE, CLASSES, fit, lambda *_: None, "lenet")
        return known.make(chosen, defense).published(data, ids, services, torch_stream("cpu", 6, defense))

    def poisons_of(name: str, **_: Any) -> Poisons:
        other = find("attack", name)
        return other.make(_settings(other)).craft(scene())

    def snapshots() -> list[list[Classifier]]:
        return [[_network(dataset, 10 * k + age) for age in range(3)] for k in range(THREAT.surrogates)]

    return Workshop(retrain, snapshots, transform=transform, poisons_of=poisons_of)


def _no_rules(plugin: Plugin) -> Rules:
    """For attacks whose poisons come from elsewhere and defenses that are made of others: nothing to run here."""
    yield from ()


def _attack_rules(plugin: Plugin) -> Rules:
    clean = tiny_dataset()
    trial = draw_trial(clean, THREAT, 0, 0)

    def lend() -> tuple[Dataset, list[Classifier]]:
        """A world of its own for every rule, so that what one rule finds does not hide from the next."""
        return tiny_dataset(), [_network(clean, k) for k in range(2)]

    def craft(dataset: Dataset | None = None, networks: Sequence[Classifier] = ()) -> Poisons:
        if dataset is None:
            dataset, networks = lend()
        scene = Scene(
            train=dataset.train,
            bases=dataset.train.subset(dataset.train.rows_of(trial.base_ids)),
            targets=dataset.test.images[dataset.test.rows_of(trial.target_ids)],
            trial=trial,
            threat=THREAT,
            augmentation=RECIPE.augmentation(dataset.normalisation[0]),
            surrogates=lambda: networks,
            seed=1,
            report=lambda step, steps, figures: _must(0 < step <= steps, f"reports step {step} of {steps}"),
            workshop=_workshop(dataset, lambda: scene),
        )
        return plugin.make(_settings(plugin)).craft(scene)

    def legal() -> None:
        poisons = craft()
        allowed = trial.base_ids
        if plugin.make.selects_bases:
            allowed = clean.train.ids[clean.train.labels == trial.target_class]
        poisons.check(clean.train, THREAT.eps, allowed, most=len(trial.base_ids))
        if plugin.make.poisons_data:
            _must(len(poisons.ids) > 0, "poisons nothing; set poisons_data = False if that is meant")

    def deterministic() -> None:
        _must(torch.equal(craft().images, craft().images), "the same seed gives other poisons")

    def random_state() -> None:
        before = torch.random.get_rng_state()
        craft()
        _must(torch.equal(before, torch.random.get_rng_state()), "draws from the global random state; use scene.stream")

    def borrowed() -> None:
        dataset, networks = lend()
        before = [_state(network) for network in networks]
        craft(dataset, networks)
        for state, network in zip(before, networks, strict=True):
            _unchanged(state, network)
        _must(torch.equal(clean.train.images, dataset.train.images), "changes the images that it is handed in place")

    def provenance() -> None:
        json.dumps(craft().provenance, allow_nan=False)

    yield "poisons are clean-label, within eps after rounding, and only of the bases", legal
    yield "the same seed gives the same poisons", deterministic
    yield "leaves the global random state alone", random_state
    yield "leaves surrogates and data as they were", borrowed
    yield "provenance is JSON", provenance


def _defense_rules(plugin: Plugin) -> Rules:
    dataset = tiny_dataset()
    shown_images = dataset.test.images
    lent: list[tuple[Classifier, dict[str, Any]]] = []

    def fit(data: Images, model: str, epochs: int, *who: str | int) -> Classifier:
        network = _network(dataset, derive(2, *who), model)
        train(network, data, RECIPE.model_copy(update={"epochs": min(epochs, 1)}), seed=derive(3, *who))
        lent.append((network, _state(network)))
        return network

    def defend(seed: int = 1, guard: Any = None, data: Images | None = None) -> Predictor:
        guard = guard or plugin.make(_settings(plugin), plugin.name)

        def report(what: str, done: int, of: int) -> None:
            _must(0 < done <= of, f"reports {done} of {of}")

        guard.external()
        services = Services(
            RECIPE,
            CLASSES,
            fit,
            report,
            "lenet",
            seed,
            poison_rate=THREAT.budget,
            clean_holdout=dataset.train.subset(torch.arange(0, len(dataset.train), 4)),
            public=lambda: copy.deepcopy(dataset.test),
        ).only(guard.needs)
        trained = [
            train(_network(dataset, 7), job.data, RECIPE, seed=seed, hooks=guard, job=number, services=services)
            for number, job in enumerate(guard.jobs(data or copy.deepcopy(dataset.train), services))
        ]
        _must(bool(trained), "asks for no training")
        return guard.finish(trained, services)

    def scores(predictor: Predictor, images: Tensor = shown_images) -> Tensor:
        return predict(predictor, images, "cpu")

    def predictor() -> None:
        whole = scores(found := defend())
        _must(whole.shape == (len(shown_images), CLASSES), f"scores have the shape {tuple(whole.shape)}")
        single = torch.cat([scores(found, shown_images[i : i + 1]) for i in range(len(shown_images))])
        _must(torch.allclose(whole, single, atol=1e-4), "a image's scores depend on what else is in the batch")
        if hasattr(found, "rejects"):
            refused = found.rejects(pixels := to_pixels(shown_images))
            _must(refused.dtype == torch.bool and refused.shape == (len(shown_images),), "rejects gives no bool [n]")
            alone = torch.cat([found.rejects(pixels[i : i + 1]) for i in range(len(pixels))])
            _must(torch.equal(refused, alone), "whether a image is rejected depends on what else is in the batch")

    def deterministic() -> None:
        _must(torch.equal(scores(defend()), scores(defend())), "the same seed gives another classifier")

    def stateless() -> None:
        guard = plugin.make(_settings(plugin), plugin.name)
        first, second = scores(defend(guard=guard)), scores(defend(guard=guard))
        _must(
            torch.equal(first, second), "a second training with one instance comes out differently: state is left over"
        )

    def random_state() -> None:
        before = torch.random.get_rng_state()
        defend()
        _must(torch.equal(before, torch.random.get_rng_state()), "draws from the global random state; use run.stream")

    def borrowed() -> None:
        lent.clear()
        data = copy.deepcopy(dataset.train)
        images = data.images.clone()
        defend(data=data)
        _must(torch.equal(images, data.images), "changes the training images in place; assign to run.data instead")
        for network, state in lent:
            _unchanged(state, network)

    def needs() -> None:
        allowed = {"poison_rate", "clean_holdout", "external_model", "attack_family"}
        odd = sorted(set(plugin.make.needs) - allowed)
        _must(not odd, f"declares unknown needs {odd}; known: {', '.join(sorted(allowed))}")

    yield "declares what it needs to know", needs
    yield "gives a classifier with finite scores, one image at a time or many", predictor
    yield "the same seed gives the same classifier", deterministic
    yield "an instance can be used twice", stateless
    yield "leaves the global random state alone", random_state
    yield "leaves data and lent models as they were", borrowed
