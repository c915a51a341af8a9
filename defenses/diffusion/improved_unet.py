"""The U-Net of Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), for its checkpoints.

Written from the paper's appendix A; parameters carry the names that the published checkpoints use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32


@dataclass(frozen=True)
class Shape:
    """channels: of the first layer; widths: multiples of it, one per resolution; blocks: residual blocks in each;
    attention: how often the image is halved before each resolution that has attention; heads: of each attention."""

    channels: int = 128
    widths: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 3
    attention: tuple[int, ...] = (1, 2)
    heads: int = 4


class ImprovedUNet(nn.Module):
    """(x_t [n, 3, h, w], time [n] on the scale 0 to 1000) -> [n, 6, h, w]: the noise, then what gives its variance."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels, self.channels = shape.channels, shape.channels
        time = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, time), nn.SiLU(), nn.Linear(time, time))

        def stage(before: int, after: int, level: int) -> list[nn.Module]:
            attended = [Attention(after, shape.heads)] if level in shape.attention else []
            return [Residual(before, after, time), *attended]

        width_now, skipped = channels, [channels]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(3, channels, 3, padding=1))])
        for level, width in enumerate(shape.widths):
            for _ in range(shape.blocks):
                self.input_blocks.append(Stage(*stage(width_now, width * channels, level)))
                width_now = width * channels
                skipped.append(width_now)
            if level + 1 < len(shape.widths):
                self.input_blocks.append(Stage(Halve(width_now)))
                skipped.append(width_now)
        self.middle_block = Stage(
            Residual(width_now, width_now, time),
            Attention(width_now, shape.heads),
            Residual(width_now, width_now, time),
        )
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(shape.widths))):
            for block in range(shape.blocks + 1):
                layers = stage(width_now + skipped.pop(), width * channels, level)
                width_now = width * channels
                if level and block == shape.blocks:
                    layers.append(Double(width_now))
                self.output_blocks.append(Stage(*layers))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, width_now), nn.SiLU(), nn.Conv2d(width_now, 6, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        half = self.channels // 2
        angles = time[:, None].float() * 10_000.0 ** (-torch.arange(half, device=time.device) / half)
        steer = self.time_embed(torch.cat((angles.cos(), angles.sin()), 1))
        skipped = []
        for block in self.input_blocks:
            x = block(x, steer)
            skipped.append(x)
        x = self.middle_block(x, steer)
        for block in self.output_blocks:
            x = block(torch.cat((x, skipped.pop()), 1), steer)
        return self.out(x)


class Stage(nn.Sequential):
    """Layers in sequence; residual blocks also get the time."""

    def forward(self, x: Tensor, steer: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, steer) if isinstance(layer, Residual) else layer(x)
        return x


class Residual(nn.Module):
    """Two convolutions; the time scales and shifts the normalised values between them."""

    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * after))
        # The identity replaces the dropout of the training, so that parameter names match the checkpoints'.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, after), nn.SiLU(), nn.Identity(), nn.Conv2d(after, after, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, steer: Tensor) -> Tensor:
        scale, shift = self.emb_layers(steer)[:, :, None, None].chunk(2, 1)
        inner = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        skipped: Tensor = self.skip_connection(x)
        return skipped + self.out_layers[1:](inner)


class Attention(nn.Module):
    """Self-attention over all positions of an image. The channels of `qkv` are heads x (query, key, value)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, width, *sides = x.shape
        positions = x.reshape(n, width, -1)
        split = self.qkv(self.norm(positions)).view(n, self.heads, 3, width // self.heads, -1).transpose(3, 4)
        attended = F.scaled_dot_product_attention(split[:, :, 0], split[:, :, 1], split[:, :, 2])
        out: Tensor = positions + self.proj_out(attended.transpose(2, 3).reshape(n, width, -1))
        return out.view(n, width, *sides)


class Halve(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.op(x)
        return halved


class Double(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return doubled
