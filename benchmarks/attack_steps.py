"""Crafting: ms a step of every attack, `bp-original` against two rivals, `pf-original` all at once or one by one.

Three parts, each with its contenders in turns, on one network that was trained on the photographs (K = 1), eps 16:

attacks   every crafting attack through `Attack.craft`, with its registered settings, but `--steps` steps, one restart
          and no retraining; `pf-original` also without its stopping rule. A step is timed from one report of the attack
          to the next, the first step left out; `forward passes` is its time in passes of the poisons through the
          network without a graph. `ms besides steps` is the rest: aims, the selection of bases, the final score.
          A retraining of `sleeper` is timed where it happens, inside a crafting.
bullseye  `bp-original` against the serial form of its peers and against ART: ms a step of a whole crafting, and the
          objective after `--final-steps` steps, by one judge on the rounded poisons; the bases as they are for scale.
frogs     `pf-original` on all poisons at once against the same code on one base at a time: seconds of the whole
          crafting, steps that a poison took, largest difference of a pixel in levels of 255. Once with its stopping
          rule, where a joint crafting goes on until its last poison stops, and once without, which is equal work.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from measure import Times, alternate, network, options, photographs, scene_of, show, start
from torch import Tensor

from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.science.attack import Scene
from bench.science.classifier import Classifier, build_model, frozen
from bench.science.dataset import Dataset, Images
from bench.science.defense import Services
from bench.science.poisons import Poisons
from bench.science.seeds import derive, torch_stream
from bench.science.training import Recipe, to_pixels, train
from bench.science.workshop import Transform, Workshop

EPS = 16
ATTACKS = (
    "gm",
    "bp",
    "bp-original",
    "bp-end2end",
    "pf",
    "pf-original",
    "cp",
    "metapoison",
    "sleeper",
    "sleeper-adaptive-noise",
)
LR = 0.04
"""Step of the Bullseye Polytope rivals, in standard deviations of a channel: the registered one of `bp-original`."""

Row = dict[str, Any]


def main() -> None:
    parts: dict[str, Callable[[Scene, Classifier, argparse.Namespace, torch.device], list[Row]]]
    parts = {"attacks": attacks, "bullseye": bullseye, "frogs": frogs}
    parser = options(__doc__, repeats=3)
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts), help="what is measured")
    parser.add_argument("--poisons", type=int, default=40, help="images that are crafted together")
    parser.add_argument("--steps", type=int, default=10, help="crafting steps of a timed run, at least 3")
    parser.add_argument("--final-steps", type=int, default=100, help="steps of the runs whose objective is reported")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the network")
    parser.add_argument("--retraining-epochs", type=int, default=1, help="epochs of a retraining of `sleeper`")
    args = parser.parse_args()
    if args.steps < 3:
        parser.error(f"--steps {args.steps}: allowed: at least 3")
    device = start(args)
    rows = []
    for size in args.sizes:
        scene, model = make_scene(size, args, device)
        for name in args.parts:
            rows += [{"size": size, **row} for row in parts[name](scene, model, args, device)]
    show(args, rows)


def make_scene(size: int, args: argparse.Namespace, device: torch.device) -> tuple[Scene, Classifier]:
    """One trial on the photographs, a surrogate that was really trained on them, and a workshop that works."""
    dataset = photographs(size, max(100, args.poisons))
    data, model = dataset.train.to(device), network("convnet", dataset, device)
    recipe = Recipe(epochs=args.epochs, batch=64, lr=0.05, schedule="one-cycle", precision="float32")
    history: list[Classifier] = []
    train(model, data, recipe, seed=1, report=lambda *_: history.append(copy.deepcopy(model).eval()))
    again = recipe.model_copy(update={"epochs": args.retraining_epochs})
    workshop = make_workshop(dataset, again, [history[age - 1] for age in ages(args.epochs)], device)
    return scene_of(dataset, model, recipe, args.poisons, EPS, workshop=workshop), model


def ages(epochs: int) -> list[int]:
    """The epochs whose weights `metapoison` is given: the first, the middle one and the last."""
    return sorted({1, (epochs + 1) // 2, epochs})


def make_workshop(dataset: Dataset, recipe: Recipe, history: Sequence[Classifier], device: torch.device) -> Workshop:
    """What the attacker may have made; nothing is kept from one crafting to the next. recipe: of a retraining."""

    def fit(data: Images, model: str, epochs: int, *who: str | int) -> Classifier:
        fresh = build_model(
            model,
            classes=len(dataset.classes),
            size=data.images.shape[-1],
            normalisation=dataset.normalisation,
            seed=derive(2, *who),
            device=device,
        )
        return train(fresh, data, recipe.model_copy(update={"epochs": epochs}), seed=derive(3, *who)).model

    def retrain(data: Images, *who: str | int, which: Sequence[int], **_: Any) -> list[Classifier]:
        return [fit(data, "convnet", recipe.epochs, k, *who) for k in which]

    def transform(defense: str, data: Images, ids: Tensor, **settings: Any) -> Transform:
        known = find("defense", defense)
        guard = known.make(build(known.make.Settings, {**known.variant, **settings}, "defense"), defense)
        services = Services(recipe, len(dataset.classes), fit, lambda *_: None, "convnet")
        return guard.attacker_view(data, ids, services, torch_stream(device, 4, defense))

    return Workshop(retrain=retrain, snapshots=lambda: [history], transform=transform)


def craft(scene: Scene, name: str, **settings: Any) -> Poisons:
    """The poisons of an attack, with its registered settings but for those of `settings` that it has."""
    plugin = find("attack", name)
    fields = plugin.make.Settings.model_fields
    mine = {key: value for key, value in settings.items() if key in fields}
    return plugin.make(build(plugin.make.Settings, {**plugin.variant, **mine}, "attack")).craft(scene)


# Every attack.


def attacks(scene: Scene, model: Classifier, args: argparse.Namespace, device: torch.device) -> list[Row]:
    cut = {"steps": args.steps, "restarts": 1, "ages": ages(args.epochs), "tolerance": 0.0}
    forward, retraining = "a forward pass", f"sleeper, a retraining ({args.retraining_epochs} epochs)"

    def step(name: str) -> float:
        clock = Clock(device)
        craft(replace(scene, report=clock), name, **cut, retrain=0)
        return clock.seconds

    def passes() -> float:
        clock, pixels = Clock(device), scene.base_pixels()
        with frozen(model), torch.no_grad():
            for _ in range(args.steps):
                model(pixels)
                clock()
        return clock.seconds

    def one_retraining() -> float:
        parts: dict[str, float] = {}

        @contextlib.contextmanager
        def timed(name: str) -> Iterator[None]:
            started = time.perf_counter()
            yield
            parts[name] = parts.get(name, 0.0) + time.perf_counter() - started

        craft(replace(scene, workshop=replace(scene.workshop, timed=timed)), "sleeper", **cut, retrain=1)
        return parts["retraining"]

    work: dict[str, Callable[[], float]] = {forward: passes}
    work |= {name: partial(step, name) for name in ATTACKS}
    work[retraining] = one_retraining
    inside, whole = alternate_inside(work, args.repeats, device)
    besides = {
        name: [max(all_of_it - args.steps * a_step, 0.0) for all_of_it, a_step in zip(*each, strict=True)]
        for name, each in ((name, (whole.seconds[name], inside.seconds[name])) for name in ATTACKS)
    }
    rows: list[Row] = [
        {
            "crafting": name,
            "ms a step": 1000 * inside.median(name),
            "forward passes": inside.ratio(name, forward),
            "ms besides steps": 1000 * Times(besides).median(name),
        }
        for name in ATTACKS
    ]
    rows.append({"crafting": retraining, "seconds": inside.median(retraining)})
    return rows


class Clock:
    """Stands for Scene.report, is called after every step, and tells what a step takes without what surrounds them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ticks: list[float] = []

    def __call__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ticks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Mean over all steps but the first."""
        return (self.ticks[-1] - self.ticks[0]) / (len(self.ticks) - 1)


def alternate_inside(work: dict[str, Callable[[], float]], repeats: int, device: torch.device) -> tuple[Times, Times]:
    """As `alternate`, for work that returns seconds of its own: these, and those of the whole calls."""
    own: dict[str, list[float]] = {name: [] for name in work}

    def call(name: str) -> None:
        own[name].append(work[name]())

    calls: dict[str, Callable[[], object]] = {name: partial(call, name) for name in work}
    whole = alternate(calls, repeats, device)
    return Times({name: seconds[-repeats:] for name, seconds in own.items()}), whole


# Bullseye Polytope and its rivals.


def bullseye(scene: Scene, model: Classifier, args: argparse.Namespace, device: torch.device) -> list[Row]:
    ours = "bp-original"
    makers: dict[str, Callable[[int], Poisons]] = {
        ours: lambda steps: craft(scene, ours, steps=steps),
        "bp, serial form": lambda steps: serial(scene, model, steps, torch.contiguous_format),
        "bp, serial form, channels last": lambda steps: serial(scene, model, steps, torch.channels_last),
        "bp, ART": lambda steps: art(scene, model, steps),
    }
    try:
        makers["bp, ART"](1)
    except RuntimeError as error:  # it mixes devices
        print(f"ART is left out: {error}", file=sys.stderr)
        del makers["bp, ART"]
    final = {name: make(args.final_steps) for name, make in makers.items()}
    times = alternate({name: partial(make, args.steps) for name, make in makers.items()}, args.repeats, device)
    column = f"objective after {args.final_steps}"
    rows: list[Row] = [
        {
            "crafting": f"{name}, whole crafting" if name == ours else name,
            "ms a step": 1000 * times.median(name) / args.steps,
            "times ours": times.ratio(name, ours),
            column: judge(scene, model, final[name]),
            "poisons lost to NaN": final[name].provenance.get("lost", 0),
        }
        for name in makers
    ]
    rows.append({"crafting": "bp, bases as they are", column: judge(scene, model, scene.poisons(torch.zeros(())))})
    return rows


def serial(scene: Scene, model: Classifier, steps: int, layout: torch.memory_format) -> Poisons:
    """Bullseye Polytope as straightforward code has it. Same objective and optimiser as `bp-original`: the un-squared
    distance of the mean feature from the target's, relative to it; Adam from the clean bases, no augmentation.

    The optimiser acts on the normalised images themselves, which are projected in [0, 1] and normalised again. The
    target goes through the network at each step, with a graph, and the weights require gradients, which are computed
    and not used. layout: of images and network in memory; contiguous is what code gets that does not ask.
    """
    net = copy.deepcopy(model).to(memory_format=layout).eval().requires_grad_(True)
    mean, std, eps = net.normalise.mean, net.normalise.std, scene.eps
    base = scene.base_pixels().contiguous(memory_format=layout)
    target = net.normalise(to_pixels(scene.targets).contiguous(memory_format=layout))
    normalised = net.normalise(base).requires_grad_(True)
    optimizer = torch.optim.Adam([normalised], lr=LR, betas=(0.9, 0.999))
    for _ in range(steps):
        aim = net.body(target).mean(0)
        loss = (net.body(normalised).mean(0) - aim).norm() / aim.norm()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            change = (normalised * std + mean - base).clamp(-eps, eps)
            normalised.copy_(((base + change).clamp(0, 1) - mean) / std)
    return scene.poisons(normalised.detach() * std + mean - base)


def art(scene: Scene, model: Classifier, steps: int) -> Poisons:
    """ART's BullseyePolytopeAttackPyTorch, for its time alone: what it minimises is not the distance to the target.

    It takes the features of the centre from the bases, not from the target, which it stores and never reads; and with
    a list of layers, it averages the features over poisons and dimensions together, to a single number. A list is the
    only way: with endtoend=False its loss has no graph and cannot be differentiated, and with one layer by name it
    compares the mean over dimensions of each poison with that poison's own base. A step is still one pass of all
    poisons forward and backward, weight gradients included, and Adam, so that its time can be compared.
    A feature that is 0 in all bases makes it divide by 0; poisons that became NaN so are left as the bases, counted.

    Settings: the penultimate features, one network, Adam, as many steps, no decay within them (`decay_iter` beyond the
    last). Its Adam acts on images in [0, 1], so its rate is ours times the mean deviation of the channels.
    """
    from art.attacks.poisoning import BullseyePolytopeAttackPyTorch
    from art.estimators.classification import PyTorchClassifier

    size = scene.bases.images.shape[-1]
    classifier = PyTorchClassifier(
        copy.deepcopy(model),  # it leaves a hook and gradients behind
        torch.nn.CrossEntropyLoss(),
        (3, size, size),
        model.head.out_features,
        clip_values=(0.0, 1.0),
        device_type="gpu" if scene.device.type == "cuda" else "cpu",
    )
    bases = scene.base_pixels().contiguous().cpu().numpy()
    attack = BullseyePolytopeAttackPyTorch(
        classifier,
        to_pixels(scene.targets).contiguous().cpu().numpy(),
        ["body"],
        opt="adam",
        max_iter=steps,
        learning_rate=LR * model.normalise.std.mean().item(),
        decay_iter=steps + 1,
        epsilon=scene.eps,
        net_repeat=1,
        endtoend=True,
        batch_size=len(bases),
        verbose=False,
    )
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar, in spite of verbose
        poisoned, _ = attack.poison(bases, scene.bases.labels.cpu().numpy())
    delta = torch.from_numpy(poisoned - bases)
    lost = ~torch.isfinite(delta).flatten(1).all(1)
    return scene.poisons(delta.masked_fill(lost.view(-1, 1, 1, 1), 0.0), lost=int(lost.sum()))


def judge(scene: Scene, model: Classifier, poisons: Poisons) -> float:
    """|mean_i phi(x_i) - phi(x_t)| / |phi(x_t)| of the rounded, un-augmented poisons: the one judge of all."""
    poisons.check(scene.train, EPS, scene.bases.ids.cpu())
    with frozen(model), torch.no_grad():
        own = model.features(to_pixels(poisons.images.to(scene.device))).double().mean(0)
        aim = model.features(to_pixels(scene.targets)).double().mean(0)
    return ((own - aim).norm() / aim.norm()).item()


# Poison Frogs, all at once or one by one.


def frogs(scene: Scene, model: Classifier, args: argparse.Namespace, device: torch.device) -> list[Row]:
    images: dict[str, Tensor] = {}
    steps: dict[str, int] = {}

    def work(name: str, scenes: Sequence[Scene], rule: dict[str, float]) -> None:
        counted = {"steps": 0}

        def count(*_: object) -> None:
            counted["steps"] += 1

        made = [craft(replace(each, report=count), "pf-original", steps=args.steps, **rule) for each in scenes]
        images[name], steps[name] = torch.cat([poisons.images for poisons in made]), counted["steps"]

    order = torch.arange(len(scene.bases), device=device)
    singles = [replace(scene, bases=scene.bases.subset(row)) for row in order.split(1)]
    ways = {"all at once": [scene], "one at a time": singles}
    rules: dict[str, dict[str, float]] = {"pf-original": {}, "pf-original that never stops": {"tolerance": 0.0}}
    names = {(rule, way): f"{rule}, {way}" for rule in rules for way in ways}
    calls: dict[str, Callable[[], object]] = {
        name: partial(work, name, ways[way], rules[rule]) for (rule, way), name in names.items()
    }
    times = alternate(calls, args.repeats, device)
    rows: list[Row] = []
    for (rule, way), name in names.items():
        together = names[rule, "all at once"]
        rows.append(
            {
                "crafting": name,
                "seconds": times.median(name),
                "times ours": times.ratio(name, together),
                "steps of a poison": steps[name] / len(ways[way]),
                "largest difference": int((images[name].short() - images[together].short()).abs().max()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
