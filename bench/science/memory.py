"""The state of work under way, as JSON and tensors, and back: nothing is pickled, nothing in a file is executed.

State is a tree of dicts, lists, tuples, sets, numbers, strings, tensors, arrays and random streams; what has
`state_dict` and `load_state_dict`, such as networks and optimizers, stands in it as its own state. What never changes
(settings, frozen dataclasses, functions) may stand in it too, if it is there again when the work is set up again. Two
places that hold one tensor hold one tensor afterwards, and tensors keep their order in memory, on which bits depend.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.foundation.settings import Settings
from bench.science.augmentation import Augmentation
from bench.science.dataset import Images
from bench.science.lending import Lent
from bench.science.recipe import Recipe

CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type)


class Unstorable(Exception):
    """Something in the tree cannot be kept; the message says what."""


def _stateful(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _constant(value: Any) -> bool:
    if isinstance(value, (Settings, Lent, *CODE)):
        return True
    return dataclasses.is_dataclass(value) and bool(getattr(value, "__dataclass_params__").frozen)  # noqa: B009


@dataclass
class Writer:
    """Turns a tree of live values into JSON and `tensors`. anchors: what stood in the tree when the work was set up, by
    its place there: only at these places may things stand that are not made from the file."""

    anchors: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    storages: set[int] = field(default_factory=set)
    seen: dict[int, Any] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)

    def node(self, value: Any, place: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else ["float", value.hex()]
        if type(value) is dict:
            return ["dict", [[self.node(k, place), self.node(v, f"{place}.{k}")] for k, v in value.items()]]
        if type(value) in (list, tuple, set):
            return [type(value).__name__, [self.node(v, f"{place}[{i}]") for i, v in enumerate(value)]]
        if _stateful(value):
            self._anchor(value, place)
        elif _constant(value) and self._anchored(value, place):
            return ["same", place]
        if id(value) not in self.seen:
            self.seen[id(value)] = self._object(value, place)
            self.alive.append(value)  # so that its id stays its own
        return self.seen[id(value)]

    def _object(self, value: Any, place: str) -> list[Any]:
        if _stateful(value):
            modes = _modes(value) if isinstance(value, nn.Module) else []
            return ["state", self.node(dict(value.state_dict()), place), *modes]
        if type(value) is Tensor and value.layout is torch.strided and not (value.requires_grad or value.is_complex()):
            return ["tensor", self._tensor(value), value.device.type, list(value.stride())]
        if isinstance(value, torch.Generator):
            return ["stream", self._tensor(value.get_state()), value.device.type]
        if isinstance(value, np.random.Generator) and isinstance(value.bit_generator, np.random.PCG64):
            return ["pcg64", value.bit_generator.state]
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            kind = "array" if isinstance(value, np.ndarray) else "scalar"
            return [kind, self._tensor(torch.from_numpy(np.array(value)))]
        if isinstance(value, Recipe):
            return ["recipe", value.model_dump_json()]
        if isinstance(value, Images | Augmentation):
            fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
            return [type(value).__name__, self.node(fields, place)]
        raise Unstorable(f"{place} is a {type(value).__name__}")

    def _anchored(self, value: Any, place: str) -> bool:
        return self.anchors.get(place) is value

    def _anchor(self, value: Any, place: str) -> None:
        if not self._anchored(value, place):
            raise Unstorable(f"{place} is a {type(value).__name__} that was not there when the work was set up")

    def _tensor(self, value: Tensor) -> str:
        # A copy where memory is shared, which a file of tensors cannot express.
        where = value.untyped_storage().data_ptr()
        alone = where not in self.storages and value.untyped_storage().nbytes() == value.numel() * value.element_size()
        self.storages.add(where)
        name = f"t{len(self.tensors)}"
        self.tensors[name] = value if alone else value.clone()
        return name


def survey(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The anchors of a tree that has just been set up: what stands in its containers, by place."""
    if type(value) is dict:
        for name, part in value.items():
            yield from survey(part, f"{place}.{name}")
    elif type(value) in (list, tuple, set):
        for i, part in enumerate(value):
            yield from survey(part, f"{place}[{i}]")
    else:
        yield place, value


def _modes(module: nn.Module) -> list[list[bool]]:
    return [[part.training for part in module.modules()], [weight.requires_grad for weight in module.parameters()]]


@dataclass
class Reader:
    """Puts what a Writer wrote back into a tree that was set up in the same way."""

    tensors: dict[str, Tensor]
    made: dict[str, Any] = field(default_factory=dict)

    def into(self, live: dict[Any, Any], node: Any) -> None:
        """Give a dict the content that is written, in place; so are dicts and lists within, where they are there."""
        kind, pairs = node
        if kind != "dict":
            raise ValueError("no dict is written")
        keys = [self.value(key) for key, _ in pairs]
        restored = {key: self.value(written, live.get(key)) for key, (_, written) in zip(keys, pairs, strict=True)}
        for key in [key for key in live if key not in restored]:
            del live[key]
        live.update(restored)

    def value(self, node: Any, live: Any = None) -> Any:
        """What is written; `live`: what stands in its place now."""
        if not isinstance(node, list):
            return node
        kind, what = node[:2]
        if kind == "same":
            return live
        if kind == "state":
            return self._state(live, *node[1:])
        if kind in ("tensor", "stream", "array", "scalar"):
            if what not in self.made:
                self.made[what] = self._made(kind, self.tensors[what], *node[2:])
            return self.made[what]
        if kind == "dict":
            content: dict[Any, Any] = live if type(live) is dict else {}
            self.into(content, node)
            return content
        if kind in ("list", "tuple", "set"):
            return self._several(kind, what, live)
        return _VALUES[kind](self, what)

    def _several(self, kind: str, parts: list[Any], live: Any) -> Any:
        old = list(live) if type(live) in (list, tuple) else []
        values = [self.value(v, old[i] if i < len(old) else None) for i, v in enumerate(parts)]
        if kind == "list" and type(live) is list:
            live[:] = values
            return live
        return {"list": list, "tuple": tuple, "set": set}[kind](values)

    def _state(self, live: Any, state: Any, *modes: list[bool]) -> Any:
        live.load_state_dict(self.value(state))
        if isinstance(live, nn.Module):
            for part, training in zip(live.modules(), modes[0], strict=True):
                part.training = training
            for weight, trained in zip(live.parameters(), modes[1], strict=True):
                weight.requires_grad_(trained)
        return live

    def _made(self, kind: str, tensor: Tensor, device: str = "cpu", stride: Sequence[int] = ()) -> Any:
        if kind == "stream":
            stream = torch.Generator(device=device)
            stream.set_state(tensor)
            return stream
        if kind == "tensor":
            return _laid_out(tensor, stride).to(device)
        return tensor.numpy() if kind == "array" else tensor.numpy()[()]


_VALUES: dict[str, Callable[[Reader, Any], Any]] = {
    "float": lambda reader, text: float.fromhex(text),
    "pcg64": lambda reader, state: _pcg64(state),
    "recipe": lambda reader, text: Recipe.model_validate_json(text),
    "Images": lambda reader, fields: Images(**reader.value(fields)),
    "Augmentation": lambda reader, fields: Augmentation(**reader.value(fields)),
}


def _laid_out(tensor: Tensor, stride: Sequence[int]) -> Tensor:
    """The tensor with its elements in the order in memory that it had, if that was dense."""
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=True))
    if list(tensor.stride()) == list(stride) or span != tensor.numel():
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _pcg64(state: Any) -> np.random.Generator:
    generator = np.random.PCG64()
    generator.state = state
    return np.random.Generator(generator)
