"""Files of strangers that are broken, wrong or malicious: one line each, nothing run, nothing written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.exchange.formats import named, read_any, write
from bench.exchange.importing import interpret
from bench.exchange.setups import read_setups
from bench.foundation.errors import BadInput
from bench.foundation.registry import names
from bench.science.dataset import Dataset
from bench.science.poisons import Poisons, Shown
from bench.science.threat import Trial
from bench.storage import store

EPS = 8
OTHER_SIZE = Image.new("RGB", (9, 8))
GREY = Image.new("L", (8, 8))
NAN = float("nan")


@pytest.fixture
def dataset(numbered_dataset: Dataset) -> Dataset:
    return numbered_dataset


@pytest.fixture
def trial() -> Trial:
    """Labels are ids modulo 3."""
    return Trial(0, torch.tensor([5]), 2, 1, torch.tensor([1, 10, 4, 16]))


@pytest.fixture
def folders(dataset: Dataset, trial: Trial, tmp_path: Path) -> Path:
    """One good folder of each format."""
    bases = dataset.train.subset(trial.base_ids)
    images = torch.where(bases.images > 128, bases.images - EPS, bases.images + EPS)
    shown = Shown(
        dataset.test.images[5:6], torch.tensor([5]), torch.zeros(3, 2, 2, dtype=torch.uint8), torch.ones(1, 2).long()
    )
    for name in names("format"):
        poisons = Poisons(images, bases.ids, bases.labels, {}, shown if name == "native" else None)
        write(tmp_path / name, name, poisons, trial, dataset)
    return tmp_path


def refused(read: Callable[[], Any], *hints: str) -> None:
    with pytest.raises(BadInput) as caught:
        read()
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    for hint in hints:
        assert hint in line


def bring_in(path: Path, dataset: Dataset, trial: Trial | None = None) -> None:
    for found in read_any(path, "auto", dataset).values():
        interpret(found, dataset, 0, EPS, trial)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def _with(place: int, part: int, value: Any) -> Callable[[Any], Any]:
    """Change one member of one pair."""

    def change(pairs: Any) -> Any:
        pairs[place] = tuple(value if i == part else old for i, old in enumerate(pairs[place]))
        return pairs

    return change


def _patched(patch: Any, place: Any) -> Callable[[Any], Any]:
    return lambda target: (*target, patch, place)


PATCH = torch.zeros(3, 2, 2)
# file, what becomes of its content, what the line says
PICKLED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "no list": ("poisons", lambda _: 3, "not a list"),
    "text": ("poisons", lambda _: "images", "not a list"),
    "empty list": ("poisons", lambda _: [], "base indices"),
    "more than the training set": ("poisons", lambda pairs: pairs * 8, "at most 30"),
    "no pair": ("poisons", lambda pairs: [3, *pairs[1:]], "poison 0"),
    "triples": ("poisons", lambda pairs: [(*pair, 1) for pair in pairs], "poison 0"),
    "no image": ("poisons", _with(1, 0, 3), "poison 1 is int"),
    "wrong size": ("poisons", _with(2, 0, OTHER_SIZE), "poison 2"),
    "grey": ("poisons", _with(2, 0, GREY), "'L'"),
    "float pixels": ("poisons", _with(2, 0, np.zeros((8, 8, 3))), "float64"),
    "label of another class": ("poisons", _with(1, 1, 2), "poison 1 has label 2"),
    "label out of range": ("poisons", _with(1, 1, 99), "label 99"),
    "negative label": ("poisons", _with(1, 1, -1), "label -1"),
    "huge label": ("poisons", _with(1, 1, 10**30), "out of range"),
    "very huge label": ("poisons", _with(1, 1, 10**600), "out of range"),
    "float label": ("poisons", _with(1, 1, 1.0), "not a whole number"),
    "true as a label": ("poisons", _with(1, 1, True), "not a whole number"),
    "text as a label": ("poisons", _with(1, 1, "1\nx\x1b[31m" * 99), "not a whole number"),
    "no label": ("poisons", _with(1, 1, None), "not a whole number"),
    "an array as a label": ("poisons", _with(1, 1, np.arange(2)), "not a whole number"),
    "fewer ids": ("base_indices", lambda ids: ids[:3], "4 poisons, but 3 base indices"),
    "more ids": ("base_indices", lambda ids: [*ids, 7], "4 poisons, but 5 base indices"),
    "negative id": ("base_indices", lambda ids: [-1, *ids[1:]], "0 is -1; allowed: the training ids from 0 to 29"),
    "id out of range": ("base_indices", lambda ids: [*ids[:3], 30], "poison 3 is 30"),
    "huge id": ("base_indices", lambda ids: [2**64, *ids[1:]], "out of range"),
    "float ids": ("base_indices", lambda ids: np.array(ids, float), "float64"),
    "float id": ("base_indices", lambda ids: [1.0, *ids[1:]], "not a whole number"),
    "ids as text": ("base_indices", lambda ids: str(ids), "not a list"),
    "ids by name": ("base_indices", lambda ids: dict(enumerate(ids)), "not a list"),
    "table of ids": ("base_indices", lambda ids: np.array(ids).reshape(2, 2), "one whole number each"),
    "id of another class": ("base_indices", lambda ids: [0, *ids[1:]], "its training image 0 has 0"),
    "ids of other images": ("base_indices", lambda ids: ids[::-1], "eps = 8/255; fix: --set threat.eps="),
    "target is no pair": ("target", lambda target: target[0], "neither"),
    "target of three": ("target", lambda target: (*target, 1), "neither"),
    "target of another class": ("target", lambda target: (target[0], 0), "test image 5 of class 2, not 0"),
    "target of the target class": ("target", lambda _: (Image.new("RGB", (8, 8)), 1), "source class is 1"),
    "target class out of range": ("target", lambda _: (Image.new("RGB", (8, 8)), 3), "source class is 3"),
    "target of wrong size": ("target", lambda target: (OTHER_SIZE, 2), "the target is"),
    "place outside": ("target", _patched(PATCH, [7, 0]), "allowed: two numbers from 0 to 6"),
    "negative place": ("target", _patched(PATCH, [0, -1]), "allowed: two numbers from 0 to 6"),
    "place of floats": ("target", _patched(PATCH, [0.0, 1.0]), "not a whole number"),
    "place of one": ("target", _patched(PATCH, [0]), "two numbers"),
    "place of three": ("target", _patched(PATCH, [0, 1, 2]), "at most 2"),
    "patch of bytes": ("target", _patched(PATCH.byte(), [0, 0]), "floats"),
    "patch out of range": ("target", _patched(PATCH + 2, [0, 0]), "[0, 1]"),
    "patch of NaN": ("target", _patched(PATCH * NAN, [0, 0]), "[0, 1]"),
    "patch not square": ("target", _patched(torch.zeros(3, 2, 3), [0, 0]), "square"),
    "patch larger than an image": ("target", _patched(torch.zeros(3, 9, 9), [0, 0]), "the patch lies"),
    "empty patch": ("target", _patched(torch.zeros(3, 0, 0), [0, 0]), ""),
    "no sources": ("source", lambda _: [], "1 to 30"),
    "sources of two classes": ("source", lambda target: [target, (target[0], 0)], "several classes"),
    "source is no pair": ("source", lambda target: [target[0]], "source 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLED)
def test_a_wrong_folder_of_pickles_is_refused(case: str, folders: Path, dataset: Dataset) -> None:
    name, change, hint = PICKLED[case]
    folder = folders / "benchmark"
    old = pickle.loads((folder / f"{'target' if name == 'source' else name}.pickle").read_bytes())
    (folder / f"{name}.pickle").write_bytes(pickle.dumps(change(old)))
    before = tree(folders)
    refused(lambda: bring_in(folder, dataset), hint, "benchmark")
    assert tree(folders) == before


def _changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {name: value for name, value in {**content, **changes}.items() if value is not None}


def _of(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {**content, name: change(content[name])}


def _set(place: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


METAPOISON: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a list": (lambda content: list(content), "'xtrain' is missing"),
    "no target": (_changed(xtarget=None), "'xtarget' is missing"),
    "NaN": (_of("xtrain", _set((0, 0, 0, 0), NAN)), "NaN"),
    "infinity": (_of("xtrain", _set((29, 7, 7, 2), float("inf"))), "NaN or infinity"),
    "NaN in the target": (_of("xtarget", _set((0, 0, 0, 0), NAN)), "NaN"),
    "text": (_changed(xtrain="images"), "xtrain"),
    "channels first": (_of("xtrain", lambda x: x.transpose(0, 3, 1, 2)), "xtrain"),
    "other size": (_of("xtrain", lambda x: x[:, :7]), "xtrain"),
    "fewer images": (_of("xtrain", lambda x: x[1:]), "30 images"),
    "other labels": (_of("ytrain", lambda y: y * 0), "30 images"),
    "float labels": (_of("ytrain", lambda y: y.astype(float)), "ytrain"),
    "labels turned round": (_of("ytrain", lambda y: y[::-1].copy()), "not a clean image"),
    "a change in another class": (_of("xtrain", _set((0, 0, 0, 0), 77)), "image 0 of class 0"),
    "no target images": (_of("xtarget", lambda x: x[:0]), "differ in length"),
    "more target labels": (_of("ytarget", lambda y: np.repeat(y, 2)), "differ in length"),
    "target class of nobody": (_of("ytargetadv", lambda y: y + 40), "class 41"),
    "negative target class": (_of("ytargetadv", lambda y: y * -1), "class -1"),
    "float target class": (_of("ytargetadv", lambda y: y + 0.5), "ytargetadv"),
    "huge change": (_of("xtrain", _set((10, 0, 0, 0), 1e30)), ""),
    "evil": (lambda content: {**content, "a": Evil(Path("canary"))}, "posix.system"),
}  # fmt: skip


@pytest.mark.parametrize("case", METAPOISON)
def test_a_wrong_dictionary_is_refused(
    case: str, folders: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    change, hint = METAPOISON[case]
    path = folders / "metapoison" / "poisondataset.pkl"
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes())), 4))
    before = tree(folders)
    refused(lambda: bring_in(path, dataset), hint, "metapoison")
    assert tree(folders) == before


IDS = torch.tensor([1, 10, 4, 16])
DELTA = torch.zeros(4, 3, 8, 8)
PACKED: dict[str, tuple[Any, str]] = {
    "a tensor": (DELTA, "not a list"),
    "three parts": ([DELTA, IDS, IDS], "not a list"),
    "NaN": ([DELTA + NAN, IDS], "NaN"),
    "infinity": ([DELTA - float("inf"), IDS], "infinity"),
    "whole numbers": ([DELTA.long(), IDS], "int64"),
    "wrong size": ([DELTA[..., :7], IDS], "not floats"),
    "fewer ids": ([DELTA, IDS[:3]], "not floats"),
    "spread by stride 0": ([torch.zeros(1).expand(2**40), IDS], "with 1 numbers"),
    "ids spread by stride 0": ([DELTA, torch.zeros(1).long().expand(2**40)], "with 1 numbers"),
    "sparse": ([DELTA.to_sparse(), IDS], ""),
    "float ids": ([DELTA, IDS.double()], "ids are float64"),
    "negative ids": ([DELTA, -IDS], "id 0 is -1"),
    "ids out of range": ([DELTA, IDS + 15], "id 3 is 31"),
    "text as ids": ([DELTA, "ids"], "ids are not"),
    "ids of several classes": ([DELTA, IDS + torch.tensor([0, 0, 1, 0])], "classes 1 and 2"),
    "a huge change": ([DELTA + 1e30, IDS], "more than eps"),
    "evil": ([DELTA, Evil(Path("canary"))], "posix.system"),
}  # fmt: skip


@pytest.mark.parametrize("case", PACKED)
def test_a_wrong_packed_file_is_refused(
    case: str, folders: Path, dataset: Dataset, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    content, hint = PACKED[case]
    torch.save(content, folders / "packed" / "poisons_packed.pth")
    before = tree(folders)
    refused(lambda: bring_in(folders / "packed", dataset, trial), hint, "packed")
    assert tree(folders) == before


def _npy(header: str, data: bytes = b"") -> bytes:
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


NUMPY: dict[str, tuple[str, Any, str]] = {
    "noise": ("data", b"noise" * 99, ""),
    "empty": ("data", b"", ""),
    "a pickle": ("data", pickle.dumps(Evil(Path("canary"))), ""),
    "objects": ("data", np.array([Evil(Path("canary"))] * 30, dtype=object), "objects"),
    "records": ("data", np.zeros(30, [("a", "i4")]), "not numbers"),
    "an archive": ("data", b"PK\x05\x06" + bytes(18), "archive"),
    "huge shape": ("data", _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 8, 8, 3), }"), ""),
    "overflowing shape": ("data", _npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, 4), }}"), ""),
    "negative shape": ("data", _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 8, 8, 3), }"), ""),
    "cut": ("data", _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (30, 8, 8, 3), }", bytes(99)), ""),
    "header that calls": ("data", _npy("__import__('os').system('touch canary')"), ""),
    "NaN": ("data", np.full((30, 8, 8, 3), NAN), "NaN"),
    "fewer images": ("data", np.zeros((29, 8, 8, 3)), "(30, 8, 8, 3)"),
    "channels first": ("data", np.zeros((30, 3, 8, 8)), "(30, 8, 8, 3)"),
    "complex": ("data", np.zeros((30, 8, 8, 3), complex), "complex128"),
    "all black": ("data", np.zeros((30, 8, 8, 3)), "classes"),
    "other labels": ("labels", np.zeros(30), "not those of 'tiny'"),
    "NaN as labels": ("labels", np.full(30, NAN), "not those of 'tiny'"),
    "fewer labels": ("labels", np.zeros(29), "(30,)"),
    "labels as text": ("labels", np.array(["1"] * 30), "(30,)"),
}  # fmt: skip


@pytest.mark.parametrize("case", NUMPY)
def test_a_wrong_array_is_refused(
    case: str, folders: Path, dataset: Dataset, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    name, content, hint = NUMPY[case]
    path = folders / "numpy" / f"poisoned_training_{name}.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    before = tree(folders)
    refused(lambda: bring_in(folders / "numpy", dataset, trial), hint, "numpy")
    assert tree(folders) == before


def _tensors(**changes: Any) -> Callable[[Any, Any], bytes]:
    changes = {name.replace("shown_", "shown."): value for name, value in changes.items()}
    return lambda tensors, meta: store.encode(
        {name: value for name, value in (tensors | changes).items() if value is not None}, meta
    )


def _meta(**changes: Any) -> Callable[[Any, Any], bytes]:
    return lambda tensors, meta: store.encode(tensors, {**meta, **changes})


def _trial(**changes: Any) -> Callable[[Any, Any], bytes]:
    return lambda tensors, meta: store.encode(tensors, {**meta, "trial": meta["trial"] | changes})


DEEP = b'{"__metadata__":' + b"[" * 100_000
NATIVE: dict[str, tuple[Callable[[Any, Any], bytes], str]] = {
    "noise": (lambda *_: b"\xff" * 64, "unreadable"),
    "empty": (lambda *_: b"", "unreadable"),
    "huge header": (lambda *_: (2**62).to_bytes(8, "little") + b"{}", "unreadable"),
    "deep header": (lambda *_: len(DEEP).to_bytes(8, "little") + DEEP, ""),
    "other kind": (_meta(kind="other"), "not a file of"),
    "no trial": (_meta(trial=None), ""),
    "a list": (lambda tensors, _: store.encode(tensors, []), "not a file of"),  # type: ignore[arg-type]
    "other data set": (_meta(dataset={"name": "other\n" * 99, "fingerprint": "0"}), "choose the data set"),
    "no fingerprint": (_meta(dataset={}), "fingerprint"),
    "provenance is text": (_meta(provenance="made"), ""),
    "no images": (_tensors(images=None), "images"),
    "float images": (_tensors(images=torch.zeros(4, 3, 8, 8)), "float32"),
    "wrong size": (_tensors(images=torch.zeros(4, 3, 9, 9, dtype=torch.uint8)), "(3, 9, 9)"),
    "flat images": (_tensors(images=torch.zeros(4, dtype=torch.uint8)), "not of"),
    "fewer images": (_tensors(images=torch.zeros(3, 3, 8, 8, dtype=torch.uint8)), "3 images, 4 ids"),
    "nothing": (_tensors(images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8), ids=IDS[:0], labels=IDS[:0]), "no poison"),
    "float ids": (_tensors(ids=IDS.double()), "float64"),
    "table of ids": (_tensors(ids=IDS.view(2, 2)), ""),
    "ids out of range": (_tensors(ids=IDS + 100), "poison 0 is 101"),
    "table of labels": (_tensors(labels=torch.ones(4, 1).long()), ""),
    "shown without ids": (_tensors(shown_ids=None), "ids"),
    "shown with other ids": (_tensors(shown_ids=IDS), "incomplete"),
    "shown that are no test images": (_tensors(shown_ids=IDS[:1] + 99), "no test image"),
    "patch without places": (_tensors(shown_places=None), "incomplete"),
    "patch outside": (_tensors(shown_places=torch.tensor([[7, 0]])), "outside"),
    "flat patch": (_tensors(shown_patch=torch.zeros(3, dtype=torch.uint8)), ""),
    "target out of range": (_trial(target_ids=[999]), "no test image of class 2"),
    "target of another class": (_trial(target_ids=[6]), "no test image of class 2"),
    "target that is no test image": (_trial(target_ids=[-1]), "no test image of class 2"),
    "target is text": (_trial(target_ids="5"), "target ids"),
    "float class": (_trial(source_class=2.0), "not a whole number"),
    "class out of range": (_trial(target_class=99), "99"),
}  # fmt: skip


@pytest.mark.parametrize("case", NATIVE)
def test_a_wrong_native_file_is_refused(case: str, folders: Path, dataset: Dataset) -> None:
    change, hint = NATIVE[case]
    path = folders / "native" / "poisons.safetensors"
    path.write_bytes(change(*store.decode(path.read_bytes())))
    refused(lambda: bring_in(folders / "native", dataset), hint, "native")


@pytest.mark.parametrize("name", names("format"))
@pytest.mark.parametrize("length", [0, 1, 9, 20, -1])
def test_cut_files_are_refused(name: str, length: int, folders: Path, dataset: Dataset, trial: Trial) -> None:
    for path in sorted((folders / name).iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:length])
        refused(lambda: bring_in(folders / name, dataset, trial))
        path.write_bytes(whole)
    bring_in(folders / name, dataset, trial if not named(name).holds_target else None)


@pytest.mark.parametrize("name", names("format"))
def test_missing_files_are_named(name: str, folders: Path, dataset: Dataset, trial: Trial) -> None:
    for path in sorted((folders / name).iterdir()):
        whole = path.read_bytes()
        path.unlink()
        refused(lambda: bring_in(folders / name, dataset, trial))
        path.write_bytes(whole)


def test_links_and_pipes_are_not_followed(folders: Path, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "0").symlink_to(folders / "benchmark")
    refused(lambda: bring_in(tmp_path / "inside", dataset), "put a copy")
    target = folders / "benchmark" / "target.pickle"
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    refused(lambda: bring_in(folders / "benchmark", dataset), "is a link")
    target.unlink()
    os.mkfifo(target)
    refused(lambda: bring_in(folders / "benchmark", dataset), "a pipe, not a file")
    # A link that the user gives is meant.
    (tmp_path / "given").symlink_to(folders / "metapoison")
    bring_in(tmp_path / "given", dataset)


def test_odd_names_are_left_alone(folders: Path, dataset: Dataset) -> None:
    for name in ("00", "1e3", "-1", "+2", " 3", "..x", "\u0663", "9" * 30, "0;touch canary"):
        (folders / "benchmark").rename(folders / name)
        refused(lambda: read_any(folders, "auto", dataset), "no known format")
        (folders / name).rename(folders / "benchmark")


SETUP = {"target class": 2, "target index": 5, "base class": 1, "base indices": np.array([1, 10, 4])}
SETUPS: dict[str, tuple[Any, str]] = {
    "no list": (3, "not a list"),
    "no setup": ([], "not a list"),
    "one setup": (SETUP, "not a list"),
    "no dictionary": ([SETUP, 3], "setup 1: refused: 'target class' is missing"),
    **{f"no {key}": ([SETUP, {k: v for k, v in SETUP.items() if k != key}], f"'{key}' is missing") for key in SETUP},
    "keys of Sleeper Agent": ([{"source class": 2, "source index": 5, "target class": 1}], "missing"),
    "target of another class": ([SETUP, SETUP | {"target index": 6}], "setup 1: refused: test image 6 is of class 0"),
    "target out of range": ([SETUP | {"target index": 30}], "allowed: the test ids 0 to 29"),
    "negative target": ([SETUP | {"target index": -1}], "target index -1"),
    "float target": ([SETUP | {"target index": 5.0}], "not a whole number"),
    "two targets": ([SETUP | {"target index": [5, 8]}], "not a whole number"),
    "target class out of range": ([SETUP | {"target class": 9}], "not of target class 9"),
    "base of another class": ([SETUP | {"base indices": [1, 2]}], "2 is of class 2, not of base class 1"),
    "base out of range": ([SETUP | {"base indices": [1, 300]}], "base index 1 is 300"),
    "negative base": ([SETUP | {"base indices": [-2]}], "base index 0 is -2"),
    "float bases": ([SETUP | {"base indices": np.ones(2)}], "base indices are float64"),
    "no bases": ([SETUP | {"base indices": []}], "no base indices"),
    "too many bases": ([SETUP | {"base indices": np.ones(10**6, int)}], "at most 30"),
    "one class": ([SETUP | {"base class": 2, "base indices": [2]}], "are the same"),
    "evil": ([SETUP, Evil(Path("canary"))], "posix.system"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETUPS)
def test_wrong_setups_are_refused(case: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, hint = SETUPS[case]
    path = tmp_path / "setups.pickle"
    path.write_bytes(pickle.dumps(content))
    refused(lambda: read_setups(path, dataset), hint, "setups.pickle")
    assert [p.name for p in tmp_path.iterdir()] == ["setups.pickle"]


def test_missing_setups_are_named(dataset: Dataset, tmp_path: Path) -> None:
    refused(lambda: read_setups(tmp_path / "none", dataset), "cannot be read")
    refused(lambda: read_setups(tmp_path, dataset), "a folder, not a file")
