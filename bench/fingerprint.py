"""What code and what machine made a number."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import bench

SHAPES_NUMBERS = (
    "bench.training",
    "bench.augmentation",
    "bench.seeds",
    "bench.threat",
    "bench.trigger",
    "bench.networks",
    "bench.poisons",
    "bench.evaluation",
    "bench.models.base",
)
"""Modules of the frame whose code shapes every number. Services (store, tracking, command line) do not."""


def code(*makers: Any) -> str:
    """sha256 over the meaning of the code behind plug-ins and frame: comments, docstrings and layout do not count.

    makers: plug-in classes or functions; their modules and those that these import from the same package are included.
    """
    modules = {name for name in SHAPES_NUMBERS}
    for maker in makers:
        modules |= _closure(maker.__module__)
    total = hashlib.sha256()
    for name in sorted(modules):
        total.update(f"{name if not name.startswith('plugin_') else 'plugin'} {_meaning(name)}\n".encode())
    return total.hexdigest()


@functools.cache
def _closure(module: str) -> frozenset[str]:
    """The module and all that it imports, directly or not, from its own package and from the plug-in packages."""
    packages = tuple(f"{package}." for package in {module.rpartition(".")[0], "attacks", "defenses"} if package)
    found, todo = {module}, [module]
    while todo:
        for node in ast.walk(ast.parse(_source(todo.pop()))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.startswith(packages) and not name.startswith("bench.") and name not in found:
                    found.add(name)
                    todo.append(name)
    return frozenset(found)


@functools.cache
def _meaning(module: str) -> str:
    tree = ast.parse(_source(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _source(module: str) -> str:
    loaded: ModuleType = sys.modules.get(module) or importlib.import_module(module)
    return inspect.getsource(loaded)


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


def environment(device: torch.device) -> dict[str, Any]:
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
        "threads": torch.get_num_threads(),
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
