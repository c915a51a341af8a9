"""The small ConvNet of the quick protocols: 3-32-64-64-128-128, BatchNorm, two stride-2 steps (285,000 weights)."""

from collections.abc import Sequence

from torch import nn

from bench.plugin import register


def convolutional_network(stack: Sequence[tuple[int, int, int, bool]]) -> tuple[nn.Module, int]:
    """Convolutions of (width, kernel, stride, pooled), padded by 1, each with BatchNorm and ReLU, and 2x2 pooling
    where it says so; then global average pooling."""
    layers: list[nn.Module] = []
    previous = 3
    for width, kernel, stride, pooled in stack:
        layers += [nn.Conv2d(previous, width, kernel, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
        previous = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), previous


@register("model", "convnet")
def convnet(size: int) -> tuple[nn.Module, int]:
    """Five 3x3 convolutions, each with BatchNorm and ReLU, then global average pooling."""
    widths_and_strides = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
    return convolutional_network([(width, 3, stride, False) for width, stride in widths_and_strides])
