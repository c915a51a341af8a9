"""What code and what machine made a number."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

import bench

SCIENCE = "bench.science"
"""Everything in this package can change a number; nothing else but plug-ins may: no list to keep."""

PLUGINS = ("bench.attacks", "bench.defenses", "bench.models")


def code(*makers: Any) -> str:
    """sha256 over the meaning of the code behind plug-ins and of all of `bench.science`; comments, docstrings and
    layout do not count.

    makers: plug-in classes or functions; their modules count, and those that these import from their own package or
    from the packages of plug-ins.
    """
    modules = set(_science())
    for maker in makers:
        modules |= _closure(maker.__module__)
    total = hashlib.sha256()
    for name in sorted(modules):
        total.update(f"{name if not name.startswith('plugin_') else 'plugin'} {_meaning(_source(name))}\n".encode())
    return total.hexdigest()


@functools.cache
def _science() -> frozenset[str]:
    folder = Path(bench.__file__).parent / SCIENCE.partition(".")[2]
    return frozenset(
        ".".join((SCIENCE, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        for path in folder.rglob("*.py")
    )


@functools.cache
def _closure(module: str) -> frozenset[str]:
    """The module and all that it imports, directly or not, from its own package and from the plug-in packages."""
    home = module.rpartition(".")[0]
    packages = tuple(f"{package}." for package in {home, *PLUGINS} if package)
    modules, todo = {module}, [module]
    while todo:
        for name in _imports(todo.pop()):
            if name.startswith(packages) and name not in modules and _is_module(name):
                modules.add(name)
                todo.append(name)
    return frozenset(modules)


def _imports(module: str) -> Iterator[str]:
    """What a module imports: modules, and names in them that may be modules themselves."""
    package = module if hasattr(_loaded(module), "__path__") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


@functools.cache
def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_module(name: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):  # its parent is a module, not a package: a name in that module
        return importlib.util.find_spec(name) is not None
    return False


def _loaded(module: str) -> ModuleType:
    return sys.modules.get(module) or importlib.import_module(module)


@functools.cache
def _source(module: str) -> str:
    loaded = _loaded(module)
    return Path(loaded.__file__).read_text("utf-8") if loaded.__file__ else inspect.getsource(loaded)


@functools.cache
def revision() -> str:
    """The git revision of this code, with '+' when there are changes; '' when it is not a git checkout."""
    folder = Path(bench.__file__).parent
    try:
        run = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        if Path(run(["git", "rev-parse", "--show-toplevel"]).stdout.strip()) != folder.parent:
            return ""
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return run(["git", "rev-parse", "HEAD"]).stdout.strip() + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def numerics(device: torch.device, threads: int) -> dict[str, Any]:
    """What of the libraries and the processor changes bits; it is part of all keys.

    On a CPU the number of threads (each sums its own part), the instructions that torch uses, and the outcome of a
    little arithmetic, which differs with all that cannot be asked for: the make of the processor, MKL, oneDNN and the
    variables that they obey. Of a GPU only that it is one: who sends work there often sees none. The record names it.
    """
    if device.type != "cpu":
        return {"torch": torch.__version__, "device": device.type}
    capability = torch.backends.cpu.get_cpu_capability()
    told = {"torch": torch.__version__, "device": "cpu", "threads": threads, "capability": capability}
    return {**told, "arithmetic": _arithmetic(threads)}


@functools.cache
def _arithmetic(threads: int) -> str:
    """sha256 over what matrix products, convolutions, sums and exponentials come to, forwards and backwards, in both
    precisions, with this many threads. Its input is the same on every machine, and no sum of it is exact."""
    before, total = torch.get_num_threads(), hashlib.sha256()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            pixels = (torch.arange(64 * 3 * 16 * 16) * 7919 % 1009).float().div(1009).view(64, 3, 16, 16)
            weights = (torch.arange(24 * 3 * 9) * 104729 % 997).float().div(4999).view(24, 3, 3, 3).requires_grad_()
            hidden = F.batch_norm(F.conv2d(pixels, weights, padding=1), None, None, training=True)
            hidden = F.conv2d(hidden.relu(), weights.view(24, 27, 1, 1)[:, :24].repeat(2, 1, 3, 3), padding=1)
            hidden = F.max_pool2d(hidden, 2)
            scores = hidden.relu().flatten(1) @ pixels.flatten()[: 48 * 64 * 7].view(48 * 64, 7)
            loss = -torch.log_softmax(scores.tanh(), 1)[:, 0].mean()
            loss.backward()
            products = pixels.flatten(1).T @ pixels.flatten(1)
            with torch.autocast("cpu", dtype=torch.bfloat16):  # of which units differ where those for float32 agree
                half = F.conv2d(F.conv2d(pixels, weights, padding=1), weights.repeat(1, 8, 1, 1), padding=1)
                products_of_half = half.flatten(1) @ half.flatten(1).T
            half_gradient = torch.autograd.grad(half.float().square().mean(), weights)[0]
            values = (hidden, scores, loss, weights.grad, products, pixels.exp().sum(), half, products_of_half)
            for value in (*values, half_gradient):
                total.update(value.detach().float().numpy().tobytes())  # type: ignore[union-attr]
    finally:
        torch.set_num_threads(before)
    return total.hexdigest()[:16]


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    gpu = device.type == "cuda" and torch.cuda.is_available()
    named = torch.cuda.get_device_name(device) if gpu else _processor()
    versions = {package: _version(package) for package in ("torch", "torchvision", "numpy", "scipy", "pillow")}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **versions,
        "device": device.type,
        "device_name": named,
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
    }


def _processor() -> str:
    """The processor's name as Linux tells it, else as Python does."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
