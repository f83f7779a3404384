"""Local elasticity: how much one training step at a point changes what a network answers at another.

A network's answer f is its one logit, or the difference z_1 - z_0 of its two, trained with square loss to s = +-1; or
the probability of class 1 computed from that, trained with cross-entropy. From weights w a step of gradient descent at
(x, y) leads to w+, and gives two similarities, both unsymmetrised (`kernels.symmetrised` averages the two ways):

    S_rel(x, x') = |f(x', w+) - f(x', w)| / |f(x, w+) - f(x, w)|
    S_ker(x, x') = (f(x', w+) - f(x', w)) / (-eta dL/df)  ->  <grad_w f(x), grad_w f(x')>   as eta -> 0

Networks compute in eval mode and in their own precision. Take ``model.double()``: changes this small are lost among the
seven digits of float32.

Axis letters: N points, K directions, D input dimensions.

Source: He and Su, "The local elasticity of neural networks", ICLR 2020, sections 2 and 3, and their code.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from nadkit import checks
from nadkit.activations.sites import as_inputs, evaluating
from nadkit.data.images import to_float
from nadkit.neighbours.kernels import as_kernel, symmetrised

__all__ = [
    "Steps",
    "critical_rate",
    "elasticity_along",
    "single_steps",
    "square_loss",
    "tangent_kernel",
]

Loss = Literal["square", "cross-entropy"]

FIRST_RATE, GROWTH, LAST_RATE = 1e-6, 3.0, 1e4
"""The search for a step that changes f(x): the first rate, the factor to the next, the last rate, all the authors'."""

VISIBLE = 1000
"""A change counts if it is at least so many roundings. The authors' counts from one, which leaves few digits."""

MEMORY = 2**28
"""Numbers of gradients that are held at a time (2 GB in float64)."""


# ---- answers --------------------------------------------------------------------------------------------------------


def _answers(logits: Tensor, loss: Loss) -> Tensor:
    """Return f (B,) of logits (B, 1) or (B, 2)."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] not in (1, 2):
        came = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model: expected one logit, or two whose difference is the answer, got outputs of {came}; wrap the "
            "network so that it returns the logits of the two classes that are to be compared"
        )
    f = logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
    return f if loss == "square" else torch.sigmoid(f)


def _slopes(f: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Return dL/df (N,): of (f - s)^2 with s = 2 y - 1, or of -log f for y = 1 and -log(1 - f) for y = 0."""
    return 2 * (f - (2 * y - 1)) if loss == "square" else (f - y) / (f * (1 - f))


def square_loss(model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the mean of (f - s)^2 over a batch, s = +1 for label 1 and -1 for 0, and the logits: an `Objective`."""
    logits = model(x)
    return (_answers(logits, "square") - (2 * y - 1)).square().mean(), logits


def _require_points(model: nn.Module, x: Tensor, loss: Loss) -> Tensor:
    """Return points as the network takes them, having checked that it has weights, and answers them all."""
    checks.require_inputs("x", x)
    if not _weights(model):
        raise ValueError(
            "model: expected a network with weights to train, it has none that require a gradient; "
            "model.requires_grad_(True)"
        )
    x = as_inputs(model, x)
    with torch.no_grad():
        try:
            logits = model(x[:1].clone())  # it may begin in place
        except Exception as error:
            raise ValueError(f"the network does not take inputs of shape {tuple(x[:1].shape)}: {error}") from error
    _answers(logits, loss)
    return x


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _gradient(model: nn.Module, x: Tensor, loss: Loss) -> list[Tensor]:
    """Return grad_w f(x) at one point (...), weight by weight."""
    weights = list(_weights(model).values())
    with torch.enable_grad():
        f = _answers(model(x[None].clone()), loss)[0]
        found = torch.autograd.grad(f, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]


# ---- one step -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Steps:
    """What one step at each of N points changes at all of them.

    Attributes:
        change: (N, N) float64, row i: f(x_j, w+) - f(x_j, w) after the step at x_i.
        slope: (N,) float64, dL/df at x_i.
        rate: (N,) float64, eta of the step at x_i.
    """

    change: Tensor
    slope: Tensor
    rate: Tensor

    @property
    def relative(self) -> Tensor:
        """S_rel (N, N): |change_ij| / |change_ii|."""
        return (self.change / self.change.diagonal()[:, None]).abs()

    @property
    def kernel(self) -> Tensor:
        """S_ker (N, N): change_ij / (-eta_i dL/df_i)."""
        return self.change / (-self.rate * self.slope)[:, None]


@checks.typed
def single_steps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss = "square",
    rate: float | None = None,
    progress: bool = False,
) -> Steps:
    """Return what one step of gradient descent at each of N points, from the same weights, changes at all of them.

        w_i = w - eta grad_w L(f(x_i, w), y_i),   change_ij = f(x_j, w_i) - f(x_j, w)

    That takes N backward passes and N forward passes over all points. The network is left as it was.

    Args:
        model: any network of one logit or two, on any device.
        x: (N, ...) points, uint8 (scaled to [0, 1]) or float.
        y: (N,) int64, their labels, 0 or 1.
        loss: ``"square"``, or ``"cross-entropy"``, for which f is the probability of class 1.
        rate: eta; by default 1e-6, tripled until f(x_i) changes by a thousand roundings.
        progress: show a bar that counts points.

    Raises:
        ValueError: a step that changes nothing at its own point, labels that are not 0 and 1, a network of other
            outputs or without weights.

    Source: He and Su 2020, equations of S_rel and S_ker; the search for a rate is their code's.
    """
    checks.require_label_each(x, y, "x and y", "y")
    checks.require_labels("y", y, 2, "classes")
    if rate is not None:
        checks.require_positive("rate", rate)
    with evaluating(model):
        x = _require_points(model, x, loss)
        weights = _weights(model)

        @torch.no_grad()
        def answers(changed: dict[str, Tensor]) -> Tensor:
            return _answers(functional_call(model, changed, (x.clone(),)), loss)

        before = answers({})
        checks.require_finite("model: its answers", before)
        slope = _slopes(before, y.to(before), loss)
        rounding = torch.finfo(before.dtype).eps * before.abs().clamp(min=1)
        changes, rates = [], []
        for i in tqdm(range(len(x)), unit="step", disable=not progress, leave=False):
            gradient = _gradient(model, x[i], loss)
            for eta in _rates(rate):
                stepped = (w.detach() - eta * slope[i] * g for w, g in zip(weights.values(), gradient, strict=True))
                change = answers(dict(zip(weights, stepped, strict=True))) - before
                if change[i].abs() > VISIBLE * rounding[i] and change.isfinite().all():
                    break
            else:
                raise ValueError(_no_step(i, rate, slope[i].item(), gradient))
            changes.append(change)
            rates.append(eta)
    return Steps(_double(torch.stack(changes)), _double(slope), torch.tensor(rates, dtype=torch.float64))


def _rates(rate: float | None) -> Iterator[float]:
    """Give the learning rates to try."""
    rate, last = (FIRST_RATE, LAST_RATE) if rate is None else (rate, rate)
    while rate <= last:
        yield rate
        rate *= GROWTH


def _no_step(i: int, rate: float | None, slope: float, gradient: list[Tensor]) -> str:
    """Return in words why no step at point i changes its own answer, and what to do."""
    size = math.sqrt(sum(g.square().sum().item() for g in gradient))
    facts = f"dL/df = {slope:.3g}, |grad f| = {size:.3g}"
    if not math.isfinite(slope):
        return f"x: the network is so sure of point {i} that its loss has no slope there ({facts}); use loss='square'"
    if rate is not None and slope and size:
        return (
            f"rate: a step of {rate:g} changes nothing at point {i}, or more than numbers can hold ({facts}); take "
            "another, None to search for one, and model.double()"
        )
    return f"x: no step changes the answer at point {i} ({facts}): it is fitted exactly, or units are dead"


def _double(values: Tensor) -> Tensor:
    """Return float64 on the CPU."""
    return values.detach().cpu().double()


# ---- the limit of small steps ---------------------------------------------------------------------------------------


@checks.typed
def tangent_kernel(model: nn.Module, x: Tensor, *, loss: Loss = "square", memory: int = MEMORY) -> Tensor:
    """Return the tangent kernel of a network at its weights, S_ker of a small step, exactly: (N, N) float64.

        K_ij = <grad_w f(x_i), grad_w f(x_j)>

    Args:
        model: any network of one logit or two.
        x: (N, ...) points, uint8 (scaled to [0, 1]) or float.
        loss: what f is, see `single_steps`.
        memory: numbers of gradients that are held at a time; if there are more, some are computed again.

    Raises:
        ValueError: a network of other outputs or without weights, memory below 1.

    Source: Jacot, Gabriel and Hongler 2018; in He and Su 2020 the limit of S_ker.
    """
    checks.require_integer("memory", memory, 1)
    with evaluating(model):
        x = _require_points(model, x, loss)

        def rows(block: Tensor) -> Tensor:
            return torch.stack([torch.cat([g.flatten() for g in _gradient(model, one, loss)]) for one in block])

        size = max(1, memory // (2 * sum(w.numel() for w in _weights(model).values())))
        kernel = torch.zeros(len(x), len(x), dtype=torch.float64)
        for i in range(0, len(x), size):
            mine = rows(x[i : i + size])
            for j in range(i, len(x), size):
                found = _double(mine @ (mine if i == j else rows(x[j : j + size])).T)
                kernel[i : i + size, j : j + size], kernel[j : j + size, i : i + size] = found, found.T
    return symmetrised(kernel)


@checks.typed
def elasticity_along(
    model: nn.Module, x: Tensor, directions: Tensor, shift: float = 1.0, *, loss: Loss = "square"
) -> Tensor:
    """Return 1 - cos of the tangent kernel between a point and one step t along each of K directions: (K,) float64.

        1 - <g(x), g(x + t v_k)> / (|g(x)| |g(x + t v_k)|),   g = grad_w f

    It is 0 where training at x moves x + t v_k exactly as it moves x, up to a factor, and 1 where it does not.

    Args:
        model: any network of one logit or two.
        x: (C, H, W) uint8 or float, the point.
        directions: (K, D), of any length (``basis.vectors`` for one).
        shift: t, in the units of x.
        loss: what f is, see `single_steps`.

    Raises:
        ValueError: directions of another size, a point at which the network has no gradient.
    """
    checks.require_finite_number("shift", shift)
    checks.require_axes("x", x, "(C, H, W)")
    checks.require_axes("directions", directions, "(K, D)")
    checks.require_finite("directions", directions)
    if directions.shape[1] != x.numel():
        raise ValueError(f"directions: expected rows of {x.numel()} numbers, got {tuple(directions.shape)}")
    x = x if x.is_floating_point() else to_float(x)
    moved = x + shift * directions.to(x).view(-1, *x.shape)
    with evaluating(model):
        points = _require_points(model, torch.cat([x[None], moved]), loss)
        found, first = [], None
        for point in points:
            g = torch.cat([part.flatten() for part in _gradient(model, point, loss)])
            if not (size := g.norm()) > 0:
                raise ValueError("x: the network has no gradient in its weights there: all its units are dead")
            first = g / size if first is None else first
            # |a - b|^2 / 2 of unit vectors is 1 - cos, and does not lose its digits where cos is close to 1
            found.append((g / size - first).square().sum() / 2)
    return _double(torch.stack(found[1:]))


@checks.typed
def critical_rate(kernel: Tensor) -> float:
    """Return the learning rate up to which gradient descent on the mean square loss is stable: N / lambda_max(K).

    With the kernel K held fixed, f - s is multiplied by I - (2 eta / N) K in every step. Beyond this rate the loss
    first rises, and training converges only if it changes the kernel.

    Args:
        kernel: (N, N), the `tangent_kernel` of the training points.

    Raises:
        ValueError: not a symmetric kernel with a positive eigenvalue.
    """
    largest = torch.linalg.eigvalsh(as_kernel(kernel))[-1].item()
    if not largest > 0:
        raise ValueError(f"kernel: expected a positive eigenvalue, the largest is {largest:.3g}")
    return len(kernel) / largest
