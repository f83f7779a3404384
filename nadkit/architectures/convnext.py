"""A small ConvNeXt."""

from torch import Tensor, nn

from nadkit import checks
from nadkit.architectures.patches import FeedForward, require_multiple

WIDTHS = (24, 48, 96)
DEPTHS = (1, 1, 1)
PATCH = 4


@checks.typed
class ConvNeXt(nn.Module):
    """A 4x4 convolution of stride 4, three stages of a block each (24, 48, 96 feature maps), the mean, the logits.

    Stages 2 and 3 begin with a norm and a 2x2 convolution of stride 2; so 32x32 images become 8x8, 4x4 and 2x2. After
    the mean over positions comes a last norm. All norms are layer norms over the feature maps of a position.

    Initialisation is PyTorch's default, and the original's layer scale is left out. In the original, that scale starts
    at 1e-6, and weights have standard deviation 0.02, which suits hundreds of feature maps. Either would leave hardly
    more of a narrow fresh network than its skip connections.

    With 3 x 32 x 32 inputs and ten classes it has 132,058 weights.

    Raises:
        ValueError: the image's sides are not multiples of 16.

    Source: Liu et al. 2022, "A ConvNet for the 2020s".
    """

    def __init__(self, shape: tuple[int, int, int], classes: checks.Count) -> None:
        super().__init__()
        require_multiple("convnext", shape, PATCH * 2 ** (len(WIDTHS) - 1))
        layers: list[nn.Module] = [nn.Conv2d(shape[0], WIDTHS[0], PATCH, stride=PATCH), MapNorm(WIDTHS[0])]
        channels = WIDTHS[0]
        for width, depth in zip(WIDTHS, DEPTHS, strict=True):
            if width != channels:
                layers += [MapNorm(channels), nn.Conv2d(channels, width, 2, stride=2)]
            layers += [Block(width) for _ in range(depth)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.features(x).mean((2, 3))))


class Block(nn.Module):
    """x + mlp(norm(conv(x))): 7x7 depthwise, then 4 times as many maps and back, position by position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.conv(x).movedim(1, -1))).movedim(-1, 1)


class MapNorm(nn.LayerNorm):
    """Layer norm over the feature maps of each position: (B, C, H, W) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)
