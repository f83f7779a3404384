"""ResNet18 in its CIFAR form."""

from typing import Literal

import torch
from torch import Tensor, nn

from nadkit import checks
from nadkit.architectures.pooling import Blur
from nadkit.names import hint

POOLING = ("stride", "blur", "none")


@checks.typed
class ResNet18(nn.Module):
    """A 3x3 stem of 64 feature maps and four stages of two basic blocks (64, 128, 256, 512), then the logits.

    Stages 2 to 4 halve the image and a global average pooling ends them. ``pooling`` says how they halve it:
    ``"stride"`` or True by the stride of their first convolution; ``"blur"`` with less aliasing, by `pooling.Blur`
    between the two convolutions of their first block and before its shortcut (Zhang 2019). With ``"none"`` or False no
    layer subsamples or averages: all strides are 1 and the last linear layer sees every position.

    Raises:
        ValueError: an unknown kind of pooling.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        pooling: bool | Literal["stride", "blur", "none"] = True,
    ) -> None:
        super().__init__()
        if isinstance(pooling, bool):
            pooling = "stride" if pooling else "none"
        if pooling not in POOLING:
            near = hint(str(pooling), POOLING)
            raise ValueError(f"pooling: expected {', '.join(POOLING)}, True or False, got {pooling!r}{near}")
        channels, height, width = shape
        halves = pooling != "none"
        stride, blur = 2 if halves else 1, pooling == "blur"
        self.stem = nn.Sequential(*_conv_norm(channels, 64), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            _stage(64, 64, 1),
            _stage(64, 128, stride, blur),
            _stage(128, 256, stride, blur),
            _stage(256, 512, stride, blur),
        )
        self.pool = nn.AdaptiveAvgPool2d(1) if halves else nn.Identity()
        self.linear = nn.Linear(512 if halves else 512 * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.stages(self.stem(x))).flatten(1))


class Block(nn.Module):
    """Basic residual block: relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    With ``blur``, blurred halving before the second convolution and the shortcut's takes the place of a stride of 2.
    """

    def __init__(self, channels: int, width: int, stride: int, blur: bool = False) -> None:
        super().__init__()
        before = [Blur()] if blur else []
        stride = 1 if blur else stride
        self.first = nn.Sequential(*_conv_norm(channels, width, stride=stride))
        self.second = nn.Sequential(*before, *_conv_norm(width, width))
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Sequential(*before, *_conv_norm(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def _conv_norm(channels: int, width: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(width)]


def _stage(channels: int, width: int, stride: int, blur: bool = False) -> nn.Sequential:
    return nn.Sequential(Block(channels, width, stride, blur), Block(width, width, 1))
