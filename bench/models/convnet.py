"""The small ConvNet of the quick protocols: 3-32-64-64-128-128, BatchNorm, two stride-2 steps (285,000 weights)."""

from torch import nn

from bench.plugin import register


@register("model", "convnet")
def convnet(size: int) -> tuple[nn.Module, int]:
    """Five 3x3 convolutions, each with BatchNorm and ReLU, then global average pooling."""
    layers: list[nn.Module] = []
    previous = 3
    for width, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += [nn.Conv2d(previous, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        previous = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), previous
