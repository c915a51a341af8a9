"""`python -m bench new`: a plug-in that works at once, with its test, made from the templates."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
from importlib import resources
from pathlib import Path

from bench.foundation import commands, files
from bench.foundation.errors import BadInput
from bench.foundation.registry import names


def scaffold(kind: str, name: str, folder: Path) -> tuple[Path, Path]:
    """Write folder/<name>.py with an attack or a defense, and its test beside it; return both paths.

    BadInput, and nothing written, for a name that is invalid, taken, or that of an installed package, and when a file
    exists already.
    """
    _check_name(kind, name)
    plugin, test = folder / f"{name}.py", folder / f"test_{name}.py"
    for path in (plugin, test):
        if os.path.lexists(path):
            raise BadInput(f"file exists: '{path}'; fix: another name, or --dir DIR")
    if importlib.util.find_spec(name) is not None:
        raise BadInput(f"'{name}' is an installed module that {name}.py would hide; fix: another name")
    written = []
    try:
        for path, template in ((plugin, f"my_{kind}.py"), (test, f"test_my_{kind}.py")):
            files.write_bytes(path, _filled(template, kind, name).encode())
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise BadInput(f"'{folder}' cannot be written: {error.strerror}; fix: --dir DIR") from None
    return plugin, test


def next_steps(kind: str, plugin: Path, test: Path) -> str:
    """What to do with the two files, as lines of commands."""
    attack = [] if kind == "attack" else ["--attack", "gm"]
    return (
        f"wrote {plugin} and {test}\n"
        f"check       {commands.bench('check', plugin)}\n"
        f"test        python -m pytest {shlex.quote(str(test))}\n"
        f"run         {commands.bench('run', *attack, f'--{kind}', plugin)}\n"
        f"contribute  put {plugin.name} in {kind}s/ and {test.name} in tests/{kind}s/; see CONTRIBUTING.md"
    )


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name) or keyword.iskeyword(name):
        raise BadInput(
            f"'{name}' cannot be the name of a plug-in file; allowed: lower-case letters, digits and _, as in my_{kind}"
        )
    registered = name.replace("_", "-")
    for registered_kind in ("attack", "defense"):
        if {name, registered} & set(names(registered_kind)):
            raise BadInput(f"the name '{registered}' is taken by another plug-in; fix: another name")


def _filled(template: str, kind: str, name: str) -> str:
    text = (resources.files("bench.authoring.templates") / template).read_text("utf-8")
    title, camel = kind.capitalize(), "".join(part.capitalize() for part in name.split("_"))
    class_name = camel if camel.endswith(title) and camel != title else camel + title
    for placeholder, word in ((f"my_{kind}", name), (f"my-{kind}", name.replace("_", "-")), (f"My{title}", class_name)):
        text = text.replace(placeholder, word)
    return text
