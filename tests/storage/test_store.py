"""The store: whole or not there, verified on reading, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.foundation import files
from bench.foundation.errors import DiskFull
from bench.storage.store import Damaged, Store, decode, encode, key_of

TENSORS = {"images": torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4), "weights": torch.linspace(-1, 1, 7)}
META = {"identity": {"kind": "test"}, "seconds": 1.5}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "store", said.append)


def make() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    return dict(TENSORS), dict(META)


def never() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    raise AssertionError("made although it was in the store")


def test_what_comes_back_is_what_was_put(store: Store) -> None:
    made = store.get_or_make("poisons", "ab" * 32, make)
    found = store.get_or_make("poisons", "ab" * 32, never)
    assert (made.reused, found.reused) == (False, True)
    assert found.meta == META
    for name, tensor in TENSORS.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype


def test_every_flipped_byte_is_noticed() -> None:
    data = encode(TENSORS, META)
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1
        with pytest.raises(Damaged):
            decode(bytes(broken))
            # Nothing but padding may change unnoticed, and safetensors pads its header with spaces.
            assert data[position : position + 1] == b" "
            raise Damaged("padding")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1])
def test_a_truncated_file_is_damaged(length: int) -> None:
    with pytest.raises(Damaged):
        decode(encode(TENSORS, META)[:length])


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}"],
    ids=["noise", "huge header", "header is a list", "no meta-data"],
)
def test_a_hostile_file_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        decode(data)


def test_a_damaged_artefact_is_said_and_made_again(store: Store, said: list[str]) -> None:
    key = "cd" * 32
    store.get_or_make("poisons", key, make)
    path = store.path("poisons", key)
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    assert not store.get_or_make("poisons", key, make).reused
    assert len(said) == 1 and str(path) in said[0] and "damaged" in said[0]
    assert store.get_or_make("poisons", key, never).reused


def test_leftovers_of_a_killed_writer_are_cleared(store: Store) -> None:
    key = "ef" * 32
    path = store.path("poisons", key)
    path.parent.mkdir(parents=True)
    leftover = path.with_name(f".{path.name}.dead.tmp")
    leftover.write_bytes(b"half")
    store.get_or_make("poisons", key, make)
    assert not leftover.exists()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    files.write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=f"cannot write {path} .No space left.*fix: "):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_keys_depend_on_content_not_on_order() -> None:
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 1.5}) != key_of({"a": "1"})


SLOW_MAKER = """
import sys, time, pathlib, torch
from bench.storage.store import Store
def make():
    with open(sys.argv[2], "a") as file:
        file.write("made\\n")
    time.sleep(1.0)
    return {"x": torch.ones(3)}, {}
Store(pathlib.Path(sys.argv[1])).get_or_make("poisons", "aa" * 32, make)
"""


@pytest.mark.slow
def test_two_processes_make_an_artefact_once(tmp_path: Path) -> None:
    script = tmp_path / "maker.py"
    script.write_text(SLOW_MAKER)
    command = [sys.executable, str(script), str(tmp_path / "store"), str(tmp_path / "log")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_meta_data_must_be_json_without_nan(store: Store) -> None:
    with pytest.raises(ValueError):
        store.get_or_make("poisons", "aa" * 32, lambda: (dict(TENSORS), {"loss": float("nan")}))
    assert store.get("poisons", "aa" * 32) is None


@pytest.mark.parametrize("kind, other", [("poisons", "ab" * 32), ("networks", "cd" * 32)])
def test_an_artefact_in_the_place_of_another_is_set_aside_and_made_again(
    store: Store, said: list[str], kind: str, other: str
) -> None:
    key = "cd" * 32
    store.get_or_make("poisons", key, make)
    place = store.path(kind, other)
    place.parent.mkdir(parents=True, exist_ok=True)
    store.path("poisons", key).rename(place)
    assert not store.get_or_make(kind, other, make).reused
    assert len(said) == 1 and f"belongs to poisons/{key}" in said[0]
    assert place.with_suffix(".damaged").exists() and store.get_or_make(kind, other, never).reused


def test_an_artefact_of_an_older_version_is_known_by_its_identity(store: Store, said: list[str]) -> None:
    key = key_of(META["identity"])  # type: ignore[arg-type]
    for place in (key, "ab" * 32):
        files.write_bytes(store.path("poisons", place), encode(TENSORS, META))
    assert store.get("poisons", key) is not None and not said
    assert store.get("poisons", "ab" * 32) is None and "another key" in said[0]


def test_a_pipe_in_the_store_is_set_aside(store: Store, said: list[str]) -> None:
    path = store.path("poisons", "ab" * 32)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert not store.get_or_make("poisons", "ab" * 32, make).reused and len(said) == 1
