"""Training: images a second of `bench.science.training.train` against the usual DataLoader loop on PIL images.

The peer's loop is the recipe that the peers of this benchmark use: images as PIL objects; RandomCrop with 4 pixels of
padding, RandomHorizontalFlip, ToTensor, Normalize; a shuffling DataLoader with 0, 1 or 2 workers that live on between
epochs; SGD with the same settings. Same network, same batch, same number of images. The peer is timed twice: with the
memory format that it would have by default, and with ours (channels last), where only the data path differs. Both
loops run in float32 and in bfloat16 (autocast).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import alternate, network, options, photographs, show, start
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from bench.foundation.allocator import keep_freed_memory
from bench.science.dataset import Dataset
from bench.science.precision import Precision, computing_in
from bench.science.training import Recipe, make_optimizer, train

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
FORMATS = {"usual": torch.contiguous_format, "channels last": torch.channels_last}


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000, help="training images, of ten classes")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="workers of the peer's loader to try")
    parser.add_argument(
        "--keep-memory", action="store_true", help="with the allocator's setting of a run, for all loops"
    )
    args = parser.parse_args()
    device = start(args)
    if args.keep_memory:
        keep_freed_memory()
    show(args, [row for size in args.sizes for row in compared(args, photographs(size, args.images // 10), device)])


def compared(args: argparse.Namespace, dataset: Dataset, device: torch.device) -> list[dict[str, object]]:
    """The loops on one data set, in turns."""
    work: dict[str, Callable[[], object]] = {}
    recipe = Recipe(epochs=1, batch=args.batch, augment="crop")
    for precision in PRECISIONS:
        work[f"bench, {precision}"] = ours(
            dataset, args.model, recipe.model_copy(update={"precision": precision}), device
        )
        for (name, layout), workers in itertools.product(FORMATS.items(), args.workers):
            loop = peer(dataset, args.model, recipe, device, precision, layout, workers)
            work[f"DataLoader, {precision}, {name}, {workers} workers"] = loop
    times = alternate(work, args.repeats, device)
    rows: list[dict[str, object]] = []
    for precision, name in itertools.product(PRECISIONS, FORMATS):
        loops = [loop for loop in work if loop.startswith(f"DataLoader, {precision}, {name},")]
        best, alike = min(loops, key=times.median), f"bench, {precision}"
        for loop, note in [(loop, loop) for loop in loops] + [(best, f"best: {best}")]:
            rows.append(
                {
                    "size": dataset.train.images.shape[-1],
                    "loop": note,
                    "images/s": len(dataset.train) / times.median(loop),
                    "bench, same precision": len(dataset.train) / times.median(alike),
                    "bench is faster by": times.ratio(loop, alike),
                    "bfloat16 is faster by": times.ratio(loop, "bench, bfloat16"),
                }
            )
    return rows


def ours(dataset: Dataset, name: str, recipe: Recipe, device: torch.device) -> Callable[[], object]:
    model, data = network(name, dataset, device), dataset.train.to(device)
    return lambda: train(model, data, recipe, seed=0)


class PilImages(TorchDataset):
    """Images as PIL objects with a transform, as torchvision's data sets serve them."""

    def __init__(self, dataset: Dataset, transform: Callable) -> None:
        self.pil_images = [transforms.functional.to_pil_image(image) for image in dataset.train.images]
        self.labels = dataset.train.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pil_images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pil_images[row]), self.labels[row]


def peer(
    dataset: Dataset,
    name: str,
    recipe: Recipe,
    device: torch.device,
    precision: Precision,
    layout: torch.memory_format,
    workers: int,
) -> Callable[[], None]:
    """One epoch of the usual loop. Its transform normalises, so its network is ours without the first layer."""
    whole = network(name, dataset, device).to(memory_format=layout)
    model = torch.nn.Sequential(whole.body, whole.head)
    optimizer = make_optimizer(model, recipe)
    transform = transforms.Compose(
        [
            transforms.RandomCrop(dataset.train.images.shape[-1], padding=recipe.shift),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*dataset.normalisation),
        ]
    )
    loader = DataLoader(
        PilImages(dataset, transform),
        recipe.batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def epoch() -> None:
        model.train()
        for pixels, labels in loader:
            pixels, labels = pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            optimizer.zero_grad()
            with computing_in(precision, device):
                logits = model(pixels)
            loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            optimizer.step()

    return epoch


if __name__ == "__main__":
    main()
