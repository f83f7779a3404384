"""Kernels: matrices of how alike N points are to a network, and what is computed from them.

Axis letters: N points.
"""

import math

import torch
from torch import Tensor

from nadkit import checks

__all__ = [
    "as_kernel",
    "centred",
    "kernel_distance",
    "leading_components",
    "log_determinant",
    "normalised",
    "symmetrised",
]


@checks.typed
def as_kernel(kernel: Tensor) -> Tensor:
    """Return a kernel (N, N) in float64 on the CPU, having checked that it is symmetric.

    Raises:
        ValueError: a kernel that is not square, finite and symmetric.
    """
    _require_square("kernel", kernel)
    kernel = kernel.detach().cpu().double()
    if (kernel - kernel.T).abs().max() > 1e-6 * kernel.abs().max():
        raise ValueError("kernel: expected a symmetric one; symmetrised(...) makes it so")
    return kernel


@checks.typed
def symmetrised(similarity: Tensor) -> Tensor:
    """Return (S + S^T) / 2 of a similarity (N, N), in float64.

    Raises:
        ValueError: a similarity that is not square and finite.
    """
    _require_square("similarity", similarity)
    return (similarity.double() + similarity.double().T) / 2


@checks.typed
def normalised(kernel: Tensor) -> Tensor:
    """Return K_ij / sqrt(K_ii K_jj), (N, N) float64: for inner products, the cosines, from -1 to 1.

    Raises:
        ValueError: the kernel is not symmetric, or its diagonal not positive.
    """
    kernel = as_kernel(kernel)
    if not (kernel.diagonal() > 0).all():
        raise ValueError("kernel: expected a positive diagonal to normalise by, got zero or less")
    size = kernel.diagonal().sqrt()
    return kernel / size / size[:, None]


@checks.typed
def centred(kernel: Tensor) -> Tensor:
    """Return the kernel of the features less their mean, H K H with H = I - 1 1^T / N: (N, N) float64.

    Raises:
        ValueError: the kernel is not symmetric.
    """
    kernel = as_kernel(kernel)
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


@checks.typed
def leading_components(kernel: Tensor, k: int) -> Tensor:
    """Return sum_{i <= k} lambda_i u_i u_i^T, a kernel's part with the k largest positive eigenvalues: (N, N) float64.

    For a `centred` inner product of inputs, that is the inner product of their k principal components.

    Raises:
        ValueError: k is not from 1 to N, the kernel is not symmetric.

    Source: the code of He and Su 2020, with k = 10.
    """
    kernel = as_kernel(kernel)
    checks.require_integer("k", k, 1, len(kernel))
    values, vectors = torch.linalg.eigh(kernel)
    return (vectors[:, -k:] * values[-k:].clamp(min=0)) @ vectors[:, -k:].T


@checks.typed
def kernel_distance(kernel: Tensor) -> Tensor:
    """Return the distance between the features of a kernel, sqrt(K_ii + K_jj - 2 K_ij): (N, N) float64.

    Raises:
        ValueError: the kernel is not symmetric.
    """
    kernel = as_kernel(kernel)
    size = kernel.diagonal()
    return (size[:, None] + size - 2 * kernel).clamp(min=0).sqrt()


@checks.typed
def log_determinant(kernel: Tensor) -> float:
    """Return log |det K| of a kernel (N, N) without negative eigenvalues; -inf if K is singular.

    Raises:
        ValueError: the kernel is not symmetric.
    """
    eigenvalues = torch.linalg.eigvalsh(as_kernel(kernel))
    # rounding would give a singular matrix a nonzero determinant, which would look like a score
    if eigenvalues[0] <= len(kernel) * torch.finfo(torch.float64).eps * eigenvalues[-1]:
        return -math.inf
    return eigenvalues.log().sum().item()


def _require_square(name: str, values: Tensor) -> None:
    checks.require_axes(name, values, "(N, N)")
    if values.shape[0] != values.shape[1]:
        raise ValueError(f"{name}: expected a square (N, N), got {tuple(values.shape)}")
    checks.require_finite(name, values)
