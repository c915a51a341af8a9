"""Batched, differentiable augmentation: a random shift and a random flip for each image, in one gather.

Two kinds, because they treat additive noise differently (a fractional shift averages neighbouring pixels and so weakens
independent noise to 0.67 of its deviation at +-4 pixels; a whole-pixel shift leaves it):

    crop      whole-pixel shifts, as `RandomCrop(padding)` of the poisoning benchmark
    bilinear  fractional shifts with bilinear interpolation, as Witches' Brew, Sleeper Agent and FRIENDS

What a shift brings in from outside is the mean colour, which is zero after normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """One draw of the augmentation: dx, dy: [n] shifts in pixels; flip: bool [n]."""

    dx: Tensor
    dy: Tensor
    flip: Tensor

    def rows(self, chosen: slice) -> Draw:
        return Draw(self.dx[chosen], self.dy[chosen], self.flip[chosen])


@dataclass(frozen=True)
class Augmentation:
    """kind: none | crop | bilinear; shift: largest shift in pixels; flip: whether to mirror half of the images;
    fill: colour of what enters from outside, [3] in [0, 1]."""

    kind: str
    shift: int
    flip: bool
    fill: tuple[float, float, float]

    def draw(self, n: int, stream: torch.Generator) -> Draw:
        """Parameters for n images, from `stream`, on its device."""
        device = stream.device
        u = torch.rand(3, n, generator=stream, device=device)
        if self.kind == "crop":
            shifts = torch.floor(u[:2] * (2 * self.shift + 1)).clamp(max=2 * self.shift) - self.shift
        else:
            shifts = (2 * u[:2] - 1) * self.shift
        return Draw(
            shifts[0], shifts[1], (u[2] < 0.5) if self.flip else torch.zeros(n, dtype=torch.bool, device=device)
        )

    def __call__(self, pixels: Tensor, draw: Draw) -> Tensor:
        """Shift and flip float pixels [n, 3, h, w] in [0, 1]. Differentiable in the pixels."""
        if self.kind == "none":
            return pixels
        return self._crop(pixels, draw) if self.kind == "crop" else self._bilinear(pixels, draw)

    def _crop(self, pixels: Tensor, draw: Draw) -> Tensor:
        n, channels, height, width = pixels.shape
        pad, device = self.shift, pixels.device
        fill = torch.tensor(self.fill, device=device, dtype=pixels.dtype).view(1, 3, 1, 1)
        padded = F.pad(pixels - fill, (pad, pad, pad, pad))
        y = torch.arange(height, device=device) + draw.dy.long()[:, None] + pad
        x = torch.arange(width, device=device).expand(n, width)
        x = torch.where(draw.flip[:, None], width - 1 - x, x) + draw.dx.long()[:, None] + pad
        place = (y[:, :, None] * (width + 2 * pad) + x[:, None, :]).view(n, 1, -1).expand(n, channels, -1)
        return padded.flatten(2).gather(2, place).view_as(pixels) + fill

    def _bilinear(self, pixels: Tensor, draw: Draw) -> Tensor:
        n, _, height, width = pixels.shape
        device, dtype = pixels.device, pixels.dtype
        fill = torch.tensor(self.fill, device=device, dtype=dtype).view(1, 3, 1, 1)
        y = torch.arange(height, device=device, dtype=dtype) + draw.dy[:, None].to(dtype)
        x = torch.arange(width, device=device, dtype=dtype).expand(n, width)
        x = torch.where(draw.flip[:, None], width - 1 - x, x) + draw.dx[:, None].to(dtype)
        # align_corners: -1 and 1 are the centres of the first and the last pixel.
        grid = torch.stack(
            (
                (2 * x / (width - 1) - 1)[:, None, :].expand(n, height, width),
                (2 * y / (height - 1) - 1)[:, :, None].expand(n, height, width),
            ),
            dim=3,
        )
        return F.grid_sample(pixels - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=True) + fill
