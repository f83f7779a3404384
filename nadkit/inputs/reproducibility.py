"""Would another run find the same directions? An estimate from the two halves of one run's networks."""

import math
from typing import TYPE_CHECKING

import torch
from scipy import linalg
from torch import Tensor

if TYPE_CHECKING:
    from nadkit.stats import Measured

COMPARED = 100
"""Number of leading directions of the halves that are compared; all D would cost as much as the NADs themselves."""

REPRODUCIBLE = 0.5
"""A warning is given for leading directions of which another run would share less than this."""

RANK_TOLERANCE = 1e-12
"""Eigenvalues below this share of the first are the rounding of float32 derivatives, squared."""


class NotReproducibleWarning(UserWarning):
    """So few networks do not determine the directions that were asked for."""


def expected_overlap(of_halves: float, k: int, dimensions: int) -> "Measured":
    """Return the overlap to expect of two runs of N networks each, from that of the two halves of one run.

    It lies between two bounds. More networks do not lower the overlap r of the halves; where eigenvalues are nearly
    equal, or few networks have most of the variance, they hardly raise it. At best the squared error of the directions
    falls as 1 / n: from n networks, a share c = 1 / (1 + a / n) is right, and two runs share c^2. For twice the
    networks and overlaps above chance, the root then follows the formula of Spearman and Brown:

        rho = (r - k / D) / (1 - k / D),   sqrt(rho_N) = 2 sqrt(rho) / (1 + sqrt(rho))

    The value is the middle of the bounds. The error is half of their distance after the odds r / (1 - r) are divided
    by exp(2 / k) in the lower bound and multiplied by it in the upper one: two standard errors of one pair of halves by
    a rule of thumb. In simulations with flat spectra, power laws, spikes and heavy tails the true overlap was within it
    in 19 of 20 cases from k = 3 on, and in 4 of 5 for k = 1, where a single pair of directions tells little. It errs on
    the low side where k is more than N / 10, or where all k directions rise from the noise together between N / 2 and N
    networks.

    Args:
        of_halves: overlap r of the leading k directions of N / 2 networks with those of the other N / 2.
        k: number of directions.
        dimensions: number D of dimensions.

    Source: Spearman 1910; Brown 1910.
    """
    from nadkit.stats import Measured  # here, because it brings pandas, which takes 100 MB in every worker

    chance = k / dimensions

    def at_best(r: float) -> float:
        root = math.sqrt((r - chance) / (1 - chance)) if chance < r < 1 else 0.0
        return max(r, chance + (1 - chance) * (2 * root / (1 + root)) ** 2)

    def by_odds(factor: float) -> float:
        return of_halves * factor / (1 - of_halves + of_halves * factor)

    scatter = math.exp(2 / k)
    low, high = by_odds(1 / scatter), at_best(by_odds(scatter))
    return Measured((of_halves + at_best(of_halves)) / 2, (high - low) / 2)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Return the overlaps |A_k B_k^T|_F^2 / k of the first k rows, for every k: (K, D), (K, D) -> (K,) float64."""
    squares = (one.double() @ other.double().T).square()
    shared = squares.cumsum(0).cumsum(1).diagonal()
    return shared / torch.arange(1, len(squares) + 1, device=shared.device)


def leading_eigenvectors(covariance: Tensor) -> Tensor:
    """Return the first `COMPARED` eigenvectors, on the CPU: (D, D) float64 -> (K, D), zeros beyond the rank."""
    size = len(covariance)
    found = linalg.eigh(covariance.cpu().numpy(), subset_by_index=(max(size - COMPARED, 0), size - 1))
    eigenvalues, vectors = (torch.from_numpy(array).flip(-1) for array in found)
    return vectors.T * (eigenvalues > RANK_TOLERANCE * eigenvalues[0])[:, None]
