"""The outputs of a network on a whole training set, for defenses that examine every sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.plugin import Classifier, frozen, to_pixels


def images_at_once(device: torch.device) -> int:
    """How many images go through a network at once where that is free to choose: with more of them a CPU's cache no
    longer holds the activations, with fewer a GPU idles."""
    return 128 if device.type == "cpu" else 1024


def outputs_of(
    model: Classifier, images: Tensor, layer: Callable[[Tensor], Tensor] | None = None, chunk: int = 1024
) -> Tensor:
    """What `layer` returns, or the logits, for uint8 images [n, 3, h, w]: float32 [n, ...]. Eval mode, un-augmented,
    `chunk` images at once; the network is left as it was."""
    layer = layer or model
    with frozen(model), torch.no_grad():
        return torch.cat([layer(to_pixels(some)).float() for some in images.split(chunk)])
