"""Secants through windows against the plain loop, whatever the network begins with."""

import pytest
import torch
from small_networks import slow_secant
from torch import nn
from torch.nn import functional as F

from nadkit import architectures, seeds
from nadkit.architectures.densenet import DenseLayer
from nadkit.architectures.resnet import Block
from nadkit.inputs import derivatives
from nadkit.inputs.derivatives import secant
from nadkit.inputs.local import Changed, is_local, local_secant, reach

SHAPE = (2, 13, 18)


class Apply(nn.Module):
    """Any function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def in_place_and_twice(x):
    """The second term must see what the first did in place, with a rule (relu_) and without one (mul_)."""
    first = F.relu(x, inplace=True)
    x.mul_(2)
    return first + x


STEMS = {
    "conv": [nn.Conv2d(2, 3, 5)],
    "conv padded, strided": [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2)],
    "stride beyond the kernel": [nn.Conv2d(2, 3, 1, stride=2), nn.ReLU()],
    "stride off the grid": [nn.Conv2d(2, 3, 3, stride=3), nn.ReLU()],
    "uneven": [nn.Conv2d(2, 3, (3, 5), padding=(2, 1)), nn.Tanh(), nn.Conv2d(3, 3, (1, 2))],
    "dilated": [nn.Conv2d(2, 3, 3, dilation=2), nn.ReLU()],
    "grouped": [nn.Conv2d(2, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3, groups=2, padding="same"), nn.GELU()],
    "circular": [nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.ReLU()],
    "transposed": [nn.ConvTranspose2d(2, 3, 3), nn.ReLU()],
    "linear for long": [nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(3, 3, 3, padding=1)],
    "norms": [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=False), nn.LeakyReLU(inplace=True)],
    "pooling": [
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
    ],
    "pooling of an odd map": [nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.MaxPool2d(3, stride=2), nn.Tanh()],
    "padded pooling": [nn.Conv2d(2, 3, 3), nn.MaxPool2d(3, stride=2, padding=1), nn.AvgPool2d(3, 2, padding=1)],
    "residual": [nn.Conv2d(2, 3, 3), nn.ReLU(), Block(3, 3, 1), Block(3, 4, 2), Block(4, 4, 1)],
    "dense": [nn.Conv2d(2, 3, 3), DenseLayer(3), nn.AvgPool2d(2), nn.ReLU()],
    "dropout": [nn.Conv2d(2, 3, 3), nn.Dropout2d(), nn.Hardtanh()],
    "a difference": [nn.Conv2d(2, 3, 3), Apply(lambda x: F.relu(x) - x)],
    "slices": [nn.Conv2d(2, 3, 3), nn.ReLU(), Apply(lambda x: torch.cat([x[..., :1], x], -1))],
    "in place": [nn.Conv2d(2, 3, 3), Apply(in_place_and_twice), nn.Conv2d(3, 3, 3)],
}


def network(stem):
    """A network in float64, in eval mode, whose norms are not the identity."""
    with seeds.seeded(0), torch.device("cpu"):
        model = nn.Sequential(*STEMS[stem], nn.Flatten(), nn.LazyLinear(1)).double().eval()
        model(torch.zeros(1, *SHAPE, dtype=torch.float64))
        for layer in model.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()  # the stems were made when this file was read, with whatever seed was there
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    return model.requires_grad_(False)


def point(shape=SHAPE):
    return torch.randn(shape, dtype=torch.float64, generator=seeds.generator(0, "point"))


@pytest.mark.parametrize("stem", STEMS)
def test_it_is_the_plain_loop(stem):
    model, x = network(stem), point()
    plain = secant(model, x, 2.0)
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(local_secant(model, x, 2.0), plain, rtol=1e-9, atol=1e-9 * plain.abs().max().item())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("logreg", 8), ("lenet", 16), ("lenet-blur", 16), ("lenet-stride", 16), ("lenet-nopool", 16), ("vit", 8)),
        *(("convnext", 16), ("convnet11", 8), ("resnet18", 8), ("densenet121", 8)),
    ],
)
def test_it_is_the_plain_loop_for_every_kind_of_architecture(name, size):
    """The networks of the book, in float32 and float64, at the step of the paper."""
    shape = (1, size, size)
    with seeds.seeded(0), torch.device("cpu"):
        model = architectures.build(name, shape=shape, classes=1).eval().requires_grad_(False)
    x = point(shape).float()
    plain, local = secant(model, x, 100.0), local_secant(model, x, 100.0)
    torch.testing.assert_close(local, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())
    model, x = model.double(), x.double()
    plain, local = secant(model, x, 100.0), local_secant(model, x, 100.0)
    torch.testing.assert_close(local, plain, rtol=1e-9, atol=1e-9 * plain.abs().max().item())


def test_one_pixel_at_a_time():
    model, x = network("norms"), point()
    torch.testing.assert_close(local_secant(model, x, 2.0), slow_secant(model, x, 2.0))


def test_it_does_not_depend_on_the_batch(monkeypatch):
    model, x = network("pooling"), point()
    whole = local_secant(model, x, 2.0)
    monkeypatch.setitem(derivatives.BATCH, "cpu", 14)
    torch.testing.assert_close(local_secant(model, x, 2.0), whole)


def test_reach_of_lenet():
    model = architectures.build("lenet", shape=(1, 32, 32), classes=1).eval()
    assert reach(model, torch.randn(1, 32, 32)) == [
        "convolution: 5x5 of 28x28",
        "relu_: 5x5 of 28x28",
        "max_pool2d_with_indices: 3x3 of 14x14",
        "convolution: 7x7 of 10x10",
        "relu_: 7x7 of 10x10",
        "max_pool2d_with_indices: 4x4 of 5x5",
        "clone: whole maps",
    ]


@pytest.mark.parametrize("stem", ["conv", "norms", "grouped", "linear for long"])
def test_every_layer_of_a_local_stem_is_taken_in_windows(stem):
    *local, last = reach(network(stem), point())
    assert len(local) == len(STEMS[stem])
    assert all(" of " in line for line in local)
    assert last == "clone: whole maps"


@pytest.mark.parametrize(("name", "local"), [("lenet", True), ("logreg", False), ("mlp128", False)])
def test_networks_that_begin_with_convolutions_are_local(name, local):
    model = architectures.build(name, shape=(1, 16, 16), classes=1).eval()
    assert is_local(model, torch.randn(1, 16, 16)) == local


def test_a_changed_batch_is_the_batch():
    x = point()
    changed = Changed.pixels(x, 3.0, (1, 2), (2, 3))
    assert changed.shape == (2 * 2 * 2 * 3, *SHAPE)
    expected = x.expand(2, 2, 2, 3, *SHAPE).clone()  # up or down, channel, grid
    for up, channel, i, j in torch.cartesian_prod(*map(torch.arange, (2, 2, 2, 3))).tolist():
        expected[up, channel, i, j, channel, 1 + 4 * i, 2 + 4 * j] += 3.0 if up == 0 else -3.0
    assert torch.equal(changed.whole(), expected.flatten(0, 3))


def test_a_network_that_works_through_views_is_not_local():
    def through_a_view(x):
        x[:, 0].relu_()
        return x

    x = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem, head = nn.Conv2d(1, 3, 3), [nn.Tanh(), nn.Flatten(), nn.Linear(3 * 14 * 14, 1)]
    assert is_local(nn.Sequential(stem, *head), x)
    assert not is_local(nn.Sequential(stem, Apply(through_a_view), *head), x)
