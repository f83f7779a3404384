"""Ordered orthonormal sets of input directions: the currency of Part I.

Axis letters: B batch, K directions, D = C x H x W input dimensions.
"""

import math
import operator
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from nadkit import seeds, storage
from nadkit.architectures import Shape

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest relative error accepted in V V^T c = c; the published float32 arrays are within 1e-5."""

EIGENVALUE_NOISE = 1e-6
"""Rounding accepted in the sign and the order of eigenvalues, relative to the first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """K orthonormal directions of an input space of D dimensions, the most important first.

    Attributes:
        vectors: (K, D) float64 (converted if need be), orthonormal rows u_k, K >= 1.
        shape: (C, H, W) of the inputs, C H W = D.
        name: what the directions are, for records and plots.
        eigenvalues: (K,) float64, not negative, in descending order, or None where the directions carry none.

    Raises:
        ValueError: the array does not fit the shape, is not finite, or its rows are not orthonormal; the eigenvalues
            are of another number, not finite, negative or not in descending order.
    """

    vectors: Tensor
    shape: Shape
    name: str = "basis"
    eigenvalues: Tensor | None = None

    def __post_init__(self) -> None:
        dimensions = math.prod(self.shape)
        object.__setattr__(self, "vectors", torch.as_tensor(self.vectors, dtype=torch.float64))
        if self.vectors.ndim != 2 or self.vectors.shape[1] != dimensions:
            raise ValueError(
                f"{self.name}: expected vectors of shape (K, {dimensions}) for inputs of shape {tuple(self.shape)}, "
                f"got {tuple(self.vectors.shape)}"
            )
        if len(self) == 0:
            raise ValueError(f"{self.name}: expected at least one vector, got none")
        if not torch.isfinite(self.vectors).all():
            raise ValueError(f"{self.name}: expected finite vectors, got NaN or infinity")
        self._require_orthonormal()
        if self.eigenvalues is not None:
            object.__setattr__(self, "eigenvalues", torch.as_tensor(self.eigenvalues, dtype=torch.float64))
            self._require_spectrum(self.eigenvalues)

    def _require_orthonormal(self) -> None:
        """Test V V^T c = c on one random c, which costs K D where the whole Gram matrix costs K^2 D."""
        c = torch.randn(len(self), generator=seeds.generator(0, "orthonormal"), dtype=self.vectors.dtype)
        c = c.to(self.vectors.device)
        error = ((self.vectors @ (c @ self.vectors) - c).norm() / c.norm()).item()
        if error > ORTHONORMAL_TOLERANCE:
            raise ValueError(f"{self.name}: expected orthonormal rows, but |V V^T c - c| / |c| = {error:.2g}")

    def _require_spectrum(self, eigenvalues: Tensor) -> None:
        if eigenvalues.shape != (len(self),):
            raise ValueError(
                f"{self.name}: expected {len(self)} eigenvalues, one a vector, got {tuple(eigenvalues.shape)}"
            )
        noise = EIGENVALUE_NOISE * eigenvalues[0]
        orderly = (eigenvalues >= -noise).all() and (eigenvalues.diff() <= noise).all()
        if not (orderly and torch.isfinite(eigenvalues).all()):
            raise ValueError(f"{self.name}: expected eigenvalues that are finite, not negative, in descending order")

    def __len__(self) -> int:
        return self.vectors.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        """Return direction ``index``: (D,) float64.

        Raises:
            IndexError: there is no such direction.
            TypeError: the index is not an integer.
        """
        return self.vectors[self._position(index)]

    @property
    def images(self) -> Tensor:
        """The directions as images: (K, C, H, W) float64."""
        return self.vectors.unflatten(1, self.shape)

    def coordinates(self, x: Tensor) -> Tensor:
        """Return the coordinates <u_k, x>: (..., C, H, W) -> (..., K), in the dtype of ``x``.

        A one-channel basis acts on each channel of a colour image: (..., C', H, W) -> (..., C', K).
        """
        return self._flat(x) @ self._vectors_like(x).T

    def reconstruct(self, coordinates: Tensor) -> Tensor:
        """Return sum_k a_k u_k: (..., K) -> (..., C, H, W).

        Raises:
            ValueError: the last axis is not K.
        """
        if coordinates.shape[-1] != len(self):
            raise ValueError(
                f"{self.name}: expected {len(self)} coordinates on the last axis, got {coordinates.shape[-1]}"
            )
        return (coordinates @ self._vectors_like(coordinates)).unflatten(-1, self.shape)

    def remove(self, x: Tensor, indices: int | Sequence[int]) -> Tensor:
        """Return x without its components along the given directions: x - sum_k <u_k, x> u_k, in the shape of ``x``.

        A direction given twice (as k and k - K, say) is removed once.

        Raises:
            IndexError: there is no such direction.
            TypeError: an index is not an integer.
        """
        positions = {self._position(i) for i in np.atleast_1d(indices).tolist()}
        rows = self.vectors[sorted(positions)].to(x.device, _floating(x))
        flat = self._flat(x)
        return (flat - flat @ rows.T @ rows).reshape(x.shape)

    def flip(self, x: Tensor) -> Tensor:
        """Return U^T flip(U x): coordinate k takes the place of coordinate D - 1 - k, in the shape of ``x``.

        Source: Ortiz-Jimenez et al. 2020, flipping experiment on CIFAR-10 (data reversed in the NAD basis).

        Raises:
            ValueError: the basis does not span the whole space (`complete` it first).
        """
        if len(self) != self.vectors.shape[1]:
            raise ValueError(
                f"{self.name}: flipping needs all {self.vectors.shape[1]} directions, this basis has {len(self)}; "
                "call .complete() first"
            )
        return (self.coordinates(x).flip(-1) @ self._vectors_like(x)).reshape(x.shape)

    def leading(self, k: int) -> "Basis":
        """Return the basis of the first ``k`` directions.

        Raises:
            ValueError: k is not from 1 to K.
        """
        self._require_k(k)
        eigenvalues = None if self.eigenvalues is None else self.eigenvalues[:k]
        return replace(self, vectors=self.vectors[:k], eigenvalues=eigenvalues)

    def complete(self) -> Self:
        """Return the basis with D - K orthonormal directions appended that span what was missing (eigenvalue 0)."""
        count, dimensions = self.vectors.shape
        full, _ = torch.linalg.qr(self.vectors.T, mode="complete")
        vectors = torch.cat([self.vectors, full.T[count:]])
        eigenvalues = self.eigenvalues
        if eigenvalues is not None:
            eigenvalues = torch.cat([eigenvalues, eigenvalues.new_zeros(dimensions - count)])
        return replace(self, vectors=vectors, eigenvalues=eigenvalues)

    def overlap(self, other: "Basis", k: int) -> float:
        """Return how much the leading k-dimensional subspaces share: |A_k B_k^T|_F^2 / k, from 0 to 1.

        The signs and, within the subspace, the rotation of the vectors do not matter. Two random subspaces share k / D.

        Raises:
            ValueError: the input shapes differ, or k is larger than either basis.
        """
        if tuple(self.shape) != tuple(other.shape):
            raise ValueError(f"overlap: {self.name} is for inputs {self.shape}, {other.name} for {other.shape}")
        self._require_k(k)
        other._require_k(k)
        a, b = self.vectors[:k].double().cpu(), other.vectors[:k].double().cpu()
        return ((a @ b.T).square().sum() / k).item()

    def save(self, path: str | Path) -> None:
        """Write the basis to a safetensors file, whole or not at all.

        Raises:
            DataError: the file cannot be written (no space, no permission).
        """
        tensors = {"vectors": self.vectors}
        if self.eigenvalues is not None:
            tensors["eigenvalues"] = self.eigenvalues
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("vectors", "eigenvalues")}
        storage.write(path, type(self).__name__, tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a basis that `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, holds something else, or is a folder.
        """
        tensors, facts = storage.read(path, cls.__name__)
        try:
            return cls(**tensors, **{**facts, "shape": tuple(facts["shape"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: a damaged {cls.__name__} ({error}); compute it again") from error

    def _flat(self, x: Tensor) -> Tensor:
        """View inputs as rows of D numbers: (..., C, H, W) -> (..., D), or one row a channel of a colour image."""
        if x.ndim >= 3 and tuple(x.shape[-3:]) == tuple(self.shape):
            return x.to(_floating(x)).flatten(-3)
        if x.ndim >= 3 and self.shape[0] == 1 and tuple(x.shape[-2:]) == tuple(self.shape[1:]):
            return x.to(_floating(x)).flatten(-2)
        raise ValueError(
            f"{self.name}: expected inputs of shape (..., {self._shape_text()}), got {tuple(x.shape)}; take a basis "
            "for inputs of that shape, or resize the inputs"
        )

    def _shape_text(self) -> str:
        return ", ".join(map(str, self.shape))

    def _vectors_like(self, x: Tensor) -> Tensor:
        return self.vectors.to(x.device, _floating(x))

    def _position(self, index: int) -> int:
        """Return an index, which may count from the end, as a row number from 0 to K - 1."""
        try:
            position = operator.index(index)
        except TypeError:
            raise TypeError(
                f"{self.name}: expected an integer index, got {index!r}; for several directions use .vectors or "
                ".leading(k)"
            ) from None
        dimensions = self.vectors.shape[1]
        if not -len(self) <= position < len(self):
            missing = f" (it has {len(self)} of {dimensions} directions)" if len(self) < dimensions else ""
            raise IndexError(f"{self.name}: expected an index from 0 to {len(self) - 1}, got {position}{missing}")
        return position % len(self)

    def _require_k(self, k: int) -> None:
        if not 1 <= k <= len(self):
            raise ValueError(f"{self.name}: expected k from 1 to {len(self)}, got {k}")


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float32


@dataclass(frozen=True, kw_only=True, eq=False)
class NADs(Basis):
    """Neural anisotropy directions: eigenvectors of E_theta[grad_x f grad_x f^T], in descending order.

    Attributes:
        n_networks: number N of random networks behind the covariance.
        centred: whether the mean derivative was taken away: lambda = s^2 / (N - 1), else s^2 / N.
        settings: how they were computed (architecture, method, scale, seed, ...), for records.
    """

    n_networks: int = 0
    centred: bool = True
    settings: dict[str, str | int | float | bool] | None = None

    @property
    def singular_values(self) -> Tensor:
        """s_k of the stacked derivatives: (K,) float64; the authors' "eigenvalues" files hold these.

        They are sqrt((N - 1) lambda_k), and sqrt(N lambda_k) where the derivatives are not centred.
        """
        if self.eigenvalues is None:
            raise ValueError(f"{self.name}: these NADs carry no eigenvalues")
        freedom = self.n_networks - 1 if self.centred else self.n_networks
        return (freedom * self.eigenvalues.clamp(min=0)).sqrt()


class Frequency(NamedTuple):
    """Where a Fourier direction lies: horizontal and vertical frequency in cycles per image, channel and part."""

    fx: int
    fy: int
    part: str = "real"
    channel: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class FourierBasis(Basis):
    """The complete real Fourier basis of C x H x W images; see `fourier`."""

    @property
    def frequencies(self) -> list[Frequency]:
        """The frequency of each row, in order."""
        return _frequencies(self.shape)

    def row(self, fx: int, fy: int, part: str = "real", channel: int = 0) -> int:
        """Return the index of the cosine (``"real"``) or sine (``"imaginary"``) of a frequency.

        Both (fx, fy) and (-fx, -fy) name the same wave, up to the sign of the sine.

        Raises:
            ValueError: as `fourier_direction`.
        """
        _require_wave(Frequency(fx, fy, part, channel), self.shape)
        _, height, width = self.shape
        for x, y in ((fx, fy), (-fx, -fy)):
            x, y = _wrap(x, width), _wrap(y, height)
            if _is_real(x, y, height, width) == (part == "real"):
                return (channel * height + y + height // 2) * width + x + width // 2
        raise ValueError(f"frequency ({fx}, {fy}) has no imaginary part on {height}x{width} images")


def fourier(shape: Shape = (1, 32, 32)) -> FourierBasis:
    """Return the complete real Fourier basis, one row a cell of the centred spectrum.

    Row (c H + fy + H/2) W + fx + W/2, for fx = -W/2 .. W/2 - 1 and fy likewise, is the normalised cosine
    cos 2 pi (fx x / W + fy y / H) where (fx, fy) leads the pair +-(fx, fy), and the sine of the pair elsewhere.
    So the published map's cell (x, y) is the cosine of fx = 2 (x - 8), fy = 2 (y - 8).
    """
    channels, height, width = shape
    grey = (1, height, width)
    waves = torch.stack([fourier_direction(f.fx, f.fy, shape=grey, part=f.part) for f in _frequencies(grey)])
    return FourierBasis(vectors=torch.block_diag(*[waves] * channels), shape=shape, name="Fourier")


def fourier_direction(fx: int, fy: int, *, shape: Shape = (1, 32, 32), part: str = "real", channel: int = 0) -> Tensor:
    """Return the unit vector of one wave: (D,) float64.

    The phase is reduced modulo one turn in integers, so that the result is exact to rounding at every frequency.

    Raises:
        ValueError: a frequency that is no integer, an unknown part or channel, or a sine that is zero on every pixel.
    """
    _require_wave(Frequency(fx, fy, part, channel), shape)
    channels, height, width = shape
    x, y = torch.arange(width), torch.arange(height)
    turns = (fx * height * x[None, :] + fy * width * y[:, None]) % (height * width)
    phase = turns.double() * (2 * math.pi / (height * width))
    wave = phase.cos() if part == "real" else phase.sin()
    if wave.norm() < 1e-9 * height * width:
        raise ValueError(f"frequency ({fx}, {fy}) has no imaginary part on {height}x{width} images")
    image = torch.zeros(channels, height, width, dtype=torch.float64)
    image[channel] = wave / wave.norm()
    return image.flatten()


class Cell(NamedTuple):
    """A cell of the published 16 x 16 Fourier map: column x, row y, and its frequency in cycles per image."""

    x: int
    y: int
    fx: int
    fy: int


def map_cells(*, step: int = 1) -> list[Cell]:
    """Return the cells of the published map that were trained, every ``step``-th along both axes.

    Of its 16 x 16 cells only 9 x 16 were: the map repeats itself under x -> (16 - x) mod 16. The cells returned have
    fx = 0, 2, ..., 16 and fy = -16, -14, ..., 14; column 0 stands for fx = 16. In the columns fx = 0 and fx = 16 the
    frequencies (fx, fy) and (fx, -fy) are the same cosine, so the 144 cells are 130 distinct directions.

    Raises:
        ValueError: the step is not a positive integer.
    """
    step = seeds.require_integer("step", step, 1)
    columns = [*range(8, 16), 0][::step]
    return [Cell(x, y, abs(2 * (x - 8)), 2 * (y - 8)) for y in range(0, 16, step) for x in columns]


def pixel(shape: Shape = (1, 32, 32)) -> Basis:
    """Return the basis of single pixels, e_0 ... e_{D-1}."""
    return Basis(vectors=torch.eye(math.prod(shape), dtype=torch.float64), shape=shape, name="pixel")


def random(shape: Shape = (1, 32, 32), *, seed: int = 0) -> Basis:
    """Return a basis drawn from the uniform (Haar) distribution on rotations: the Q factor of a Gaussian matrix.

    Each column takes the sign of R's diagonal, without which the QR decomposition is not uniform.
    """
    dimensions = math.prod(shape)
    gaussian = torch.randn(dimensions, dimensions, generator=seeds.generator(seed, "random basis"), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return Basis(vectors=(q * r.diagonal().sign()).T.contiguous(), shape=shape, name="random")


class Ceiling(NamedTuple):
    """The overlap to expect of one pair of runs: its mean and its standard deviation from pair to pair."""

    mean: float
    spread: float


def overlap_ceiling(
    eigenvalues: Tensor, k: int, *, n_networks: tuple[int, int], repeats: int = 8, seed: int = 0
) -> Ceiling:
    """Return the overlap to expect between two runs of the same experiment, limited by sampling alone.

    Two covariances are drawn as if derivatives were Gaussian with the given spectrum, from N_1 and N_2 networks; the
    overlap of their leading k-dimensional subspaces is what a perfect reproduction would show: within ``mean`` +-
    ``spread``, as a rule.

    Args:
        eigenvalues: (K,) the spectrum taken as the true one, in descending order.
        k: dimensions of the leading subspaces.
        n_networks: (N_1, N_2).
        repeats: number of simulated pairs.

    Raises:
        ValueError: k is not from 1 to K; fewer than two networks a run, or fewer than two repeats.
    """
    if k not in range(1, len(eigenvalues) + 1):
        raise ValueError(f"overlap_ceiling: expected k from 1 to {len(eigenvalues)}, got {k}")
    for name, value in (*(("n_networks", n) for n in n_networks), ("repeats", repeats)):
        seeds.require_integer(name, value, 2)
    overlaps = []
    for repeat in range(repeats):
        first, second = (
            _leading_eigenvectors(_sample_covariance(eigenvalues, n, seeds.derive(seed, repeat, side)), k)
            for side, n in enumerate(n_networks)
        )
        overlaps.append(((first.T @ second).square().sum() / k).item())
    return Ceiling(statistics.mean(overlaps), statistics.stdev(overlaps))


def _sample_covariance(eigenvalues: Tensor, n: int, seed: int) -> Tensor:
    """Draw X^T X for n Gaussian rows; by Bartlett's decomposition, K^2 numbers instead of n K, where n >= K."""
    rng = np.random.default_rng(seed)
    size = len(eigenvalues)
    factor = rng.standard_normal((min(n, size), size))
    if n >= size:
        factor = np.triu(factor, 1) + np.diag(np.sqrt(rng.chisquare(n - np.arange(size))))
    factor = torch.from_numpy(factor) * eigenvalues.double().cpu().clamp(min=0).sqrt()
    return factor.T @ factor


def _leading_eigenvectors(matrix: Tensor, k: int) -> Tensor:
    return torch.linalg.eigh(matrix).eigenvectors[:, -k:]


def _frequencies(shape: Shape) -> list[Frequency]:
    """Return the frequencies of the real Fourier basis of C x H x W images, row by row of the centred spectrum."""
    channels, height, width = shape
    return [
        Frequency(fx, fy, "real" if _is_real(fx, fy, height, width) else "imaginary", channel)
        for channel in range(channels)
        for fy in range(-(height // 2), height - height // 2)
        for fx in range(-(width // 2), width - width // 2)
    ]


def _require_wave(wave: Frequency, shape: Shape) -> None:
    fx, fy, part, channel = wave
    if not (isinstance(fx, Integral) and isinstance(fy, Integral)):
        raise ValueError(f"frequency: expected integers, in cycles per image, got ({fx}, {fy})")
    if part not in ("real", "imaginary"):
        raise ValueError(f"part: expected 'real' or 'imaginary', got {part!r}")
    if channel not in range(shape[0]):
        raise ValueError(f"channel: expected 0 to {shape[0] - 1}, got {channel}")


def _wrap(frequency: int, size: int) -> int:
    """Return the frequency that is the same on ``size`` samples, from -size/2 to size/2 - 1."""
    return (frequency + size // 2) % size - size // 2


def _is_real(fx: int, fy: int, height: int, width: int) -> bool:
    """Say whether (fx, fy) holds the cosine of the pair +-(fx, fy): it is its own opposite, or comes first."""
    return (fx, fy) >= (_wrap(-fx, width), _wrap(-fy, height))
