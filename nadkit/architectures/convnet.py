"""The 11-layer convolutional network of the work on single directions."""

from torch import nn

from nadkit import checks
from nadkit.architectures.chain import Chain, require_dropout, scaled

MAPS = (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)


@checks.typed
class ConvNet(Chain):
    """Eleven 3x3 convolutions with ReLUs, three of them of stride 2, the mean over positions, the logits.

    A chain of the modules ``conv{i}``, ``norm{i}`` (with batch norm), ``relu{i}`` and ``dropout{i}`` (where dropout >
    0) for i from 1 to 11, then ``pool``, ``flatten`` and ``out``. The 11 layers have 64, 64, 128, 128, 128, 256, 256,
    256, 512, 512 and 512 feature maps; 32x32 images become 16x16, 8x8 and 4x4 in layers 3, 6 and 9, and smaller
    ones, down to a pixel, are possible.

    Convolution weights are N(0, 2 / (9 c_in)), with c_in maps before them (He et al. 2015), with and without batch
    norm, and biases are zero, so that the two differ in batch norm alone. PyTorch's default, variance 1 / (27 c_in),
    would divide the signal by the square root of 6 in each layer: without batch norm, a fresh network would not see its
    input and could hardly be trained. The last layer has that default.

    With 3 x 32 x 32 inputs and ten classes it has 7,790,794 weights.

    Args:
        width: factor on the numbers of feature maps; they are rounded, to one at least.
        batch_norm: whether batch normalisation stands before each ReLU; the convolutions then have no bias.
        dropout: probability with which a whole feature map, the single direction of such a network, is zeroed in
            training, after its ReLU; with 0 there is no such module.

    Raises:
        ValueError: an option is out of range.

    Source: Morcos et al. 2018 (maps, strides, batch normalisation); padding by 1, head and initialisation are our
    choice.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        *,
        width: float = 1.0,
        batch_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        require_dropout(dropout)
        layers: dict[str, nn.Module] = {}
        channels = shape[0]
        for i, (maps, stride) in enumerate(zip(scaled(MAPS, width), STRIDES, strict=True), start=1):
            layers[f"conv{i}"] = _conv(channels, maps, stride, bias=not batch_norm)
            if batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(maps)
            layers[f"relu{i}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{i}"] = nn.Dropout2d(dropout)
            channels = maps
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "out": nn.Linear(channels, classes)}
        super().__init__(layers)


def _conv(channels: int, maps: int, stride: int, *, bias: bool) -> nn.Conv2d:
    conv = nn.Conv2d(channels, maps, 3, stride, padding=1, bias=bias)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if bias:
        nn.init.zeros_(conv.bias)
    return conv
