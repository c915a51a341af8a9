"""ResNet-20 for images of 32 pixels (He et al. 2016, section 4.2): three stages, shortcuts without weights."""

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.resnet18 import residual_network
from bench.plugin import register


class Shortcut(nn.Module):
    """The paper's option A: every second pixel, and zeros for the channels that are new."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


@register("model", "resnet20")
def resnet20(size: int) -> tuple[nn.Module, int]:
    """Three stages of three blocks; 0.27 million weights."""
    return residual_network((16, 32, 64), 3, lambda before, width, stride: Shortcut(width - before, stride))
