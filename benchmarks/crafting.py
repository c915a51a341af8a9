"""Gradient matching: seconds a crafting step of `gm` against ART's and against a plain double backward pass.

One surrogate, one restart, 100 poisons, eps 16. All contenders attack the same network with the same bases and the same
target, one optimiser step on all 100 poisons at a time. The matching loss at the end is computed by one function, on
the rounded poisons without augmentation, in float32. `gm in bfloat16` takes the surrogate's convolutions in bfloat16,
cosine and sums in float32; that it ends no worse is for its loss here to show. The row of ART also tells how few steps
of `gm`, in twentieths, end no worse than ART does after all of its steps, and how many times sooner that is.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from measure import alternate, network, options, photographs, scene_of, show, start
from torch import Tensor

from bench.attacks.crafting.descent import craft
from bench.attacks.crafting.matching import MatchingSettings
from bench.attacks.gradient_matching import GradientMatching
from bench.science.attack import Scene
from bench.science.classifier import Classifier
from bench.science.poisons import Poisons
from bench.science.training import Recipe, to_pixels, train

POISONS, EPS = 100, 16


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--steps", type=int, default=20, help="crafting steps of a timed run")
    parser.add_argument("--final-steps", type=int, default=250, help="crafting steps of the run whose loss is reported")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the surrogate")
    args = parser.parse_args()
    device = start(args)
    rows = []
    for size in args.sizes:
        scene, model = make_scene(size, args.epochs, device)
        half = in_bfloat16(scene, model)
        makers: dict[str, Callable[[int], Poisons]] = {
            "gm": lambda steps, s=scene: gm(s, steps, augment=False),
            "gm in bfloat16": lambda steps, s=half: gm(s, steps, augment=False),
            "plain double backward": lambda steps, s=scene, m=model: plain(s, m, steps),
            "ART": lambda steps, s=scene, m=model: art(s, m, steps),
            "ART, loader in process": lambda steps, s=scene, m=model: art(s, m, steps, workers=0),
            "gm through augmentation": lambda steps, s=scene: gm(s, steps, augment=True),
        }
        losses = {name: judge(scene, model, make(args.final_steps)) for name, make in makers.items()}
        enough = enough_steps(scene, model, args.final_steps, losses["ART"])
        times = alternate({n: lambda make=make: make(args.steps) for n, make in makers.items()}, args.repeats, device)
        for name in makers:
            row: dict[str, object] = {
                "size": size,
                "crafting": name,
                "ms a step": 1000 * times.median(name) / args.steps,
                "times gm": times.ratio(name, "gm"),
                f"loss after {args.final_steps}": losses[name],
            }
            if name == "ART" and enough:
                faster = times.ratio(name, "gm") * args.final_steps / enough
                row |= {"steps of gm to this loss": enough, "gm faster to it": faster}
            rows.append(row)
    show(args, rows)


def make_scene(size: int, epochs: int, device: torch.device) -> tuple[Scene, Classifier]:
    """One trial on the photographs and a surrogate that was really trained on them."""
    dataset = photographs(size)
    data, model = dataset.train.to(device), network("convnet", dataset, device)
    recipe = Recipe(epochs=epochs, batch=64, lr=0.05, schedule="one-cycle", precision="float32")  # for all contenders
    train(model, data, recipe, seed=1)
    return scene_of(dataset, model, recipe, POISONS, EPS), model


class InBfloat16(Classifier):
    """A network whose arithmetic is bfloat16 where autocast says so; float32 in and out."""

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
            return super().forward(pixels).float()


def in_bfloat16(scene: Scene, model: Classifier) -> Scene:
    half = copy.deepcopy(model)
    half.__class__ = InBfloat16
    return replace(scene, surrogates=lambda: [half])


def gm(scene: Scene, steps: int, augment: bool) -> Poisons:
    return GradientMatching(MatchingSettings(steps=steps, restarts=1, augment=augment)).craft(scene)


def plain(scene: Scene, model: Classifier, steps: int) -> Poisons:
    """The same optimiser, its gradient by differentiating the graph of the backward pass."""
    aim = target_gradient(model, scene)

    def gradient(pixels: Tensor, step: int) -> tuple[float, Tensor]:
        leaf = pixels.detach().requires_grad_(True)
        loss = cosine_distance(weight_gradient(model, leaf, scene.bases.labels, create_graph=True), aim)
        return loss.item(), torch.autograd.grad(loss, leaf)[0]

    def score(pixels: Tensor) -> float:
        return cosine_distance(weight_gradient(model, pixels, scene.bases.labels), aim).item()

    settings = MatchingSettings(steps=steps, restarts=1)
    delta, _, _ = craft(scene, settings, model.normalise.std.flatten(), gradient, score)
    return scene.poisons(delta)


def art(scene: Scene, model: Classifier, steps: int, workers: int | None = None) -> Poisons:
    """ART's attack, handed exactly the bases, all of which it poisons; its schedule is stretched to `steps`.

    workers: processes of its loader; None is ART as released, which starts one worker at every step.
    """
    from art.attacks.poisoning import GradientMatchingAttack
    from art.estimators.classification import PyTorchClassifier

    size = scene.bases.images.shape[-1]
    classifier = PyTorchClassifier(
        model,
        torch.nn.CrossEntropyLoss(),
        (3, size, size),
        model.head.out_features,
        clip_values=(0.0, 1.0),
        device_type="gpu" if scene.device.type == "cuda" else "cpu",
    )
    milestones = [round(epoch * steps / 250) for epoch in (100, 150, 200, 220)]
    attack = GradientMatchingAttack(
        classifier,
        percent_poison=1.0,
        epsilon=EPS / 255,
        max_trials=1,
        max_epochs=steps,
        batch_size=POISONS,
        learning_rate_schedule=([1e-1, 1e-2, 1e-3, 1e-4], milestones),
        verbose=0,
    )
    # ART shuffles the images it is given and then puts them back where they were.
    bases = scene.base_pixels().contiguous().cpu().numpy()
    target = to_pixels(scene.targets).contiguous().cpu().numpy()
    wanted = np.full(len(target), scene.trial.target_class)
    loader = torch.utils.data.DataLoader
    if workers is not None:
        torch.utils.data.DataLoader = lambda *a, **k: loader(*a, **{**k, "num_workers": workers})  # type: ignore
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
            poisoned, _ = attack.poison(target, wanted, bases, scene.bases.labels.cpu().numpy())
    finally:
        torch.utils.data.DataLoader = loader  # type: ignore[misc]
    return scene.poisons(torch.from_numpy(poisoned - bases))


def enough_steps(scene: Scene, model: Classifier, most: int, loss: float) -> int | None:
    """The fewest steps, in twentieths of `most`, after which `gm` ends at `loss` or below; None if it does not."""
    tried = (most * k // 20 for k in range(1, 21))
    return next((steps for steps in tried if steps and judge(scene, model, gm(scene, steps, False)) <= loss), None)


def weight_gradient(model: Classifier, pixels: Tensor, labels: Tensor, create_graph: bool = False) -> list[Tensor]:
    loss = F.cross_entropy(model(pixels), labels)
    return list(torch.autograd.grad(loss, list(model.parameters()), create_graph=create_graph))


def target_gradient(model: Classifier, scene: Scene) -> list[Tensor]:
    wanted = torch.full((len(scene.targets),), scene.trial.target_class, device=scene.device)
    return weight_gradient(model, to_pixels(scene.targets), wanted)


def cosine_distance(gradient: list[Tensor], aim: list[Tensor]) -> Tensor:
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (gradient, aim))
    return 1 - F.cosine_similarity(one, other, dim=0)


def judge(scene: Scene, model: Classifier, poisons: Poisons) -> float:
    """1 - cosine of the rounded, un-augmented poisons: the one judge of all contenders."""
    poisons.check(scene.train, EPS, scene.bases.ids.cpu())
    gradient = weight_gradient(model, to_pixels(poisons.images.to(scene.device)), poisons.labels.to(scene.device))
    return cosine_distance(gradient, target_gradient(model, scene)).item()


if __name__ == "__main__":
    main()
