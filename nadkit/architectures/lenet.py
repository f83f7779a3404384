"""LeNet-5 with ReLUs and max pooling, and logistic regression."""

import torch
from torch import Tensor, nn


class LogReg(nn.Module):
    """Logistic regression: one linear layer on the pixels, logits = W x + b."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.linear = nn.Linear(channels * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class LeNet(nn.Module):
    """Two 5x5 convolutions (6 and 16 feature maps), each followed by 2x2 max pooling, then 120, 84 and the logits.

    With ``pooling=False`` both pooling layers are left out and the first linear layer grows to fit.

    Raises:
        ValueError: the image is too small for the layers.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, pooling: bool = True) -> None:
        super().__init__()
        channels, *size = shape
        stride = 2 if pooling else 1
        height, width = (((n - 4) // stride - 4) // stride for n in size)
        if min(height, width) < 1:
            least = 16 if pooling else 9
            raise ValueError(f"lenet: expected images of at least {least}x{least}, got {size[0]}x{size[1]}")
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2) if pooling else nn.Identity()
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu_(self.conv1(x)))
        x = self.pool(torch.relu_(self.conv2(x)))
        x = torch.relu_(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu_(self.fc2(x)))
