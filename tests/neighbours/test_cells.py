"""Cells: their texts, and networks of them against the sums over edges written out."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nadkit import architectures
from nadkit.neighbours.cells import (
    EDGES,
    N_CELLS,
    OPERATIONS,
    CellNetwork,
    cell_of,
    is_connected,
    operations,
    random_cells,
)
from nadkit.seeds import seeded

TEXT = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|"
NAMES = ("nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "none", "nor_conv_1x1")
SHAPE = (2, 6, 5)


def built(cell, **options):
    with seeded(0, "network"):
        factory = functools.partial(CellNetwork, cell=cell, **{"channels": 4, "cells": 1, "stages": 2} | options)
        return architectures.build(factory, shape=SHAPE, classes=3)


def test_the_text_is_that_of_nas_bench_201():
    assert operations(TEXT) == NAMES
    assert cell_of(NAMES) == TEXT
    assert EDGES == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (TEXT.replace("none~1", "non~1"), "unknown operation 'non'; did you mean 'none'"),
        (TEXT.replace("none~1", "none~2"), "expected six operations as in"),
        (TEXT[:-1], "expected six operations"),
        ("", "expected six operations"),
        ("|none~0|", "expected six operations"),
    ],
)
def test_what_is_no_cell_is_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        operations(cell)
    with pytest.raises(ValueError, match=message):
        built(cell)


def test_operations_are_six_and_known():
    with pytest.raises(ValueError, match="expected 6, one for each"):
        cell_of(NAMES[:5])
    with pytest.raises(ValueError, match="did you mean 'skip_connect'"):
        cell_of((*NAMES[:5], "skip_conect"))


def test_random_cells_are_different_and_grow():
    few, many = random_cells(10, seed=3), random_cells(500, seed=3)
    assert many[:10] == few
    assert len({*many}) == 500
    assert random_cells(10, seed=4) != few
    counts = torch.tensor([[operations(cell).count(name) for name in OPERATIONS] for cell in many]).sum(0)
    assert (counts / counts.sum() - 0.2).abs().max() < 0.04  # each operation as often
    assert len({*random_cells(N_CELLS)}) == N_CELLS == 15_625


def test_a_cell_is_connected_if_something_of_its_input_reaches_its_output():
    assert is_connected(TEXT)
    assert not is_connected(cell_of(["none"] * 6))
    assert is_connected(cell_of(["none", "none", "none", "skip_connect", "none", "none"]))
    by_way = ["skip_connect", "none", "skip_connect", "none", "none", "avg_pool_3x3"]  # 0 - 1 - 2 - 3
    assert is_connected(cell_of(by_way))
    assert not is_connected(cell_of([*by_way[:2], "none", *by_way[3:]]))


@pytest.mark.parametrize("cell", [TEXT, *random_cells(12, seed=1)])
def test_what_is_not_connected_lets_nothing_through(cell):
    x = torch.randn(4, *SHAPE)
    with torch.no_grad():
        logits = built(cell)(x)
    assert logits.shape == (4, 3)
    assert (logits.std(0) > 0).all() == is_connected(cell)


def test_a_cell_is_the_sum_over_its_edges():
    """The network against its forward pass written out, for a cell with all operations."""
    network, x = built(TEXT, stages=1).eval(), torch.randn(3, *SHAPE)
    conv3, _, _, _, _, conv1 = network.body[0].edges
    with torch.no_grad():
        h0 = network.stem[1](F.conv2d(x, network.stem[0].weight, padding=1))
        h1 = conv3[2](F.conv2d(h0.relu(), conv3[1].weight, padding=1))
        h2 = h1
        padded, ones = F.pad(h0, (1, 1, 1, 1)), F.pad(torch.ones_like(h0), (1, 1, 1, 1))
        windows = [padded[:, :, i : i + 6, j : j + 5] for i in range(3) for j in range(3)]
        inside = [ones[:, :, i : i + 6, j : j + 5] for i in range(3) for j in range(3)]
        h3 = sum(windows) / sum(inside) + conv1[2](F.conv2d(h2.relu(), conv1[1].weight))
        expected = F.linear(network.head[0](h3).relu().mean((2, 3)), network.out.weight, network.out.bias)
        torch.testing.assert_close(network(x), expected)


def test_the_skeleton_is_that_of_nas_bench_201():
    network = CellNetwork((3, 32, 32), 10, cell=cell_of(["skip_connect"] * 6))
    kinds = [type(module).__name__ for module in network.body]
    assert kinds == ["_Cell"] * 5 + ["_Reduction"] + ["_Cell"] * 5 + ["_Reduction"] + ["_Cell"] * 5
    assert network.out.in_features == 64
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 1 + 2 * 3  # the stem, and in each block two and a shortcut
    with torch.no_grad():
        assert network.body(network.stem(torch.zeros(2, 3, 32, 32))).shape == (2, 64, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels: expected an integer, at least 1"),
        ({"cells": 0}, "cells: expected an integer, at least 1"),
        ({"stages": 5}, "expected images of at least 16x16 for 5 stages, got 6x5"),
    ],
)
def test_networks_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        built(TEXT, **options)
