"""What a network says of a whole training set, as the defenses that look at samples one by one want it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.plugin import Classifier, frozen, precision, to_pixels


def outputs_of(
    model: Classifier, images: Tensor, layer: Callable[[Tensor], Tensor] | None = None, chunk: int = 1024
) -> Tensor:
    """float32 [n, ...] of uint8 images [n, 3, h, w]: of `layer`, or the logits. Eval mode, un-augmented, `chunk`
    images at once; the network is left as it was."""
    layer = layer or model
    with frozen(model), torch.no_grad(), precision(images.device):
        return torch.cat([layer(to_pixels(part)).float() for part in images.split(chunk)])
