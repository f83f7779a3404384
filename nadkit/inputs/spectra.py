"""What the eigenvalues of NADs tell: pure sampling noise, how many directions count, how well two runs can agree."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nadkit import checks, identity, seeds
from nadkit.inputs.covariance import GradientCovariance, union


@checks.typed
def marchenko_pastur_edges(dimensions: int, n: int) -> tuple[float, float]:
    """Return (1 -+ sqrt(D / N))^2, between which the non-zero eigenvalues of an isotropic sample covariance lie.

    In units of the true eigenvalue, which is the mean of all D sample eigenvalues.

    Raises:
        ValueError: a number below 1.

    Source: Marchenko and Pastur 1967.
    """
    checks.require_integer("dimensions", dimensions, 1)
    checks.require_integer("n", n, 1)
    root = math.sqrt(dimensions / n)
    return (1 - root) ** 2, (1 + root) ** 2


@checks.typed
def marchenko_pastur_cdf(x: Tensor, dimensions: int, n: int) -> Tensor:
    """Return the share of an isotropic sample covariance's non-zero eigenvalues up to x: (K,) -> (K,) float64.

    The density is sqrt((x_+ - x) (x - x_-)) / x up to a factor, integrated on a fine grid; x is in units of the true
    eigenvalue.

    Raises:
        ValueError: a number below 1, or x is not finite.

    Source: Marchenko and Pastur 1967.
    """
    checks.require_finite("x", x)
    low, high = marchenko_pastur_edges(dimensions, n)
    # denser towards the edges, where the density has its square roots
    grid = low + (high - low) * (0.5 - 0.5 * torch.linspace(0, math.pi, 20_001, dtype=torch.float64).cos())
    density = ((high - grid) * (grid - low)).clamp(min=0).sqrt() / grid.clamp(min=1e-12)
    mass = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, grid)])
    index = torch.searchsorted(grid, x.double().clamp(low, high).contiguous()).clamp(max=len(grid) - 1)
    return mass[index] / mass[-1]


@checks.typed
def effective_dimension(eigenvalues: Tensor) -> float:
    """Return the participation ratio (sum_k lambda_k)^2 / sum_k lambda_k^2: how many directions share the variance.

    From 1, where one direction has it all, to K, where all have the same. A *sample* covariance of N networks gives
    less than the truth, at most N - 1; `population_effective_dimension` estimates the truth.

    Args:
        eigenvalues: (K,), all that are not zero.

    Raises:
        ValueError: they are not finite, or negative, or all zero.
    """
    spectrum = torch.as_tensor(eigenvalues).double()
    checks.require_axes("eigenvalues", spectrum, "(K,)")
    if not torch.isfinite(spectrum).all() or (spectrum < 0).any() or not spectrum.sum() > 0:
        raise ValueError("eigenvalues: expected finite numbers, not negative, not all zero")
    return (spectrum.sum().square() / spectrum.square().sum()).item()


@checks.typed
def population_effective_dimension(one: GradientCovariance, other: GradientCovariance) -> float:
    """Return the effective dimension of the true covariance C, estimated from two independent sets of networks.

        tr S_1 tr S_2 / tr(S_1 S_2),   E[S_1 S_2] = C^2,   E[tr S_1 tr S_2] = (tr C)^2

    Numerator and denominator are without bias, however few the networks and whatever the distribution of their
    derivatives; so the estimate, unlike `effective_dimension`, is not drawn towards the number of networks.

    Raises:
        ValueError: the inputs differ in shape, or the settings in more than seed and point; the two share a
            network of the same seed; a set is too small.
    """
    if tuple(one.shape) != tuple(other.shape):
        raise ValueError(f"effective dimension: expected covariances of one shape, got {one.shape} and {other.shape}")
    differing = sorted(
        name
        for name in one.settings | other.settings
        if identity.differences({name: one.settings.get(name)}, {name: other.settings.get(name)})
    )
    free = ("seed", "x", "networks", "outputs") if "seed" in differing else ("x",)  # of one seed, network 0 is the same
    if other_experiment := [name for name in differing if name not in free]:
        told = ", ".join(f"{n} {one.settings.get(n)!r} and {other.settings.get(n)!r}" for n in other_experiment)
        raise ValueError(f"effective dimension: expected two samples of one experiment, got {told}")
    if "seed" not in differing:
        union(one.networks, other.networks)  # refuses a network that is in both
    if min(one.count, other.count) < 2:
        raise ValueError(f"effective dimension: expected two networks in each, got {one.count} and {other.count}")
    s, t = one.covariance(), other.covariance().to(one.second)
    return (s.trace() * t.trace() / (s * t).sum()).item()


class Ceiling(NamedTuple):
    """The overlap to expect of one pair of runs: its mean and its standard deviation from pair to pair."""

    mean: float
    spread: float


@checks.typed
def overlap_ceiling(
    eigenvalues: Tensor, k: int, *, n_networks: tuple[int, int], repeats: int = 8, seed: int = 0
) -> Ceiling:
    """Return the overlap to expect between two runs of the same experiment, if their true spectrum is known.

    Two covariances are drawn as if derivatives were Gaussian with the given spectrum, from N_1 and N_2 networks; the
    overlap of their leading k-dimensional subspaces is what a perfect reproduction would show: within ``mean`` +-
    ``spread``, as a rule.

    This is valid for the spectrum of many more networks than dimensions, such as the published ones of some 10,000. The
    *sample* spectrum of few networks is too steep, by up to `marchenko_pastur_edges`. If an architecture prefers
    little, it promises several times the overlap that two runs have. Take `NADs.reproducibility` in that case.

    Args:
        eigenvalues: (K,) the spectrum taken as the true one, in descending order.
        k: dimensions of the leading subspaces.
        n_networks: (N_1, N_2).
        repeats: number of simulated pairs.

    Raises:
        ValueError: eigenvalues that are not finite; k is not from 1 to K; fewer than two networks a run, or fewer than
            two repeats.
    """
    return overlap_ceilings(eigenvalues, [k], n_networks=n_networks, repeats=repeats, seed=seed)[k]


@checks.typed
def overlap_ceilings(
    eigenvalues: Tensor, ks: Sequence[int], *, n_networks: tuple[int, int], repeats: int = 8, seed: int = 0
) -> dict[int, Ceiling]:
    """Return `overlap_ceiling` for several k, by k, from the same draws: one decomposition serves them all.

    Raises:
        ValueError: as `overlap_ceiling`.
    """
    checks.require_axes("eigenvalues", eigenvalues, "(K,)")
    checks.require_finite("eigenvalues", eigenvalues)
    for k in ks:
        if k not in range(1, len(eigenvalues) + 1):
            raise ValueError(f"ks: expected each k from 1 to {len(eigenvalues)}, got {k}")
    for name, value in (*(("n_networks", n) for n in n_networks), ("repeats", repeats)):
        checks.require_integer(name, value, 2)
    overlaps = {k: [] for k in ks}
    for repeat in range(repeats if overlaps else 0):
        first, second = (
            torch.linalg.eigh(_sample_covariance(eigenvalues, n, seeds.derive(seed, repeat, side))).eigenvectors
            for side, n in enumerate(n_networks)
        )
        for k, found in overlaps.items():
            found.append(((first[:, -k:].T @ second[:, -k:]).square().sum() / k).item())
    return {k: Ceiling(statistics.mean(found), statistics.stdev(found)) for k, found in overlaps.items()}


def _sample_covariance(eigenvalues: Tensor, n: int, seed: int) -> Tensor:
    """Draw X^T X for n Gaussian rows; by Bartlett's decomposition, K^2 numbers instead of n K, where n >= K."""
    rng = np.random.default_rng(seed)
    size = len(eigenvalues)
    factor = rng.standard_normal((min(n, size), size))
    if n >= size:
        factor = np.triu(factor, 1) + np.diag(np.sqrt(rng.chisquare(n - np.arange(size))))
    factor = torch.from_numpy(factor) * eigenvalues.double().cpu().clamp(min=0).sqrt()
    return factor.T @ factor
