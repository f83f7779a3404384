"""Scores of networks before any training: NASWOT's, the gradient norm, synflow, and the energy of input derivatives.

For a batch of B images, let row i of X_a be the *code* of image i at the N_a rectified units of a use of ReLU: 1 where
the unit is active, 0 where it is not. Two images are as alike to a network as their codes are:

    K = sum_a X_a X_a^T + (1 - X_a)(1 - X_a)^T,   K_ij = N - Hamming(i, j),   N = sum_a N_a
    score = log |det K|

Source: Mellor, Turner, Storkey and Crowley 2021, Neural Architecture Search without Training.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from nadkit import checks
from nadkit.activations.calls import ACTIVATIONS, Place, watched
from nadkit.activations.sites import as_inputs, evaluating
from nadkit.devices import double
from nadkit.neighbours import kernels
from nadkit.training import fitting
from nadkit.training.fitting import Data

__all__ = ["best_of", "code_kernel", "energy", "gradient_norm", "naswot", "synflow"]

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
RECTIFYING = ("relu", "relu6", "leaky_relu")
"""Modules and functions whose output is positive exactly where their input is."""

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)

CHUNK = 2**20
"""Units whose codes are held as numbers at a time: float32 counts them without error, and memory stays small."""


# ---- NASWOT ----------------------------------------------------------------------------------------------------------


@checks.typed
@torch.no_grad()
def code_kernel(model: nn.Module, x: Tensor, *, batch_statistics: bool = True) -> Tensor:
    """Return the kernel K of a batch, (B, B) float64 on the CPU: the number of units at which two codes agree.

        K_ij = N - Hamming(code_i, code_j),   code = 1[input of the ReLU > 0]

    Its diagonal is N, the number of rectified units. Every use of ReLU, ReLU6 and leaky ReLU counts, as a module or as
    a function; the authors' code sees modules only, and of these the ones that a backward pass reaches.

    Normalisation layers use the statistics of the batch, as in the authors' code, and do not store them; dropout and
    the like stay off, so that the kernel depends only on network and batch.

    Args:
        model: any network of one input; it stays on its device and in its modes.
        x: (B, ...), at least two inputs, uint8 or float.
        batch_statistics: else normalisation uses its running statistics: mean 0 and variance 1, as initialised.

    Raises:
        ValueError: fewer than two inputs, a network without ReLUs, one that does not take such inputs or in whose
            activations these do not lie on the first axis.
    """
    x = _inputs(model, x)
    modules = dict(model.named_modules())
    parts: list[Tensor] = []
    others: set[str] = set()

    def see(place: Place, _use: int, _inputs: tuple, output: object) -> None:
        module = modules[place.path]
        if place.function in RECTIFYING or (not place.function and isinstance(module, RECTIFIERS)):
            if len(output) != 1:  # otherwise it does not depend on the inputs: a position bias, for example
                parts.append(_agreement(place, output, len(x)))
        elif place.function or isinstance(module, ACTIVATIONS):
            others.add(f"{place.function}()" if place.function else type(module).__name__)

    with _normalising(model, batch_statistics), watched(model, see):
        try:
            model(x)
        except RuntimeError as error:
            raise ValueError(f"the network does not take inputs of shape {tuple(x.shape)}: {error}") from error
    if not parts:
        raise ValueError(
            f"model: expected a network with ReLUs, whose on and off are the codes, {type(model).__name__} has "
            f"{', '.join(sorted(others)) or 'no activations'}"
        )
    return sum(parts)


def _agreement(place: Place, activation: Tensor, batch: int) -> Tensor:
    """Return at how many of N_a units two codes agree, (N_a + S S^T) / 2 with signs S = 2 X - 1."""
    if len(activation) != batch:
        name = f"{place.path}.{place.function}".strip(".")
        raise ValueError(
            f"model: expected activations with the {batch} inputs on the first axis, at {name!r} they have shape "
            f"{tuple(activation.shape)} (some layers of PyTorch's take batch_first=True)"
        )
    codes = (activation > 0).flatten(1)
    total = torch.zeros(batch, batch, dtype=torch.float64)
    for part in codes.split(CHUNK, dim=1):
        signs = 2 * part.float() - 1
        total += (signs @ signs.T).cpu().double()
    return (codes.shape[1] + total) / 2


@checks.typed
def naswot(
    model: nn.Module,
    x: Tensor,
    *,
    batch_statistics: bool = True,
    normalised: bool = False,
) -> float:
    """Return NASWOT's score log |det K| of a network for a batch (B, ...), with K as `code_kernel` gives it.

    The larger the score, the better the network tells the images of the batch apart. It grows with B and with the
    number of units, and is comparable only between networks that see the same batch. It is -inf if two images have the
    same code, and a warning says which.

    Raises:
        ValueError: what `code_kernel` raises.
    """
    kernel = code_kernel(model, x, batch_statistics=batch_statistics)
    score = kernels.log_determinant(kernels.normalised(kernel) if normalised else kernel)
    if score == -math.inf:
        warnings.warn(f"the score is -inf: {_why_singular(kernel)}", RuntimeWarning, stacklevel=2)
    return score


def _why_singular(kernel: Tensor) -> str:
    units, batch = round(kernel[0, 0].item()), len(kernel)
    alike = (kernel == units).triu(1).nonzero().tolist()
    if not alike:
        return f"the codes of {batch} images at {units} units are linearly dependent; take a smaller batch"
    (i, j), more = alike[0], f", and {len(alike) - 1} more pairs" if len(alike) > 1 else ""
    return (
        f"images {i} and {j}{more} have one code at all {units} units, so two rows of K are equal; drop images that "
        "are identical, or look for a layer that lets nothing through"
    )


# ---- other scores ----------------------------------------------------------------------------------------------------


@checks.typed
def gradient_norm(model: nn.Module, data: Data, *, batch_statistics: bool = True) -> float:
    """Return the sum over weight matrices of the norm of the gradient of the loss of one batch.

        sum_l |dL / dW_l|_2,   L the mean cross-entropy

    W_l are the parameters with two or more axes: filters and matrices, but not biases and scales of batch norm.

    Args:
        model: any network of logits (B, classes); its gradients, statistics and modes stay as they are.
        data: inputs (B, ...), at least two, and labels (B,) int64.
        batch_statistics: as in `code_kernel`.

    Raises:
        ValueError: fewer than two inputs, labels without a logit, a network without weights or that does not take them.

    Source: Abdelfattah et al. 2021, Zero-Cost Proxies for Lightweight NAS.
    """
    x, y = data
    checks.require_samples(x, y)
    x = _inputs(model, x, "data")
    y = y.to(x.device)
    with evaluating(model):
        fitting.require_logits(model, x, {"labels": y})
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    with _normalising(model, batch_statistics), torch.enable_grad():
        loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
        gradients = _gradients(loss, weights)
    return sum(double(g).norm().item() for g in gradients.values())


@checks.typed
def synflow(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the synaptic flow of a network, which needs no data.

        sum_l sum_w  w dR / dw,   R = the sum of the outputs for an input of ones, all parameters replaced by |w|

    Normalisation layers are left out, and the sum is over the weights of `gradient_norm`. For a chain of L
    layers of weights without biases it is L R = L 1^T |W_L| ... |W_1| 1. It is computed in float64, because it grows
    exponentially with depth; compare its logarithms.

    Args:
        model: any network of one input; a copy of it is used.
        shape: of one input, (C, H, W) for instance.

    Raises:
        ValueError: a network without weights, or that does not take such inputs.

    Source: Tanaka et al. 2020, Pruning neural networks without any data; as a score, Abdelfattah et al. 2021.
    """
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    weights = {name: p.detach().abs().requires_grad_() for name, p in model.named_parameters()}
    like = next(iter(weights.values()), torch.zeros(()))
    with torch.enable_grad():
        try:
            flow = functional_call(model, weights, (like.new_ones(1, *shape),)).sum()
        except Exception as error:
            raise ValueError(f"the network does not take inputs of shape (1, *{tuple(shape)}): {error}") from error
        gradients = _gradients(flow, weights)
    return sum((weights[name] * g).sum().item() for name, g in gradients.items())


def _gradients(value: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of a number in the weights of two axes and more, by name; of one unused it is left out."""
    chosen = {name: w for name, w in weights.items() if w.ndim > 1}
    if not chosen:
        raise ValueError("model: expected a network with weights, matrices or filters, got one without")
    if not value.requires_grad:  # no weight has a part in it
        return {}
    found = torch.autograd.grad(value, list(chosen.values()), allow_unused=True)
    return {name: g for name, g in zip(chosen, found, strict=True) if g is not None}


@checks.typed
def energy(covariance: Tensor, x: Tensor) -> float:
    """Return the share of input derivatives along given inputs, times their number of dimensions; 1: no preference.

        e = D sum_n x_n^T C x_n / (tr C  sum_n |x_n|^2)

    For one direction v it says how much an architecture prefers v; for centred images, how well its preferences are
    aligned with the data.

    Args:
        covariance: C, (D, D), of the derivatives (`nadkit.inputs.covariance`), centred or not.
        x: (D,), or (N, ...) of D numbers each.

    Raises:
        ValueError: sizes that do not match, numbers that are not finite, derivatives or inputs that are all zero.
    """
    checks.require_axes("covariance", covariance, "(D, D)")
    checks.require_finite("covariance", covariance)
    checks.require_finite("x", x)
    size = len(covariance)
    if covariance.shape[1] != size or not x.numel() or x.numel() % size or (x.ndim > 1 and x[0].numel() != size):
        raise ValueError(f"x: expected inputs of {size} numbers each, as C has, got {checks.found(x)}")
    c, rows = covariance.cpu().double(), x.reshape(-1, size).cpu().double()
    scale = c.trace() * rows.square().sum()
    if not scale > 0:
        raise ValueError("expected derivatives and x that are not all zero, so that there is a share to speak of")
    return (size * ((rows @ c) * rows).sum() / scale).item()


@checks.typed
def best_of(scores: Sequence[float], values: Sequence[float], n: int) -> tuple[float, float]:
    """Return mean and standard deviation of the value of the network with the highest score among n.

    Over all ways to draw n of a pool of P without replacement: the i-th in ascending order of scores is the best with
    probability C(i - 1, n - 1) / C(P, n). Of equal scores, the later in the pool wins.

    Args:
        scores: (P,), of which -inf is the lowest.
        values: (P,), such as accuracies.
        n: from 1, a random network, to P.

    Raises:
        ValueError: not one score a value, a score or a value that is not a number, or n out of range.

    Source: Mellor et al. 2021, the search on NAS-Bench-201, which draws 500 times.
    """
    order, values = (np.asarray(numbers, dtype=float) for numbers in (scores, values))
    if order.ndim != 1 or order.shape != values.shape or not len(order):
        raise ValueError(f"scores: expected a score (P,) for each of the values, got {order.shape} and {values.shape}")
    if np.isnan(order).any() or not np.isfinite(values).all():
        raise ValueError("scores: expected numbers, and values that are finite, got others")
    pool = len(order)
    n = checks.require_integer("n", n, 1, pool)
    # C(r, n - 1) / C(P, n) from the highest rank down, because the binomials themselves overflow
    below = np.arange(pool - 1, 0, -1)
    chance = n / pool * np.r_[1, np.cumprod(np.clip(below - n + 1, 0, None) / below)][::-1]
    ranked = values[np.argsort(order, kind="stable")]
    mean = chance @ ranked
    return float(mean), math.sqrt(chance @ (ranked - mean) ** 2)


# ---- what the scores share -------------------------------------------------------------------------------------------


def _inputs(model: nn.Module, x: Tensor, name: str = "x") -> Tensor:
    checks.require_inputs(name, x)
    if len(x) < 2:
        raise ValueError(f"{name}: expected a batch of at least two inputs, got {len(x)}")
    return as_inputs(model, x)


@contextmanager
def _normalising(model: nn.Module, by_batch: bool) -> Iterator[None]:
    """Run a block in eval mode, in which norms may use the batch's statistics; theirs are afterwards as before."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase)] if by_batch else []
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    with evaluating(model):
        for norm in norms:
            norm.training = True
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)
