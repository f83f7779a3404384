"""Networks of a few weights, and slow oracles of their derivatives, for the tests of this folder."""

import torch
from torch import nn

from nadkit import seeds

SHAPE = (1, 4, 4)


def tanh_network(shape, classes):
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, classes))


def decaying(shape, classes):
    """A linear network whose weight i is N(0, 4^-i): covariance and NADs are known in closed form."""
    size = shape[0] * shape[1] * shape[2]
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes, bias=False))
    nn.init.normal_(model[1].weight)
    with torch.no_grad():
        model[1].weight *= 0.5 ** torch.arange(size)
    return model


def network(i, seed=0):
    with seeds.seeded(seed, "network", i):
        return tanh_network(SHAPE, 1).eval()


def slow_secant(model, x, scale):
    """One pixel at a time, in float64."""
    model, x = model.double(), x.double()
    g = []
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[i] = scale
        step = step.view(x.shape)
        g.append((model((x + step)[None]) - model((x - step)[None])).item() / (2 * scale))
    return torch.tensor(g, dtype=torch.float64)


def wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, classes))


def relu_network(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, classes))


def point(seed=0):
    return torch.randn(SHAPE, generator=seeds.generator(seed, "point"))
