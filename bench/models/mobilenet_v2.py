"""MobileNetV2 for small images (Sandler et al. 2018): early strides removed, as usual on CIFAR."""

from torch import Tensor, nn

from bench.plugin import register


def _convolution(
    before: int, width: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
    ]
    return [*layers, nn.ReLU6()] if relu else layers


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depth-wise, linear 1x1 projection; a shortcut where shapes allow."""

    def __init__(self, before: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = before * expansion
        self.shortcut = stride == 1 and before == width
        self.layers = nn.Sequential(
            *(_convolution(before, inner, 1) if expansion > 1 else []),
            *_convolution(inner, inner, 3, stride, groups=inner),
            *_convolution(inner, width, 1, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


@register("model", "mobilenet-v2")
def mobilenet_v2(size: int) -> tuple[nn.Module, int]:
    """17 inverted residuals (expansion, width, repeats, stride as in the paper's Table 2, early strides removed)."""
    layers = _convolution(3, 32, 3)
    before = 32
    for expansion, width, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(repeats):
            layers.append(InvertedResidual(before, width, expansion, stride if i == 0 else 1))
            before = width
    layers += _convolution(before, 1280, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1280
