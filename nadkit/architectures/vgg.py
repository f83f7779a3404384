"""VGG11 with batch normalisation, in its CIFAR form."""

from torch import Tensor, nn

from nadkit import checks

WIDTHS = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


@checks.typed
class VGG11(nn.Module):
    """Eight 3x3 convolutions with batch normalisation and ReLU, five 2x2 max poolings, then 512, 512 and the logits.

    Convolution weights are N(0, 2 / (k^2 c_out)), their biases zero, as in the networks of the NAD paper's code.
    With ``pooling=False`` no layer subsamples, and one linear layer on all positions replaces the classifier.

    Raises:
        ValueError: the image is too small for five poolings.
    """

    def __init__(self, shape: tuple[int, int, int], classes: checks.Count, pooling: bool = True) -> None:
        super().__init__()
        channels, height, width = shape
        if pooling and min(height, width) < 32:
            raise ValueError(f"vgg11: expected images of at least 32x32, got {height}x{width}")
        layers: list[nn.Module] = []
        for item in WIDTHS:
            if item == "M":
                layers += [nn.MaxPool2d(2)] if pooling else []
            else:
                layers += [_conv(channels, item), nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
                channels = item
        self.features = nn.Sequential(*layers)
        if pooling:
            self.classifier = _classifier(512 * (height // 32) * (width // 32), classes)
        else:
            self.classifier = nn.Linear(512 * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def _conv(channels: int, width: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, width, 3, padding=1)
    nn.init.normal_(conv.weight, std=(2 / (9 * width)) ** 0.5)
    nn.init.zeros_(conv.bias)
    return conv


def _classifier(features: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(),
        nn.Linear(features, 512),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, classes),
    )
