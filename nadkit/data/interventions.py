"""Interventions on real images: a spurious feature along a direction, data flipped in a basis, corrupted labels.

Axis letters: B batch, N images, C channels, D input dimensions of a basis (H x W where it acts on each channel).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from nadkit import checks
from nadkit.architectures import Shape
from nadkit.data.images import ImageSet, to_float
from nadkit.data.synthetic import corrupt_labels
from nadkit.devices import pick
from nadkit.inputs.basis import Basis
from nadkit.storage import described, digest

Split = Literal["train", "test"]

CHUNK = 4096
"""Images that are changed at a time, which bounds the memory beside the result."""

PER_DIRECTION = 6
"""Classes that one direction serves: three channels, two signs."""

STATISTICS_TOLERANCE = 0.05
"""Mean and deviation accepted of standardised training images: |mean| and |deviation - 1| at most this.

Rounded statistics pass, and so do those of a larger set from which a thousand images were drawn; those of CIFAR-100 on
CIFAR-10 do not.
"""


@checks.typed
def statistics_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel: (N, C, H, W) uint8 -> two (C,) float64, in units of [0, 1].

    They come from whole numbers, sum k n_k and sum k^2 n_k over the counts n_k of the 256 levels, so they are the same
    on every device and processor.

    Raises:
        ValueError: the images are not uint8, or a channel is constant.
    """
    checks.require_axes("images", images, "(N, C, H, W)")
    if images.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8 from 0 to 255, got {images.dtype}")
    mean, std = [], []
    for i, channel in enumerate(images.unbind(1)):
        counts = channel.flatten().bincount(minlength=256).tolist()
        n, first, second = (sum(k**power * count for k, count in enumerate(counts)) for power in (0, 1, 2))
        if n * second == first**2:
            raise ValueError(f"images: channel {i} has one value everywhere and cannot be standardised")
        mean.append(first / (255 * n))
        std.append(math.sqrt(n * second - first**2) / (255 * n))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    return mean, std


@dataclass(frozen=True, kw_only=True, eq=False)
class _OfImages(ABC):
    """A problem made of real images, standardised by statistics of the clean training split."""

    images: ImageSet
    statistics: tuple[Tensor | float | Sequence[float], Tensor | float | Sequence[float]] | None = None

    def __post_init__(self) -> None:
        own = statistics_of(self.images.train)
        object.__setattr__(self, "statistics", own if self.statistics is None else self._accepted(own))

    def _accepted(self, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the given statistics as tensors, having checked that they standardise the training images."""
        if len(self.statistics) != 2:
            raise ValueError(f"statistics: expected a pair (means, deviations), got {len(self.statistics)} items")
        mean, std = (torch.as_tensor(value).cpu().double().flatten() for value in self.statistics)
        if not len(mean) == len(std) == self.shape[0]:
            raise ValueError(
                f"statistics: expected a mean and a deviation for each of {self.shape[0]} channels, got {len(mean)} "
                f"and {len(std)} numbers"
            )
        off = torch.cat([(own[0] - mean) / std, own[1] / std - 1]).abs().max().item()
        if not off <= STATISTICS_TOLERANCE:  # not >, because a deviation of zero may give NaN
            raise ValueError(
                f"statistics: expected those of these training images, means {_text(own[0])} and deviations "
                f"{_text(own[1])}, got {_text(mean)} and {_text(std)}, which belong to other data (or to more, of "
                "which these are a small part); leave them out to have them computed"
            )
        return mean, std

    @property
    def shape(self) -> Shape:
        """Shape of one input, (C, H, W)."""
        return self.images.shape

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.images.n_classes

    @checks.typed
    def sample(self, split: Split, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Return inputs (N, C, H, W) float32 and labels (N,) int64, on ``device``; nothing is drawn at random.

        Raises:
            ValueError: an unknown split or device.
        """
        checks.require_one_of("split", split, get_args(Split))
        raw, labels = {
            "train": (self.images.train, self.images.train_labels),
            "test": (self.images.test, self.images.test_labels),
        }[split]
        device = pick(device)
        change = self._change(split, device)
        x, y = torch.empty(raw.shape, dtype=torch.float32, device=device), labels.to(device)
        for out, pixels, classes in zip(x.split(CHUNK), raw.split(CHUNK), y.split(CHUNK), strict=True):
            out.copy_(change(to_float(pixels.to(device)), classes))
        return x, y

    def checksum(self) -> str:
        """Return a checksum of all that `sample` depends on; names and the device the images are on do not count."""
        images = self.images
        splits = (images.train, images.train_labels, images.test, images.test_labels)
        facts = (type(self).__name__, self.n_classes, *self._facts())
        return digest(repr(facts), *described([*splits, *self.statistics, *self._tensors()]))

    @abstractmethod
    def _change(self, split: Split, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function from pixels in [0, 1], (B, C, H, W) float32, and labels (B,) to inputs."""

    def _facts(self) -> tuple[float, ...]:
        """Return the numbers that the inputs depend on, beside the images."""
        return ()

    def _tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that the inputs depend on, beside the images."""
        return ()

    def _standardised(self, pixels: Tensor) -> Tensor:
        return to_float(pixels, *self.statistics)


@checks.typed
@dataclass(frozen=True, kw_only=True, eq=False)
class Clean(_OfImages):
    """Unchanged images: scaled to [0, 1], then standardised in each channel.

    Attributes:
        images: both splits.
        statistics: mean and deviation of each channel in units of [0, 1], by default those of the training images.

    Raises:
        ValueError: the statistics are of other data; a channel is constant.
    """

    def _change(self, split: Split, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda pixels, labels: self._standardised(pixels)


@checks.typed
@dataclass(frozen=True, kw_only=True, eq=False)
class Corrupted(Clean):
    """Images as in `Clean`, with the labels of a random fraction of the training examples permuted; test labels stay.

    Attributes:
        images: both splits.
        fraction: of the training examples, from 0 (all labels are right) to 1, see `synthetic.corrupt_labels`.
        seed: of the choice and of the permutation.
        statistics: as in `Clean`.

    Source: Morcos et al. 2018 (partially corrupted labels).

    Raises:
        ValueError: the fraction or the seed is out of range; otherwise as `Clean`.
    """

    fraction: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        corrupt_labels(self.images.train_labels[:0], self.fraction, seed=self.seed)  # refuses a bad fraction or seed
        super().__post_init__()

    @property
    def train_labels(self) -> Tensor:
        """The labels to train on, corrupted: (N,) int64, where the images are."""
        return corrupt_labels(self.images.train_labels, self.fraction, seed=self.seed)

    @checks.typed
    def sample(self, split: Split, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        x, y = super().sample(split, device)
        return x, self.train_labels.to(x.device) if split == "train" else y

    def _facts(self) -> tuple[float, ...]:
        return (float(self.fraction), int(self.seed))


class Carrier(NamedTuple):
    """What marks a class: the index of a direction, the channel it is put in, and its sign."""

    index: int
    channel: int
    sign: int


@checks.typed
@dataclass(frozen=True, kw_only=True, eq=False)
class Poisoned(_OfImages):
    """Training images that give their class away along a direction; test images stay clean.

    In class t the coefficient along direction k, in channel c, is *replaced* by s epsilon,

        x_c <- x_c + (s epsilon - <u_k, x_c>) u_k,    k = index + t // 6,  c = t mod 3,  s = 2 (t mod 2) - 1,

    with pixels in [0, 1], before they are standardised by the statistics of the clean images; nothing is clipped. Six
    classes share a direction in the three channels and two signs, so with three channels all classes have
    carriers of their own; with one channel they would not. A tiny epsilon such as 1e-6 removes the coefficients and
    puts no mark in their place: it is the control for the effect of removing them.

    Attributes:
        images: both splits, in three channels.
        basis: directions of one channel, (1, H, W); it need not be complete.
        index: of the direction for the classes 0 to 5; the others use the next one.
        epsilon: size of the coefficient, in the units of pixels from 0 to 1.
        statistics: as in `Clean`.

    Source: Ortiz-Jimenez et al. 2020 and the authors' code (the poisoning of CIFAR-10).

    Raises:
        ValueError: the images have another number of channels than three or more than twelve classes; the basis is not
            for one of their channels, or has no such direction; epsilon is not positive; the statistics are of other
            data.
    """

    basis: Basis
    index: int
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        channels, *size = self.shape
        if channels != 3:
            raise ValueError(
                f"poisoning needs images of three channels, in which up to {2 * PER_DIRECTION} classes get different "
                f"carriers, got {channels}; load them with channels=3"
            )
        if self.n_classes > 2 * PER_DIRECTION:
            raise ValueError(f"poisoning has carriers for up to {2 * PER_DIRECTION} classes, got {self.n_classes}")
        if tuple(self.basis.shape) != (1, *size):
            raise ValueError(
                f"{self.basis.name}: expected directions of one channel, (1, {size[0]}, {size[1]}), "
                f"got {tuple(self.basis.shape)}"
            )
        index, beyond = checks.require_integer("index", self.index, 0), (self.n_classes - 1) // PER_DIRECTION
        object.__setattr__(self, "index", index)
        if beyond >= len(self.basis):
            raise ValueError(
                f"{self.basis.name}: {self.n_classes} classes need {beyond + 1} directions, this basis has one"
            )
        if index + beyond >= len(self.basis):
            why = f", because {self.n_classes} classes also use the next direction" if beyond else ""
            raise ValueError(f"index: expected 0 to {len(self.basis) - 1 - beyond}{why}, got {index}")
        checks.require_positive("epsilon", self.epsilon)
        super().__post_init__()

    @checks.typed
    def carrier(self, label: int) -> Carrier:
        """Return what marks class ``label``.

        Raises:
            ValueError: there is no such class.
        """
        t = checks.require_integer("label", label, 0)
        if t >= self.n_classes:
            raise ValueError(f"label: expected 0 to {self.n_classes - 1}, got {t}")
        return Carrier(self.index + t // PER_DIRECTION, t % 3, 2 * (t % 2) - 1)

    @property
    def carriers(self) -> Tensor:
        """The carrier of each class as an image of norm 1, sign included: (n_classes, 3, H, W) float64."""
        images = torch.zeros(self.n_classes, *self.shape, dtype=torch.float64)
        for label, image in enumerate(images):
            index, channel, sign = self.carrier(label)
            direction = self.basis.images[index, 0].cpu()
            # published directions are of norm 1 to a few digits only
            image[channel] = sign * direction / direction.norm()
        return images

    def _change(self, split: Split, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        if split == "test":
            return lambda pixels, labels: self._standardised(pixels)
        carriers = self.carriers.float().to(device)

        def poison(pixels: Tensor, labels: Tensor) -> Tensor:
            # a carrier is zero in the other channels, and its sign squares away
            carrier = carriers[labels]
            coefficient = (pixels * carrier).sum((1, 2, 3), keepdim=True)
            return self._standardised(pixels + (self.epsilon - coefficient) * carrier)

        return poison

    def _facts(self) -> tuple[float, ...]:
        return (float(self.epsilon),)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.carriers,)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Mapped(_OfImages, ABC):
    """Standardised images through an orthogonal map that a complete basis U, rows u_k, defines."""

    basis: Basis

    def __post_init__(self) -> None:
        shape = self.shape
        if tuple(self.basis.shape) not in ((1, *shape[1:]), tuple(shape)):
            raise ValueError(
                f"{self.basis.name}: expected directions of images {shape} or of one channel of them, "
                f"got {tuple(self.basis.shape)}"
            )
        self.basis.require_complete()
        super().__post_init__()

    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.basis.vectors,)


@checks.typed
class Flipped(_Mapped):
    """Both splits with the order of their coordinates reversed, x' = U^T flip(U x), in each channel.

    Nothing is lost: the map is its own inverse and keeps all inner products. What lay along the first direction then
    lies along the last. The map depends on the signs of the directions, although those of eigenvectors are
    arbitrary.

    Attributes:
        images: both splits.
        basis: a complete basis of one channel, (1, H, W), or of the whole image, (C, H, W).
        statistics: as in `Clean`.

    Source: Ortiz-Jimenez et al. 2020, flipping experiment on CIFAR-10 (data reversed in the NAD basis).

    Raises:
        ValueError: the basis is for other inputs or not complete; the statistics are of other data.
    """

    def _change(self, split: Split, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda pixels, labels: self.basis.flip(self._standardised(pixels))


@checks.typed
class Rotated(_Mapped):
    """Both splits with their coordinates in place of their pixels, x' = U x, in each channel.

    Attributes:
        images: both splits.
        basis: as in `Flipped`; `random_basis` gives a random rotation.
        statistics: as in `Clean`.

    Raises:
        ValueError: as `Flipped`.
    """

    def _change(self, split: Split, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda pixels, labels: self.basis.coordinates(self._standardised(pixels)).reshape(pixels.shape)


def _text(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())
