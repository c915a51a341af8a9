"""Augmentation: which share of a training epoch the random shift and flip take, for both kinds.

`calls` are the augmentation's calls of one epoch alone, timed in turns with the epoch; `difference` is what an epoch
without augmentation saves, which also counts what the augmented batch costs the layers after it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import alternate, network, options, photographs, show, start

from bench.science.classifier import Classifier
from bench.science.dataset import Dataset, Images
from bench.science.training import Recipe, to_pixels, train


def main() -> None:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=1000, help="training images, of ten classes")
    args = parser.parse_args()
    device = start(args)
    rows = []
    for size in args.sizes:
        dataset = photographs(size, args.images // 10)
        data, model = dataset.train.to(device), network(args.model, dataset, device)
        kinds = {kind: Recipe(epochs=1, batch=args.batch, augment=kind) for kind in ("none", "crop", "bilinear")}
        work = {f"epoch {kind}": epoch(model, data, recipe) for kind, recipe in kinds.items()}
        work |= {f"calls {kind}": calls(dataset, data, recipe) for kind, recipe in kinds.items()}
        times = alternate(work, args.repeats, device)
        for kind in ("crop", "bilinear"):
            rows.append(
                {
                    "size": size,
                    "augmentation": kind,
                    "us an image": 1e6 * times.median(f"calls {kind}") / len(data),
                    "epoch, us an image": 1e6 * times.median(f"epoch {kind}") / len(data),
                    "calls, %": 100 * times.ratio(f"calls {kind}", f"epoch {kind}"),
                    "difference, %": 100 * (1 - times.ratio("epoch none", f"epoch {kind}")),
                }
            )
    show(args, rows)


def epoch(model: Classifier, data: Images, recipe: Recipe) -> Callable[[], object]:
    return lambda: train(model, data, recipe, seed=0)


def calls(dataset: Dataset, data: Images, recipe: Recipe) -> Callable[[], None]:
    """The augmentation of one epoch, and nothing else: on batches that are floats already."""
    augmentation = recipe.augmentation(dataset.normalisation[0])
    batches = [to_pixels(part) for part in data.images.split(recipe.batch)]
    stream = torch.Generator(device=data.images.device).manual_seed(0)

    def work() -> None:
        for batch in batches:
            augmentation(batch, augmentation.draw(len(batch), stream))

    return work


if __name__ == "__main__":
    main()
