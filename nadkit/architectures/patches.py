"""What networks on patches of an image share: cutting it up, tokens, and the two-layer perceptron."""

from torch import Tensor, nn


class PatchEmbedding(nn.Conv2d):
    """One linear map of each P x P patch, a convolution of stride P: (B, C, H, W) -> (B, H W / P^2, dim), row by row.

    Raises:
        ValueError: the sides of the image are not multiples of P.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], patch: int, dim: int) -> None:
        require_multiple(name, shape, patch)
        super().__init__(shape[0], dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between them: (..., features) -> (..., features)."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))


def require_multiple(name: str, shape: tuple[int, int, int], step: int) -> None:
    """Raise ValueError unless both sides of the image are multiples of ``step``."""
    _, height, width = shape
    if height % step or width % step:
        raise ValueError(f"{name}: expected images whose sides are multiples of {step}, got {height}x{width}")
