"""Plug-ins by name: attacks, defenses, data sets and models register with a decorator and are found here.

A variant is a name plus settings::

    @register("defense", "friends-b", noise="bernoulli")
    @register("defense", "friends-u", noise="uniform")
    class Friends(Defense): ...

Engines, figures and file formats are announced instead: listing their names and cards imports none of them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import multiprocessing
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from bench.foundation.errors import BadInput, nearest
from bench.foundation.guests import guest
from bench.foundation.names import word
from bench.foundation.shown import echo

T = TypeVar("T")
PLUGINS = {kind: f"bench.{kind}s" for kind in ("attack", "defense", "dataset", "model")}
ANNOUNCED = {"engine": "bench.execution.engines", "figure": "bench.figures", "format": "bench.exchange"}
KINDS = PLUGINS | ANNOUNCED
"""The package of each kind: of PLUGINS every module is imported, those of ANNOUNCED say themselves what they hold."""
OF_THE_FRAME = {"attack": "bench.exchange.imported"}
"""A plug-in that stands on more than a plug-in may: poisons from elsewhere."""


@dataclass(frozen=True)
class Plugin:
    """One registered name: the class (or function) behind it and the settings that make the variant.

    source: what is registered, or where an announced one is, as `module` or `module:attribute`.
    """

    kind: str
    name: str
    source: Any
    variant: dict[str, Any] = field(default_factory=dict)
    summary: str = ""

    @property
    def make(self) -> Any:
        """What is registered; an announced one is imported now. BadInput when a library that it needs is missing."""
        if not isinstance(self.source, str):
            return self.source
        try:
            return pkgutil.resolve_name(self.source)
        except ModuleNotFoundError as error:
            raise BadInput(
                f"{self.kind} '{self.name}' needs {error.name}, which is not installed; fix: pip install {error.name}"
            ) from None

    @property
    def card(self) -> str:
        """The docstring of the class, or of its module: paper, threat model, needs, cost."""
        return self.summary or (self.make.__doc__ or sys.modules[self.make.__module__].__doc__ or "").strip()


_found: dict[str, dict[str, Plugin]] = {kind: {} for kind in KINDS}
_loaded: set[str] = set()
_of_file: dict[str, dict[str, list[str]]] = {}  # what a plug-in file registered: module -> kind -> names


def register(kind: str, name: str, **variant: Any) -> Callable[[T], T]:
    """Class decorator: make a plug-in known as `name`, with `variant` as settings over its defaults. BadInput unless
    the name is a word (see `bench.foundation.names`): it becomes a folder of records."""
    return functools.partial(_add, kind, word(name, f"a plug-in ({kind})"), variant)


def _add(kind: str, name: str, variant: dict[str, Any], make: T) -> T:
    plugin, registered = Plugin(kind, name, make, variant), _found[kind].get(name)
    if registered is not None and registered != plugin:
        where = getattr(registered.source, "__module__", registered.source)
        raise BadInput(f"two {kind}s are called '{name}': one in {where}; fix: another name")
    _found[kind][name] = plugin
    return make


def announce(kind: str, table: Mapping[str, tuple[str, str]]) -> None:
    """Make names known with (source, card); a source (`module` or `module:attribute`) is imported on its first use."""
    plugins = {
        name: Plugin(kind, word(name, f"a {kind}"), source, summary=card) for name, (source, card) in table.items()
    }
    _found[kind].update(plugins)


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    _load(kind)
    return sorted(_found[kind])


def find(kind: str, name: str) -> Plugin:
    """The plug-in called `name`, or defined in the Python file `name`. BadInput if there is none."""
    if kind in ("attack", "defense") and name.endswith(".py"):
        name = _load_file(kind, Path(name))
    _load(kind)
    if name not in _found[kind]:
        raise BadInput(f"unknown {kind} '{name}'{nearest(name, _found[kind])}")
    return _found[kind][name]


def _load(kind: str) -> None:
    if kind in _loaded:
        return
    _loaded.add(kind)
    package = importlib.import_module(KINDS[kind])
    for module in pkgutil.iter_modules(package.__path__) if kind in PLUGINS else ():
        if not module.ispkg:  # what plug-ins share
            importlib.import_module(f"{KINDS[kind]}.{module.name}")
    if kind in OF_THE_FRAME:
        importlib.import_module(OF_THE_FRAME[kind])
    for entry in metadata.entry_points(group=f"bench.{kind}s"):
        _load_entry(entry)


def _load_entry(entry: metadata.EntryPoint) -> None:
    """Import a plug-in of an installed package. A broken one is said in one line and must not take the tool down."""
    before = {each: dict(plugins) for each, plugins in _found.items()}
    try:
        with guest():
            entry.load()
    except Exception as error:
        _found.update(before)  # nothing half-made stays
        if multiprocessing.parent_process() is None:  # once, not again from every worker
            package = f" of package '{entry.dist.name}'" if entry.dist is not None else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            echo(f"plug-in '{entry.name}'{package} ({entry.value}) could not be loaded: {reason}", err=True)


def _load_file(kind: str, path: Path) -> str:
    """Import a plug-in file given on the command line; return the one name of `kind` that it registers."""
    if not path.is_file():
        raise BadInput(f"no {kind} file '{path}': give a registered name or the path of an existing .py file")
    _load(kind)
    module_name = "plugin_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    if module_name not in sys.modules:
        before = {each: dict(plugins) for each, plugins in _found.items()}
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            with guest():
                spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            _found.update(before)
            if isinstance(error, BadInput):
                raise BadInput(f"{kind} file '{path}': {error}") from None
            raise BadInput(f"{kind} file '{path}' cannot be imported: {type(error).__name__}: {error}") from error
        _of_file[module_name] = {
            each: [n for n in plugins if n not in before[each]] for each, plugins in _found.items()
        }
    registered = _of_file[module_name][kind]
    if not registered:
        raise BadInput(f'{kind} file \'{path}\' registers no {kind}: add @register("{kind}", "my-name") to its class')
    return registered[0]
