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
