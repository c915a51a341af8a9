"""Whatever is in a protocol or sweep file, it is understood or refused in one line: never a traceback.

300 documents of each kind; `BENCH_CASES=10000` for more of them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.foundation.errors import BadInput
from bench.foundation.registry import find, names
from bench.foundation.settings import Settings
from bench.request import sweep_file
from bench.request.protocol_file import SECTIONS, ProtocolFile, protocol_names, read_preset, resolve
from bench.science.selection import select_attacks, select_defenses
from bench.science.threat import Threat
from bench.science.training import Recipe
from bench.storage.store import key_of

CASES = settings(max_examples=int(os.environ.get("BENCH_CASES", "300")), derandomize=True, deadline=None, database=None)
# Values that have gone wrong somewhere: borders of numbers, what is no number, names of other things, odd text, nests.
BORDERS = [0, 1, -1, 2, 255, 2**31, 2**53, 2**63 - 1, -(2**63), 0.5, 1.0, -0.0, 1e-300, 1e308]
ODD = ["", "gm", "none", "quick", "folder:/nowhere", "folder:\0", "photographs", "../../x", "a/b.toml", "x.py", "lenet"]
RAW = [
    *("inf", "nan", "1e999", "9" * 5000, "0x" + "f" * 5000, "1979-05-27T07:32:00Z", "07:32:00", "'''\n'''"),
    *("[" * 900 + "]" * 900, "[" * 14 + "]" * 14, "{a = {b = 1}}", "[[1], ['x']]", "", "=", "[[block]]", '"\\ud800"'),
]


quoted = partial(json.dumps, ensure_ascii=False)  # TOML knows no pairs of surrogates


def rendered(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {rendered(inner)}" for key, inner in value.items()) + "}"
    return "[" + ", ".join(map(rendered, value)) + "]" if isinstance(value, list) else quoted(value)


def fields_of(section: str) -> list[str]:
    """The keys that a section of a protocol file knows."""
    if section.endswith("dataset"):
        kinds = (find("dataset", name).make.Settings for name in names("dataset"))
        return ["name", *(field for kind in kinds for field in kind.model_fields)]
    known: dict[str, type[Settings]] = {"threat": Threat}
    return list(known.get(section, Recipe).model_fields)


scalars = st.one_of(
    st.sampled_from(BORDERS), st.sampled_from(ODD), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)
)
values = st.one_of(
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)
    ).map(rendered),
    st.sampled_from(RAW),
)


def keys(known: list[str]) -> st.SearchStrategy[str]:
    """Mostly real ones; of the others some are close to one."""
    close = st.sampled_from(known).flatmap(
        lambda key: st.sampled_from([key[:-1], key.upper(), f"{key}.{key}", f"{key}s"])
    )
    return st.one_of(*3 * [st.sampled_from(known)], close, st.text(max_size=5).map(quoted))


def lines(known: list[str], most: int = 3) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(keys(known), values), max_size=most, unique_by=lambda pair: pair[0]).map(
        lambda pairs: "\n".join(map(" = ".join, pairs))
    )


def of_plugins(kind: str) -> st.SearchStrategy[str]:
    def section(name: str) -> st.SearchStrategy[str]:
        return lines([*find(kind, name).make.Settings.model_fields, "x"]).map(
            lambda text: f"[{kind}.{quoted(name)}]\n{text}"
        )

    return st.sampled_from(names(kind)).flatmap(section)


def of_section(name: str) -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from([f"[{name}]", f"[[{name}]]", f"[{name}.x]"]), lines(fields_of(name))).map(
        "\n".join
    )


plain = [name for name in ProtocolFile.model_fields if name not in ("attack", "defense")]
sections = st.sampled_from([name for name in SECTIONS if name not in ("attack", "defense")]).flatmap(of_section)
protocols = st.tuples(
    lines(plain), st.lists(sections | of_plugins("attack") | of_plugins("defense"), max_size=3).map("\n".join)
).map("\n".join)
blocks = st.lists(lines(list(sweep_file.SweepFile.model_fields)).map("[[block]]\n{}".format), max_size=3).map("\n".join)
sweeps = st.tuples(lines(list(sweep_file.SweepFile.model_fields)), blocks).map("\n".join)


@st.composite
def mutated(draw: st.DrawFn, texts: list[str]) -> bytes:
    """A file of ours with some pieces replaced by other bytes, left out, or there twice."""
    data = draw(st.sampled_from(texts)).encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(
            st.binary(max_size=4) | st.just(2 * data[start:end]) | st.sampled_from([b"=", b"[", b"]", b'"', b"\n"])
        )
        data = data[:start] + piece + data[end:]
    return data


def documents(made: st.SearchStrategy[str], texts: list[str]) -> st.SearchStrategy[bytes]:
    encoded = made.map(lambda text: text.encode("utf-8", "surrogatepass"))
    utf16 = made.map(lambda text: text.encode("utf-16", "surrogatepass"))
    return st.integers(0, 9).flatmap(
        lambda die: (
            st.binary(max_size=60) if die == 0 else utf16 if die == 1 else mutated(texts) if die < 4 else encoded
        )
    )


@pytest.fixture(scope="module")
def attempt() -> Iterator[Callable[[Callable[[str], None], bytes], None]]:
    """Have a file with this content read; all but BadInput, in one line, is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"

        def read(reader: Callable[[str], None], data: bytes) -> None:
            path.write_bytes(data)
            try:
                reader(str(path))
            except BadInput as error:
                assert "\n" not in str(error) and 0 < len(str(error)) < 2100

        yield read


def as_protocol(path: str) -> None:
    protocol, changes = resolve(path, [])
    key_of(protocol.as_dict())
    select_attacks(["gm"], protocol, changes)
    select_defenses(["friends-b", "spectral+noise-b"], protocol, changes)


def as_sweep(path: str) -> None:
    for request in sweep_file.read(path)[0]:
        for protocol in request.protocols[:3]:
            resolve(protocol, request.sets(), request.dataset)


@CASES
@given(data=documents(protocols, [read_preset(name)[1] for name in protocol_names()]))
def test_any_protocol_file_is_understood_or_refused_in_one_line(attempt: Any, data: bytes) -> None:
    attempt(as_protocol, data)


@CASES
@given(data=documents(sweeps, [sweep_file.read(name)[2] for name in sweep_file.names()]))
def test_any_sweep_file_is_understood_or_refused_in_one_line(attempt: Any, data: bytes) -> None:
    attempt(as_sweep, data)


@CASES
@given(
    item=st.tuples(
        st.sampled_from([*(f"{name}." for name in SECTIONS), "", "x."]),
        keys(fields_of("threat")),
        st.just("="),
        values | st.text(),
    ).map("".join)
)
def test_any_item_of_set_is_understood_or_refused_in_one_line(attempt: Any, item: str) -> None:
    attempt(lambda _: as_protocol_with(item), b"")


def as_protocol_with(item: str) -> None:
    protocol, changes = resolve("quick", [item])
    key_of(protocol.as_dict())
    select_attacks(["gm"], protocol, changes)
    select_defenses(["friends-b"], protocol, changes)
