"""What a model is: normalisation, a feature extractor and a linear head; pixels in [0, 1] in, logits out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.foundation.errors import BadInput
from bench.foundation.registry import find
from bench.science.precision import Precision, computing_in


class Normalise(nn.Module):
    """(pixels - mean) / std for each channel: the first layer, so that everything outside speaks [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


class Classifier(nn.Module):
    """normalise -> body (any layers, to flat features [n, d]) -> head (Linear d -> classes).

    precision: in which `forward`, `features` and `stages` compute; whatever it is, they give float32. A training sets
    it by its recipe.
    """

    def __init__(self, normalise: Normalise, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.normalise = normalise
        self.body = body
        self.head = head
        self.features_frozen = False
        self.precision: Precision = "float32"

    def freeze_features(self) -> Classifier:
        """From now on only the head is trained: no other parameter has a gradient, and the body stays in eval mode
        whatever `train()` is called with, so that BatchNorm keeps its statistics."""
        self.features_frozen = True
        self.body.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        if self.features_frozen:
            self.body.eval()
        return self

    def take_features(self, other: Classifier) -> None:
        """Normalisation and body of another network of the same architecture; the head is left as it is."""
        self.normalise.load_state_dict(other.normalise.state_dict())
        self.body.load_state_dict(other.body.state_dict())

    def features(self, pixels: Tensor) -> Tensor:
        """Penultimate features [n, d] of pixels [n, 3, h, w] in [0, 1]."""
        with computing_in(self.precision, pixels.device):
            return _single(self.body(self.normalise(pixels)))

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """What the body gives at the end of each resolution, flat [n, d_i], and last the penultimate features."""
        if not isinstance(self.body, nn.Sequential):
            return [self.features(pixels)]
        with computing_in(self.precision, pixels.device):
            ends, x = [], self.normalise(pixels)
            for i, layer in enumerate(self.body):
                y = layer(x)
                if i > 0 and x.ndim == 4 and (y.ndim != 4 or y.shape[2:] != x.shape[2:]) and x.shape[2:] != (1, 1):
                    ends.append(_single(x.flatten(1)))
                x = y
            return [*ends, _single(x)]

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [n, classes] of pixels [n, 3, h, w] in [0, 1]."""
        with computing_in(self.precision, pixels.device):
            return _single(self.head(self.body(self.normalise(pixels))))


def _single(outputs: Tensor) -> Tensor:
    """bfloat16 as float32; what is more exact stays as it is."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


def build_model(name: str, **shape: Any) -> Classifier:
    """A freshly initialised network of the model called `name`; shape: as of `build_network`."""
    return build_network(name, find("model", name).make, **shape)


def build_network(
    name: str,
    architecture: Callable[[int], tuple[nn.Module, int]],
    *,
    classes: int,
    size: int,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    seed: int,
    device: torch.device | str = "cpu",
) -> Classifier:
    """A freshly initialised network. The same seed gives the same weights on every device.

    architecture: makes the body and tells its width from the side of the square images, `size`, pixels. BadInput for a
    size that the network cannot take.
    """
    smallest = getattr(architecture, "smallest", 8)
    if size < smallest:
        raise BadInput(f"model '{name}' needs images of at least {smallest} pixels, not {size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, width = architecture(size)
        head = nn.Linear(width, classes)
    model = Classifier(Normalise(*normalisation), body, head)
    model = model.to(device)
    return model.to(memory_format=torch.channels_last)


@contextlib.contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Inside: eval mode (BatchNorm uses its running statistics), no parameter gradients. After: all as before."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for model in models for parameter in model.parameters()]
    for model in models:
        model.eval()
        model.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, required in grads:
            parameter.requires_grad_(required)
