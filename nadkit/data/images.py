"""Real image sets as tensors: both splits in one object, stored as uint8, converted to float batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nadkit import checks, devices, files, seeds
from nadkit.data.image_files import TORCHVISION, Splits, folder_set, folder_splits, in_float, resized, torchvision_set
from nadkit.names import hint

NAMES = ("digits", *TORCHVISION)


@checks.typed
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Train and test images of one data set, on one device.

    Attributes:
        train, test: (N, C, H, W) uint8, from 0 to 255.
        train_labels, test_labels: (N,) int64, indices into ``classes``.
        classes: name of each class.
        name: what `load` was called with.
        source: where the images come from and what was done to them, in words.

    Raises:
        ValueError: images that are not uint8, of no samples, or of another shape in ``test`` than in ``train``; labels
            that are not int64, not one per image, or not the number of a class.
    """

    train: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    name: str
    source: str

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            images, labels = getattr(self, name), getattr(self, f"{name}_labels")
            checks.require_axes(name, images, "(N, C, H, W)")
            if images.dtype != torch.uint8:
                raise ValueError(f"{name}: expected uint8 from 0 to 255, got {images.dtype}")
            checks.require_samples(images, labels, name, f"{name}_labels")
            checks.require_labels(f"{name}_labels", labels, len(self.classes), "classes")
        if self.test.shape[1:] != self.train.shape[1:]:
            raise ValueError(f"test: expected images of shape {self.shape} as in train, got {self.test.shape[1:]}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @checks.typed
    def to(self, device: str | torch.device) -> "ImageSet":
        """Return the same set with its tensors on ``device``.

        Raises:
            ValueError: there is no such device.
        """
        device = devices.pick(device)
        return replace(
            self,
            train=self.train.to(device),
            train_labels=self.train_labels.to(device),
            test=self.test.to(device),
            test_labels=self.test_labels.to(device),
        )

    @checks.typed
    def subset(self, n_train: int | None = None, n_test: int | None = None, *, seed: int = 0) -> "ImageSet":
        """Return ``n_train`` and ``n_test`` images drawn at random, from all classes alike.

        If a class has too few images, the others make up for it. None keeps a split whole. With the same seed, a
        smaller subset is the beginning of a larger one.

        Raises:
            ValueError: more images are asked for than there are, or fewer than one.
        """
        train = _balanced(self.train_labels, n_train, "train", seed)
        test = _balanced(self.test_labels, n_test, "test", seed)
        return replace(
            self,
            train=self.train[train],
            train_labels=self.train_labels[train],
            test=self.test[test],
            test_labels=self.test_labels[test],
            source=f"{self.source}, {len(train):,} and {len(test):,} of them (seed {seed})",
        )

    @checks.typed
    def tested_on_the_rest(self, n_train: int, n_test: int | None = None, *, seed: int = 0) -> "ImageSet":
        """Return ``n_train`` random training images, with all other training images added to the test images.

        The first ``n_test`` images to test on are kept, beginning with the original test images; None keeps all.

        Raises:
            ValueError: more images are asked for than there are, or fewer than one.
        """
        _require_count("n_train", n_train, len(self.train))
        if n_test is not None:
            _require_count("n_test", n_test, len(self.test) + len(self.train) - n_train)
        full = self.subset(len(self.train), seed=seed)
        return replace(
            full,
            train=full.train[:n_train],
            train_labels=full.train_labels[:n_train],
            test=torch.cat([full.test, full.train[n_train:]])[:n_test],
            test_labels=torch.cat([full.test_labels, full.train_labels[n_train:]])[:n_test],
            source=f"{full.source}; the first {n_train:,} to train on, others to test",
        )


@checks.typed
def check(name: str) -> None:
    """Raise ValueError, saying what is wrong, unless ``name`` names an image set; load nothing.

    A folder without its splits raises `nadkit.files.DataError`.

    Names are those in ``NAMES`` and ``folder:PATH``. PATH is a folder with ``train/CLASS/*`` and
    ``test/CLASS/*`` (or ``val``, ``valid``, ``validation``), and may be relative to the working directory or to a
    data folder.
    """
    if name.startswith("folder:"):
        folder_splits(name)
    elif name not in NAMES:
        known = ", ".join((*NAMES, "folder:PATH"))
        raise ValueError(f"unknown image set {name!r}{_suggest(name)}; known: {known}")


@checks.typed
def load(
    name: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> ImageSet:
    """Return an image set by name, one of ``NAMES`` or ``folder:PATH`` (see `check`), on a device.

    Digits come with scikit-learn and are split into 1,297 and 500, always the same. The sets of
    torchvision are looked for in the data folders, in torchvision's layout, else downloaded.

    Args:
        name: the image set.
        size: resize to size x size pixels (bilinear, antialiased); None keeps the size, except
            that digits become 32x32.
        channels: 3 repeats grey images, 1 takes the luminance of coloured ones, None keeps them.
        device: where to put the tensors.
        progress: show a bar while the images of a folder are decoded.

    Raises:
        ValueError: an unknown name (near misses are suggested), size, channels or device.
        DataError: the data are not at hand and cannot be downloaded, or are damaged.
    """
    check(name)
    _check_form(size, channels)
    if name == "digits":
        found, size = _digits(), size or 32
    elif name in TORCHVISION:
        found = torchvision_set(name)
    else:
        found = folder_set(name, size, progress)
    return _formed(ImageSet(name=name, **found._asdict()), size, channels).to(device)


@checks.typed
def to_float(
    images: Tensor,
    mean: Tensor | float | Sequence[float] | None = None,
    std: Tensor | float | Sequence[float] | None = None,
) -> Tensor:
    """Return a standardised batch in float32; before that, uint8 is scaled to [0, 1], and float is not.

    Args:
        images: (B, C, H, W) uint8 or float.
        mean: to subtract: one number or one per channel, in the units of [0, 1].
        std: to divide by, likewise.

    Raises:
        ValueError: the images are neither uint8 nor float; there is not one number, or one per channel; they are not
            finite, or a deviation is not positive. Of tensors only positive deviations on the CPU are checked.
    """
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    elif not images.is_floating_point():
        raise ValueError(f"images: expected uint8 images from 0 to 255, or float ones, got {images.dtype}")
    images = images.float()
    if mean is not None:
        images = images - _per_channel("mean", mean, images)
    if std is not None:
        images = images / _per_channel("std", std, images)
    return images


def _per_channel(name: str, value: Tensor | float | Sequence[float], images: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        value = checks.require_numbers(name, value)
    if name == "std" and value.device.type == "cpu" and not (value > 0).all():  # on a GPU it would wait for an answer
        raise ValueError(f"std: expected positive numbers, got {value.tolist()}")
    value = value.to(images.device, images.dtype).view(-1, 1, 1)
    if images.ndim < 3 or len(value) not in (1, images.shape[-3]):
        raise ValueError(
            f"{name}: expected one number or one a channel of images {tuple(images.shape)}, got {len(value)}"
        )
    return value


def _suggest(name: str) -> str:
    if name and files.expanded(name).is_dir():
        return f"; did you mean 'folder:{name}'?"
    return hint(name, NAMES)


def _check_form(size: int | None, channels: int | None) -> None:
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size: expected a positive whole number of pixels, got {size!r}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: expected 1 (grey) or 3 (colour), got {channels!r}")


def _require_count(name: str, n: int, available: int) -> None:
    if not 1 <= n <= available:
        raise ValueError(f"{name}: expected 1 to {available} images, got {n}")


def _balanced(labels: Tensor, n: int | None, split: str, seed: int) -> Tensor:
    """Return ``n`` indices, drawn in rounds that take one image of every class with any left."""
    if n is None:
        return torch.arange(len(labels), device=labels.device)
    _require_count(f"n_{split}", n, len(labels))
    order = torch.randperm(len(labels), generator=seeds.generator(seed, "subset", split))
    shuffled = labels.cpu()[order]
    rounds = F.one_hot(shuffled).cumsum(0).gather(1, shuffled[:, None]).squeeze(1)
    return order[rounds.argsort(stable=True)[:n]].to(labels.device)


def _digits() -> Splits:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    split = train_test_split(images, digits.target, test_size=500, stratify=digits.target, random_state=0)
    train, test, train_labels, test_labels = map(torch.from_numpy, split)
    return Splits(
        train,
        train_labels.long(),
        test,
        test_labels.long(),
        tuple(map(str, digits.target_names)),
        "scikit-learn's digits (1,797 images of 8x8), fixed split of 1,297 and 500",
    )


def _formed(images: ImageSet, size: int | None, channels: int | None) -> ImageSet:
    train, test = (_with_channels(resized(x, size), channels) for x in (images.train, images.test))
    shape = "x".join(map(str, train.shape[1:]))
    return replace(images, train=train, test=test, source=f"{images.source}, as {shape}")


def _with_channels(images: Tensor, channels: int | None) -> Tensor:
    if channels is None or images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    from torchvision.transforms.functional import rgb_to_grayscale

    return in_float(rgb_to_grayscale, images)
