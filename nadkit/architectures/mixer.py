"""A small MLP-mixer."""

from torch import Tensor, nn

from nadkit import checks
from nadkit.architectures.patches import FeedForward, PatchEmbedding


@checks.typed
class Mixer(nn.Module):
    """Patches of 4x4 as tokens of 32 numbers, two pre-norm blocks, the mean token after a last norm, the logits.

    Every block mixes first tokens (``token_hidden`` units, the same weights for all channels), then channels (4 dim
    units, the same weights for all tokens). There are no positions to learn: the first perceptron tells tokens apart.
    Initialisation is PyTorch's default throughout; the original starts the last layer from zero, so that a fresh
    network would not depend on its input.

    With 3 x 32 x 32 inputs and ten classes it has 27,306 weights.

    Args:
        patch: side of a patch; the image's sides are multiples of it.
        dim: numbers a token.
        depth: blocks.
        token_hidden: hidden units of the perceptron over tokens.

    Raises:
        ValueError: an image that does not fit, or a size below 1.

    Source: Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision".
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        *,
        patch: int = 4,
        dim: int = 32,
        depth: int = 2,
        token_hidden: int = 32,
    ) -> None:
        super().__init__()
        for name, value in (("patch", patch), ("dim", dim), ("depth", depth), ("token_hidden", token_hidden)):
            checks.require_integer(name, value, 1)
        self.embed = PatchEmbedding("mixer", shape, patch, dim)
        tokens = (shape[1] // patch) * (shape[2] // patch)
        self.blocks = nn.Sequential(*(Block(tokens, dim, token_hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.blocks(self.embed(x))).mean(1))


class Block(nn.Module):
    """x + mlp(norm(x)) over tokens, then the same over channels: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, tokens: int, dim: int, token_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.tokens = FeedForward(tokens, token_hidden)
        self.norm2 = nn.LayerNorm(dim)
        self.channels = FeedForward(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))
