"""What can be computed about linear convolutional networks: filter, subsample, and then any classifier.

The first layer is z = Phi x: circular filters (cross-correlations, as in torch) at every S-th position along each axis.
The layers that follow see x only through the row space of Phi. Everything here is float64.

Axis letters: C filters, D = prod(size) inputs, N = size of one axis, S = stride; axes: one for signals, two for images.

Source: derived here, from the setting of Ortiz-Jimenez et al. 2020 (sections "anisotropic loss of information" and
"anisotropic conditioning of the optimisation landscape").
"""

import itertools
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor

from nadkit import checks
from nadkit.architectures import Shape
from nadkit.inputs.basis import Basis

RANK_TOLERANCE = 1e-10
"""Singular values below this share of the largest are rounding."""

Size = tuple[int, ...]
Part = Literal["real", "imaginary"]


# ---- the layer ------------------------------------------------------------------------------------------------------


@checks.typed
def aliases(frequency: Sequence[int], *, size: Size, stride: int) -> list[Size]:
    """Return the frequencies that coincide with this one once every S-th position is kept, itself first.

    They are k + j N / S on every axis, j = 0 .. S - 1, written as numbers from -N/2 to N/2 - 1.

    Raises:
        ValueError: the stride does not divide the size, or there is not one frequency an axis.
    """
    _require_stride(size, stride)
    if len(frequency) != len(size) or not all(isinstance(k, Integral) for k in frequency):
        raise ValueError(f"frequency: expected {len(size)} integers, one an axis, got {tuple(frequency)}")
    axes = [
        [(k + j * (n // stride) + n // 2) % n - n // 2 for j in range(stride)]
        for k, n in zip(frequency, size, strict=True)
    ]
    return list(itertools.product(*axes))


@checks.typed
def transfer(taps: Tensor, *, size: Size) -> Tensor:
    """Return the factors m_k = sum_t h_t exp(2 pi i k t / N) of every frequency: (C, *kernel) -> (C, *size) complex.

    Entry k belongs to frequency k modulo N, as in `torch.fft`; the conjugate of the DFT, for a cross-correlation.

    Raises:
        ValueError: the taps are not (C, *kernel) with a kernel that fits into the size, or not finite.
    """
    _require_filters("taps", taps)
    _require_kernel(tuple(taps.shape[1:]), size)
    return torch.fft.fftn(taps.double(), s=size, dim=_axes(size)).conj()


@checks.typed
def composed(first: Tensor, second: Tensor) -> Tensor:
    """Return the taps of a filter after another: (C, *kernel_1), (E, *kernel_2) -> (C E, *(kernel_1 + kernel_2 - 1)).

    Each of the C outputs of the first goes through each of the E filters of the second, as through a pooling layer. The
    factors of the two are multiplied: m_k = m1_k m2_k.

    Raises:
        ValueError: the kernels differ in their number of axes, or are not finite.
    """
    _require_filters("first", first)
    _require_filters("second", second)
    if first.ndim != second.ndim:
        raise ValueError(f"taps: expected kernels of as many axes, got {tuple(first.shape)} and {tuple(second.shape)}")
    kernel = tuple(a + b - 1 for a, b in zip(first.shape[1:], second.shape[1:], strict=True))
    spectra = [torch.fft.fftn(taps.double(), s=kernel, dim=_axes(kernel)) for taps in (first, second)]
    both = torch.fft.ifftn(spectra[0][:, None] * spectra[1], dim=_axes(kernel)).real
    return both.flatten(0, 1)


# ---- what it lets through -------------------------------------------------------------------------------------------


@checks.typed
def folded_share(taps: Tensor, v: Tensor, *, size: Size, stride: int) -> Tensor:
    """Return |P v|^2 / |v|^2, P the projection onto the row space of Phi: (C, *kernel), (..., D) -> (...), from 0 to 1.

    Phi mixes a frequency with its aliases alone, so it is not needed as a matrix. With v^ the unitary Fourier transform
    of a unit vector v, and for each frequency q after subsampling the C x S^axes matrix M_q of its aliases' factors,

        |P v|^2 = sum_q |M_q^+ M_q v^_q|^2.

    Raises:
        ValueError: v is zero, the stride does not divide the size, or the taps do not fit into it.
    """
    _require_stride(size, stride)
    mixed = _by_alias(transfer(taps, size=size), size, stride).movedim(0, -2)  # (*size / S, C, S^axes)
    tolerance = RANK_TOLERANCE * torch.linalg.matrix_norm(mixed, ord=2).max()
    projections = torch.linalg.pinv(mixed, atol=tolerance, rtol=0.0) @ mixed
    spectrum = torch.fft.fftn(_unit(v).unflatten(-1, size), dim=_axes(size), norm="ortho")
    seen = (projections @ _by_alias(spectrum, size, stride)[..., None]).squeeze(-1)
    return seen.abs().square().flatten(-len(size) - 1).sum(-1).clamp(max=1)


@checks.typed
def wave_shares(taps: Tensor, *, size: Size, stride: int, part: Part = "real") -> Tensor:
    """Return the share of every cosine (or sine) that one filter lets through: (1, *kernel) -> (*size).

    With M_k = sum_j |m_(k + j N / S)|^2 over the aliases of k, the share of the cosine of +-k is

        |m_k|^2 / M_k          where -k is no alias of k, and where -k is k itself;
        2 (Re m_k)^2 / M_k     where -k is another alias of k: then the two halves of the wave interfere,

    and that of the sine is the same with Im in place of Re, and zero where -k is k. Frequencies are in the order of
    `torch.fft`.

    Raises:
        ValueError: more than one filter, an unknown part, or as `folded_share`.
    """
    _require_stride(size, stride)
    _require_one(taps)
    checks.require_one_of("part", part, get_args(Part))
    m = transfer(taps, size=size)[0]
    power = m.abs().square()
    coarse = _by_alias(power, size, stride).sum(-1)
    total = coarse.repeat([stride] * len(size))
    amplitude = m.real if part == "real" else m.imag
    own = _mirrored(size, modulo=size)
    among_aliases = _mirrored(size, modulo=tuple(n // stride for n in size)) & ~own
    passed = torch.where(among_aliases, 2 * amplitude.square(), power)
    if part == "imaginary":
        passed = torch.where(own, 0, passed)
    is_dark = total <= (RANK_TOLERANCE**2) * total.max()
    return torch.where(is_dark, 0, passed / total.where(~is_dark, 1)).clamp(max=1)


@checks.typed
def best_accuracy(share: Tensor | float, *, shift: float = 1.0, sigma: float = 3.0) -> Tensor:
    """Return the largest accuracy on D(v) of any classifier that sees Phi x: shares |P v|^2 (...) -> (...), 0.5 to 1.

    The classes are Gaussians around +-shift Phi v with the covariance Sigma = sigma^2 Phi (I - v v^T) Phi^T, so the
    accuracy is Q(-d), with

        d = shift sqrt((Phi v)^T Sigma^+ (Phi v)) = (shift / sigma) |P v| / |v - P v|,

    (the second by Sherman and Morrison), and 1 where all of v is visible: there Phi v is not in the range of Sigma.
    For one filter and a wave that is no alias of its own mirror, d = shift |m_k| / (sigma sqrt(sum_(j != 0)
    |m_(k + j N / S)|^2)).

    Args:
        share: of v, as from `folded_share` or `wave_shares`.
        shift: distance of each class from the origin along v.
        sigma: standard deviation of the noise in every other direction.

    Raises:
        ValueError: a share is not from 0 to 1, the shift is not positive or sigma negative.
    """
    share = checks.require_numbers("share", share).double()
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"share: expected numbers from 0 to 1, got {share.min().item()} to {share.max().item()}")
    checks.require_positive("shift", shift)
    checks.require_between("sigma", sigma, 0)
    clear = (1 - share <= RANK_TOLERANCE**2) | torch.tensor(sigma == 0)
    d = shift / (sigma or 1) * (share / (1 - share).where(~clear, 1)).sqrt()
    return torch.special.ndtr(torch.where(clear & (share > 0), torch.inf, d))


@checks.typed
def best_filter(
    frequency: Sequence[int],
    kernel: Size,
    *,
    size: Size,
    stride: int,
    part: Part = "real",
    then: Tensor | None = None,
) -> tuple[Tensor, float]:
    """Return the filter that lets most of one wave through, and that share: (1, *kernel), from 0 to 1.

    For the waves of `wave_shares` the share is h^T A h / h^T B h, with B = Re sum_j e_j e_j^H over the aliases,
    e_j,t = b_j exp(2 pi i k_j t / N), and A the term of the wave: the leading generalised eigenvector. No filter this
    long, however it is trained, lets more through. A fixed filter (1, *kernel_2) may follow it, as that of a pooling
    layer; b_j are its factors, else 1.

    Raises:
        ValueError: an unknown part, a sine that is zero everywhere, a kernel that does not fit into the size, more than
            one following filter, or one that lets none of the aliases through, or as `aliases`.
    """
    checks.require_one_of("part", part, get_args(Part))
    _require_kernel(kernel, size)
    waves = aliases(frequency, size=size, stride=stride)
    mirror = aliases([-k for k in frequency], size=size, stride=1)[0]
    taps = torch.cartesian_prod(*map(torch.arange, kernel)).view(-1, len(kernel)).double()
    turns = torch.tensor(waves).double() / torch.tensor(size) @ taps.T
    factors = torch.exp(2j * math.pi * turns)
    if then is not None:
        _require_one(then)
        passed = transfer(then, size=size)[0]
        factors = factors * torch.stack([passed[k] for k in waves])[:, None]
        if not factors.abs().max() > RANK_TOLERANCE * passed.abs().max():
            raise ValueError(f"then: expected a filter that lets frequency {tuple(frequency)} or an alias through")
    wave = torch.stack([factors.real, factors.imag])[:, 0]
    if mirror in waves:  # one phase of the wave alone, and, if it is another frequency, both halves of it
        if mirror == waves[0] and part == "imaginary":
            raise ValueError(f"frequency {tuple(frequency)} has no sine on {size}")
        wave = wave[:1] if part == "real" else wave[1:]
        wave = wave if mirror == waves[0] else math.sqrt(2) * wave
    numerator = wave.T @ wave
    denominator = factors.real.T @ factors.real + factors.imag.T @ factors.imag
    values, vectors = torch.linalg.eigh(denominator)
    kept = values > RANK_TOLERANCE * values[-1]
    whitener = vectors[:, kept] / values[kept].sqrt()
    shares, leading = torch.linalg.eigh(whitener.T @ numerator @ whitener)
    best = whitener @ leading[:, -1]
    return (best / best.norm()).view(1, *kernel), min(max(shares[-1].item(), 0.0), 1.0)


# ---- what it prefers ------------------------------------------------------------------------------------------------


@checks.typed
def nads(phi: Tensor, *, shape: Shape) -> Basis:
    """Return the NADs of f = theta^T Phi x for theta ~ N(0, I): eigenvectors of E[grad f grad f^T] = Phi^T Phi.

    They are the right singular vectors of Phi, as many as its rank, with the squared singular values as eigenvalues.

    Raises:
        ValueError: Phi does not take inputs of that shape, is zero, or is not finite.
    """
    _require_layer(phi)
    values, rows = _singular_vectors(phi)
    return Basis(vectors=rows, shape=shape, name="NADs of a linear network", eigenvalues=values.square())


@checks.typed
def hessian(phi: Tensor, v: Tensor, *, shift: float = 1.0, sigma: float = 3.0) -> Tensor:
    """Return the Hessian in theta of the loss E (y - theta^T Phi x)^2 / 2 on D(v): (K, D), (D,) -> (K, K).

    H = Phi E[x x^T] Phi^T = Phi (sigma^2 I + (shift^2 - sigma^2) v v^T) Phi^T, and at theta = 0 the gradient is
    -shift Phi v. The direction v is normalised.

    Raises:
        ValueError: v is zero; Phi is not (K, D), or not finite; shift or sigma is out of range.
    """
    _require_layer(phi)
    checks.require_finite_number("shift", shift)
    checks.require_between("sigma", sigma, 0)
    phi = phi.double()
    signal = phi @ _unit(v)
    return sigma**2 * phi @ phi.T + (shift**2 - sigma**2) * torch.outer(signal, signal)


@checks.typed
def descent(
    phi: Tensor, v: Tensor, steps: int, *, learning_rate: float, shift: float = 1.0, sigma: float = 3.0
) -> Tensor:
    """Return the loss E (y - theta^T Phi x)^2 / 2 on D(v) after 0 .. steps steps of gradient descent from theta = 0.

    With H = sum_i h_i q_i q_i^T the `hessian` and b_i = shift <q_i, Phi v>, which is zero wherever h_i is,

        L_t = 1/2 - 1/2 sum_i (b_i^2 / h_i) (1 - (1 - eta h_i)^(2 t)).

    If v is a right singular vector of Phi, with singular value s, this is (1 - eta shift^2 s^2)^(2 t) / 2. The
    direction v is normalised: (K, D), (D,) -> (steps + 1,).

    Raises:
        ValueError: as `hessian`; the learning rate is not positive, or so large that the loss would grow.
    """
    steps = checks.require_integer("steps", steps, 0)
    curvatures, axes = torch.linalg.eigh(hessian(phi, v, shift=shift, sigma=sigma))
    if not 0 < learning_rate * curvatures[-1] < 2:
        raise ValueError(
            f"learning_rate: expected one from 0 to 2 / {curvatures[-1].item():.4g}, the largest curvature, got "
            f"{learning_rate}"
        )
    signal = shift * (phi.double() @ _unit(v)) @ axes
    kept = curvatures > RANK_TOLERANCE * curvatures[-1]
    curvatures, gains = curvatures[kept], signal[kept].square() / curvatures[kept]
    left = (1 - learning_rate * curvatures) ** (2 * torch.arange(steps + 1, device=phi.device)[:, None])
    return (1 - (1 - left) @ gains) / 2


def _singular_vectors(phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values of Phi that are not rounding, and their right singular vectors as rows."""
    _, values, rows = torch.linalg.svd(phi.double(), full_matrices=False)
    kept = values > RANK_TOLERANCE * values[0]
    return values[kept], rows[kept]


def _by_alias(spectrum: Tensor, size: Size, stride: int) -> Tensor:
    """Gather the S^axes aliases of each frequency after subsampling: (..., *size) -> (..., *size / S, S^axes)."""
    split = [n for length in size for n in (stride, length // stride)]
    spectrum = spectrum.reshape(*spectrum.shape[: spectrum.ndim - len(size)], *split)
    aliased = range(-2 * len(size), 0, 2)
    return spectrum.movedim(tuple(aliased), tuple(range(-len(size), 0))).flatten(-len(size))


def _mirrored(size: Size, *, modulo: Size) -> Tensor:
    """Say for each frequency k whether k = -k on every axis, modulo the given numbers: (*size) bool."""
    axes = [(2 * torch.arange(n)) % m == 0 for n, m in zip(size, modulo, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).all(0)


def _unit(v: Tensor) -> Tensor:
    """Return directions (..., D) at length 1, in float64."""
    checks.require_finite("v", v)
    norm = v.double().norm(dim=-1, keepdim=True)
    if not (norm > 0).all():
        raise ValueError("v: expected a direction, got the zero vector")
    return v.double() / norm


def _require_layer(phi: Tensor) -> None:
    checks.require_axes("phi", phi, "(K, D)")
    checks.require_finite("phi", phi)


def _require_filters(name: str, taps: Tensor) -> None:
    if taps.ndim < 2 or not taps.numel():
        raise ValueError(f"{name}: expected filters (C, *kernel), got {checks.found(taps)}")
    checks.require_finite(name, taps)


def _require_kernel(kernel: Size, size: Size) -> None:
    if len(kernel) != len(size) or not all(1 <= k <= n for k, n in zip(kernel, size, strict=True)):
        raise ValueError(f"taps: expected a kernel of {len(size)} axes, each from 1 to {tuple(size)}, got {kernel}")


def _axes(size: Size) -> tuple[int, ...]:
    return tuple(range(-len(size), 0))


def _require_one(taps: Tensor) -> None:
    if len(taps) != 1:
        raise ValueError(f"taps: expected one filter, got {len(taps)}; folded_share takes several")


def _require_stride(size: Size, stride: int) -> None:
    checks.require_integer("stride", stride, 1)
    if not size or any(n < 1 or n % stride for n in size):
        raise ValueError(f"stride: expected a divisor of the size {tuple(size)}, got {stride}")
