"""Pickles and torch files of strangers, read as data: nothing that a file names is imported, let alone called.

Three walls. The opcodes are read through before anything is built: only those that data needs, no memo bombs. Names
are looked up in a list of stand-ins of ours, which check sizes against bytes. What is left at the end must be plain
values.
"""

from __future__ import annotations

import functools
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

MOST_PIXELS_PER_SIDE = 4096
DEEPEST = 8
# Python hashes tuples recursively without a guard: a few hundred thousand of them, nested, as a key kill the process.
MOST_TUPLES_WITH_KEYS = 50_000

_NEEDED = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS "
    "BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD"
)
OPCODES = frozenset(_NEEDED.split())
TORCH_OPCODES = OPCODES - {"STACK_GLOBAL", "NEWOBJ", "BUILD"} | {"BINPERSID"}
STORAGES = {
    f"torch.{kind.title()}Storage": getattr(torch, kind)
    for kind in ("float", "double", "half", "long", "int", "short", "bool")
}
STORAGES |= {"torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8}
TORCH_GLOBALS = frozenset([*STORAGES, "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"])

ARCHIVE_OPCODES = OPCODES - {"STACK_GLOBAL", "NEWOBJ"} | {"BINPERSID"}


def load(data: bytes, source: str) -> Any:
    """The content of a pickle: None, numbers, text, bytes, lists, tuples and dicts of those.

    Images come as uint8 [h, w, 3]; numpy arrays and torch tensors as numpy arrays of plain numbers; numpy scalars as
    Python numbers. BadInput, with `source` as the file's name, for anything else.
    """
    with refusing(source):
        _scan(io.BytesIO(data), OPCODES, GLOBALS)
        return _plain(_Unpickler(io.BytesIO(data)).load(), {}, 0)


def load_torch(data: bytes, source: str) -> Any:
    """The content of a `torch.save` file; tensors come as numpy arrays or, from files of torch before 1.6, as tensors.
    BadInput as `load`."""
    with refusing(source):
        return _torch_load(data)


def _scan(file: BinaryIO, opcodes: frozenset[str], names: Iterable[str]) -> None:
    """Refused unless one pickle of `file` keeps to these opcodes and, where it spells them out, names."""
    count = tuples = highest = 0
    keys = False
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name not in opcodes:
            raise Refused(f"opcode {opcode.name}, which data does not need")
        count += 1
        tuples += opcode.name.startswith("TUPLE")
        keys |= opcode.name.startswith("SETITEM")
        if opcode.name.endswith("BINPUT") and isinstance(argument, int):
            highest = max(highest, argument)
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".", 1)
            if name not in names:
                raise Refused(_not_data(name))
    if highest > count:
        raise Refused(f"memo number {highest} in a file of {count} opcodes")
    if keys and tuples > MOST_TUPLES_WITH_KEYS:
        raise Refused(f"{tuples} tuples in a file with dictionaries; allowed: up to {MOST_TUPLES_WITH_KEYS}")


def _not_data(name: str) -> str:
    return f"it names {ascii(name[:80])}, which is not data"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise Refused(_not_data(f"{module}.{name}")) from None


class _Function:
    """A stand-in for a callable. Unlike a plain function, it lets a pickle set no attribute of it."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Refused("pickle sets state on a function")


class _Image:
    """Stands for PIL.Image.Image: state [info, mode, size, palette, pixels, ...]."""

    pixels: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, mode, (width, height), _, pixels = state[:5]
        if mode != "RGB":
            raise Refused(f"an image of mode {ascii(mode)[:20]}; allowed: RGB")
        if not (0 < width <= MOST_PIXELS_PER_SIDE and 0 < height <= MOST_PIXELS_PER_SIDE):
            raise Refused(f"an image larger than {MOST_PIXELS_PER_SIDE} pixels per side, or empty")
        if len(pixels) != 3 * width * height:
            raise Refused(f"an image of {width}x{height} with {len(pixels)} bytes")
        self.pixels = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


class _DType:
    """Stands for numpy.dtype: plain numbers only."""

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[|<>=]?(b1|[iu][1248]|f[248])", name):
            raise Refused(f"an array of {ascii(name)[:20]}; allowed: plain numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(value is not None for value in rest[:3]):
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
        raise Refused("text in an encoding other than latin1")
    return text.encode("latin1")


class _Storage:
    """Stands for the numbers of a tensor, stored as the bytes of a torch file inside the pickle."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        raise Refused("pickle sets state on a storage")


def _load_from_bytes(data: bytes) -> _Storage:
    storage = _torch_load(data)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused("a tensor without numbers")
    return _Storage(torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage))


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Array:
    if math.prod(size) > len(storage.values):
        raise Refused(f"a tensor of {ascii(size)[:60]} with {len(storage.values)} numbers")
    # as_strided checks the bounds.
    return _Array(torch.as_strided(storage.values, size, stride, offset).contiguous().numpy())


def _torch_load(data: bytes) -> Any:
    """By torch's own reader for weights; zipped files, which may hold arrays of numpy too, by ours."""
    if data[:2] == b"PK":
        return _of_archive(zipfile.ZipFile(io.BytesIO(data)), len(data))
    file = io.BytesIO(data)
    for _ in range(5):  # magic number, version, machine, content, names of the storages
        _scan(file, TORCH_OPCODES, TORCH_GLOBALS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated, but files still name it
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _of_archive(archive: zipfile.ZipFile, size: int) -> Any:
    """The content of a zipped torch file of `size` bytes, which holds plain values, tensors and numpy arrays."""
    entries = archive.infolist()
    if any(".." in entry.filename or entry.filename.startswith("/") for entry in entries):
        raise Refused("a path that leads out of the archive")
    # torch stores without compression; a compressed entry may be a bomb.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
        sum(entry.file_size for entry in entries) > size
    ):
        raise Refused("a compressed archive")
    names = [entry.filename for entry in entries]
    root, *more = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")] or [""]
    if more or f"{root}version" not in names:
        raise Refused("it is not an archive of torch")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise Refused("numbers in another byte order")
    pickled = archive.read(f"{root}data.pkl")
    _scan(io.BytesIO(pickled), ARCHIVE_OPCODES, ARCHIVE_GLOBALS)
    return _plain(_ArchiveUnpickler(pickled, lambda key: archive.read(f"{root}data/{key}")).load(), {}, 0)


class _ArchiveUnpickler(_Unpickler):
    """Of the pickle in a zipped torch file. read: the bytes of a storage by its key."""

    def __init__(self, pickled: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._read = functools.cache(read)  # a storage may be named many times

    def find_class(self, module: str, name: str) -> Any:
        return STORAGES.get(f"{module}.{name}") or super().find_class(module, name)

    def persistent_load(self, name: Any) -> _Storage:
        kind, dtype, key, *_ = name
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not re.fullmatch(r"[0-9]{1,9}", key):
            raise Refused("a storage without numbers")
        data = bytearray(self._read(key))
        return _Storage(torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype))


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

ARCHIVE_GLOBALS = TORCH_GLOBALS | {name for name in GLOBALS if name.startswith(("numpy.", "_codecs."))}


def _plain(value: Any, replaced: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """`value` with its stand-ins replaced. replaced: by identity, so that shared values cost once."""
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    if depth > DEEPEST:
        raise Refused(f"nested more than {DEEPEST} deep")
    if id(value) in replaced:
        return replaced[id(value)][1]
    plain: Any
    if isinstance(value, list | tuple):
        plain = type(value)(_plain(item, replaced, depth + 1) for item in value)
    elif isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise Refused("a dictionary with keys that are not text")
        plain = {key: _plain(item, replaced, depth + 1) for key, item in value.items()}
    elif isinstance(value, _Image):
        plain = value.pixels
    elif isinstance(value, _Array):
        plain = value.value
    else:
        raise Refused("unsupported object; allowed: numbers, text, images and arrays")
    if plain is None:
        raise Refused("an object without content")
    replaced[id(value)] = (value, plain)
    return plain
