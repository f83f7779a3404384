"""ResNet18 in its CIFAR form."""

import torch
from torch import Tensor, nn


class ResNet18(nn.Module):
    """A 3x3 stem of 64 feature maps and four stages of two basic blocks (64, 128, 256, 512), then the logits.

    Stages 2 to 4 halve the image by their stride and a global average pooling ends them. With ``pooling=False``
    no layer subsamples or averages: all strides are 1 and the last linear layer sees every position.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, pooling: bool = True) -> None:
        super().__init__()
        channels, height, width = shape
        stride = 2 if pooling else 1
        self.stem = nn.Sequential(*_conv_norm(channels, 64), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            _stage(64, 64, 1), _stage(64, 128, stride), _stage(128, 256, stride), _stage(256, 512, stride)
        )
        self.pool = nn.AdaptiveAvgPool2d(1) if pooling else nn.Identity()
        self.linear = nn.Linear(512 if pooling else 512 * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.stages(self.stem(x))).flatten(1))


class Block(nn.Module):
    """Basic residual block: relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_conv_norm(channels, width, stride=stride))
        self.second = nn.Sequential(*_conv_norm(width, width))
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def _conv_norm(channels: int, width: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(width)]


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, width, stride), Block(width, width, 1))
