"""LeNet for colour images (LeCun et al. 1998): two 5x5 convolutions, no BatchNorm; FRIENDS' cheap source of noise."""

from torch import nn

from bench.plugin import register


@register("model", "lenet")
def lenet(size: int) -> tuple[nn.Module, int]:
    """conv 6 - pool - conv 16 - pool - 120 - 84, then the head: the third fully connected layer."""
    side = (((size - 4) // 2) - 4) // 2
    body = nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
    )
    return body, 84


lenet.smallest = 16  # type: ignore[attr-defined]
