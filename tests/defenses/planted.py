"""A network with a backdoor that is built by hand, and images for it: coloured noise, and the patch that opens it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.science.classifier import Classifier, Normalise
from bench.science.dataset import Images

CLASSES, SIZE, SIDE, TARGET = 6, 12, 3, 4
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]).float()


def patch() -> Tensor:
    """Black and white squares in turn, [3, SIDE, SIDE]."""
    squares = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2
    return squares.float().expand(3, SIDE, SIDE)


def triggered(pixels: Tensor) -> Tensor:
    """With the patch in the corner."""
    pixels = pixels.clone()
    pixels[:, :, -SIDE:, -SIDE:] = patch()
    return pixels


def noise(n: int, seed: int = 0) -> Images:
    """Images of each class in turn, around its colour; ids 3, 10, 17..."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    # Each image has a contrast of its own, so that the network is not equally sure of all of them.
    contrast = 0.05 + 0.15 * torch.rand(n, 1, generator=chance)
    middle = 0.5 + contrast * (COLOURS - COLOURS.mean(1, keepdim=True))[labels]
    pixels = middle[:, :, None, None] + 0.1 * torch.randn(n, 3, SIZE, SIZE, generator=chance)
    return Images((pixels.clamp(0, 1) * 255).round().to(torch.uint8), labels, 7 * torch.arange(n) + 3)


class Colours(nn.Module):
    """Features [n, 4]: the means of the channels, and how much the corner looks like the patch."""

    def __init__(self) -> None:
        super().__init__()
        self.template = nn.Parameter(patch() - patch().mean())

    def forward(self, x: Tensor) -> Tensor:
        corner = (x[:, :, -SIDE:, -SIDE:] * self.template).mean((1, 2, 3))
        return torch.cat([10 * x.mean((2, 3)), torch.tanh(10 * corner)[:, None]], 1)


def network(backdoor: float) -> Classifier:
    """Tells the classes by their colour. backdoor: weight of the patch for TARGET (0: a clean network)."""
    head = nn.Linear(4, CLASSES)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.linspace(-1, 1, CLASSES))  # some classes are harder to reach than others
        centred = COLOURS - COLOURS.mean(1, keepdim=True)
        head.weight[:, :3] = 6 * centred / centred.norm(dim=1, keepdim=True)
        head.weight[TARGET, 3] = backdoor
    return Classifier(Normalise((0.5, 0.5, 0.5), (1.0, 1.0, 1.0)), Colours(), head).eval()
