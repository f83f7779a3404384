"""Multilayer perceptrons."""

import math

from torch import nn

from nadkit import checks
from nadkit.architectures.chain import Chain, require_dropout


@checks.typed
class MLP(Chain):
    """The pixels, ``depth`` hidden layers of ``width`` ReLU units, the logits: h_i = ReLU(W_i h_(i-1) + b_i).

    A chain of the modules ``flatten``, then for each hidden layer i from 1 ``fc{i}``, ``norm{i}`` (with batch norm),
    ``relu{i}`` and ``dropout{i}`` (where dropout > 0), and last ``out``. Initialisation is PyTorch's default. The
    paper's networks on MNIST have 128 (selectivity), 512 (generalisation) or 2048 (early stopping, dropout) units in
    each of two hidden layers.

    With 3 x 32 x 32 inputs and ten classes it has 1,841,162 weights.

    Args:
        width: units of each hidden layer.
        depth: number of hidden layers.
        dropout: probability with which a unit is zeroed in training, after its ReLU; with 0 there is no such module.
        batch_norm: whether batch normalisation stands before each ReLU; the linear layers then have no bias.

    Raises:
        ValueError: an option is out of range.

    Source: Morcos et al. 2018; batch normalisation in an MLP is our own option.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        *,
        width: int = 512,
        depth: int = 2,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        width, depth = checks.require_integer("width", width, 1), checks.require_integer("depth", depth, 1)
        require_dropout(dropout)
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        features = math.prod(shape)
        for i in range(1, depth + 1):
            layers[f"fc{i}"] = nn.Linear(features, width, bias=not batch_norm)
            if batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm1d(width)
            layers[f"relu{i}"] = nn.ReLU()
            if dropout:
                layers[f"dropout{i}"] = nn.Dropout(dropout)
            features = width
        layers["out"] = nn.Linear(features, classes)
        super().__init__(layers)
