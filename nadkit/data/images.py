"""Real image sets as tensors: both splits in one object, uint8 at rest, float a batch at a time."""

import os
import socket
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from nadkit import devices, files, seeds
from nadkit.files import DataError
from nadkit.names import hint

_TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
NAMES = ("digits", *_TORCHVISION)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Train and test images of one data set, on one device.

    Attributes:
        train, test: (N, C, H, W) uint8, from 0 to 255.
        train_labels, test_labels: (N,) int64, indices into ``classes``.
        classes: name of each class.
        name: what `load` was called with.
        source: where the images come from and what was done to them, in words.
    """

    train: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    classes: tuple[str, ...]
    name: str
    source: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

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

    def subset(self, n_train: int | None = None, n_test: int | None = None, *, seed: int = 0) -> "ImageSet":
        """Return ``n_train`` and ``n_test`` images drawn at random, from all classes alike.

        Where a class has too few, the others fill up. None keeps a split whole. With the same seed
        a smaller subset is the beginning of a larger one.

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

    def tested_on_the_rest(self, n_train: int, n_test: int | None = None, *, seed: int = 0) -> "ImageSet":
        """Return ``n_train`` random training images, and the test images with all other training images to test on.

        Of those to test on, ``n_test`` are kept, the test images first; None keeps all.

        Raises:
            ValueError: more images are asked for than there are, or fewer than one.
        """
        if not 0 < n_train <= len(self.train):
            raise ValueError(f"n_train: expected 1 to {len(self.train)} images, got {n_train}")
        full = self.subset(len(self.train), seed=seed)
        return replace(
            full,
            train=full.train[:n_train],
            train_labels=full.train_labels[:n_train],
            test=torch.cat([full.test, full.train[n_train:]])[:n_test],
            test_labels=torch.cat([full.test_labels, full.train_labels[n_train:]])[:n_test],
            source=f"{full.source}; the first {n_train:,} to train on, others to test",
        )


def check(name: str) -> None:
    """Raise ValueError, saying what is wrong, unless ``name`` names an image set; load nothing.

    Names are those in ``NAMES`` and ``folder:PATH``. PATH is a folder with ``train/CLASS/*`` and
    ``test/CLASS/*``, and may be relative to the working directory or to a data folder.
    """
    if name.startswith("folder:"):
        _folder_path(name)
    elif name not in NAMES:
        known = ", ".join((*NAMES, "folder:PATH"))
        raise ValueError(f"unknown image set {name!r}{_suggest(name)}; known: {known}")


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
    elif name in _TORCHVISION:
        found = _torchvision(name)
    else:
        found = _folder(name, size, progress)
    return _formed(found, size, channels).to(device)


def to_float(
    images: Tensor,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Return a batch in float32, uint8 scaled to [0, 1] and float as it is, then standardised.

    Args:
        images: (B, C, H, W) uint8 or float.
        mean: to subtract: one number or one a channel, in the units of [0, 1].
        std: to divide by, likewise.

    Raises:
        ValueError: the images are neither uint8 nor float.
    """
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    elif not images.is_floating_point():
        raise ValueError(f"expected uint8 images from 0 to 255, or float ones, got {images.dtype}")
    images = images.float()
    if mean is not None:
        images = images - _per_channel(mean, images)
    if std is not None:
        images = images / _per_channel(std, images)
    return images


def _per_channel(value: float | Sequence[float] | Tensor, images: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=images.dtype, device=images.device).view(-1, 1, 1)


def _suggest(name: str) -> str:
    if name and Path(name).expanduser().is_dir():
        return f"; did you mean 'folder:{name}'?"
    return hint(name, NAMES)


def _check_form(size: int | None, channels: int | None) -> None:
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size: expected a positive whole number of pixels, got {size!r}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: expected 1 (grey) or 3 (colour), got {channels!r}")


def _balanced(labels: Tensor, n: int | None, split: str, seed: int) -> Tensor:
    """Return ``n`` indices, drawn in rounds that take one image of every class with any left."""
    if n is None:
        return torch.arange(len(labels), device=labels.device)
    if not 1 <= n <= len(labels):
        raise ValueError(f"n_{split}: expected 1 to {len(labels)} images, got {n}")
    order = torch.randperm(len(labels), generator=seeds.generator(seed, "subset", split))
    shuffled = labels.cpu()[order]
    rounds = F.one_hot(shuffled).cumsum(0).gather(1, shuffled[:, None]).squeeze(1)
    return order[rounds.argsort(stable=True)[:n]].to(labels.device)


# Form: size and channels


def _formed(images: ImageSet, size: int | None, channels: int | None) -> ImageSet:
    train, test = (_with_channels(_resized(x, size), channels) for x in (images.train, images.test))
    shape = "x".join(map(str, train.shape[1:]))
    return replace(images, train=train, test=test, source=f"{images.source}, as {shape}")


def _resized(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[-2:] == (size, size):
        return images
    # In float, because the uint8 kernels round differently on different processors.
    resize = partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)
    return _in_float(resize, images)


def _with_channels(images: Tensor, channels: int | None) -> Tensor:
    if channels is None or images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    from torchvision.transforms.functional import rgb_to_grayscale

    return _in_float(rgb_to_grayscale, images)


def _in_float(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply ``function`` to uint8 images in float, in chunks: float takes four times the space."""
    return torch.cat([function(chunk.float()).round_().byte() for chunk in images.split(4096)])


# Digits


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    split = train_test_split(images, digits.target, test_size=500, stratify=digits.target, random_state=0)
    train, test, train_labels, test_labels = map(torch.from_numpy, split)
    return ImageSet(
        train=train,
        train_labels=train_labels.long(),
        test=test,
        test_labels=test_labels.long(),
        classes=tuple(map(str, digits.target_names)),
        name="digits",
        source="scikit-learn's digits (1,797 images of 8x8), fixed split of 1,297 and 500",
    )


# The sets of torchvision


def _torchvision(name: str) -> ImageSet:
    from torchvision import datasets

    dataset = getattr(datasets, _TORCHVISION[name])
    checksums = _checksums(dataset)
    root = files.folder_with(checksums) or _download(name, dataset)
    for file, md5 in checksums.items():
        _verify(root / file, md5)
    train, train_labels, classes = _read(dataset, root, train=True)
    test, test_labels, _ = _read(dataset, root, train=False)
    return ImageSet(
        train=train,
        train_labels=train_labels,
        test=test,
        test_labels=test_labels,
        classes=classes,
        name=name,
        source=f"{dataset.__name__}, the original files read by torchvision",
    )


def _checksums(dataset: type) -> dict[str, str | None]:
    """Return the files that torchvision reads, below its root, with their MD5 where it has one."""
    if hasattr(dataset, "resources"):
        # torchvision has the MD5 of MNIST's archives only, not of the files inside.
        return {f"{dataset.__name__}/raw/{archive.removesuffix('.gz')}": None for archive, _ in dataset.resources}
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    listed = [*dataset.train_list, *dataset.test_list, meta]
    return {f"{dataset.base_folder}/{file}": md5 for file, md5 in listed}


def _verify(path: Path, md5: str | None) -> None:
    """Refuse a damaged file before it is read: what fails its checksum must never be unpickled."""
    from torchvision.datasets.utils import check_integrity

    if md5 is None:
        fault = _idx_fault(path)
    else:
        fault = None if check_integrity(path, md5) else f"its MD5 checksum is not {md5}"
    if fault:
        raise DataError(f"{path} is damaged: {fault}; delete it and load again to download it anew")


def _idx_fault(path: Path) -> str | None:
    """Say what is wrong with the header or the length of an idx file, or return None."""
    rank = 3 if "idx3" in path.name else 1
    with open(path, "rb") as file:
        header = file.read(4 + 4 * rank)
    if len(header) < 4 + 4 * rank or header[:4] != bytes([0, 0, 8, rank]):
        return f"it does not begin as an idx file of bytes with {rank} axes does"
    expected = len(header) + prod(struct.unpack_from(f">{rank}I", header, 4))
    if (found := path.stat().st_size) != expected:
        return f"it has {found:,} bytes, its header announces {expected:,}"
    return None


def _read(
    dataset: type, root: str | Path, *, train: bool, download: bool = False
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    with warnings.catch_warnings():
        # CIFAR's original pickles are from Python 2, which numpy 2.4.0 to 2.4.4 warn of.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        split = dataset(root, train=train, download=download)
    images, labels = torch.as_tensor(split.data), torch.as_tensor(split.targets)
    if len(images) != len(labels) or not ((labels >= 0) & (labels < len(split.classes))).all():
        raise DataError(
            f"the {'train' if train else 'test'} labels of {dataset.__name__} in {root} are wrong:"
            f" expected {len(images):,}, as many as images, from 0 to {len(split.classes) - 1};"
            " delete its files there and load again to download them anew"
        )
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, labels, tuple(name.split(" - ")[0] for name in split.classes)


def _download(name: str, dataset: type) -> Path:
    """Let torchvision download and verify in a folder apart, then move the files into place."""
    needed = _checksums(dataset)
    try:
        root = files.download_folder()
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as staging:
            with _timeout(files.TIMEOUT):
                _read(dataset, staging, train=True, download=True)
            for file in needed:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(staging) / file, root / file)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(
            f"the image set {name!r} is not at hand and could not be downloaded:"
            f" {' '.join(str(error).split())}; {files.describe_search(needed)};"
            " load it again when there is a network and space, or fetch by hand, and unpack so that"
            f" those files are found there, {_urls(dataset)}"
        ) from error
    return root


def _urls(dataset: type) -> str:
    if hasattr(dataset, "resources"):
        return ", ".join(dataset.mirrors[0] + archive for archive, _ in dataset.resources)
    return dataset.url


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Keep torchvision's downloads, which set no timeout, from waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# Image folders


def _folder_path(name: str) -> Path:
    given = Path(name.removeprefix("folder:")).expanduser()
    tried = [given, *(folder / given for folder in files.data_folders() if not given.is_absolute())]
    found = next((path for path in tried if path.is_dir()), None)
    if found is None:
        raise ValueError(f"image set {name!r}: there is no folder {' or '.join(map(str, tried))}")
    return found


def _folder(name: str, size: int | None, progress: bool) -> ImageSet:
    root = _folder_path(name)
    train_paths, train_labels, classes = _listing(root / "train")
    test_paths, test_labels, test_classes = _listing(root / "test")
    if differing := sorted({*classes} ^ {*test_classes}):
        raise DataError(f"{root}: classes in only one of train and test: {', '.join(differing)}")
    paths = train_paths + test_paths
    images = _decode_all(paths, size, progress)
    lossy = any(path.suffix.lower() in (".jpg", ".jpeg", ".webp") for path in paths)
    return ImageSet(
        train=images[: len(train_paths)],
        train_labels=train_labels,
        test=images[len(train_paths) :],
        test_labels=test_labels,
        classes=classes,
        name=name,
        source=f"image folder {root}{' (a compressed format, as a rule lossy)' if lossy else ''}",
    )


def _listing(split: Path) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Return the paths of a split's images, their labels and the names of the classes."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, numbers = find_classes(split)
        samples = make_dataset(split, numbers, extensions=IMG_EXTENSIONS)
    except OSError as error:
        raise DataError(f"{split}: expected a folder of images per class; {error}") from error
    paths, labels = zip(*samples, strict=True)
    return [Path(path) for path in paths], torch.tensor(labels), tuple(classes)


def _decode_all(paths: list[Path], size: int | None, progress: bool) -> Tensor:
    """Return all images as one (N, C, H, W) tensor; grey ones are repeated if any has colours."""
    height, width = _decode(paths[0], size).shape[1:]

    def decode(path: Path) -> Tensor:
        image = _decode(path, size)
        if image.shape[1:] != (height, width):
            raise DataError(
                f"{path} has {image.shape[1]}x{image.shape[2]} pixels, {paths[0]} {height}x{width};"
                " give a size to which all are resized"
            )
        return image

    bar = {"desc": "decoding", "unit": " images", "disable": not progress}
    if paths[0].stat().st_size < 16_384:
        # Threads wait for one interpreter lock, which costs more than decoding a small file.
        images = [decode(path) for path in tqdm(paths, **bar)]
    else:
        images = thread_map(decode, paths, **bar)
    channels = max(len(image) for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def _decode(path: Path, size: int | None) -> Tensor:
    """Return one image: (C, H, W) uint8, grey or coloured as the file is."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a channel")
            grey = image.mode in ("1", "L", "LA")
            pixels = np.atleast_3d(np.array(image.convert("L" if grey else "RGB")))
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise DataError(f"cannot read {path}: {error}; repair or remove the image") from error
    return _resized(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]
