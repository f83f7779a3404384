"""Images from files: the sets of torchvision, found or downloaded and verified, and folders of images, decoded."""

import os
import socket
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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

from nadkit import files
from nadkit.files import DataError
from nadkit.names import did_you_mean, nearest

TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
"""The sets that torchvision reads, with the names of its classes."""
TEST_SPLITS = ("test", "val", "valid", "validation")
"""Names that a folder's test split may have; the first that is there is used."""


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
    given = files.expanded(name.removeprefix("folder:"))
    tried = [given, *(folder / given for folder in files.data_folders() if not given.is_absolute())]
    found = next((path for path in tried if path.is_dir()), None)
    if found is None:
        raise ValueError(f"image set {name!r}: there is no folder {' or '.join(map(str, tried))}")
    return found


def folder_splits(name: str) -> tuple[Path, Path]:
    """Return the training and the test folder of ``folder:PATH``; the latter may be named for validation.

    Raises:
        ValueError: no path, or there is no such folder.
        DataError: a split is missing.
    """
    root = folder_path(name)
    return _split(root, "train"), _split(root, *TEST_SPLITS)


def folder_set(name: str, size: int | None, progress: bool) -> Splits:
    """Return the images below ``train/CLASS`` and ``test/CLASS`` of a folder, resized to size x size if one is given.

    Where there is no ``test``, the test split is ``val``, ``valid`` or ``validation``. Folders and files that are
    hidden are passed over. Images are turned as their EXIF orientation says; 16-bit grey becomes 8-bit, v -> v / 257.

    Raises:
        DataError: a split is missing, an image cannot be read or has another size, or the splits differ in their
            classes.
    """
    train_split, test_split = folder_splits(name)
    root = train_split.parent
    train_paths, train_labels, classes = _listing(train_split)
    test_paths, test_labels, test_classes = _listing(test_split)
    if differing := sorted({*classes} ^ {*test_classes}):
        raise DataError(f"{root}: classes in only one of train and {test_split.name}: {', '.join(differing)}")
    paths = train_paths + test_paths
    images, deep = _decode_all(paths, size, progress)
    lossy = any(path.suffix.lower() in (".jpg", ".jpeg", ".webp") for path in paths)
    remarks = {
        "a compressed format, as a rule lossy": lossy,
        "16-bit grey scaled to 8 bits": deep,
        f"{test_split.name} as test split": test_split.name != "test",
    }
    said = "; ".join(remark for remark, holds in remarks.items() if holds)
    n = len(train_paths)
    return Splits(
        images[:n],
        train_labels,
        images[n:],
        test_labels,
        classes,
        # As it was named: records are for others to read, and should not tell where a data folder lies.
        f"image folder {name.removeprefix('folder:')}{f' ({said})' if said else ''}",
    )


def _split(root: Path, *names: str) -> Path:
    """Return the first of the folders with these names that there is."""
    present = _folders(root)
    if found := [name for name in names if name in present]:
        return root / found[0]
    nearly = next((name for name in names if nearest(name, present)), names[0])
    raise DataError(
        f"{root / names[0]}: expected a folder of images per class; looked for {' or '.join(names)} in {root}: "
        + did_you_mean(nearly, present)
    )


def _folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    """Return whether a file or folder belongs to an editor or an operating system, and is not the user's."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _listing(split: Path) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Return the paths of a split's images, their labels and the names of the classes."""
    classes = _folders(split)
    by_class = [list(_images_below(split / name)) for name in classes]
    if empty := [name for name, images in zip(classes, by_class, strict=True) if not images]:
        raise DataError(f"{split}: expected a folder of images per class; there are no images in {', '.join(empty)}")
    if not classes:
        raise DataError(f"{split}: expected a folder of images per class; there is no folder in it")
    labels = [label for label, images in enumerate(by_class) for _ in images]
    return [path for images in by_class for path in images], torch.tensor(labels), tuple(classes)


def _images_below(folder: Path) -> Iterator[Path]:
    """Give the images in a folder and all below it, in the order of their names."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for below, _, names in sorted(os.walk(folder, followlinks=True)):
        hidden = any(map(_is_hidden, Path(below).relative_to(folder).parts))
        for name in sorted(names):
            if not hidden and not _is_hidden(name) and name.lower().endswith(IMG_EXTENSIONS):
                yield Path(below, name)


def _decode_all(paths: list[Path], size: int | None, progress: bool) -> tuple[Tensor, bool]:
    """Return all images as one (N, C, H, W) tensor, and whether any had 16 bits.

    Grey ones are repeated if any has colours.
    """
    height, width = _decode(paths[0], size)[0].shape[1:]

    def decode(path: Path) -> tuple[Tensor, bool]:
        image, deep = _decode(path, size)
        if image.shape[1:] != (height, width):
            raise DataError(
                f"{path} has {image.shape[1]}x{image.shape[2]} pixels, {paths[0]} {height}x{width};"
                " give a size to which all are resized"
            )
        return image, deep

    bar = partial(tqdm, total=len(paths), desc="decoding", unit=" images", disable=not progress)
    if paths[0].stat().st_size < 16_384:
        # Threads wait for one interpreter lock, which costs more than decoding a small file.
        decoded = [decode(path) for path in bar(paths)]
    else:
        with ThreadPoolExecutor() as pool:
            decoded = list(bar(pool.map(decode, paths)))
    images, deep = zip(*decoded, strict=True)
    channels = max(len(image) for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images]), any(deep)


def _decode(path: Path, size: int | None) -> tuple[Tensor, bool]:
    """Return one image, (C, H, W) uint8, grey or coloured as the file is, and whether it had 16 bits."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            # some versions of Pillow read 16-bit PNGs as 32-bit integers
            deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
            if image.mode.startswith(("I", "F")) and not deep:
                raise ValueError(f"its pixels are of Pillow's mode {image.mode!r}; expected 8 bits, or 16 of grey")
            image.load()
            with suppress(SyntaxError):  # EXIF that is damaged says nothing of how to turn the image
                image = ImageOps.exif_transpose(image)
            if deep:
                pixels = np.rint(np.array(image) / 257).astype(np.uint8)  # 65,535 / 255 = 257
            else:
                pixels = np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise DataError(f"cannot read {path}: {error}; repair or remove the image") from error
    return resized(torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None], size)[0], deep


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
