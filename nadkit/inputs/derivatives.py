"""Derivatives of one-logit networks in their input: secants, gradients, and the second moment of mixed derivatives."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

Network = Callable[[Tensor], Tensor]

BATCH = {"cpu": 512, "cuda": 2048, "mps": 2048}
"""Inputs per forward pass of a secant; on a CPU a larger batch falls out of the caches (``benchmarks/nads.py``)."""

MIXED_ROWS = 16
"""Rows of the mixed moment per backward pass."""


@torch.no_grad()
def secant(f: Network, x: Tensor, scale: float) -> Tensor:
    """Return g_i = [f(x + scale e_i) - f(x - scale e_i)] / (2 scale) at x: (C, H, W) -> (D,).

    Args:
        f: (B, C, H, W) -> (B, 1).
        x: the point.
        scale: half the step, in the units of x.
    """
    size = x.numel()
    pieces = []
    for rows in torch.arange(size, device=x.device).split(BATCH[x.device.type] // 2):
        steps = x.new_zeros(len(rows), size)
        steps[torch.arange(len(rows)), rows] = scale
        steps = steps.view(-1, *x.shape)
        up, down = f(torch.cat([x + steps, x - steps])).squeeze(1).chunk(2)
        pieces.append((up - down) / (2 * scale))
    return torch.cat(pieces)


def gradient(f: Network, x: Tensor) -> Tensor:
    """Return g = grad_x f(x) at x: (C, H, W) -> (D,), for f: (B, C, H, W) -> (B, 1)."""
    return grad(lambda z: f(z[None]).squeeze())(x).flatten()


def mixed_moment(model: nn.Module, x: Tensor) -> Tensor:
    """Return J J^T, J = d^2 f(x) / dx dtheta: (C, H, W) -> (D, D), for a model of one logit.

    J itself (D rows, one number per weight) need not fit in memory: J J^T u is a vector-Jacobian product of the map
    u -> J^T u, taken for a few unit vectors u at a time.

    Source: Ortiz-Jimenez, Moosavi-Dezfooli and Frossard 2021 (arXiv 2106.06770).
    """
    weights = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def input_gradient(weights: dict[str, Tensor]) -> Tensor:
        return gradient(lambda z: functional_call(model, (weights, buffers), (z,)), x)

    def transposed(u: Tensor) -> dict[str, Tensor]:
        return vjp(input_gradient, weights)[1](u)[0]

    def row(u: Tensor) -> Tensor:
        value, pullback = vjp(transposed, u)
        return pullback(value)[0]

    identity = torch.eye(x.numel(), device=x.device, dtype=x.dtype)
    return torch.cat([vmap(row)(us) for us in identity.split(MIXED_ROWS)])


def exact() -> contextlib.AbstractContextManager:
    """Return a context in which a GPU's convolutions have full precision, and the same digits in every run.

    TensorFloat-32 keeps 10 of a float's 23 bits, too few for a difference; and an algorithm chosen by timing would not
    be the same every time. Matrix products have full precision unless torch has been told otherwise.
    """
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
