"""What more work costs: seconds and memory over the number of poisons, surrogates, training images and records.

    python benchmarks/scaling.py [--parts poisons surrogates images records] [--figure results/figures/scaling.png]

poisons, surrogates: a step of `gm`; images: an epoch of a victim with its evaluation by nothing; records: the command
`leaderboard` on files. Every point runs in a process of its own, so that its memory is its own, and counts what the
process needs above one that does nothing. The slope is that of the straight line through log seconds over log size by
least squares: 1 is proportional. Above 1.05 something grows faster than the work.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from pathlib import Path
from statistics import linear_regression
from typing import Any

import torch
from measure import environment, network, photographs, scene_of, start, timed

from bench.foundation.allocator import keep_freed_memory
from bench.plugin import Matcher, to_pixels
from bench.science.training import Recipe, train

SIZES = {
    "poisons": (25, 50, 100, 200, 400, 1000),
    "surrogates": (1, 2, 4, 8),
    "images": (1000, 2000, 5000, 10_000, 20_000, 50_000),
    "records": (1000, 10_000, 100_000),
}
STEPS = 3  # of gm, timed together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=16, help="side of the images, pixels")
    parser.add_argument("--most", type=int, default=10**9, help="leave out larger points")
    parser.add_argument("--figure", type=Path, help="draw it there")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)  # a part and a size, in a process of its own
    args = parser.parse_args()
    if args.point:
        print(json.dumps(point(args, args.point[0], int(args.point[1]))))
        return
    curves = {part: curve(args, part) for part in args.parts}
    if args.figure:
        draw(curves, args.figure)
    if args.json:
        print(json.dumps({"environment": environment(args), "curves": curves}))


def curve(args: argparse.Namespace, part: str) -> list[dict[str, float]]:
    """A line for every size, and the slopes."""
    common = [f"--threads={args.threads}", f"--device={args.device}", f"--size={args.size}"]
    points = []
    for size in (size for size in SIZES[part] if size <= args.most):
        command = [sys.executable, __file__, *common, "--point", part, str(size)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        points.append({"size": size, **json.loads(ran.stdout.splitlines()[-1])})
        print(f"{part:>10} {size:>7}: {points[-1]['seconds']:9.3f} s, {points[-1]['mib']:7.0f} MiB", flush=True)
    print(f"{part:>10} slope: {slope(points):.3f} of all, {slope(points[-2:]):.3f} of the last two", flush=True)
    return points


def slope(points: list[dict[str, float]]) -> float:
    if len(points) < 2:
        return math.nan
    return linear_regression(*([math.log(point[name]) for point in points] for name in ("size", "seconds"))).slope


def point(args: argparse.Namespace, part: str, size: int) -> dict[str, float]:
    if part == "records":  # a process without torch starts the command: the peak of a child begins with its parent's
        script = Path(__file__).with_name("leaderboard.py")
        command = [sys.executable, str(script), "--records", str(size), "--repeats", "2", "--forms", "json"]
        ran = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
        found = json.loads(ran.stdout.splitlines()[-1])[0]["found"]["json"]
        return {"seconds": found["cpu"], "wall": found["wall"], "mib": found["mib"]}
    device = start(args)
    keep_freed_memory()
    before = _peak_mib()
    work = {"poisons": crafting, "surrogates": crafting, "images": victim}[part]
    call = work(args, device, **{part: size})
    call()
    seconds = min(timed(call, device) for _ in range(2))
    return {"seconds": seconds, "mib": _peak_mib() - before}


def crafting(args: argparse.Namespace, device: torch.device, poisons: int = 100, surrogates: int = 1) -> Any:
    """Some steps of gm's loss and gradient: what it does over and over."""
    dataset = photographs(args.size, max(2 * poisons // 10, 100))
    models = [network("convnet", dataset, device).eval() for _ in range(surrogates)]
    scene = scene_of(dataset, models[0], Recipe(), min(poisons, len(dataset.train) // 10), 16)
    pixels = to_pixels(dataset.train.images[:poisons].to(device))
    labels = dataset.train.labels[:poisons].to(device)
    aims = torch.full((len(scene.targets),), scene.trial.target_class, device=device)
    matcher = Matcher(models, to_pixels(scene.targets), aims, labels, 256)
    return lambda: [matcher.slope(pixels) for _ in range(STEPS)]


def victim(args: argparse.Namespace, device: torch.device, images: int) -> Any:
    """An epoch of training, in the precision that the device takes by itself."""
    dataset = photographs(args.size, images // 10)
    data, recipe = dataset.train.to(device), Recipe(epochs=1, batch=64, augment="none", flip=False)
    return lambda: train(network("convnet", dataset, device), data, recipe, seed=0)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure, axes = plt.subplots(1, len(curves), figsize=(2.6 * len(curves), 2.4), squeeze=False, layout="constrained")
    for axis, (part, points) in zip(axes[0], curves.items(), strict=True):
        sizes = [point["size"] for point in points]
        axis.loglog(sizes, [point["seconds"] for point in points], "o-", color="#0072B2")
        axis.set(xlabel=part, title=f"slope {slope(points):.2f}", ylabel="seconds")
        axis.set_xticks([sizes[0], sizes[-1]])
        axis.set_yticks([points[0]["seconds"], points[-1]["seconds"]])
        for side in (axis.xaxis, axis.yaxis):
            side.set_minor_formatter(NullFormatter())
            side.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
