"""AlexNet for small images (Krizhevsky et al. 2012, 3x3 form for CIFAR), with dropout; no BatchNorm."""

from torch import nn

from bench.plugin import register


@register("model", "alexnet")
def alexnet(size: int) -> tuple[nn.Module, int]:
    """Five 3x3 convolutions with three poolings, then two fully connected layers of 4,096 with dropout 0.5."""
    side = ((size + 1) // 2) // 2 // 2 // 2
    body = nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256 * side * side, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
    )
    return body, 4096


alexnet.smallest = 16  # type: ignore[attr-defined]
