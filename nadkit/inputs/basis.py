"""Ordered orthonormal sets of input directions: the currency of Part I.

Axis letters: B batch, K directions, D = C x H x W input dimensions.
"""

import functools
import math
import operator
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, overload

import torch
from torch import Tensor

from nadkit import checks, seeds, storage
from nadkit.architectures import Shape
from nadkit.inputs.reproducibility import REPRODUCIBLE, NotReproducibleWarning, expected_overlap

if TYPE_CHECKING:
    from nadkit.stats import Measured

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest relative error accepted in V V^T c = c; the published float32 arrays are within 1e-5."""

EIGENVALUE_NOISE = 1e-6
"""Rounding accepted in the sign and the order of eigenvalues, relative to the first."""


@checks.typed
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

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> "Basis": ...

    def __getitem__(self, index: int | slice) -> "Tensor | Basis":
        """Return direction ``index``, (D,) float64, or the basis of a slice: ``nads[:10]`` are the leading ten.

        As with a list, a slice may go beyond the last direction.

        Raises:
            IndexError: there is no such direction.
            TypeError: the index is neither an integer nor a slice.
            ValueError: a slice that is empty, or goes backwards: directions are in descending order.
        """
        return self._of(index) if isinstance(index, slice) else self.vectors[self._position(index)]

    def _of(self, index: slice) -> "Basis":
        start, stop, step = index.indices(len(self))
        if step < 0 or start >= stop:
            raise ValueError(f"{self.name}: expected a slice of some of {len(self)} directions in order, got {index}")
        if (start, step) == (0, 1):
            return self.leading(stop)
        eigenvalues = None if self.eigenvalues is None else self.eigenvalues[index]
        name = f"{self.name}[{start}:{stop}{'' if step == 1 else f':{step}'}]"
        return Basis(vectors=self.vectors[index], shape=self.shape, name=name, eigenvalues=eigenvalues)

    @property
    def images(self) -> Tensor:
        """The directions as images: (K, C, H, W) float64."""
        return self.vectors.unflatten(1, self.shape)

    @checks.typed
    def coordinates(self, x: Tensor) -> Tensor:
        """Return the coordinates <u_k, x>: (..., C, H, W) -> (..., K), in the dtype of ``x``.

        A one-channel basis acts on each channel of a colour image: (..., C', H, W) -> (..., C', K).
        """
        rows = self._rows(x)
        found = rows.reshape(-1, rows.shape[-1]) @ self.vectors.to(rows).T
        return found.reshape(*rows.shape[:-1], len(self))

    @checks.typed
    def flip(self, x: Tensor) -> Tensor:
        """Return U^T flip(U x): coordinate k takes the place of coordinate D - 1 - k, in the shape of ``x``.

        Source: Ortiz-Jimenez et al. 2020, flipping experiment on CIFAR-10 (data reversed in the NAD basis).

        Raises:
            ValueError: the basis does not span the whole space (`complete` it first).
        """
        self.require_complete()
        rows = self._rows(x)
        return (rows.reshape(-1, rows.shape[-1]) @ self._reversal.to(rows)).reshape(x.shape)

    @functools.cached_property
    def _reversal(self) -> Tensor:
        """The matrix A = flip(U)^T U of x -> x A, which is its own inverse: (D, D) float64."""
        return self.vectors.flip(0).T @ self.vectors

    def require_complete(self) -> None:
        """Raise ValueError unless the directions span the whole space."""
        if len(self) != (dimensions := self.vectors.shape[1]):
            raise ValueError(
                f"{self.name}: expected all {dimensions} directions, this basis has {len(self)}; call .complete() first"
            )

    @checks.typed
    def leading(self, k: int) -> Self:
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

    @checks.typed
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

    @checks.typed
    def save(self, path: str | Path) -> None:
        """Write the basis to a safetensors file, whole or not at all.

        Raises:
            DataError: the file cannot be written (no space, no permission).
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        facts = {name: value for name, value in values.items() if name not in tensors}
        storage.write(path, type(self).__name__, tensors, facts)

    @classmethod
    @checks.typed
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

    def _rows(self, x: Tensor) -> Tensor:
        """View inputs as rows of D numbers: (..., C, H, W) -> (..., D), or one row a channel of a colour image."""
        axes = 3 if tuple(x.shape[-3:]) == tuple(self.shape) else 2
        if x.ndim < 3 or (axes == 2 and (1, *x.shape[-2:]) != tuple(self.shape)):
            raise ValueError(
                f"{self.name}: expected inputs of shape (..., {', '.join(map(str, self.shape))}), got "
                f"{tuple(x.shape)}; take a basis for inputs of that shape, or resize the inputs"
            )
        return (x if x.is_floating_point() else x.float()).flatten(-axes)

    def _position(self, index: int) -> int:
        """Return an index, which may count from the end, as a row number from 0 to K - 1."""
        try:
            position = operator.index(index)
        except TypeError:
            raise TypeError(
                f"{self.name}: expected an integer or a slice such as [:10], got {index!r}; other rows are in .vectors"
            ) from None
        dimensions = self.vectors.shape[1]
        if not -len(self) <= position < len(self):
            missing = f" (it has {len(self)} of {dimensions} directions)" if len(self) < dimensions else ""
            raise IndexError(f"{self.name}: expected an index from 0 to {len(self) - 1}, got {position}{missing}")
        return position % len(self)

    def _require_k(self, k: int) -> None:
        if not 1 <= k <= len(self):
            raise ValueError(f"{self.name}: expected k from 1 to {len(self)}, got {k}")


@checks.typed
@dataclass(frozen=True, kw_only=True, eq=False)
class NADs(Basis):
    """Neural anisotropy directions: eigenvectors of E_theta[grad_x f grad_x f^T], in descending order.

    Attributes:
        n_networks: number N of random networks behind the covariance.
        centred: whether the mean derivative was subtracted: lambda = s^2 / (N - 1), else s^2 / N.
        settings: how they were computed (architecture, method, scale, seed, ...), for records.
        overlap_of_halves: (K',) float64, for k = 1 ... K' the `overlap` of the leading k directions of the
            even-numbered networks with those of the odd-numbered ones; None where it is not known, as for published
            arrays.

    Raises:
        ValueError: as `Basis`; overlaps that are not one a number of directions, or not from 0 to 1.
    """

    n_networks: int = 0
    centred: bool = True
    settings: dict[str, str | int | float | bool] | None = None
    overlap_of_halves: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (found := self.overlap_of_halves) is None:
            return
        found = torch.as_tensor(found, dtype=torch.float64)
        if found.ndim != 1 or not ((found >= 0) & (found <= 1 + ORTHONORMAL_TOLERANCE)).all():
            raise ValueError(f"{self.name}: expected overlaps of halves in one dimension, from 0 to 1, got {found}")
        object.__setattr__(self, "overlap_of_halves", found.clamp(max=1))

    def reproducibility(self, k: int) -> "Measured | None":
        """Return the `overlap` to expect with the leading k directions of as many other networks.

        It is estimated from the halves of the networks, see `expected_overlap`. With a run of another number of
        networks, expect the geometric mean of the two runs' values. None where the halves are not known, or not
        compared for this k.

        Raises:
            ValueError: k is not from 1 to K.
        """
        self._require_k(k)
        if self.overlap_of_halves is None or k > len(self.overlap_of_halves):
            return None
        return expected_overlap(self.overlap_of_halves[k - 1].item(), k, self.vectors.shape[1])

    def leading(self, k: int) -> Self:
        """Return the first ``k`` directions, with a warning if so few networks do not determine them.

        Raises:
            ValueError: k is not from 1 to K.
        """
        self.warn_unless_reproducible(k)
        return super().leading(k)

    def warn_unless_reproducible(self, k: int) -> None:
        """Warn where as many other networks would share less than `REPRODUCIBLE` of the leading k directions."""
        expected = self.reproducibility(k)
        if expected is not None and expected.value < REPRODUCIBLE:
            directions = "direction 0" if k == 1 else f"directions 0 to {k - 1}"
            warnings.warn(
                f"{self.name}: {self.n_networks} networks do not determine {directions}; as many others are expected "
                f"to share {expected.value:.2f} ± {expected.error:.2f} of them, by chance "
                f"{k / self.vectors.shape[1]:.2g}; take more networks, or measure what you conclude on others",
                NotReproducibleWarning,
                stacklevel=3,
            )


@checks.typed
def pixel_basis(shape: Shape = (1, 32, 32)) -> Basis:
    """Return the basis of single pixels, e_0 ... e_{D-1}."""
    return Basis(vectors=torch.eye(math.prod(shape), dtype=torch.float64), shape=shape, name="pixel")


@checks.typed
def random_basis(shape: Shape = (1, 32, 32), *, seed: int = 0) -> Basis:
    """Return a basis drawn from the uniform (Haar) distribution on rotations: the Q factor of a Gaussian matrix.

    Each column takes the sign of R's diagonal entry; otherwise Q would not be uniform.
    """
    dimensions = math.prod(shape)
    gaussian = torch.randn(dimensions, dimensions, generator=seeds.generator(seed, "random basis"), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return Basis(vectors=(q * r.diagonal().sign()).T.contiguous(), shape=shape, name="random")
