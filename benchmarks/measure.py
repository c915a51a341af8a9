"""What the benchmarks share: the subject, timing in turns within one process, the surroundings, a table and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.datasets.photographs import PhotographsSettings
from bench.foundation.registry import find
from bench.science.attack import Scene
from bench.science.classifier import Classifier, build_model
from bench.science.dataset import Dataset, Place
from bench.science.threat import Threat, draw_trial
from bench.science.training import Recipe

PACKAGES = ("torch", "torchvision", "adversarial-robustness-toolbox", "numpy")


def options(description: str, *, repeats: int, sizes: tuple[int, ...] = (16, 32)) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.strip().split("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="threads of torch in the main process")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds, in which each contender runs once")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(sizes), help="sides of the images, pixels")
    return parser


def start(args: argparse.Namespace) -> torch.device:
    """Set the threads and return the device. On the CPU the GPU is hidden, because ART takes any that it sees."""
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(args.threads)
    return torch.device(args.device)


def photographs(size: int, per_class: int = 100) -> Dataset:
    """The built-in data set of ten photographs, with `per_class` training images of each."""
    return find("dataset", "photographs").make(PhotographsSettings(size=size, train_per_class=per_class), Place())


def network(name: str, dataset: Dataset, device: torch.device) -> Classifier:
    """A fresh network for the data set; every call gives the same weights."""
    size = dataset.train.images.shape[-1]
    return build_model(
        name, classes=len(dataset.classes), size=size, normalisation=dataset.normalisation, seed=1, device=device
    )


class Times:
    """Seconds of every contender in every round. Ratios are taken within a round, so that a load that lasts longer
    than a round cancels; then the median over rounds."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.seconds = seconds

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long as `fast` does `slow` take?"""
        return statistics.median(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))


def alternate(work: dict[str, Callable[[], object]], repeats: int, device: torch.device, warmups: int = 1) -> Times:
    """Time A B C, A B C, ...: `warmups` rounds that do not count, then `repeats` that do."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(-warmups, repeats):
        for name, call in work.items():
            taken = timed(call, device)
            if turn >= 0:
                seconds[name].append(taken)
    return Times(seconds)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue emptied before and after."""
    _finish(device)
    begun = time.perf_counter()
    call()
    _finish(device)
    return time.perf_counter() - begun


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """Device, threads, load and versions, to stand beside every figure."""
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else _processor()
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {
        "device": args.device,
        "hardware": name,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table with a line on the surroundings, and with --json once more as JSON."""
    around = environment(args)
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    versions = ", ".join(f"{package} {version}" for package, version in around["versions"].items())
    print(f"\n{around['hardware']} ({around['device']}), {args.threads} threads, load {around['load']}; {versions}")
    if args.json:
        print(json.dumps({"environment": around, "settings": vars(args), "rows": rows}))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def scene_of(dataset: Dataset, model: Classifier, recipe: Recipe, poisons: int, eps: int, **more: Any) -> Scene:
    """One trial on a data set, with one surrogate that was trained on it; more: other fields of the scene."""
    data = dataset.train.to(next(model.parameters()).device)
    threat = Threat(eps=eps, budget=poisons / len(data))
    trial = draw_trial(dataset, threat, seed=0, index=0)
    device = data.images.device
    return Scene(
        train=data,
        bases=data.subset(data.rows_of(trial.base_ids.to(device))),
        targets=dataset.test.images[dataset.test.rows_of(trial.target_ids)].to(device),
        trial=trial,
        threat=threat,
        augmentation=recipe.augmentation(dataset.normalisation[0]),
        surrogates=lambda: [model],
        seed=0,
        report=lambda done, steps, figures: None,
        **more,
    )
