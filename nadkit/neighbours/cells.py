"""Cells: small graphs of operations, the space in which NAS-Bench-201 searches, and networks that are made of them.

A *cell* has four nodes, the first of which is its input and the last its output. Every earlier node j feeds every later
node i by an edge with one of five `OPERATIONS`, and a node is the sum of what reaches it:

    h_i = sum_{j < i} o_ij(h_j),   i = 1, 2, 3

Six edges make 5^6 = 15,625 cells. A cell is written as in NAS-Bench-201, node by node, with the node that an edge comes
from: ``|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|``.

Source: Dong and Yang 2020, NAS-Bench-201.
"""

import functools
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nadkit import checks, seeds
from nadkit.names import hint

__all__ = ["EDGES", "N_CELLS", "OPERATIONS", "CellNetwork", "cell_of", "is_connected", "operations", "random_cells"]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operations of an edge: zero, the identity, ReLU, convolution and batch norm with kernel 1 or 3, 3x3 means."""

EDGES = tuple((start, end) for end in range(1, 4) for start in range(end))
"""(from, to) of each edge, in the order of a cell's text."""

N_CELLS = len(OPERATIONS) ** len(EDGES)


@checks.typed
def cell_of(operations: Sequence[str]) -> str:
    """Return the text of a cell from the operations of its six `EDGES`.

    Raises:
        ValueError: not six, or an unknown operation.
    """
    if len(operations) != len(EDGES):
        raise ValueError(f"operations: expected {len(EDGES)}, one for each of {EDGES}, got {len(operations)}")
    for operation in operations:
        checks.require_one_of("operations", operation, OPERATIONS)
    nodes: dict[int, str] = {}
    for operation, (start, end) in zip(operations, EDGES, strict=True):
        nodes[end] = f"{nodes.get(end, '|')}{operation}~{start}|"
    return "+".join(nodes.values())


@checks.typed
def operations(cell: str) -> tuple[str, ...]:
    """Return the operations of a cell's six `EDGES`.

    Raises:
        ValueError: the text is not a cell; near misses of an operation are suggested.
    """
    found = tuple(re.findall(r"([^|+~]+)~\d", cell))
    for operation in found:
        if operation not in OPERATIONS:
            raise ValueError(f"cell: unknown operation {operation!r}{hint(operation, OPERATIONS)}, in {cell!r}")
    if len(found) != len(EDGES) or cell_of(found) != cell.strip():
        example = cell_of(["nor_conv_3x3"] * len(EDGES))
        raise ValueError(f"cell: expected six operations as in {example!r}, got {checks.found(cell)}")
    return found


@checks.typed
def is_connected(cell: str) -> bool:
    """Say whether anything of a cell's input reaches its output, along edges that are not ``"none"``.

    Raises:
        ValueError: the text is not a cell.
    """
    reached = {0}
    for operation, (start, end) in zip(operations(cell), EDGES, strict=True):
        if operation != "none" and start in reached:
            reached.add(end)
    return 3 in reached


@checks.typed
def random_cells(n: int, *, seed: int = 0) -> list[str]:
    """Return n different cells, drawn uniformly; with the same seed, a smaller n gives the first of them.

    Raises:
        ValueError: n is not from 1 to 15,625, or the seed is out of range.
    """
    checks.require_integer("n", n, 1, N_CELLS)
    numbers = torch.randperm(N_CELLS, generator=seeds.generator(checks.require_integer("seed", seed, 0), "cells"))
    return [
        cell_of([OPERATIONS[number // len(OPERATIONS) ** k % len(OPERATIONS)] for k in range(len(EDGES))])
        for number in numbers[:n].tolist()
    ]


@checks.typed
class CellNetwork(nn.Module):
    """The network of NAS-Bench-201 around one cell: (B, C, H, W) -> (B, classes).

    A 3x3 convolution, then stages of ``cells`` copies of the cell; between stages a residual block of stride 2 doubles
    the feature maps. It ends with batch norm, ReLU, the mean over positions and a linear layer.

    Args:
        cell: its text.
        channels: feature maps of the first stage; NAS-Bench-201 has 16.
        cells: copies of the cell in a stage; NAS-Bench-201 has 5.
        stages: NAS-Bench-201 has 3.

    Raises:
        ValueError: the text is not a cell, a number is out of range, or the images are too small for the stages.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        *,
        cell: str,
        channels: int = 16,
        cells: int = 5,
        stages: int = 3,
    ) -> None:
        super().__init__()
        edges = operations(cell)
        for name, value in (("channels", channels), ("cells", cells), ("stages", stages)):
            checks.require_integer(name, value, 1)
        least = 2 ** (stages - 1)
        if min(shape[1:]) < least:
            size = f"{shape[1]}x{shape[2]}"
            raise ValueError(f"shape: expected images of at least {least}x{least} for {stages} stages, got {size}")
        maps = [channels * 2**stage for stage in range(stages)]
        self.stem = nn.Sequential(nn.Conv2d(shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        body: list[nn.Module] = []
        for stage, width in enumerate(maps):
            if stage:
                body.append(_Reduction(maps[stage - 1], width))
            body += [_Cell(edges, width) for _ in range(cells)]
        self.body = nn.Sequential(*body)
        self.head = nn.Sequential(nn.BatchNorm2d(maps[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out = nn.Linear(maps[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(self.body(self.stem(x))))


class _Cell(nn.Module):
    """One cell of C feature maps; all nodes are computed, also those that nothing leaves."""

    def __init__(self, edges: Sequence[str], channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_MAKE[operation](channels) for operation in edges)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for i in range(1, 4):
            nodes.append(sum(edge(nodes[j]) for edge, (j, end) in zip(self.edges, EDGES, strict=True) if end == i))
        return nodes[-1]


class _Zero(nn.Module):
    """Zeros that depend on the input, so that gradients are zero and not missing."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0


class _Reduction(nn.Module):
    """The residual block between stages: half the positions, other numbers of maps."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(_convolution(channels, 3, out, stride=2), _convolution(out, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x) + self.shortcut(x)


def _convolution(channels: int, kernel: int, out: int | None = None, *, stride: int = 1) -> nn.Sequential:
    """Return ReLU, convolution, batch norm, in the order of NAS-Bench-201."""
    out = out or channels
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(out))


_MAKE: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: _Zero(),
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": functools.partial(_convolution, kernel=1),
    "nor_conv_3x3": functools.partial(_convolution, kernel=3),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}
