"""The trigger of a backdoor: a patch that the attacker pastes on images at test time, opaque, each at its own
place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bench.science.seeds import numpy_stream

Placement = Literal["random", "corner"]


@dataclass(frozen=True)
class Trigger:
    """patch: uint8 [3, p, p]; placement: a random place for each image, or the bottom right corner of all."""

    patch: Tensor
    placement: Placement

    def places(self, n: int, size: int, seed: int, *names: str | int) -> Tensor:
        """Upper left corners (x, y) of the patch on n images of `size` pixels, int64 [n, 2], from the named
        stream."""
        most = size - self.patch.shape[-1]
        if most < 0:
            raise ValueError(f"a patch of {self.patch.shape[-1]} pixels does not fit on images of {size}")
        if self.placement == "corner":
            return torch.full((n, 2), most)
        return torch.from_numpy(numpy_stream(seed, *names).integers(most + 1, size=(n, 2)))

    def paste(self, images: Tensor, places: Tensor) -> Tensor:
        """Copies of uint8 images [n, 3, h, w] with the patch at `places` [n, 2] (x, y)."""
        side = self.patch.shape[-1]
        within = torch.arange(side, device=images.device)
        places = places.to(images.device)
        columns = (places[:, 0, None] + within)[:, None, None, :]
        rows = (places[:, 1, None] + within)[:, None, :, None]
        samples = torch.arange(len(images), device=images.device)[:, None, None, None]
        channels = torch.arange(3, device=images.device)[None, :, None, None]
        patched = images.clone()
        patched[samples, channels, rows, columns] = self.patch.to(images.device).expand(len(images), -1, -1, -1)
        return patched


def colour_patch(side: int, seed: int) -> Tensor:
    """uint8 [3, side, side]: 4x4 random colours, interpolated to `side`, as the triggers of Hidden-Trigger Backdoors
    (Saha et al., AAAI 2020) that Sleeper Agent uses too. The same seed gives the same patch."""
    colours = torch.from_numpy(numpy_stream(seed, "patch").random((1, 3, 4, 4)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(colours, size=(side, side), mode="bilinear", align_corners=False)[0]
    return torch.floor(smooth * 255 + 0.5).clamp(0, 255).to(torch.uint8)
