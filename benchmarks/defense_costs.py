"""What the costly parts of defenses take at the scale of CIFAR-10: seconds, memory and images a second, on the CPU.

The filters and EPIC get synthetic features of ten classes, each of five overlapping clusters, instead of a network's:
what is measured comes after the pass through the network. EPIC gets the gradients of a linear classifier on them that
is right for about 78 % (`trained`) or surer of itself (`sure`). Friendly noise is made by an untrained ConvNet for a
few random images, and `50,000 s` is extrapolated from them. `MiB` is how far the peak of a process of its own rises
above what it had with the data loaded. Every part runs with 1 to --threads threads. On a busy machine `s` is an upper
bound; `CPU s`, the seconds that all threads together were at work, is what one thread takes on a quiet one, and `kept`
holds it (and the memory) against the target.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import options, show, start
from torch import Tensor

from bench.defenses.epic import alone_in_cluster, medoids_per_class
from bench.defenses.friends import FriendsSettings, friendly_noise
from bench.foundation.registry import find
from bench.foundation.settings import build
from bench.science.classifier import build_model
from bench.science.dataset import Images
from bench.science.defense import Services
from bench.science.seeds import torch_stream
from bench.science.training import Recipe

CLASSES, WIDTH, RATE = 10, 512, 0.01
FILTERS: dict[str, dict[str, Any]] = {
    "deepknn k=1000": {"k": 1000},
    "deepknn k=500": {"k": 500},
    "spectral": {},
    "spectral-percentile": {},
    "activation-clustering": {},
    "activation-clustering-size": {},
}
SURENESS = {"trained": 1.2, "sure": 6.0}
PARTS = [
    *(f"epic-{fraction} {sureness}" for sureness in SURENESS for fraction in (0.1, 0.2, 0.3)),
    *FILTERS,
    *(f"friendly batch={batch}" for batch in (64, 128, 256, 512, 1024)),
]
TARGETS = {"epic": 10.0, "deepknn": 120.0, "spectral": 5.0}
"""Seconds that a part should not exceed; memory: 4 GiB each."""


def main() -> None:
    parser = options(__doc__, repeats=1, sizes=(32,))
    parser.add_argument("--parts", nargs="+", default=[""], help="beginnings of the names of parts, such as epic-0.1")
    parser.add_argument("--samples", type=int, default=50_000, help="rows of the features")
    parser.add_argument("--images", type=int, default=1024, help="images that get friendly noise")
    parser.add_argument("--one", choices=PARTS, help="run this part here and print its figures as JSON")
    args = parser.parse_args()
    device = start(args)
    if device.type != "cpu":
        parser.error("memory is that of the process: --device cpu only")
    if args.one:
        print(json.dumps(measured(args)))
        return
    rows = []
    for part in (part for part in PARTS if any(part.startswith(wanted) for wanted in args.parts)):
        for threads in range(1, args.threads + 1):
            command = [sys.executable, *sys.argv, "--one", part, "--threads", str(threads)]
            around = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            answer = subprocess.run(command, env=around, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"part": part, "threads": threads, **json.loads(answer.splitlines()[-1])})
            print(rows[-1], file=sys.stderr)
    show(args, rows)


def measured(args: Namespace) -> dict[str, Any]:
    """Seconds (median of the repeats) and memory of the part `args.one` in this process."""
    work = prepared(args)
    before, seconds, busy = peak(), [], time.process_time()
    for _ in range(args.repeats):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    taken, memory = statistics.median(seconds), peak() - before
    busy = (time.process_time() - busy) / args.repeats
    figures: dict[str, Any] = {"s": taken, "CPU s": busy, "MiB": memory}
    if args.one.startswith("friendly"):
        return {**figures, "images/s": args.images / taken, "50,000 s": 50_000 * taken / args.images}
    target = next((most for name, most in TARGETS.items() if args.one.startswith(name)), None)
    if target is not None:
        figures |= {"target s": target, "kept": busy <= target and memory <= 4096}
    return figures


def peak() -> float:
    """The most memory that this process has had, MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepared(args: Namespace) -> Callable[[], object]:
    """The work of the part `args.one`, its data made."""
    kind, _, detail = args.one.partition(" ")
    stream = torch_stream("cpu", 0)
    if kind == "friendly":
        side, count = args.sizes[0], args.images
        model = build_model("convnet", classes=CLASSES, size=side, normalisation=((0.5,) * 3, (0.25,) * 3), seed=1)
        images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=stream)
        data = Images(images, torch.arange(count) % CLASSES, torch.arange(count))
        settings = FriendsSettings(batch=int(detail.removeprefix("batch=")))
        return lambda: friendly_noise(model, data, settings, stream)
    features, labels = synthetic(args.samples, stream)
    if kind.startswith("epic"):
        gradients = classified(features, labels, SURENESS[detail])
        counts = medoids_per_class(labels, float(kind.removeprefix("epic-")), CLASSES, stream)
        # The features stay, since memory that is free again would hide what the work takes.
        return lambda: (alone_in_cluster(gradients, labels, counts), features)
    plugin = find("defense", kind)
    chosen = build(plugin.make.Settings, {**plugin.variant, **FILTERS[args.one]}, "defense")
    services = Services(Recipe(), CLASSES, unasked, lambda *_: None, poison_rate=RATE)
    return lambda: plugin.make(chosen, kind).kept(features, labels, services)


def unasked(*_: object) -> Any:
    raise AssertionError("features are given: nothing is trained")


def synthetic(count: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Features [count, 512] of ten classes, none negative, and labels [count]; made in parts, to keep the peak low."""
    labels = torch.arange(count) % CLASSES
    centres = 0.3 * torch.randn(CLASSES, 5, WIDTH, generator=stream)
    common = 0.12 * torch.randn(64, WIDTH, generator=stream)
    features = torch.empty(count, WIDTH)
    for rows, classes in zip(features.split(2000), labels.split(2000), strict=True):
        n = len(rows)
        rows.normal_(0, 0.3, generator=stream)
        rows += centres[classes, torch.randint(5, (n,), generator=stream)]
        rows += torch.randn(n, 64, generator=stream) @ common
        rows.relu_()
    return features, labels


def classified(features: Tensor, labels: Tensor, deviation: float) -> Tensor:
    """softmax(z) - onehot(y) of the classifier whose weights are the classes' means, logits of that deviation."""
    means = torch.stack([features[labels == label].mean(0) for label in range(CLASSES)])
    logits = features @ (means - means.mean(0)).T
    logits -= logits.mean(0)
    return (logits * (deviation / logits.std())).softmax(1) - F.one_hot(labels, CLASSES)


if __name__ == "__main__":
    main()
