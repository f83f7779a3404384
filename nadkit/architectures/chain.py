"""What networks that are one chain of named layers share."""

import math
from collections import OrderedDict
from numbers import Real

from torch import nn


class Chain(nn.Sequential):
    """Named layers, one after the other; a slice of a chain is a plain `torch.nn.Sequential` of the same layers."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__(OrderedDict(layers))

    def __getitem__(self, index: int | slice) -> nn.Module:
        if isinstance(index, slice):  # torch would call the class, which takes a shape and not layers
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


def scaled(sizes: tuple[int, ...], width: float) -> list[int]:
    """Return the sizes times ``width``, rounded, each at least 1.

    Raises:
        ValueError: the width is not a positive finite number.
    """
    if not (isinstance(width, Real) and math.isfinite(width) and width > 0):
        raise ValueError(f"width: expected a positive finite factor, got {width!r}")
    return [max(1, round(width * size)) for size in sizes]


def require_dropout(dropout: float) -> None:
    """Raise ValueError unless ``dropout`` is a probability below 1."""
    if not (isinstance(dropout, Real) and 0 <= dropout < 1):
        raise ValueError(f"dropout: expected a probability from 0 to below 1, got {dropout!r}")
