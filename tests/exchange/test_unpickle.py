"""Pickles of strangers: data comes out, everything else is one line, and nothing is run."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.exchange import unpickle
from bench.foundation.errors import BadInput

IMAGE = Image.fromarray(np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3))
DTYPE = np.dtype("int64")
RECONSTRUCT, RECONSTRUCTED, _ = np.arange(3).__reduce__()  # type: ignore[str-unpack]
TENSOR, TENSOR_PARTS = torch.arange(6.0).__reduce_ex__(2)


class Calls:
    """Pickles as the call function(*arguments), then state."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def refused(read: Callable[[], Any]) -> str:
    """The one line that reading ends in."""
    with pytest.raises(BadInput) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400 and line.startswith("'some file': refused: ")
    return line


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6), np.arange(12.0).reshape(3, 4), np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1), np.arange(3, dtype=">i4"), np.array([True, False]),
        np.float32([1.5, np.nan]), np.uint8([7]),  # type: ignore[arg-type]
    ],
    ids=str,
)  # fmt: skip
def test_arrays_come_back(value: np.ndarray, protocol: int) -> None:
    found = unpickle.load(pickle.dumps(value, protocol), "a file")
    assert type(found) is np.ndarray and found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_come_back(protocol: int) -> None:
    transposed = torch.arange(6.0).view(2, 3).t()
    value = {
        "image": IMAGE, "pair": (IMAGE, 3), "scalar": np.int64(-4), "float": np.float32(0.5),
        "text": "latin \xe9", "ordered": OrderedDict(a=1), "none": None, "list": [1, 2.5],
        "tensor": torch.tensor([3, 1]), "part": torch.arange(9)[3:5], "turned": transposed,
    }  # fmt: skip
    found = unpickle.load(pickle.dumps(value, protocol), "a file")
    assert list(found) == list(value)
    np.testing.assert_array_equal(found["image"], np.asarray(IMAGE))
    assert found["pair"][1] == 3 and found["pair"][0] is found["image"]
    assert type(found["scalar"]) is int and found["scalar"] == -4 and found["float"] == 0.5
    assert found["text"] == value["text"] and found["none"] is None and found["list"] == [1, 2.5]
    assert found["ordered"] == {"a": 1}
    assert found["tensor"].tolist() == [3, 1] and found["part"].tolist() == [3, 4]
    np.testing.assert_array_equal(found["turned"], transposed.numpy())


def test_names_of_older_numpy_are_known() -> None:
    new = pickle.dumps([np.arange(3), np.int64(2)], 2)
    old = new.replace(b"numpy._core.", b"numpy.core.")
    assert old != new and unpickle.load(old, "a file")[1] == 2


def test_states_of_newer_pillow_are_known() -> None:
    state = [*IMAGE.__getstate__(), "more"]
    np.testing.assert_array_equal(unpickle.load(pickle.dumps(Calls(Image.Image, state=state)), ""), np.asarray(IMAGE))


def _legacy(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def _zipped(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("write", [_legacy, _zipped])
def test_torch_files_come_back(write: Callable[[Any], bytes]) -> None:
    delta, ids = unpickle.load_torch(write([torch.arange(4.0, requires_grad=True), [3, 1]]), "a file")
    assert delta.tolist() == [0, 1, 2, 3] and ids == [3, 1]


@pytest.mark.parametrize("dtype", unpickle.STORAGES.values(), ids=str)
def test_tensors_and_arrays_of_zipped_torch_files_come_back(dtype: torch.dtype) -> None:
    whole = torch.arange(24).view(4, 6).to(dtype)
    value = {"whole": whole, "part": whole[1:3, ::2], "turned": whole.t(), "empty": whole[:0], "array": np.arange(3)}
    found = unpickle.load_torch(_zipped(value), "a file")
    for name, wanted in value.items():
        assert type(found[name]) is np.ndarray
        np.testing.assert_array_equal(found[name], np.asarray(wanted))


def _tensor(**changes: Any) -> Calls:
    names = ("storage", "offset", "size", "stride", "grad", "hooks")
    return Calls(TENSOR, *{**dict(zip(names, TENSOR_PARTS, strict=False)), **changes}.values())


def _array(shape: Any = (1,), dtype: Any = DTYPE, data: Any = bytes(8)) -> Calls:
    return Calls(RECONSTRUCT, *RECONSTRUCTED, state=(1, shape, dtype, False, data))  # type: ignore[arg-type]


def _image(mode: Any = "RGB", size: Any = (1, 1), pixels: Any = bytes(3)) -> Calls:
    return Calls(Image.Image, state=[{}, mode, size, None, pixels])


def _loop() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


LIES = {
    "image larger than its bytes": (_image(size=(4000, 4000)), "with 3 bytes"),
    "image of no size": (_image(size=(0, 1), pixels=b""), "empty"),
    "image of negative size": (_image(size=(-1, -1)), "empty"),
    "image of a huge size": (_image(size=(2**40, 1)), "4096"),
    "image of grey levels": (_image(mode="L", pixels=b"a"), "'L'"),
    "image with a palette": (IMAGE.convert("P"), "'P'"),
    "image without pixels": (_image(pixels=None), "TypeError"),
    "image of text": (_image(pixels="abc"), ""),
    "image without state": (Calls(Image.Image), "without content"),
    "array larger than its bytes": (_array((10**12,)), "1000000000000"),
    "array of negative shape": (_array((-1,)), "-1"),
    "array of overflowing shape": (_array((2**62, 4)), ""),
    "array of objects": (np.array([{}, ()], dtype=object), "'O8'"),
    "array of records": (np.zeros(2, [("a", "i4")]), "'V4'"),
    "array of text": (np.array(["ab"]), "'U2'"),
    "array of dates": (np.zeros(2, "M8[s]"), "'M8'"),
    "array of complex numbers": (np.zeros(2, complex), "'c16'"),
    "array without state": (Calls(RECONSTRUCT, *RECONSTRUCTED), "without content"),  # type: ignore[arg-type]
    "array whose type is no type": (_array(dtype="int64"), "objects"),
    "tensor larger than its storage": (_tensor(size=(10**12,)), "6 numbers"),
    "tensor beyond its storage": (_tensor(offset=3), "out of bounds"),
    "tensor of negative offset": (_tensor(offset=-1), ""),
    "tensor of wide strides": (_tensor(stride=(10**15,)), ""),
    "tensor of negative strides": (_tensor(stride=(-1,)), ""),
    "tensor spread by stride 0": (_tensor(size=(2**40,), stride=(0,)), ""),
    "tensor without storage": (_tensor(storage=None), "AttributeError"),
    "sparse tensor": (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    "parameter": (torch.nn.Parameter(torch.ones(2)), "torch._utils._rebuild_parameter"),
    "set": ({1, 2}, "EMPTY_SET"),
    "frozen set": (frozenset([1]), "FROZENSET"),
    "complex number": (1j, "builtins.complex"),
    "path": (Path("a"), "pathlib"),
    "list in itself": (_loop(), "nested"),
    "dictionary with odd keys": ({(1, 2): 3}, "keys"),
    "a bare type": (np.ndarray, "unsupported object"),
    "a bare dtype": (DTYPE, "unsupported object"),
    "a stand-in that gets a state": (Calls(Calls, state={"a": 1}), "tests.exchange.test_unpickle.Calls"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_lying_pickle_is_refused(case: str, protocol: int) -> None:
    value, hint = LIES[case]
    line = refused(lambda: unpickle.load(pickle.dumps(value, protocol), "'some file'"))
    assert hint in line or protocol == 2


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80", b"\x80\x04", b"\x80\x04.", b"\x80\xff.", b"noise\x00" * 9, bytes(range(256)),
        pickle.dumps([IMAGE, 3])[:-1], pickle.dumps([IMAGE, 3])[:40], pickle.dumps(list(range(9)), 0),
        b"\x80\x04h\x05.", b"\x80\x04(.", b"\x80\x04N0N", b"\x80\x04NNs.", b"\x80\x04a.", b"\x80\x04u.", b"\x80\x04R.",
        b"\x80\x04NN\x93.", b"\x80\x04K\x01b.", b"\x80\x04]]b.", b"\x80\x04)\x81.", b"\x80\x04]N\x81.",
        b"\x80\x04\x95" + b"\xff" * 8 + b".", b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", b"\x80\x04B\xff\xff\xff\x7f.",
        b"\x80\x02Nr\xff\xff\xff\x7f.", b"\x80\x02Np2147483647\n.", b"\x80\x02\x82\x01.",
        b"\x80\x02\x84\x01\x00\x00\x00.",
        b"\x80\x02Pname\n.", b"\x80\x02NQ.", b"\x80\x05\x97.", b"\x80\x02(ios\nsystem\n.", b"\x80\x02(cos\nsystem\no.",
        b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
        b"\x80\x04)" + b"\x85" * 400_000 + b".",
        b"\x80\x04})" + b"\x85" * 400_000 + b"Ns.",
    ],
    ids=lambda data: repr(data[:12]),
)  # fmt: skip
def test_a_broken_pickle_is_refused(data: bytes) -> None:
    refused(lambda: unpickle.load(data, "'some file'"))
    refused(lambda: unpickle.load_torch(data, "'some file'"))


@pytest.mark.parametrize("name", unpickle.GLOBALS)
def test_no_stand_in_can_be_changed(name: str) -> None:
    """BUILD sets attributes of what lies on the stack; it must not reach what later files are read with."""
    module, _, function = name.rpartition(".")
    before = dict(vars(unpickle.GLOBALS[name]))
    state = b"N}X\x01\x00\x00\x00aK\x01s\x86b."  # BUILD with (None, {"a": 1})
    refused(lambda: unpickle.load(f"\x80\x02c{module}\n{function}\n".encode("latin1") + state, "'some file'"))
    assert dict(vars(unpickle.GLOBALS[name])) == before


EVIL = {
    "os.system": (os.system, "touch {}", f"{os.name}.system"),
    "eval": (eval, "open({!r}, 'w')", "builtins.eval"),
    "exec": (exec, "open({!r}, 'w')", "builtins.exec"),
    "subprocess": (subprocess.check_output, ["touch", "{}"], "subprocess.check_output"),
    "open": (open, "{}", "open"),
    "numpy.save": (np.save, "{}", "numpy.save"),
    "torch.load": (torch.load, "{}", "torch.serialization.load"),
    "getattr": (getattr, "{}", "builtins.getattr"),
}  # fmt: skip


@pytest.mark.parametrize("wrap", ["plain", "in a tensor", "in an image", "legacy torch", "zipped torch", "protocol 2"])
@pytest.mark.parametrize("name", EVIL)
def test_nothing_is_run(name: str, wrap: str, tmp_path: Path) -> None:
    function, argument, called = EVIL[name]
    canary = str(tmp_path / "canary")
    filled = [part.format(canary) for part in argument] if isinstance(argument, list) else argument.format(canary)  # type: ignore[attr-defined]
    evil: Any = Calls(function, filled)  # type: ignore[arg-type]
    if wrap in ("legacy torch", "zipped torch"):
        data = (_legacy if wrap == "legacy torch" else _zipped)([torch.ones(1), evil])
        line = refused(lambda: unpickle.load_torch(data, "'some file'"))
    else:
        if wrap == "in a tensor":
            evil = Calls(torch.storage._load_from_bytes, _legacy(evil))
        elif wrap == "in an image":
            evil = Calls(Image.Image, state=[{"exif": evil}, "RGB", (1, 1), None, bytes(3)])
        data = pickle.dumps([1, evil], 2 if wrap == "protocol 2" else 4)
        line = refused(lambda: unpickle.load(data, "'some file'"))
    # Up to protocol 2, names are those of Python 2.
    assert (called if wrap in ("plain", "in an image") else called.rpartition(".")[2]) in line
    assert list(tmp_path.iterdir()) == []


def _archive(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


STORED = (  # the storage "0" of 1 whole number, as the file of a tensor names it
    b"\x80\x02(X\x07\x00\x00\x00storagectorch\nLongStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ."
)


@pytest.mark.parametrize(
    "data",
    [
        _archive({}),
        _archive({"a/data.pkl": b"\x80\x02N."}),
        _archive({"../../canary/data.pkl": b"\x80\x02N.", "../../canary/version": b"3"}),
        _archive({"/canary/data.pkl": b"\x80\x02N.", "/canary/version": b"3"}),
        _archive({"a/data.pkl": b"\x80\x02N.", "a/version": b"3", "a/data/0": bytes(2**20)}, zipfile.ZIP_DEFLATED),
        _archive({"a/data.pkl": b"\x80\x02})" + b"\x85" * 400_000 + b"Ns.", "a/version": b"3"}),
        _archive({"a/data.pkl": b"\x80\x02N.", "b/data.pkl": b"\x80\x02N.", "a/version": b"3", "b/version": b"3"}),
        _archive({"a/data.pkl": b"\x80\x02N.", "a/version": b"3", "a/byteorder": b"big"}),
        _archive({"a/data.pkl": STORED, "a/version": b"3"}),
        _archive({"a/data.pkl": STORED, "a/version": b"3", "a/data/0": bytes(7)}),
        _archive({"a/data.pkl": STORED.replace(b"X\x01\x00\x00\x000", b"X\x03\x00\x00\x00../"), "a/version": b"3"}),
        _archive({"a/data.pkl": STORED.replace(b"LongStorage", b"ByteStorag\xe9"), "a/version": b"3"}),
        _zipped([torch.ones(4)])[:-30],
        _legacy([torch.ones(4)])[:-3],
        _legacy([torch.ones(4)])[:100],
    ],
    ids=[
        "empty",
        "no version",
        "parent",
        "root",
        "compressed",
        "deep key",
        "two pickles",
        "big endian",
        "no numbers",
        "half a number",
        "odd key",
        "odd storage",
        "cut zip",
        "cut legacy",
        "cut pickle",
    ],
)
def test_a_broken_torch_file_is_refused(data: bytes) -> None:
    refused(lambda: unpickle.load_torch(data, "'some file'"))
    refused(lambda: unpickle.load(pickle.dumps(Calls(torch.storage._load_from_bytes, data)), "'some file'"))
