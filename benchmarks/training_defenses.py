"""What the costly defenses take against the arithmetic that they need, or against a victim without a defense.

A step is a batch through the defense and the training step on what it returns. Needed are the same passes of the same
network with nothing around them:

    adv-training, -friends   `steps` x (forward and back to the pixels); a training step
    ap-*                     the training gradient of the second part of the batch; `steps` x (that of the first part,
                             the matching loss and its derivative in the weights, a forward pass that carries tangents
                             and back to the pixels); a training step

`neural-cleanse` is its `finish` on a hold-out of a twentieth, after the victim's training as on protocol `quick`, once
a size: `times none` is both together against the training. A repair, if a class is flagged, is part of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from measure import alternate, network, options, photographs, show, start, timed
from torch import Tensor, nn
from torch.func import functional_call, jvp

from bench.datasets.photographs import PhotographsSettings
from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.science.classifier import Classifier, frozen
from bench.science.dataset import Images, Place
from bench.science.defense import Defense, Services
from bench.science.gradients import Weights, cosine_distance, cross_entropy
from bench.science.training import Batch, Recipe, Run, Trained, make_optimizer, to_pixels, train

STEPS = ("adv-training", "adv-training-friends", "ap-0.25", "ap-0.5", "ap-0.75")


def main() -> None:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--defenses", nargs="+", default=[*STEPS, "neural-cleanse"], choices=[*STEPS, "neural-cleanse"])
    args = parser.parse_args()
    device = start(args)
    rows = []
    for size in args.sizes:
        dataset = photographs(size)
        data, model = dataset.train.to(device), network("convnet", dataset, device)
        for name in (name for name in args.defenses if name in STEPS):
            batch = data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: args.batch])
            times = alternate(contenders(defense(name), model, batch), args.repeats, device)
            rows.append(
                {
                    "size": size,
                    "defense": name,
                    "ms a step": 1000 * times.median("defense"),
                    "times needed": times.ratio("defense", "needed"),
                    "times a training step": times.ratio("defense", "training step"),
                }
            )
        if "neural-cleanse" in args.defenses:
            rows.append({"size": size, "defense": "neural-cleanse", **after_training(size, device)})
    show(args, rows)


def defense(name: str) -> Defense:
    plugin = find("defense", name)
    return plugin.make(build(plugin.make.Settings, plugin.variant, "defense"), name)


def contenders(guard: Defense, model: Classifier, data: Images) -> dict[str, Callable[[], object]]:
    """A step of the defense, the arithmetic that it needs, and a training step alone."""
    pixels, labels = to_pixels(data.images), data.labels
    optimizer, rows = make_optimizer(model, Recipe()), torch.arange(len(data), device=data.images.device)
    passes = (matched if guard.name.startswith("ap") else ascended)(guard, model, pixels, labels)
    run = Run(model, data, Recipe(), 0, 0, optimizer, Recipe().augmentation((0.5,) * 3), rows >= 0, rows < 0)
    guard.epoch(run, 0)

    def learn(batch: Tensor) -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(batch).float(), labels).backward()
        optimizer.step()

    def bare() -> None:
        passes()
        learn(pixels)

    return {
        "defense": lambda: learn(guard.batch(Batch(pixels, labels, rows, data.ids), run, "view").pixels),
        "needed": bare,
        "training step": lambda: learn(pixels),
    }


def ascended(guard: Any, model: Classifier, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    """The passes of adversarial training's inner steps."""

    def work() -> None:
        with frozen(model):
            for _ in range(guard.settings.steps):
                leaf = pixels.detach().requires_grad_(True)
                torch.autograd.grad(cross_entropy(model(leaf).float(), labels), leaf)

    return work


def matched(guard: Any, model: Classifier, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    """The passes of adversarial poisoning's inner steps, on a network without BatchNorm, as the matcher's is."""
    net, first = without_batchnorm(model), round(guard.settings.share * len(pixels))
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(at: Weights, images: Tensor, of: slice) -> Tensor:
        return cross_entropy(functional_call(net, at, (images,)), labels[of])

    def gradient(of: slice) -> Weights:
        leaves = {name: value.detach().requires_grad_(True) for name, value in weights.items()}
        found = torch.autograd.grad(loss(leaves, pixels[of], of), list(leaves.values()))
        return dict(zip(leaves, found, strict=True))

    def work() -> None:
        aim, mine = gradient(slice(first, None)), slice(first)
        for _ in range(guard.settings.steps):
            direction = cosine_distance(gradient(mine), aim)[1]
            leaf = pixels[mine].detach().requires_grad_(True)
            slope = jvp(lambda at, leaf=leaf: loss(at, leaf, mine), (weights,), (direction,))[1]
            torch.autograd.grad(slope, leaf)

    return work


def without_batchnorm(model: Classifier) -> Classifier:
    net = copy.deepcopy(model).eval().requires_grad_(False)
    layers: Any = net.body
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            layers[i - 1].bias, layers[i] = nn.Parameter(layer.bias.detach(), requires_grad=False), nn.Identity()
    return net


def after_training(size: int, device: torch.device) -> dict[str, Any]:
    """`neural-cleanse` after a training as on protocol `quick`."""
    asked = PhotographsSettings(size=size, train_per_class=100, colour="grey", deviation=0.23)
    dataset = find("dataset", "photographs").make(asked, Place())
    data, model = dataset.train.to(device), network("convnet", dataset, device)
    recipe = Recipe(epochs=30, batch=64, lr=0.1, schedule="one-cycle", augment="none", flip=False)
    training = timed(lambda: train(model, data, recipe, seed=0), device)
    known = data.subset(torch.arange(0, len(data), 20, device=device))
    notes: dict[str, Any] = {}
    services = Services(recipe, len(dataset.classes), unasked, lambda *_: None, note=notes.__setitem__)
    lent = replace(services, clean_holdout=known)
    trained = Trained(model.eval(), [], 0.0, known.ids[:0])
    taken = timed(lambda: defense("neural-cleanse").finish([trained], lent), device)
    found = notes["neural_cleanse"]
    return {"times none": 1 + taken / training, "epochs": found["epochs"], "flagged": len(found["flagged"])}


def unasked(*_: object) -> Any:
    raise AssertionError("nothing else is trained")


if __name__ == "__main__":
    main()
