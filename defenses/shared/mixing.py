"""What the mixing defenses share: weights, pairings, boxes, and a hook on every augmented batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bench.plugin import Batch, Defense, Run


def simplex_weights(ways: int, stream: Generator) -> Tensor:
    """Weights [ways], uniform on the simplex (Dirichlet(1, ..., 1); for two Beta(1, 1))."""
    draws = torch.empty(ways, device=stream.device).exponential_(generator=stream)
    return draws / draws.sum()


def permutations(ways: int, count: int, stream: Generator) -> list[Tensor]:
    """The identity and ways - 1 random orders of `count` samples."""
    device = stream.device
    return [
        torch.arange(count, device=device),
        *(torch.randperm(count, generator=stream, device=device) for _ in range(ways - 1)),
    ]


def blend(values: Tensor, weights: Tensor, orders: list[Tensor]) -> Tensor:
    """Weighted sum of `values` [b, ...] in each of the orders."""
    mixed = torch.zeros_like(values)
    for weight, order in zip(weights, orders, strict=True):
        mixed = mixed + weight * values[order]
    return mixed


def soft_labels(labels: Tensor, classes: int) -> Tensor:
    """Labels as probabilities [b, classes]; probabilities are returned as they are."""
    return labels if labels.ndim == 2 else F.one_hot(labels, classes).float()


def box(side_y: int, side_x: int, height: int, width: int, stream: Generator, count: int) -> Tensor:
    """Masks [count, 1, h, w], true inside a box around a uniformly random pixel, cut at the border."""
    centres = torch.rand(2, count, 1, generator=stream, device=stream.device)
    y = torch.arange(height, device=stream.device) - torch.floor(centres[0] * height)
    x = torch.arange(width, device=stream.device) - torch.floor(centres[1] * width)
    inside_y = (y >= -(side_y // 2)) & (y < side_y - side_y // 2)
    inside_x = (x >= -(side_x // 2)) & (x < side_x - side_x // 2)
    return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]


class OnView(Defense):
    """Changes every augmented batch, with one random stream per epoch."""

    def epoch(self, run: Run, epoch: int) -> None:
        run.side["mixing"] = run.stream("mixing")

    def batch(self, batch: Batch, run: Run, stage: str) -> Batch:
        return self.mixed(batch, run, run.side["mixing"]) if stage == "view" else batch

    def mixed(self, batch: Batch, run: Run, stream: Generator) -> Batch:
        raise NotImplementedError


def cut_out(pixels: Tensor, fill: tuple[float, float, float], share: float, stream: Generator) -> Tensor:
    """Fills a box of every image, at a random place of its own, with the colour `fill`."""
    height, width = pixels.shape[2:]
    inside = box(round(share * height), round(share * width), height, width, stream, len(pixels))
    colour = torch.tensor(fill, device=pixels.device, dtype=pixels.dtype).view(1, 3, 1, 1)
    return torch.where(inside, colour, pixels)
