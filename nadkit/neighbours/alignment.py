"""Alignment: what directions of the input mean to a trained network, to its units and to its data.

With orthonormal directions u_1, u_2, ..., the rows of a `Basis`, such as neural anisotropy directions (NADs):

    x_k = x - sum_(j <= k) <u_j, x - m> u_j              inputs without the first k, `remove`, `removal_curve`
    var_k = E <u_k, x - E x>^2 / E |x - E x|^2           how much the inputs vary along one, `variance_along`
    sig_k = E_c <u_k, m_c - m>^2 / E_c |m_c - m|^2       how much the means m_c of the classes differ, `signal_along`
    s_uk = E <u_k, grad a_u>^2 / E |grad a_u|^2          how much unit u sees of it, `units_along`

It is the book's own link between the directions of the input of Ortiz-Jimenez et al. (NeurIPS 2020) and the single
directions of the activations of Morcos et al. (ICLR 2018); no paper has it.

Axis letters: N samples, B batch, C channels, D input dimensions of a basis, K directions, S steps, U units.
A basis of one channel, (1, H, W), acts on each channel of a colour image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nadkit import checks
from nadkit.activations.activity import activity_at
from nadkit.activations.scores import Answers, Scores, require_logits, tally
from nadkit.activations.sites import Sites, as_inputs, capture, evaluating, require_sites
from nadkit.data.images import to_float
from nadkit.devices import double
from nadkit.inputs.basis import Basis
from nadkit.training import Data

__all__ = [
    "RemovalCurve",
    "area_over_variance",
    "exchanged",
    "principal_basis",
    "removal_curve",
    "remove",
    "signal_along",
    "units_along",
    "variance_along",
]

Value = Literal["mean", "zero"]

BATCH = 500
"""Samples per forward pass of a curve."""

GRADIENT_BATCH = 100
"""Samples whose activations are kept for the gradients of all units."""


# ---- the data -------------------------------------------------------------------------------------------------------


@checks.typed
def variance_along(x: Tensor, basis: Basis) -> Tensor:
    """Return the share of the inputs' variance along each direction, var_k: (N, C, H, W) -> (K,) float64.

    The shares of a complete basis sum to 1.

    Raises:
        ValueError: inputs that are not finite, all the same, or of another shape than the basis is for.
    """
    x = double(_inputs("x", x, basis))
    return _shares("x", x - x.mean(0), basis)


@checks.typed
def signal_along(data: Data, basis: Basis) -> Tensor:
    """Return the share of the difference between classes along each direction, sig_k: (K,) float64.

    The mean over classes weights each class by its samples, so with two classes it is the energy of the difference of
    their means, <u_k, m_1 - m_2>^2 / |m_1 - m_2|^2. The shares of a complete basis sum to 1.

    Args:
        data: inputs (N, C, H, W) and labels (N,) int64 of at least two classes.
        basis: of K directions.

    Raises:
        ValueError: no data, labels of fewer than two classes, class means that are all the same, or inputs of another
            shape than the basis is for.
    """
    x, y = data
    checks.require_samples(x, y)
    x = double(_inputs("data", x, basis))
    y = y.to(x.device)
    classes = y.unique()
    if len(classes) < 2:
        raise ValueError(f"labels: expected at least two classes, got {len(classes)}")
    means = torch.stack([x[y == label].mean(0) - x.mean(0) for label in classes])
    weights = torch.stack([(y == label).double().mean() for label in classes]).sqrt()
    return _shares("data", weights.view(-1, 1, 1, 1) * means, basis)


@checks.typed
def principal_basis(x: Tensor) -> Basis:
    """Return the principal directions of one channel of the inputs, of largest variance first: (N, C, H, W) -> Basis.

    They are the eigenvectors of sum_c E (x_c - E x_c)(x_c - E x_c)^T, with its eigenvalues; the channels count alike.

    Raises:
        ValueError: inputs that are not finite, or all the same.
    """
    checks.require_axes("x", x, "(N, C, H, W)")
    checks.require_inputs("x", x)
    x = double(x.cpu())
    rows = (x - x.mean(0)).flatten(2).flatten(0, 1)
    covariance = rows.T @ rows / len(x)
    if not covariance.trace() > 0:
        raise ValueError("x: expected inputs that differ, they are all the same")
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return Basis(
        vectors=eigenvectors.T.flip(0).contiguous(),
        shape=(1, *x.shape[2:]),
        name="principal directions",
        eigenvalues=eigenvalues.flip(0).clamp(min=0),
    )


@checks.typed
def exchanged(basis: Basis, chosen: Tensor) -> Basis:
    """Return the orthogonal map in which u_k and u_(D + 1 - k) change places for the chosen k; its rows are a basis.

    Q = I - sum_k (u_k - u_(D + 1 - k)) (u_k - u_(D + 1 - k))^T over the chosen k, so Q x is `interventions.Rotated` by
    it. With none chosen it is the identity, with all chosen `Basis.flip`. Like the flip it keeps all inner products.

    Args:
        basis: a complete one.
        chosen: (D // 2,) bool, entry k - 1 for the k-th direction and its partner from the end.

    Raises:
        ValueError: the basis does not span the whole space, or there is not one entry for each pair.
    """
    basis.require_complete()
    pairs = len(basis) // 2
    if chosen.dtype != torch.bool or chosen.shape != (pairs,):
        raise ValueError(f"chosen: expected ({pairs},) bool, one for each pair, got {checks.found(chosen)}")
    apart = (basis.vectors[:pairs] - basis.vectors.flip(0)[:pairs])[chosen.to(basis.vectors.device)]
    identity = torch.eye(len(basis), dtype=torch.float64, device=apart.device)
    return Basis(vectors=identity - apart.T @ apart, shape=basis.shape, name=f"exchange in {basis.name}")


# ---- the network ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class RemovalCurve(Scores):
    """Scores (S,) of a network on inputs with more and more directions of a basis removed, the first ones first.

    Attributes:
        counts: (S,) int64, directions removed, from none to all K.
        fraction: (S,) float64, the same from 0 to 1.
        variance: (S,) float64, share of the inputs' variance removed, from 0; to 1 for a complete basis.
    """

    counts: Tensor
    fraction: Tensor
    variance: Tensor


@checks.typed
def remove(x: Tensor, basis: Basis, k: int, *, value: Value = "mean") -> Tensor:
    """Return inputs without their coordinates along the first k directions, x_k, in the shape of x: (N, C, H, W).

    Args:
        x: float, or uint8 scaled to [0, 1].
        basis: of at least k directions.
        k: number of directions, 0 leaves the inputs as they are.
        value: what stands in place of a coordinate: ``"mean"``, that of these inputs, or ``"zero"``.

    Raises:
        ValueError: inputs that are not finite or of another shape than the basis is for; k is not from 0 to K.
    """
    checks.require_integer("k", k, 0, len(basis))
    x = _inputs("x", x, basis)
    return x - _part(_taken(x, basis, value), basis, k, x)


@checks.typed
@torch.no_grad()
def removal_curve(
    model: nn.Module,
    data: Data,
    basis: Basis,
    *,
    counts: Sequence[int],
    value: Value = "mean",
    batch_size: int = BATCH,
    progress: bool = False,
) -> RemovalCurve:
    """Return the scores of a network on inputs without the first directions of a basis, for each number of them.

    It is the cumulative ablation curve of Part II with directions of the input in place of units; its order is that of
    the basis.

    Args:
        model: any network of logits (B, classes); it stays on its device and in its modes.
        data: what the scores are taken on, inputs (N, C, H, W) as in training and labels (N,).
        basis: of K directions.
        counts: how many to remove, each from 0 to K; none and all are added.
        value: what stands in place of a coordinate, as in `remove`.
        batch_size: samples per forward pass.
        progress: show a bar that counts steps.

    Raises:
        ValueError: a count is out of range; no data, labels without a logit, inputs that are not finite, all the same,
            or of another shape than the basis is for; the network does not take them, or gives no logits, or NaN.
    """
    x, y = data
    checks.require_samples(x, y)
    x = as_inputs(model, _inputs("data", x, basis))
    y = y.to(x.device)
    batch_size = checks.require_integer("batch_size", batch_size, 1)
    steps = sorted({0, len(basis), *(checks.require_integer("counts", k, 0, len(basis)) for k in counts)})
    with evaluating(model):
        classes = _classes(model, x[:1])
        checks.require_labels("labels", y, classes)
        taken = _taken(x, basis, value)

        def answers() -> Iterator[Answers]:
            for step, k in enumerate(tqdm(steps, unit="step", disable=not progress, leave=False)):
                changed = x - _part(taken, basis, k, x)
                for inputs, labels in zip(changed.split(batch_size), y.split(batch_size), strict=True):
                    yield torch.tensor([step]), model(inputs)[None], labels

        scores = tally(answers(), len(steps), y, classes, x.device)
    if scores.loss.isnan().any():
        raise ValueError("model: expected logits that are numbers, the loss is NaN; was the training stable?")
    counts = torch.tensor(steps)
    along = torch.cat([torch.zeros(1).double(), variance_along(x, basis).cumsum(0).cpu()])
    if len(basis) == basis.vectors.shape[1]:
        along = along / along[-1]
    parts = scores.each(lambda part: part)
    return RemovalCurve(counts=counts, fraction=counts.double() / len(basis), variance=along[counts], **parts)


@checks.typed
def area_over_variance(curve: RemovalCurve, *, normalised: bool = False) -> float:
    """Return the area under the accuracy over the share of variance removed, by trapezoids.

    It compares two bases at equal variance removed: a basis gains nothing by removing variance fast. ``normalised``
    divides by the accuracy with nothing removed.

    Raises:
        ValueError: the curve does not end where all variance is removed, because its basis is not complete.
    """
    if abs(curve.variance[-1].item() - 1) > 1e-6:
        share = curve.variance[-1].item()
        raise ValueError(f"curve: expected one of a complete basis, this one ends at {share:.3g} of the variance")
    area = torch.trapezoid(curve.accuracy, curve.variance)
    return (area / curve.accuracy[0] if normalised else area).item()


# ---- its units ------------------------------------------------------------------------------------------------------


@checks.typed
def units_along(
    model: nn.Module,
    x: Tensor,
    sites: Sites,
    bases: Sequence[Basis],
    *,
    batch_size: int = GRADIENT_BATCH,
    progress: bool = False,
) -> list[Tensor]:
    """Return the share of each unit's input gradient along each direction, s_uk: (U, K) float64 for each basis.

    The activation a_u of a feature map is its mean over positions. The mean E is over the inputs, so the share is that
    of the gradient's second moment; over random networks, in place of inputs, this moment defines NADs. A unit without
    a gradient at any of the inputs, a dead one, is NaN. A unit of a linear layer on the input, with weights w and any
    activation, has <u_k, w>^2 / |w|^2.

    Args:
        model: any network; it stays on its device and in its modes.
        x: (N, C, H, W), as in training.
        sites: of the units (`find_sites`).
        bases: any number; they need not be complete.
        batch_size: samples whose activations are kept at a time.
        progress: show a bar that counts units.

    Raises:
        ValueError: inputs that are not finite, or of another shape than a basis is for; no bases; sites of another
            network; a gradient that is not finite.
    """
    bases = checks.require_all("bases", bases, Basis)
    batch_size = checks.require_integer("batch_size", batch_size, 1)
    for basis in bases:
        x = _inputs("x", x, basis)
    require_sites(model, sites, as_inputs(model, x[:1]))
    total = torch.zeros(sites.n_units, dtype=torch.float64)
    along = [torch.zeros(sites.n_units, len(basis), dtype=torch.float64) for basis in bases]
    batches = x.split(batch_size)
    with tqdm(total=len(batches) * sites.n_units, unit="unit", disable=not progress, leave=False) as bar:
        for batch in batches:
            for unit, g in enumerate(_gradients(model, as_inputs(model, batch), sites)):
                total[unit] += g.square().sum().cpu().double()
                for energy, basis in zip(along, bases, strict=True):
                    squares = basis.coordinates(g).square()
                    energy[unit] += squares.reshape(-1, len(basis)).sum(0).cpu().double()
                bar.update()
    if not total.isfinite().all():
        raise ValueError("model: expected gradients that are finite, got NaN or infinity; was the training stable?")
    return [torch.where(total[:, None] > 0, energy / total[:, None], math.nan) for energy in along]


def _gradients(model: nn.Module, x: Tensor, sites: Sites) -> Iterator[Tensor]:
    """Yield the gradient of each unit's activation at each of the inputs, (B, C, H, W), unit by unit."""
    x = x.detach().requires_grad_()
    with torch.enable_grad(), evaluating(model), capture(model, sites, activity_at) as seen:
        model(x.clone())  # it may begin in place, which a leaf refuses
        for name in sites.names:
            # inputs do not mix, so the gradient of the sum over inputs holds that of each
            for one in seen[name].sum(0):
                (g,) = torch.autograd.grad(one, x, retain_graph=True, allow_unused=True)
                yield torch.zeros_like(x) if g is None else g


# ---- parts ----------------------------------------------------------------------------------------------------------


def _inputs(name: str, x: Tensor, basis: Basis) -> Tensor:
    """Return inputs as float, having checked that a basis is for them."""
    checks.require_axes(name, x, "(N, C, H, W)")
    checks.require_inputs(name, x)
    shape = tuple(x.shape[1:])
    if tuple(basis.shape) not in (shape, (1, *shape[1:])):
        raise ValueError(
            f"{name}: expected inputs of shape (N, {', '.join(map(str, basis.shape))}) as {basis.name} is for, or of "
            f"more channels, got {tuple(x.shape)}"
        )
    return x if x.is_floating_point() else to_float(x)


def _shares(name: str, x: Tensor, basis: Basis) -> Tensor:
    """Return the share of the energy of x, (N, C, H, W) float64, along each direction: (K,)."""
    total = x.square().sum()
    if not total > 0:
        raise ValueError(f"{name}: expected inputs that differ, or their class means, they are all the same")
    return basis.coordinates(x).square().reshape(-1, len(basis)).sum(0) / total


def _classes(model: nn.Module, x: Tensor) -> int:
    """Return the number of logits of a network, having checked that it takes such inputs."""
    try:
        logits = model(x.clone())
    except Exception as error:
        raise ValueError(f"the network does not take inputs of shape {tuple(x.shape)}: {error}") from error
    return require_logits(logits)


def _taken(x: Tensor, basis: Basis, value: Value) -> Tensor:
    """Return the coordinates that are to be taken away along every direction."""
    return basis.coordinates(x - x.mean(0) if value == "mean" else x)


def _part(taken: Tensor, basis: Basis, k: int, like: Tensor) -> Tensor:
    """Return what these coordinates amount to along the first k directions, in the shape of the inputs."""
    return (taken[..., :k] @ basis.vectors[:k].to(like)).reshape(like.shape)
