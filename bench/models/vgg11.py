"""VGG-11 with BatchNorm for small images (Simonyan and Zisserman 2015), a usual black-box victim."""

from torch import nn

from bench.plugin import register


@register("model", "vgg11")
def vgg11(size: int) -> tuple[nn.Module, int]:
    """Eight 3x3 convolutions with five poolings (skipped once the map is 1x1), then global average pooling."""
    layers: list[nn.Module] = []
    previous, side = 3, size
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(width, str):
            if side > 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            continue
        layers += [nn.Conv2d(previous, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        previous = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), previous
