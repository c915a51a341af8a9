"""The content-addressed store: poisons, surrogates and other costly tensors, made once and verified on reading.

The key of an artefact is the hash of everything that shaped it. An artefact is one safetensors file; its header holds
the meta-data as JSON, the kind and key that it belongs to, and a sha256 over all of them and over names, types, shapes
and bytes, so that any flipped bit is noticed, and a file that lies in the place of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.foundation import files
from bench.storage.making import making

Made = tuple[dict[str, Tensor], dict[str, Any]]


def key_of(identity: dict[str, Any]) -> str:
    """The key of what `identity` (JSON types only) describes: sha256 of its canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Damaged(ValueError):
    """A stored file is not what was written."""


@dataclass(frozen=True)
class Artefact:
    """Tensors by name, and what is known about them. reused: it was in the store already."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    reused: bool


class Store:
    """Artefacts below `root`, one file each: root/kind/ab/abcdef....safetensors. say: takes one line for a person."""

    def __init__(self, root: Path, say: Callable[[str], None] = print) -> None:
        self.root = root
        self.say = say

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / f"{key}.safetensors"

    def lock(self, key: str) -> AbstractContextManager[None]:
        """Hold it while making what has this key, so that nobody else makes it too."""
        return files.lock(self.root / "locks" / f"{key}.lock")

    def get(self, kind: str, key: str, then: str = ", it will be made again") -> Artefact | None:
        """The artefact, or None when it is not there. One that is damaged or belongs to another key is reported (then:
        what follows, in words), set aside and counts as missing."""
        path = self.path(kind, key)
        try:
            tensors, meta = decode(files.read_regular(path), f"{kind}/{key}")
        except FileNotFoundError:
            return None
        except (Damaged, files.NotRegular) as error:
            why = str(error.strerror if isinstance(error, OSError) else error)
            files.set_aside(path, f"store: {path}", why, self.say, then)
            return None
        return Artefact(tensors, meta, reused=True)

    def get_or_make(self, kind: str, key: str, make: Callable[[], Made]) -> Artefact:
        """The artefact from the store, or made, stored and returned. Only one process makes it; others wait for it."""
        stored = self.get(kind, key)
        if stored is not None:
            return stored
        with self.lock(key):
            stored = self.get(kind, key)
            if stored is not None:
                return stored
            with making(self, key):
                tensors, meta = make()
                tensors = self.put(kind, key, tensors, meta)
        return Artefact(tensors, meta, reused=False)

    def put(self, kind: str, key: str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Tensor]:
        """Store an artefact, in the place of one that is there; the tensors as they were stored. Hold the lock."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        path = self.path(kind, key)
        files.clear_leftovers(path)
        files.write_bytes(path, encode(tensors, meta, f"{kind}/{key}"))
        return tensors


def encode(tensors: dict[str, Tensor], meta: dict[str, Any], place: str = "") -> bytes:
    """One safetensors file with meta-data, place (kind/key) and digest in its header."""
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    return safetensors.torch.save(tensors, {"meta": text, "place": place, "sha256": digest_of(tensors, text + place)})


def decode(data: bytes, place: str = "") -> Made:
    """Tensors and meta-data of `encode`. Damaged when the bytes are not what was written for this place. Executes
    nothing."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors = safetensors.torch.load(data)
        text, digest, own = header.pop("meta"), header.pop("sha256"), header.pop("place", "")
        if header:
            raise ValueError(f"unknown fields {header}")  # a damaged name
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Damaged(f"unreadable: {type(error).__name__}") from None
    if digest_of(tensors, text + own) != digest:
        raise Damaged("checksum differs")
    meta = json.loads(text)
    if place and place != own and not (own == "" and _belongs(meta, place)):
        raise Damaged(f"it belongs to {own[:80] or 'another key'}")
    return tensors, meta


def _belongs(meta: Any, place: str) -> bool:
    """Whether an artefact of an older version, which does not name its place, was made under this key."""
    identity = meta.get("identity") if isinstance(meta, dict) else None
    return identity is not None and key_of(identity) == place.rpartition("/")[2]


def digest_of(tensors: dict[str, Tensor], text: str) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()
