"""Images from files: the sets of torchvision, found or downloaded and verified, and folders of images, decoded."""

import os
import socket
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from nadkit import files
from nadkit.files import DataError

TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
"""The sets that torchvision reads, with the names of its classes."""


class Splits(NamedTuple):
    """What files hold: (N, C, H, W) uint8 images and (N,) int64 labels of both splits, the classes, and the source."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    source: str


# ---- the sets of torchvision ----------------------------------------------------------------------------------------


def torchvision_set(name: str) -> Splits:
    """Return one of the sets in `TORCHVISION`, from the data folders or else downloaded.

    Raises:
        DataError: the files are not at hand and cannot be downloaded, or are damaged.
    """
    from torchvision import datasets

    dataset = getattr(datasets, TORCHVISION[name])
    needed = _checksums(dataset)
    root = files.folder_with(needed) or _download(name, dataset)
    for file, md5 in needed.items():
        if md5 is None and (fault := _idx_fault(root / file)):  # torchvision verifies the others
            raise _damaged(root / file, fault)
    train, train_labels, classes = _read(dataset, root, train=True)
    test, test_labels, _ = _read(dataset, root, train=False)
    return Splits(
        train, train_labels, test, test_labels, classes, f"{dataset.__name__}, the original files read by torchvision"
    )


def _checksums(dataset: type) -> dict[str, str | None]:
    """Return the files that torchvision reads, below its root, with their MD5 where it has one."""
    if hasattr(dataset, "resources"):
        # torchvision has the MD5 of MNIST's archives only, not of the files inside.
        return {f"{dataset.__name__}/raw/{archive.removesuffix('.gz')}": None for archive, _ in dataset.resources}
    meta = (dataset.meta["filename"], dataset.meta["md5"])
    listed = [*dataset.train_list, *dataset.test_list, meta]
    return {f"{dataset.base_folder}/{file}": md5 for file, md5 in listed}


def _damaged(path: Path, fault: str) -> DataError:
    return DataError(f"{path} is damaged: {fault}; delete it and load again to download it anew")


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
        try:
            split = dataset(root, train=train, download=download)
        except RuntimeError as error:  # torchvision unpickles nothing that fails its MD5, but does not say which file
            if failing := _failing(dataset, Path(root)):
                raise _damaged(*failing) from error
            raise
    images, labels = torch.as_tensor(split.data), torch.as_tensor(split.targets)
    if len(images) != len(labels) or not ((labels >= 0) & (labels < len(split.classes))).all():
        raise DataError(
            f"the {'train' if train else 'test'} labels of {dataset.__name__} in {root} are wrong:"
            f" expected {len(images):,}, as many as images, from 0 to {len(split.classes) - 1};"
            " delete its files there and load again to download them anew"
        )
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, labels, tuple(name.split(" - ")[0] for name in split.classes)


def _failing(dataset: type, root: Path) -> tuple[Path, str] | None:
    """Return the first file that fails torchvision's MD5, with that fault in words."""
    from torchvision.datasets.utils import check_integrity

    for file, md5 in _checksums(dataset).items():
        if (root / file).is_file() and not check_integrity(root / file, md5):
            return root / file, f"its MD5 checksum is not {md5}"
    return None


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


# ---- folders of images ----------------------------------------------------------------------------------------------


def folder_path(name: str) -> Path:
    """Return the folder that ``folder:PATH`` names, relative to the working directory or to a data folder.

    Raises:
        ValueError: no path, or there is no such folder.
    """
    if not name.removeprefix("folder:").strip():
        raise ValueError(f"image set {name!r}: expected folder:PATH, got no path")
    given = Path(name.removeprefix("folder:")).expanduser()
    tried = [given, *(folder / given for folder in files.data_folders() if not given.is_absolute())]
    found = next((path for path in tried if path.is_dir()), None)
    if found is None:
        raise ValueError(f"image set {name!r}: there is no folder {' or '.join(map(str, tried))}")
    return found


def folder_set(name: str, size: int | None, progress: bool) -> Splits:
    """Return the images below ``train/CLASS`` and ``test/CLASS`` of a folder, resized to size x size if one is given.

    Raises:
        DataError: an image cannot be read or has another size, or the splits differ in their classes.
    """
    root = folder_path(name)
    train_paths, train_labels, classes = _listing(root / "train")
    test_paths, test_labels, test_classes = _listing(root / "test")
    if differing := sorted({*classes} ^ {*test_classes}):
        raise DataError(f"{root}: classes in only one of train and test: {', '.join(differing)}")
    paths = train_paths + test_paths
    images = _decode_all(paths, size, progress)
    lossy = any(path.suffix.lower() in (".jpg", ".jpeg", ".webp") for path in paths)
    n = len(train_paths)
    return Splits(
        images[:n],
        train_labels,
        images[n:],
        test_labels,
        classes,
        f"image folder {root}{' (a compressed format, as a rule lossy)' if lossy else ''}",
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
    return resized(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]


def resized(images: Tensor, size: int | None) -> Tensor:
    """Return images at size x size pixels, bilinear and antialiased: (N, C, H, W) uint8 -> (N, C, size, size)."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    # In float, because the uint8 kernels round differently on different processors.
    resize = partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)
    return in_float(resize, images)


def in_float(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Apply ``function`` to uint8 images in float, in chunks: float takes four times the space."""
    return torch.cat([function(chunk.float()).round_().byte() for chunk in images.split(4096)])
