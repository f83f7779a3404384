"""Ways to halve an image: the largest or the mean of 2 x 2 windows, blurred before it is thinned, or just thinned."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nadkit.names import hint


class Blur(nn.Module):
    """Low-pass filter, then every second position: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)).

    The filter is [1, 2, 1] x [1, 2, 1] / 16. An image is padded by repeating its edge pixels, so that a constant image
    stays constant.

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again" (which pads by reflection).
    """

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", taps.outer(taps)[None, None] / 16, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # by hand, because the gradient of replication padding is not reproducible on a GPU
        x = torch.cat([x[..., :1], x, x[..., -1:]], -1)
        x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.expand(channels, 1, 3, 3), stride=2, groups=channels)


class MaxBlur(nn.Module):
    """Anti-aliased max pooling, the maximum of every 2 x 2 window, then `Blur`: (B, C, H, W) -> (B, C, H // 2, W // 2).

    Source: Zhang 2019.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blur = Blur()

    def forward(self, x: Tensor) -> Tensor:
        # on a CPU much faster than max pooling with stride 1
        x = torch.maximum(x[..., 1:], x[..., :-1])
        return self.blur(torch.maximum(x[..., 1:, :], x[..., :-1, :]))


class Subsample(nn.Module):
    """Every second position and nothing else, x[..., ::2, ::2]: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2]


POOLING: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),
    "blur": MaxBlur,
    "stride": Subsample,
    "none": nn.Identity,
}


def pooling_layer(kind: str) -> nn.Module:
    """Return a layer of one of the kinds in `POOLING`.

    Raises:
        ValueError: an unknown kind; near misses are suggested.
    """
    if kind not in POOLING:
        raise ValueError(
            f"pooling: expected {', '.join(POOLING)}, True or False, got {kind!r}{hint(str(kind), POOLING)}"
        )
    return POOLING[kind]()


def pooled_size(size: int, kind: str) -> int:
    """Return how many positions a layer of that kind leaves of ``size`` along each axis."""
    return {"none": size, "stride": (size + 1) // 2}.get(kind, size // 2)
