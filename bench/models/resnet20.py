"""ResNet-20 for images of 32 pixels (He et al. 2016, section 4.2): three stages, shortcuts without weights."""

import torch.nn.functional as F
from torch import Tensor, nn

from bench.plugin import register


class Shortcut(nn.Module):
    """The paper's option A: every second pixel, and zeros for the channels that are new."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class PlainBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        same = stride == 1 and before == width
        self.shortcut: nn.Module = nn.Identity() if same else Shortcut(width - before, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


@register("model", "resnet20")
def resnet20(size: int) -> tuple[nn.Module, int]:
    """Three stages of three blocks; 0.27 million weights."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        layers += [PlainBlock(before, width, stride), PlainBlock(width, width, 1), PlainBlock(width, width, 1)]
        before = width
    for module in (body := nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body, before
