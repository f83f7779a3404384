"""A small vision transformer."""

import torch
from torch import Tensor, nn

from nadkit import checks
from nadkit.architectures.patches import FeedForward, PatchEmbedding


@checks.typed
class ViT(nn.Module):
    """Patches of 4x4 as tokens of 32 numbers, learned positions, two pre-norm blocks, the mean token, the logits.

    There is no class token: the logits see the mean of all tokens, after a last layer norm. Without attention and
    positions all patches would be treated alike.

    Initialisation follows torchvision's vision transformer but for one layer: patches by a truncated normal
    distribution of variance 1 / fan-in, positions N(0, 0.02^2), Xavier-uniform weights and zero biases in the blocks,
    here also where attention ends. The last layer, which there starts from zero, has PyTorch's default: with zeros a
    fresh network would not depend on its input.

    With 3 x 32 x 32 inputs and ten classes it has 29,418 weights.

    Args:
        patch: side of a patch; the image's sides are multiples of it.
        dim: numbers a token.
        depth: blocks.
        heads: of the attention; they share ``dim`` equally.

    Raises:
        ValueError: an image or a number of heads that does not fit.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; mean token: Beyer et al. 2022.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        *,
        patch: int = 4,
        dim: int = 32,
        depth: int = 2,
        heads: int = 2,
    ) -> None:
        super().__init__()
        for name, value in (("patch", patch), ("dim", dim), ("depth", depth), ("heads", heads)):
            checks.require_integer(name, value, 1)
        if dim % heads:
            raise ValueError(f"heads: expected a divisor of dim {dim}, got {heads}")
        self.embed = PatchEmbedding("vit", shape, patch, dim)
        nn.init.trunc_normal_(self.embed.weight, std=(shape[0] * patch**2) ** -0.5)
        nn.init.zeros_(self.embed.bias)
        tokens = (shape[1] // patch) * (shape[2] // patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.blocks(self.embed(x) + self.position)).mean(1))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)); four times as many hidden units."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention, softmax(Q K^T / sqrt(dim / heads)) V a head: (B, T, dim) -> (B, T, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # written out, because the fused kernel has no second derivative, which the mixed derivative needs
        q, k, v = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))
