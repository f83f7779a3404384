"""DenseNet121 in its CIFAR form."""

import torch
from torch import Tensor, nn

from nadkit import checks

GROWTH = 32
BLOCKS = (6, 12, 24, 16)


@checks.typed
class DenseNet121(nn.Module):
    """A 3x3 stem, four dense blocks (6, 12, 24, 16 layers, growth 32) joined by halving transitions, then the logits.

    Raises:
        ValueError: the image is too small for three transitions.
    """

    def __init__(self, shape: tuple[int, int, int], classes: checks.Count) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 8:
            raise ValueError(f"densenet121: expected images of at least 8x8, got {height}x{width}")
        features = 2 * GROWTH
        layers: list[nn.Module] = [nn.Conv2d(channels, features, 3, padding=1, bias=False)]
        for i, depth in enumerate(BLOCKS):
            layers += [DenseLayer(features + j * GROWTH) for j in range(depth)]
            features += depth * GROWTH
            if i < len(BLOCKS) - 1:
                layers.append(_transition(features))
                features //= 2
        layers += [nn.BatchNorm2d(features), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x))


class DenseLayer(nn.Module):
    """norm, ReLU, 1x1 convolution to 4 x growth, norm, ReLU, 3x3 convolution to growth; appended to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.grow = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * GROWTH, 1, bias=False),
            nn.BatchNorm2d(4 * GROWTH),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.grow(x), x], dim=1)


def _transition(channels: int) -> nn.Sequential:
    """Halve the channels by a 1x1 convolution and the image by average pooling (compression 0.5)."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )
