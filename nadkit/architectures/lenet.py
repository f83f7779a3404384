"""LeNet-5 with ReLUs and max pooling, its variants, and logistic regression."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nadkit import checks
from nadkit.architectures.chain import scaled
from nadkit.architectures.pooling import pooled_size, pooling_layer
from nadkit.names import hint

MAPS = (6, 16, 40)
PADDING = (0, 0, 2)
HIDDEN = (120, 84)

Pooling = Literal["max", "average", "blur", "stride", "none"]
Activation = Literal["relu", "leaky", "gelu", "tanh", "identity"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky": F.leaky_relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


@checks.typed
class LogReg(nn.Module):
    """Logistic regression: one linear layer on the pixels, logits = W x + b."""

    def __init__(self, shape: tuple[int, int, int], classes: checks.Count) -> None:
        super().__init__()
        channels, height, width = shape
        self.linear = nn.Linear(channels * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


@checks.typed
class LeNet(nn.Module):
    """Two 5x5 convolutions (6 and 16 feature maps), each followed by 2x2 max pooling, then 120, 84 and the logits.

    With 3 x 32 x 32 inputs and ten classes it has 62,006 weights.

    Args:
        pooling: what follows each convolution: ``"max"`` or True; ``"average"``; ``"blur"``, a max pooling with less
            aliasing (`pooling.MaxBlur`); ``"stride"``, every second position; ``"none"`` or False, which leaves all
            positions, and the first linear layer grows to fit.
        width: factor on the numbers of feature maps and of hidden units; they are rounded, to one at least.
        depth: number of convolutions with their poolings, 1 to 3, of 6, 16 and 40 maps. The first two have no
            padding; the third is padded by 2, because on 32x32 images only 5x5 positions are left for it.
        activation: after each layer but the last; ``"leaky"`` has slope 0.01 below zero, with ``"identity"`` all but
            the pooling is affine.
        batch_norm: whether batch normalisation stands between each convolution and its activation.

    Raises:
        ValueError: the image is too small for the layers, or an option is out of range.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        pooling: bool | Pooling = True,
        *,
        width: float = 1,
        depth: int = 2,
        activation: Activation = "relu",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(pooling, bool):
            pooling = "max" if pooling else "none"
        pool = pooling_layer(pooling)
        _require_options(depth, activation)
        channels, *size = shape
        positions = [_left(n, depth, pooling) for n in size]
        if min(positions) < 1:
            least = next(n for n in itertools.count(1) if _left(n, depth, pooling) >= 1)
            raise ValueError(f"lenet: expected images of at least {least}x{least}, got {size[0]}x{size[1]}")
        self.depth, self.activation, self.batch_norm = depth, activation, batch_norm
        for i, (maps, padding) in enumerate(zip(scaled(MAPS, width), PADDING, strict=True), start=1):
            if i <= depth:
                setattr(self, f"conv{i}", nn.Conv2d(channels, maps, 5, padding=padding))
                if batch_norm:
                    setattr(self, f"norm{i}", nn.BatchNorm2d(maps))
                channels = maps
        self.pool = pool
        first, second = scaled(HIDDEN, width)
        self.fc1 = nn.Linear(channels * math.prod(positions), first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, classes)

    def forward(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        for i in range(1, self.depth + 1):
            x = getattr(self, f"conv{i}")(x)
            if self.batch_norm:
                x = getattr(self, f"norm{i}")(x)
            x = self.pool(activate(x))
        x = activate(self.fc1(x.flatten(1)))
        return self.fc3(activate(self.fc2(x)))


def _require_options(depth: int, activation: str) -> None:
    if checks.require_integer("depth", depth, 1) > len(MAPS):
        raise ValueError(f"depth: expected 1 to {len(MAPS)} convolutions, got {depth}")
    if activation not in ACTIVATIONS:
        near = hint(str(activation), ACTIVATIONS)
        raise ValueError(f"activation: expected {', '.join(ACTIVATIONS)}, got {activation!r}{near}")


def _left(size: int, depth: int, pooling: Pooling) -> int:
    """Return how many of ``size`` positions along an axis are left after the convolutions and their poolings."""
    for padding in PADDING[:depth]:
        size = pooled_size(size - 4 + 2 * padding, pooling)
    return size
