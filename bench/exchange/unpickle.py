"""Pickles and torch files of strangers, read as data: nothing that a file names is imported, let alone called.

Three walls. The opcodes are read through before anything is built: only those that data needs, no memo bombs. Names
are looked up in a list of stand-ins of ours, which check sizes against bytes. What is left at the end must be plain
values.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np
import torch

from bench.exchange.files import Refused, refusing

MOST_PIXELS_A_SIDE = 4096
DEEPEST = 8
# Python hashes tuples recursively without a guard: a few hundred thousand of them, nested, as a key kill the process.
MOST_TUPLES_BESIDE_KEYS = 50_000

_NEEDED = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS "
    "BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD"
)
OPCODES = frozenset(_NEEDED.split())
TORCH_OPCODES = OPCODES - {"STACK_GLOBAL", "NEWOBJ", "BUILD"} | {"BINPERSID"}
TORCH_STORAGES = ("Float", "Double", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool")
TORCH_GLOBALS = frozenset(
    [f"torch.{kind}Storage" for kind in TORCH_STORAGES] + ["torch._utils._rebuild_tensor_v2", "collections.OrderedDict"]
)


def load(data: bytes, what: str) -> Any:
    """The content of a pickle: None, numbers, text, bytes, lists, tuples and dicts of those.

    Images come as uint8 [h, w, 3]; numpy arrays and torch tensors as numpy arrays of plain numbers; numpy scalars as
    Python numbers. BadInput, with `what` as the file's name, for anything else.
    """
    with refusing(what):
        _scan(io.BytesIO(data), OPCODES, GLOBALS)
        return _plain(_Unpickler(io.BytesIO(data)).load(), {}, 0)


def load_torch(data: bytes, what: str) -> Any:
    """The content of a `torch.save` file, by torch's own reader for weights. BadInput as `load`."""
    with refusing(what):
        return _torch_load(data)


def _scan(file: BinaryIO, opcodes: frozenset[str], names: Iterable[str]) -> None:
    """Refused unless one pickle of `file` keeps to these opcodes and, where it spells them out, names."""
    count = tuples = highest = 0
    keys = False
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name not in opcodes:
            raise Refused(f"opcode {opcode.name} is not needed for data")
        count += 1
        tuples += opcode.name.startswith("TUPLE")
        keys |= opcode.name.startswith("SETITEM")
        if opcode.name.endswith("BINPUT") and isinstance(argument, int):
            highest = max(highest, argument)
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".", 1)
            if name not in names:
                raise Refused(_calls_for(name))
    if highest > count:
        raise Refused(f"memo number {highest} in a file of {count} opcodes")
    if keys and tuples > MOST_TUPLES_BESIDE_KEYS:
        raise Refused(f"{tuples} tuples beside dictionaries; allowed: up to {MOST_TUPLES_BESIDE_KEYS}")


def _calls_for(name: str) -> str:
    return f"it calls for {ascii(name[:80])}, which is not data"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise Refused(_calls_for(f"{module}.{name}")) from None


class _Function:
    """A stand-in for a callable. Unlike a plain function, it lets a pickle set no attribute of it."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a function gets a state")


class _Image:
    """Stands for PIL.Image.Image: state [info, mode, size, palette, pixels, ...]."""

    pixels: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, mode, (width, height), _, pixels = state[:5]
        if mode != "RGB":
            raise Refused(f"a image of mode {ascii(mode)[:20]}; allowed: RGB")
        if not (0 < width <= MOST_PIXELS_A_SIDE and 0 < height <= MOST_PIXELS_A_SIDE):
            raise Refused(f"a image larger than {MOST_PIXELS_A_SIDE} pixels a side, or empty")
        if len(pixels) != 3 * width * height:
            raise Refused(f"a image of {width}x{height} with {len(pixels)} bytes")
        self.pixels = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


class _DType:
    """Stands for numpy.dtype: plain numbers only."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[|<>=]?(b1|[iu][1248]|f[248])", name):
            raise Refused(f"an array of {ascii(name)[:20]}; allowed: plain numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise Refused("an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array or tensor; numpy may fill it in later: state (version, shape, dtype, is_fortran, bytes)."""

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.value = _frombuffer(data, kind, shape, "F" if fortran else "C").value


def _frombuffer(data: Any, kind: Any, shape: Any, order: str, axes: Any = None) -> _Array:
    if not isinstance(data, bytes | bytearray) or not isinstance(kind, _DType):
        raise Refused("an array of objects")
    if min(shape, default=0) < 0 or math.prod(shape) * kind.dtype.itemsize != len(data):
        raise Refused(f"an array of {ascii(shape)[:60]} with {len(data)} bytes")
    flat = np.frombuffer(data, kind.dtype) if data else np.empty(0, kind.dtype)
    if order == "K" and axes is not None:
        return _Array(flat.reshape(shape).transpose(axes))
    return _Array(flat.reshape(shape, order="F" if order == "F" else "C"))


def _scalar(kind: Any, data: Any) -> bool | int | float:
    value = _frombuffer(data, kind, (), "C").value
    assert value is not None
    return value.item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Refused("text in another encoding than latin1")
    return text.encode("latin1")


class _Storage:
    """Stands for the numbers of a tensor, which travel as the bytes of a torch file inside the pickle."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        raise Refused("a storage gets a state")


def _load_from_bytes(data: bytes) -> _Storage:
    found = _torch_load(data)
    if not isinstance(found, torch.storage.TypedStorage):
        raise Refused("a tensor without numbers")
    return _Storage(torch.tensor([], dtype=found.dtype).set_(found._untyped_storage))


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Array:
    if math.prod(size) > len(storage.values):
        raise Refused(f"a tensor of {ascii(size)[:60]} with {len(storage.values)} numbers")
    # as_strided checks the bounds.
    return _Array(torch.as_strided(storage.values, size, stride, offset).contiguous().numpy())


def _torch_load(data: bytes) -> Any:
    file = io.BytesIO(data)
    if data[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if any(".." in part.filename or part.filename.startswith("/") for part in parts):
                raise Refused("a path out of the archive")
            # torch stores without compression; a compressed part may be a bomb.
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or (
                sum(part.file_size for part in parts) > len(data)
            ):
                raise Refused("a compressed archive")
            for part in parts:
                if part.filename.endswith(".pkl"):
                    _scan(io.BytesIO(archive.read(part)), TORCH_OPCODES, TORCH_GLOBALS)
    else:
        for _ in range(5):  # magic number, version, machine, content, names of the storages
            _scan(file, TORCH_OPCODES, TORCH_GLOBALS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the class TypedStorage is on its way out; files name it still
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _empty_dict() -> dict[str, Any]:
    """collections.OrderedDict(): the hooks of a tensor."""
    return {}


GLOBALS: dict[str, Any] = {
    "PIL.Image.Image": _Image,
    "_codecs.encode": _Function(_encode),
    "collections.OrderedDict": _Function(_empty_dict),
    "numpy.dtype": _DType,
    "numpy.ndarray": _Function(lambda: None),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch.storage._load_from_bytes": _Function(_load_from_bytes),
}
for _package in ("numpy.core", "numpy._core"):
    GLOBALS[f"{_package}.multiarray._reconstruct"] = _Function(lambda *_: _Array())
    GLOBALS[f"{_package}.multiarray.scalar"] = _Function(_scalar)
    GLOBALS[f"{_package}.numeric._frombuffer"] = _Function(_frombuffer)


def _plain(value: Any, done: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """`value` with its stand-ins replaced. done: by identity, so that what is shared costs once."""
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    if depth > DEEPEST:
        raise Refused(f"nested more than {DEEPEST} deep")
    if id(value) in done:
        return done[id(value)][1]
    found: Any
    if isinstance(value, list | tuple):
        found = type(value)(_plain(part, done, depth + 1) for part in value)
    elif isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise Refused("a dictionary with keys that are not text")
        found = {key: _plain(part, done, depth + 1) for key, part in value.items()}
    elif isinstance(value, _Image):
        found = value.pixels
    elif isinstance(value, _Array):
        found = value.value
    else:
        raise Refused("an object that is no number, text, image or array")
    if found is None:
        raise Refused("an object without content")
    done[id(value)] = (value, found)
    return found
