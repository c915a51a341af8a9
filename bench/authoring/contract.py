"""The contract test of plug-ins: what every attack and defense must keep to, on a tiny data set, in seconds.

Anyone can run it on their own file: `python -m bench check my_defense.py`. The rules stand in the three tuples below.
"""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.authoring.tiny import CLASSES, THREAT, World, killed_again_and_again, must
from bench.foundation.errors import BadInput
from bench.foundation.guests import guest
from bench.foundation.registry import Plugin, find, names
from bench.foundation.settings import build
from bench.science.evaluation import Predictor, predict
from bench.science.selection import check_scenarios
from bench.science.training import to_pixels

OPEN = ("bench.plugin", "bench.attacks", "bench.defenses")
"""What a plug-in may import of this package: the author's module, and the engines that plug-ins share."""

FRAME = ("bench.science.", "bench.exchange.")
"""Where the frame's own plug-ins live, which import what they need: compositions and imported poisons."""

FORBIDDEN = {"gc", "inspect"}
"""Modules through which a plug-in could look behind what it is handed."""

FORBIDDEN_NAMES = {"__closure__", "__globals__", "_getframe", "f_back", "f_locals"}
"""Attributes that do the same."""

KNOWLEDGE = ("poison_rate", "clean_holdout", "external_model", "attack_family")
"""What a defense may declare in `needs`."""


Rule = Callable[[World], None]
"""Raises when the plug-in breaks it."""


@dataclass(frozen=True)
class Result:
    """One rule, kept or broken; detail: empty, or ': ' and what is wrong."""

    plugin: str
    rule: str
    passed: bool
    detail: str = ""


def check(reference: str) -> list[Result]:
    """All rules for the attack or defense called `reference`, or defined in that file. BadInput if there is none."""
    plugin = _find(reference)
    rules = COMMON_RULES
    # Attacks whose poisons come from elsewhere and defenses that are made of others cannot be run by themselves.
    if getattr(plugin.make, "crafts", True):
        rules += {"attack": ATTACK_RULES, "defense": DEFENSE_RULES}[plugin.kind]
    return [_result(plugin, sentence, rule) for sentence, rule in rules]


def _result(plugin: Plugin, sentence: str, rule: Rule) -> Result:
    try:
        with guest():
            rule(World(plugin))
    except Exception as error:  # a plug-in may break in any way; that is a finding, not a crash of the test
        text = " ".join(str(error).split()) or type(error).__name__
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return Result(plugin.name, sentence, False, f": {kind}{text}")
    return Result(plugin.name, sentence, True)


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


# Attacks and defenses.


def _has_a_card(world: World) -> None:
    text = world.plugin.make.__doc__ or ""
    must(len(text.split()) >= 8, "the class needs a docstring: paper, threat model, assumed knowledge, cost")


def _settings_survive(world: World) -> None:
    plugin, settings_class = world.plugin, world.plugin.make.Settings
    chosen = build(settings_class, plugin.variant, plugin.kind)
    again = build(settings_class, json.loads(json.dumps(chosen.as_dict())), plugin.kind)
    must(again == chosen, "settings change on their way through JSON")
    must(pickle.loads(pickle.dumps(chosen)) == chosen, "settings change on their way to a worker process")
    for name, field in settings_class.model_fields.items():
        must(bool(field.description), f"setting '{name}' has no description")


def _knows_its_scenarios(world: World) -> None:
    try:
        check_scenarios(world.plugin)
    except BadInput as error:
        must(False, str(error))


def _looks_behind_nothing(world: World) -> None:
    module = world.plugin.make.__module__
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    imported = set(_imports(tree))
    reached = sorted(imported & FORBIDDEN)
    if not module.startswith(FRAME):
        reached += sorted(name for name in imported if _is_in(name, "bench") and not _is_in(name, *OPEN))
    must(not reached, f"imports {', '.join(reached)}; fix: `from bench.plugin import ...`")
    opened = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & FORBIDDEN_NAMES
    must(not opened, f"opens {', '.join(sorted(opened))}: a plug-in works with what it is handed")


def _imports(tree: ast.Module) -> Iterator[str]:
    """Absolute names of the modules that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = (f"bench.{alias.name}" for alias in node.names)
            yield from whole if node.module == "bench" else (node.module,)


def _is_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# Attacks.


def _poisons_are_legal(world: World) -> None:
    poisons, clean, trial = world.craft(), world.clean.train, world.trial
    allowed = trial.base_ids
    if world.plugin.make.selects_bases:
        allowed = clean.ids[clean.labels == trial.target_class]
    poisons.check(clean, THREAT.eps, allowed, most=len(trial.base_ids))
    if world.plugin.make.poisons_data:
        must(len(poisons.ids) > 0, "poisons nothing; set poisons_data = False if that is meant")


def _crafts_deterministically(world: World) -> None:
    must(torch.equal(world.craft().images, world.craft().images), "the same seed gives other poisons")


def _crafting_goes_on(world: World) -> None:
    crafted, _ = killed_again_and_again(world.craft, 3)
    must(torch.equal(crafted.images, world.craft().images), "gives other poisons when it goes on from a checkpoint")


def _crafting_leaves_random_state(world: World) -> None:
    before = torch.random.get_rng_state()
    world.craft()
    must(torch.equal(before, torch.random.get_rng_state()), "draws from the global random state; use scene.stream")


def _crafting_leaves_the_process(world: World) -> None:
    with guest() as changes:
        world.craft()
    _no_change(changes)


def _crafting_leaves_borrowed(world: World) -> None:
    world.craft()
    _all_as_before(world, "changes the images that it is handed in place")


def _provenance_is_json(world: World) -> None:
    json.dumps(world.craft().provenance, allow_nan=False)


# Defenses.


def _declares_needs(world: World) -> None:
    unknown = sorted(set(world.plugin.make.needs) - set(KNOWLEDGE))
    must(not unknown, f"declares unknown needs {unknown}; allowed: {', '.join(KNOWLEDGE)}")


def _scores(world: World, predictor: Predictor) -> Tensor:
    return predict(predictor, world.clean.test.images, "cpu")


def _predicts_each_image_alone(world: World) -> None:
    predictor, images = world.defend(), world.clean.test.images
    scores = _scores(world, predictor)
    must(scores.shape == (len(images), CLASSES), f"scores have the shape {tuple(scores.shape)}")
    alone = torch.cat([predict(predictor, image[None], "cpu") for image in images])
    must(torch.allclose(scores, alone, atol=1e-4), "an image's scores depend on the rest of its batch")
    if hasattr(predictor, "rejects"):
        pixels = to_pixels(images)
        rejected = predictor.rejects(pixels)
        must(rejected.dtype == torch.bool and rejected.shape == (len(images),), "rejects returns no bool [n]")
        alone = torch.cat([predictor.rejects(image[None]) for image in pixels])
        must(torch.equal(rejected, alone), "whether an image is rejected depends on the rest of its batch")


def _defends_deterministically(world: World) -> None:
    first, second = (_scores(world, world.defend()) for _ in range(2))
    must(torch.equal(first, second), "the same seed gives another classifier")


def _keeps_no_state(world: World) -> None:
    defense = world.defense()
    first, second = (_scores(world, world.defend(defense)) for _ in range(2))
    must(torch.equal(first, second), "training twice with one instance gives different results: state leaks")


def _training_goes_on(world: World) -> None:
    predictor, _ = killed_again_and_again(world.defend, 4)
    same = torch.equal(_scores(world, predictor), _scores(world, world.defend()))
    must(same, "gives another classifier when it goes on from a checkpoint: see `bench.science.memory`")


def _training_leaves_random_state(world: World) -> None:
    before = torch.random.get_rng_state()
    world.defend()
    must(torch.equal(before, torch.random.get_rng_state()), "draws from the global random state; use run.stream")


def _training_leaves_the_process(world: World) -> None:
    with guest() as changes:
        world.defend()
    _no_change(changes)


def _no_change(changes: list[str]) -> None:
    # Random state has a rule of its own, and libraries set variables and filters when they are first used.
    let_be = {"torch's random state", "the environment", "filters of warnings"}
    changed = [change for change in changes if change not in let_be]
    must(not changed, f"changes {', '.join(changed)} and leaves it so")


def _training_leaves_borrowed(world: World) -> None:
    world.defend()
    _all_as_before(world, "changes the training images in place; assign to run.data instead")


def _all_as_before(world: World, otherwise: str) -> None:
    for state in world.networks:
        must(not (change := state.change()), change)
    must(torch.equal(world.clean.train.images, world.lent.train.images), otherwise)


COMMON_RULES: tuple[tuple[str, Rule], ...] = (
    ("has a card", _has_a_card),
    ("settings are described and survive a round trip", _settings_survive),
    ("defaults of a scenario are for one that there is, and settings that there are", _knows_its_scenarios),
    ("imports bench.plugin alone and looks behind nothing that it is handed", _looks_behind_nothing),
)
ATTACK_RULES: tuple[tuple[str, Rule], ...] = (
    ("poisons are clean-label, within eps after rounding, and only of the bases", _poisons_are_legal),
    ("the same seed gives the same poisons", _crafts_deterministically),
    ("a crafting that was killed goes on, or starts again, and ends the same", _crafting_goes_on),
    ("leaves the global random state alone", _crafting_leaves_random_state),
    ("leaves the process as it was", _crafting_leaves_the_process),
    ("leaves surrogates and data as they were", _crafting_leaves_borrowed),
    ("provenance is JSON", _provenance_is_json),
)
DEFENSE_RULES: tuple[tuple[str, Rule], ...] = (
    ("declares what it needs to know", _declares_needs),
    ("gives a classifier with finite scores, one image at a time or many", _predicts_each_image_alone),
    ("the same seed gives the same classifier", _defends_deterministically),
    ("a training that was killed goes on, or starts again, and ends the same", _training_goes_on),
    ("an instance can be used twice", _keeps_no_state),
    ("leaves the global random state alone", _training_leaves_random_state),
    ("leaves the process as it was", _training_leaves_the_process),
    ("leaves data and lent models as they were", _training_leaves_borrowed),
)
