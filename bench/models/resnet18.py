"""ResNet-18 for small images (He et al. 2016): 3x3 stem, no max-pooling, 64 to 512 channels."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from bench.plugin import register

Shortcut = Callable[[int, int, int], nn.Module]
"""(channels before, channels, stride) -> what stands on a shortcut where the shape changes."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, before: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = stride == 1 and before == width
        self.shortcut = nn.Identity() if same else shortcut(before, width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


def residual_network(widths: Sequence[int], blocks: int, shortcut: Shortcut) -> tuple[nn.Module, int]:
    """Stages of so many blocks, one for each width; all but the first halve the image."""
    before = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(3, before, 3, padding=1, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(before, width, 2 if stage and not block else 1, shortcut))
            before = width
    for module in (body := nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body, before


def projection(before: int, width: int, stride: int) -> nn.Module:
    """A 1x1 convolution."""
    return nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))


@register("model", "resnet18")
def resnet18(size: int) -> tuple[nn.Module, int]:
    """Four stages of two basic blocks; 11.2 million weights."""
    return residual_network((64, 128, 256, 512), 2, projection)
