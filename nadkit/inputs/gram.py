"""The leading NADs of inputs so large that their covariance does not fit in memory."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from nadkit import checks
from nadkit.architectures import Architecture, Shape
from nadkit.devices import pick
from nadkit.inputs.basis import NADs
from nadkit.inputs.covariance import require_directions
from nadkit.inputs.derivatives import exact
from nadkit.inputs.population import Method, Population
from nadkit.inputs.reproducibility import COMPARED, RANK_TOLERANCE, overlaps

GRAM_CHUNK = 2**22
"""Numbers of the derivatives (32 MB in float64) that `leading_nads` processes at a time."""


@checks.typed
def leading_nads(
    architecture: Architecture,
    k: int,
    *,
    shape: Shape,
    n_networks: int,
    method: Method = "gradient",
    device: str | torch.device = "auto",
    progress: bool = False,
    **population: Any,  # noqa: ANN401
) -> NADs:
    """Return the first k NADs without the D x D covariance, for inputs far larger than the number N of networks.

    With the centred derivatives as the rows of G (N, D), and the eigenvectors of their Gram matrix,

        G G^T w_k = s_k^2 w_k,   u_k = G^T w_k / s_k,   lambda_k = s_k^2 / (N - 1).

    The networks and the derivatives are those of `gradient_covariance`, so that
    ``compute_nads(..., n_networks=N).leading(k)`` is the same where D is small enough for it. Held in memory are N x D
    float32 numbers on the device and 3 k x D float64 ones: 1,000 networks of 3 x 224 x 224 inputs take 600 MB. A
    warning is given if so few networks do not determine the k directions (`NADs.reproducibility`).

    A *secant* needs 2 D forward passes per network, which at that size are 300,000: expect to wait.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        k: number of directions.
        shape: (C, H, W) of the inputs.
        n_networks: number N of random networks.
        method: of the derivative, ``"gradient"`` or ``"secant"``.
        device: where to compute.
        progress: show a bar with an estimate.
        population: the rest of the `Population`: ``scale``, ``seed``, ``x``.

    Raises:
        ValueError: k is larger than the rank of the covariance, at most N - 1 and D; the method is ``"mixed"``, of
            which one network has D derivatives; as `gradient_covariance`.
    """
    n_networks = checks.require_integer("n_networks", n_networks, 2)
    if method == "mixed":
        raise ValueError("leading_nads: expected method 'gradient' or 'secant', got 'mixed'; compute_nads takes it")
    drawn, device = Population(architecture, shape, method, **population), pick(device)
    rank = min(n_networks - 1, math.prod(shape))
    if not 1 <= k <= rank:
        raise ValueError(
            f"k: expected 1 to {rank}, the rank that {n_networks} centred derivatives of {math.prod(shape)} numbers "
            f"can have, got {k}; take more networks"
        )
    settings = drawn.settings(device)
    g = torch.empty(n_networks, math.prod(shape), device=device)
    with exact():
        for i in tqdm(range(n_networks), unit="network", disable=not progress):
            g[i] = drawn.derivative(drawn.network(i, device), device)
    if len(bad := (~torch.isfinite(g).all(1)).nonzero()):
        raise ValueError(f"network {bad[0].item()}: an input derivative is NaN or infinite")
    squares, vectors = _leading(g, k)
    require_directions(squares.sum(), torch.linalg.vector_norm(g).double().square(), n_networks)
    if len(none := (squares <= RANK_TOLERANCE * squares[0]).nonzero()):
        raise ValueError(f"k: the derivatives span {none[0].item()} directions only, got {k}")
    halves = [_leading(g[parity::2], min(k, COMPARED))[1].cpu() for parity in (0, 1)]
    nads = NADs(
        vectors=vectors.cpu(),
        eigenvalues=squares.cpu() / (n_networks - 1),
        shape=tuple(shape),
        name=f"NADs of {drawn.name}",
        n_networks=n_networks,
        settings=settings,
        overlap_of_halves=overlaps(*halves) if n_networks >= 4 else None,
    )
    nads.warn_unless_reproducible(k)
    return nads


def _leading(g: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return s_k^2, (k,), and u_k, (k, D), of derivatives (N, D), in float64; zeros beyond their rank."""
    squares, w = torch.linalg.eigh(sum(chunk @ chunk.T for chunk in _centred_columns(g)))
    missing = max(k - len(g), 0)
    squares, w = pad(squares.flip(0), (0, missing))[:k].clamp(min=0), pad(w.flip(1), (0, missing))[:, :k]
    scale = squares.sqrt().masked_fill(squares <= RANK_TOLERANCE * squares[0], math.inf)
    return squares, torch.cat([w.T @ chunk for chunk in _centred_columns(g)], dim=1) / scale[:, None]


def _centred_columns(g: Tensor) -> Iterator[Tensor]:
    """Yield G less its mean row, some columns at a time, in float64 (on the CPU for MPS, which has none)."""
    for chunk in g.split(max(1, GRAM_CHUNK // len(g)), dim=1):
        chunk = (chunk.cpu() if g.device.type == "mps" else chunk).double()
        yield chunk - chunk.mean(0)
