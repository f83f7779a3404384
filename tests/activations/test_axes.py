"""Axes: where the units are follows from the layer before, wherever they were moved since; in doubt it is asked."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nadkit.activations.sites import find_sites

IMAGE, TOKENS = (3, 6, 6), (7, 4)


class Net(nn.Module):
    """Layers, and what is done with them: ``forward(net, x)``."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, copy.deepcopy(layer))
        self.position = nn.Parameter(torch.randn(1, 7, 4))

    def forward(self, x):
        return self.function(self, x)


def conv(out: int = 5, **options) -> nn.Module:
    return nn.Conv2d(3, out, 3, padding=1, **options)


def linear(out: int = 5) -> nn.Module:
    return nn.Linear(4, out)


# what the network does, its layers, its inputs; where the units are in the activation, and how many
CASES = {
    "convolution": (lambda n, x: torch.relu(n.a(x)), {"a": conv()}, IMAGE, 1, 5),
    "one map": (lambda n, x: torch.relu(n.a(x)), {"a": conv(1)}, IMAGE, 1, 1),
    "saturated": (lambda n, x: F.hardtanh(n.a(x), 2.0, 3.0), {"a": conv()}, IMAGE, 1, 5),
    "pooled": (lambda n, x: F.relu(F.max_pool2d(n.a(x), 2)), {"a": conv()}, IMAGE, 1, 5),
    "padded pooling": (lambda n, x: F.relu(F.avg_pool2d(n.a(x), 3, 2, 1)), {"a": conv()}, IMAGE, 1, 5),
    "gated maps": (lambda n, x: F.glu(n.a(x), 1), {"a": conv(6)}, IMAGE, 1, 3),
    "sum": (lambda n, x: F.relu(n.a(x) + n.b(x)), {"a": conv(), "b": conv()}, IMAGE, 1, 5),
    "joined": (lambda n, x: F.relu(torch.cat([n.a(x), x, n.b(x)], 1)), {"a": conv(2), "b": conv(4)}, IMAGE, 1, 9),
    "flat maps": (lambda n, x: F.relu(n.a(x).flatten(2)), {"a": conv()}, IMAGE, 1, 5),
    "maps to tokens": (lambda n, x: F.relu(n.a(x).flatten(2).transpose(1, 2)), {"a": conv()}, IMAGE, 2, 5),
    "channels last": (lambda n, x: n.b(n.a(x).permute(0, 2, 3, 1)).relu(), {"a": conv(4), "b": linear(9)}, IMAGE, 3, 9),
    "whole images normed": (lambda n, x: n.b(n.a(x)).relu(), {"a": conv(), "b": nn.LayerNorm((5, 6, 6))}, IMAGE, 1, 5),
    "instance norm": (lambda n, x: n.a(x).relu(), {"a": nn.InstanceNorm2d(3, affine=True)}, IMAGE, 1, 3),
    "group norm": (lambda n, x: n.a(x).relu(), {"a": nn.GroupNorm(1, 3)}, IMAGE, 1, 3),
    "the image itself": (lambda n, x: torch.relu(x), {}, IMAGE, 1, 3),
    "einsum": (lambda n, x: torch.einsum("bchw,dc->bhwd", x, n.a.weight).relu(), {"a": nn.Linear(3, 5)}, IMAGE, 3, 5),
    "tokens": (lambda n, x: F.gelu(n.a(x)), {"a": linear()}, TOKENS, 2, 5),
    "one unit a token": (lambda n, x: F.gelu(n.a(x)), {"a": linear(1)}, TOKENS, 2, 1),
    "positions added before": (lambda n, x: F.gelu(n.a(x + n.position)), {"a": linear()}, TOKENS, 2, 5),
    "tokens mixed": (lambda n, x: F.gelu(n.a(x.transpose(1, 2))), {"a": nn.Linear(7, 5)}, TOKENS, 2, 5),
    "and back": (lambda n, x: F.gelu(n.a(x.transpose(1, 2)).mT), {"a": nn.Linear(7, 5)}, TOKENS, 1, 5),
    "layer norm": (lambda n, x: n.a(x).relu(), {"a": nn.LayerNorm(4)}, TOKENS, 2, 4),
    "by hand": (lambda n, x: (n.a(x) @ n.b.weight.T).relu(), {"a": linear(), "b": nn.Linear(5, 6)}, (3, 6, 4), 3, 6),
    "one dimension": (lambda n, x: n.a(x).relu(), {"a": nn.Conv1d(7, 5, 3, padding=1)}, TOKENS, 1, 5),
    "batch norm": (lambda n, x: n.a(x).relu(), {"a": nn.BatchNorm1d(7)}, TOKENS, 1, 7),
    "recurrent": (lambda n, x: n.a(x)[0].relu(), {"a": nn.LSTM(4, 5, batch_first=True)}, TOKENS, 2, 5),
    "attention": (lambda n, x: n.a(x, x, x)[0].relu(), {"a": nn.MultiheadAttention(4, 2)}, TOKENS, 2, 4),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_units_are_where_the_layer_before_put_them(name, dtype):
    forward, layers, shape, axis, units = CASES[name]
    (site,) = find_sites(Net(forward, **layers).to(dtype), shape)
    assert (site.axis, site.units) == (axis, units)


def test_units_are_found_on_the_meta_device_too():
    forward, layers, shape, axis, _ = CASES["channels last"]
    assert find_sites(Net(forward, **layers).to("meta"), shape)[0].axis == axis


def test_each_site_has_its_own_axis():
    """Also sites that are named."""
    net = Net(lambda n, x: n.b(torch.relu(n.a(x)).permute(0, 2, 3, 1)).relu(), a=conv(4), b=linear(9))
    assert [(site.axis, site.units) for site in find_sites(net, IMAGE)] == [(1, 4), (3, 9)]
    assert [(site.axis, site.units) for site in find_sites(net, IMAGE, names=["a", "b"])] == [(1, 4), (3, 9)]
    assert {site.axis for site in find_sites(net, IMAGE, axis=2)} == {2}
    assert [site.axis for site in find_sites(net, IMAGE, axis={"relu[0]": -1})] == [3, 3]


ASKED = {
    "positions added": (lambda n, x: torch.relu(n.a(x) + n.position), {"a": linear(4)}, TOKENS),
    "unknown": (lambda n, x: torch.relu(x), {}, TOKENS),
    "loops until": (lambda n, x: torch.relu(n.a(x)) if x.sum() == 0 else None + x, {"a": linear(4)}, TOKENS),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_cannot_be_told_is_asked_with_both_readings(name):
    forward, layers, shape = ASKED[name]
    net = Net(forward, **layers)
    words = r"site 'relu': cannot tell .*, 7, 4\): axis=1 has 7 units at 4 pos.*, axis=-1 has 4 units at 7 .*'relu': 1}"
    with pytest.raises(ValueError, match=words):
        find_sites(net, shape)
    for axis in (-1, 2, {"relu": -1}):
        assert find_sites(net, shape, axis=axis)[0].shape == (4, 7)
    with pytest.raises(ValueError, match=r"axis: no site 'rely'; did you mean 'relu'\?"):
        find_sites(net, shape, axis={"rely": 1})


def test_activations_that_are_none_of_samples_are_no_sites():
    """A bias of positions, made of parameters alone. And samples on another axis than the first are noticed."""
    net = Net(lambda n, x: torch.relu(n.a(x)) + torch.relu(n.position).mean(), a=linear())
    assert find_sites(net, TOKENS).names == ["relu[0]"]
    assert find_sites(net, TOKENS, axis=-1).names == ["relu[0]"]
    first = Net(lambda n, x: torch.relu(n.a(x.transpose(0, 1))), a=linear())
    with pytest.raises(ValueError, match=r"expected an activation \(samples, ...\).* shape \(2, 2, 5\)"):
        find_sites(first, (2, 4))
