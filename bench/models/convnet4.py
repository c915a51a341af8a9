"""A ConvNet that is quick on a CPU: 3-48-64-128-128, BatchNorm, few pixels after its first layer (253,000 weights)."""

from torch import nn

from bench.models.convnet import convolutional_network
from bench.plugin import register


@register("model", "convnet4")
def convnet4(size: int) -> tuple[nn.Module, int]:
    """A 4x4 convolution of stride 2 and three of 3x3, each with BatchNorm and ReLU; pooling after the second and the
    fourth, then global average pooling."""
    return convolutional_network([(48, 4, 2, False), (64, 3, 1, True), (128, 3, 1, False), (128, 3, 1, True)])
