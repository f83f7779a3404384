"""Image sets: digits, torchvision's sets from fabricated files, image folders, and the real MNIST."""

import gzip
import hashlib
import os
import pickle
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from nadkit import files
from nadkit.data import image_files, images
from nadkit.files import DataError

REAL = os.environ.get("NADKIT_DATA", "")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, chosen by NADKIT_DATA, an empty cache, and no proxy before the tests' servers."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("NADKIT_DATA", str(folder))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(files, "user_cache_path", lambda name, **_: tmp_path / "cache" / name)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> str:
    """torchvision's addresses point to a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar.tar.gz")
    return address


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tree(folder: Path) -> dict[Path, int]:
    """Every file and folder below, with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


# Names


def test_names_are_checked_without_loading():
    for name in images.NAMES:
        images.check(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar", "did you mean 'cifar10'"),
        ("MNIST", "did you mean 'mnist'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("zzz", "unknown image set 'zzz'; known: digits, mnist, fashion-mnist, cifar10, cifar100, folder:PATH"),
        ("", "unknown image set ''; known"),
    ],
)
@pytest.mark.parametrize("function", [images.check, images.load])
def test_unknown_names_are_refused_with_a_hint(function, name, hint):
    with pytest.raises(ValueError, match=hint):
        function(name)


def test_a_folder_without_its_prefix_is_recognised(tmp_path):
    with pytest.raises(ValueError, match=f"did you mean 'folder:{tmp_path}'"):
        images.check(str(tmp_path))


def test_a_folder_must_exist(data):
    with pytest.raises(ValueError, match=f"there is no folder nowhere or {data / 'nowhere'} or"):
        images.check("folder:nowhere")
    with pytest.raises(ValueError, match="there is no folder ~nosuchuser/x"):
        images.check("folder:~nosuchuser/x")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"size": 0}, "size: expected a positive whole number of pixels, got 0"),
        ({"size": 7.5}, "size: expected"),
        ({"channels": 2}, "channels: expected 1 .* or 3 .*, got 2"),
        ({"device": "gpu"}, "device 'gpu'"),
    ],
)
def test_impossible_forms_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        images.load("digits", **options)


# Digits


def test_digits_are_all_of_scikit_learns_in_a_fixed_stratified_split():
    digits = images.load("digits", size=8)
    assert digits.shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert (len(digits.train), len(digits.test)) == (1297, 500)
    assert digits.train_labels[:12].tolist() == [2, 1, 2, 5, 1, 5, 9, 3, 0, 5, 9, 3]
    for labels in (digits.train_labels, digits.test_labels):
        assert labels.dtype == torch.int64
        expected = np.bincount(load_digits().target) * len(labels) / 1797
        assert np.abs(labels.bincount().numpy() - expected).max() < 1
    # Together the splits are the original set: from 0 to 16 it has 17 values, from 0 to 255 still 17.
    together = torch.cat([digits.train, digits.test]).flatten(1).numpy()
    original = np.rint(load_digits().images.reshape(1797, 64) * 255 / 16)
    assert np.array_equal(np.unique(together, axis=0), np.unique(original, axis=0))


def test_digits_are_32_pixels_wide_unless_told_otherwise():
    digits = images.load("digits")
    assert digits.shape == (1, 32, 32)
    assert digits.train.dtype == torch.uint8
    assert digits.source.endswith("fixed split of 1,297 and 500, as 1x32x32")


@pytest.mark.parametrize("size", [5, 21])
def test_resizing_agrees_with_pillow(size):
    original, resized = images.load("digits", size=8), images.load("digits", size=size)
    for before, after in zip(original.test[:20], resized.test[:20], strict=True):
        expected = Image.fromarray(before[0].numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(expected, dtype=int) - after[0].numpy()).max() <= 1


def test_three_channels_repeat_a_grey_image():
    grey, colour = images.load("digits"), images.load("digits", channels=3)
    assert colour.shape == (3, 32, 32)
    for channel in range(3):
        assert torch.equal(colour.test[:, channel], grey.test[:, 0])


# Sets, subsets and batches


def test_to_moves_every_tensor_to_a_device():
    moved = images.load("digits", size=8).to("cpu")
    assert {t.device.type for t in (moved.train, moved.train_labels, moved.test, moved.test_labels)} == {"cpu"}
    assert moved.n_classes == 10


def test_all_images_that_are_not_trained_on_can_be_tested_on():
    full = images.load("digits", size=8)
    found = full.tested_on_the_rest(100, seed=3)
    assert (len(found.train), len(found.test)) == (100, 1697)
    assert torch.equal(found.train, full.subset(100, seed=3).train)
    pixels, labels = (
        torch.cat([getattr(found, f"{split}{part}") for split in ("train", "test")]) for part in ("", "_labels")
    )
    assert pixels.long().sum() == full.train.long().sum() + full.test.long().sum()
    assert labels.bincount().tolist() == torch.cat([full.train_labels, full.test_labels]).bincount().tolist()
    fewer = full.tested_on_the_rest(100, 600, seed=3)
    assert torch.equal(fewer.test, found.test[:600])
    with pytest.raises(ValueError, match="n_train: expected 1 to 1297 images, got 1298"):
        full.tested_on_the_rest(1298)


def test_subsets_have_as_many_images_of_each_class():
    subset = images.load("digits", size=8).subset(205, 30)
    assert sorted(subset.train_labels.bincount().tolist()) == [20] * 5 + [21] * 5
    assert subset.test_labels.bincount().tolist() == [3] * 10
    assert subset.source.endswith("as 1x8x8, 205 and 30 of them (seed 0)")


def test_subsets_keep_images_and_labels_together():
    digits = images.load("digits", size=8)
    known = {image.numpy().tobytes(): label for image, label in zip(digits.train, digits.train_labels, strict=True)}
    subset = digits.subset(300)
    assert all(
        known[image.numpy().tobytes()] == label for image, label in zip(subset.train, subset.train_labels, strict=True)
    )
    assert torch.equal(subset.test, digits.test)


def test_smaller_subsets_are_the_beginning_of_larger_ones():
    digits = images.load("digits", size=8)
    assert torch.equal(digits.subset(50, 20, seed=3).train, digits.subset(120, 7, seed=3).train[:50])
    assert not torch.equal(digits.subset(50, seed=3).train, digits.subset(50, seed=4).train)


def test_a_subset_of_all_is_all_though_classes_differ_in_size():
    digits = images.load("digits", size=8)
    subset = digits.subset(1297)
    assert subset.train_labels.bincount().tolist() == digits.train_labels.bincount().tolist()


@pytest.mark.parametrize("n", [0, -1, 1298])
def test_subsets_of_impossible_size_are_refused(n):
    with pytest.raises(ValueError, match=f"n_train: expected 1 to 1297 images, got {n}"):
        images.load("digits", size=8).subset(n)


def test_to_float_scales_bytes_and_standardises_each_channel():
    batch = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert images.to_float(batch).dtype == torch.float32
    torch.testing.assert_close(images.to_float(batch).flatten(), torch.tensor([0, 0.2, 1]))
    standard = images.to_float(batch, mean=[0, 0.1, 0.5], std=(1, 0.5, 0.25))
    torch.testing.assert_close(standard.flatten(), torch.tensor([0, 0.2, 2]))
    torch.testing.assert_close(images.to_float(batch, mean=0.2, std=2).flatten(), torch.tensor([-0.1, 0, 0.4]))
    assert batch.flatten().tolist() == [0, 51, 255]


def test_to_float_leaves_floats_as_they_are():
    batch = torch.tensor([-0.05, 1.05], dtype=torch.float64).view(1, 1, 1, 2)
    assert images.to_float(batch).dtype == torch.float32
    torch.testing.assert_close(images.to_float(batch), batch.float())


@pytest.mark.parametrize("std", [0.0, [0.5, -1, 0.5], torch.tensor([0.5, 0, 0.5]), torch.tensor([torch.nan])])
def test_to_float_divides_by_positive_deviations_only(std):
    with pytest.raises(ValueError, match="std: expected positive numbers"):
        images.to_float(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), std=std)


def test_to_float_refuses_other_integers():
    with pytest.raises(ValueError, match=r"expected uint8 images from 0 to 255, or float ones, got torch.int64"):
        images.to_float(torch.zeros(1, 1, 2, 2, dtype=torch.int64))


# MNIST


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_content() -> dict[str, bytes]:
    """The four files of a small MNIST: 20 and 10 images, labels counting up."""
    return {
        "train-images-idx3-ubyte": idx(random_images(20, 28, 28)),
        "train-labels-idx1-ubyte": idx(np.arange(20, dtype=np.uint8) % 10),
        "t10k-images-idx3-ubyte": idx(random_images(10, 28, 28, seed=1)),
        "t10k-labels-idx1-ubyte": idx(np.arange(10, dtype=np.uint8)),
    }


def write_mnist(folder: Path, **changed: bytes) -> None:
    folder.mkdir(parents=True)
    for name, content in (mnist_content() | {k.replace("_", "-"): v for k, v in changed.items()}).items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("where", ["data", "cache/nadkit"])
def test_mnist_is_read_from_a_data_folder_in_torchvisions_layout(tmp_path, offline, where):
    write_mnist(tmp_path / where / "MNIST" / "raw")
    before = tree(tmp_path)
    mnist = images.load("mnist")
    assert tree(tmp_path) == before
    assert mnist.name == "mnist"
    assert mnist.classes == tuple("0123456789")
    assert np.array_equal(mnist.train[:, 0].numpy(), random_images(20, 28, 28))
    assert np.array_equal(mnist.test[:, 0].numpy(), random_images(10, 28, 28, seed=1))
    assert mnist.train_labels.tolist() == [*range(10), *range(10)]
    assert mnist.test_labels.dtype == torch.int64
    assert mnist.source == "MNIST, the original files read by torchvision, as 1x28x28"


def test_fashion_mnist_has_its_own_files_and_classes(data, offline):
    write_mnist(data / "FashionMNIST" / "raw")
    assert images.load("fashion-mnist").classes[0] == "T-shirt/top"


def test_size_and_channels_apply_to_both_splits(data, offline):
    write_mnist(data / "MNIST" / "raw")
    mnist = images.load("mnist", size=32, channels=3)
    assert mnist.train.shape == (20, 3, 32, 32)
    assert mnist.test.shape == (10, 3, 32, 32)


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("train-images-idx3-ubyte", lambda c: c[:-1], "it has 15,695 bytes, its header announces 15,696"),
        ("t10k-labels-idx1-ubyte", lambda c: c + b"x", "it has 19 bytes, its header announces 18"),
        ("t10k-images-idx3-ubyte", lambda c: b"", "does not begin as an idx file of bytes with 3 axes"),
        ("train-labels-idx1-ubyte", lambda c: b"<html>" + c, "does not begin as an idx file of bytes with 1 axes"),
    ],
)
def test_a_damaged_mnist_file_is_named(data, offline, file, change, problem):
    write_mnist(data / "MNIST" / "raw", **{file: change(mnist_content()[file])})
    with pytest.raises(DataError, match=f"{data / 'MNIST' / 'raw' / file} is damaged: .*{problem}.*; delete it"):
        images.load("mnist")


@pytest.mark.parametrize("labels", [np.full(20, 10), np.zeros(19)])
def test_labels_out_of_range_or_too_few_are_refused(data, offline, labels):
    write_mnist(data / "MNIST" / "raw", **{"train-labels-idx1-ubyte": idx(labels.astype(np.uint8))})
    with pytest.raises(DataError, match=f"train labels of MNIST in {data} are wrong: expected 20, .* from 0 to 9"):
        images.load("mnist")


def test_no_network_names_what_was_looked_for_and_the_remedy(data, tmp_path, offline):
    write_mnist(data / "MNIST" / "raw")
    (data / "MNIST" / "raw" / "train-images-idx3-ubyte").unlink()
    before = set(tree(data))
    with pytest.raises(DataError) as caught:
        images.load("mnist")
    message = str(caught.value)
    assert "'mnist' is not at hand and could not be downloaded" in message
    assert "looked for MNIST/raw/train-images-idx3-ubyte, MNIST/raw/train-labels" in message
    assert f"in {data} and in {tmp_path / 'cache' / 'nadkit'}" in message
    assert f"fetch by hand, and unpack so that those files are found there, {offline}train-images-" in message
    assert set(tree(data)) == before


def test_no_folder_to_download_to_is_said_with_what_was_looked_for(monkeypatch, offline):
    monkeypatch.setattr(files.os, "access", lambda folder, mode: False)
    with pytest.raises(DataError, match=r"cannot write to .* set NADKIT_DATA .* looked for cifar-10-batches-py"):
        images.load("cifar10")


@pytest.fixture
def mnist_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose small MNIST archives torchvision downloads from a local server."""
    folder = tmp_path / "served"
    folder.mkdir()
    resources = []
    for name, content in mnist_content().items():
        archive = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as running:
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}).start()
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{running.server_port}/"])
        monkeypatch.setattr(datasets.MNIST, "resources", resources)
        yield folder
        running.shutdown()


def test_mnist_is_downloaded_to_the_data_folder_once(data, mnist_server):
    mnist = images.load("mnist")
    assert sorted(path.name for path in data.rglob("*") if path.is_file()) == sorted(mnist_content())
    for archive in mnist_server.iterdir():
        archive.unlink()
    assert torch.equal(images.load("mnist").train, mnist.train)
    assert np.array_equal(mnist.train[:, 0].numpy(), random_images(20, 28, 28))


def test_a_read_only_data_folder_sends_downloads_to_the_cache(data, tmp_path, mnist_server, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda folder, mode: folder != data)
    images.load("mnist")
    assert list(data.iterdir()) == []
    assert files.find("MNIST/raw/train-images-idx3-ubyte").is_relative_to(tmp_path / "cache")


def test_a_damaged_download_leaves_nothing(data, mnist_server):
    (mnist_server / "t10k-labels-idx1-ubyte.gz").write_bytes(b"broken off")
    # the words are torchvision's own; 0.26 does not name the file
    reason = r"(Error downloading t10k-labels-idx1-ubyte\.gz|File not found or corrupted)"
    with pytest.raises(DataError, match=f"could not be downloaded: {reason}"):
        images.load("mnist")
    assert list(data.iterdir()) == []


def test_ctrl_c_during_a_download_leaves_nothing(data, mnist_server, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.mnist, "read_image_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.load("mnist")
    assert list(data.iterdir()) == []


def test_downloads_of_torchvision_time_out_and_the_default_comes_back(mnist_server, monkeypatch):
    seen = []
    read = image_files._read

    def watched(*arguments: object, **options: object) -> tuple:
        seen.append(socket.getdefaulttimeout())
        return read(*arguments, **options)

    monkeypatch.setattr(image_files, "_read", watched)
    images.load("mnist")
    assert seen == [files.TIMEOUT, None, None]
    assert socket.getdefaulttimeout() is None


needs_mnist = pytest.mark.skipif(
    not Path(REAL, "MNIST", "raw", "train-images-idx3-ubyte").is_file(), reason="needs MNIST in NADKIT_DATA"
)


@needs_mnist
def test_real_mnist(monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", REAL)
    mnist = images.load("mnist")
    assert mnist.train.shape == (60_000, 1, 28, 28)
    assert mnist.test.shape == (10_000, 1, 28, 28)
    assert mnist.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    # Sums taken from the bytes of the files, without torch.
    assert mnist.train.sum().item() == 1_567_298_545
    assert mnist.test.sum().item() == 264_923_200
    assert mnist.train[-1].sum().item() == 20_920


# CIFAR


class OldArray:
    """Warns when it is unpickled, as numpy 2.4.0 to 2.4.4 do of the arrays in CIFAR's original files."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return warnings.warn, ("an old array", np.exceptions.VisibleDeprecationWarning)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a CIFAR-10 of 8 images a batch, batch 6 being the test set, and tell torchvision its checksums."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    content = {
        name: pickle.dumps({"data": random_images(8, 3072, seed=seed), "labels": [*range(8)], "": OldArray()})
        for seed, name in enumerate(names)
    }
    content["batches.meta"] = pickle.dumps({"label_names": [f"thing {i}" for i in range(10)]})
    checksum = {name: hashlib.md5(value).hexdigest() for name, value in content.items()}
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for name, value in content.items():
        (root / "cifar-10-batches-py" / name).write_bytes(value)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, checksum[name]] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", checksum["test_batch"]]])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", checksum["batches.meta"])


def test_cifar_is_read_without_numpys_warning_of_old_pickles(data, offline, monkeypatch):
    write_cifar(data, monkeypatch)
    cifar = images.load("cifar10")
    assert cifar.train.shape == (40, 3, 32, 32)
    assert cifar.train.is_contiguous()
    assert np.array_equal(cifar.train[8:16].flatten(1).numpy(), random_images(8, 3072, seed=1))
    assert np.array_equal(cifar.test.flatten(1).numpy(), random_images(8, 3072, seed=5))
    assert cifar.test_labels.tolist() == [*range(8)]
    assert cifar.classes[9] == "thing 9"


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_changed_cifar_file_is_named_and_never_unpickled(data, tmp_path, offline, monkeypatch, file):
    write_cifar(data, monkeypatch)
    bait = tmp_path / "unpickled"

    class Malicious:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return os.mkdir, (str(bait),)

    path = data / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match=f"{path} is damaged: its MD5 checksum is not .*; delete it"):
        images.load("cifar10")
    assert not bait.exists()


# Image folders


def write_folder(root: Path, suffix: str = "png", size: int = 6, channels: int = 3) -> dict[str, np.ndarray]:
    """Write two classes of 3 training and 2 test images, and return the images of each split in order."""
    written = {}
    for seed, (split, n) in enumerate((("train", 3), ("test", 2))):
        written[split] = random_images(2, n, size, size, channels, seed=seed)
        for label, pictures in zip(("cat", "dog"), written[split], strict=True):
            (root / split / label).mkdir(parents=True)
            for number, picture in enumerate(pictures):
                Image.fromarray(picture.squeeze()).save(root / split / label / f"{number}.{suffix}")
    return written


def with_suffix(path: Path, suffix: str) -> Path:
    """Rename an image and return its new path."""
    return path.rename(path.with_suffix(f".{suffix}"))


# The larger size makes files big enough to be decoded in threads.
@pytest.mark.parametrize("size", [6, 120])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_comes_back_as_it_was_written(tmp_path, size, channels):
    written = write_folder(tmp_path / "set", size=size, channels=channels)
    found = images.load(f"folder:{tmp_path / 'set'}", progress=False)
    assert found.shape == (channels, size, size)
    assert found.classes == ("cat", "dog")
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test_labels.tolist() == [0, 0, 1, 1]
    for split, tensor in (("train", found.train), ("test", found.test)):
        expected = written[split].reshape(-1, size, size, channels).transpose(0, 3, 1, 2)
        assert np.array_equal(tensor.numpy(), expected)
    assert found.source == f"image folder {tmp_path / 'set'}, as {channels}x{size}x{size}"


def test_folders_are_found_below_the_data_folder(data):
    write_folder(data / "pets")
    images.check("folder:pets")
    found = images.load("folder:pets", progress=False)
    assert found.n_classes == 2
    assert found.source.startswith("image folder pets, as")  # where the data folder lies is not told


def test_jpeg_is_said_to_be_lossy(tmp_path):
    write_folder(tmp_path, suffix="jpg")
    assert "a compressed format, as a rule lossy" in images.load(f"folder:{tmp_path}", progress=False).source


def test_decoding_shows_a_bar_unless_told_not_to(tmp_path, capsys):
    write_folder(tmp_path)
    images.load(f"folder:{tmp_path}", progress=False)
    assert capsys.readouterr().err == ""
    images.load(f"folder:{tmp_path}")
    assert "10/10" in capsys.readouterr().err


def test_grey_images_among_coloured_ones_are_repeated(tmp_path):
    write_folder(tmp_path)
    Image.fromarray(random_images(6, 6)).save(tmp_path / "train" / "dog" / "9.png")
    found = images.load(f"folder:{tmp_path}", progress=False)
    assert found.train.shape == (7, 3, 6, 6)
    assert np.array_equal(found.train[-1].numpy(), np.broadcast_to(random_images(6, 6), (3, 6, 6)))


def test_one_channel_is_the_luminance(tmp_path):
    write_folder(tmp_path)
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    Image.fromarray(colours).resize((6, 6), Image.Resampling.NEAREST).save(tmp_path / "test" / "cat" / "0.png")
    grey = images.load(f"folder:{tmp_path}", channels=1, progress=False)
    assert grey.shape == (1, 6, 6)
    # Rec. 601: 0.299 red + 0.587 green + 0.114 blue.
    assert grey.test[0, 0, ::3, ::3].tolist() == [[76, 150], [29, 255]]


def test_other_modes_become_grey_or_coloured(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    picture = np.full((6, 6, 4), 200, dtype=np.uint8)
    Image.fromarray(picture).save(path)  # with transparency
    assert images.load(f"folder:{tmp_path}", progress=False).train[0].unique().tolist() == [200]
    Image.fromarray(picture[..., 0] > 0).save(path)  # one bit a pixel
    assert images.load(f"folder:{tmp_path}", progress=False).train[0].unique().tolist() == [255]


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_folder(tmp_path)
    odd = tmp_path / "test" / "dog" / "1.png"
    Image.fromarray(random_images(5, 7, 3)).save(odd)
    first = tmp_path / "train" / "cat" / "0.png"
    with pytest.raises(DataError, match=f"{odd} has 5x7 pixels, {first} 6x6; give a size"):
        images.load(f"folder:{tmp_path}", progress=False)
    assert images.load(f"folder:{tmp_path}", size=4, progress=False).shape == (3, 4, 4)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def replace_by_text(path: Path) -> None:
    path.write_text("not an image")


def replace_by_float(path: Path) -> None:
    Image.fromarray(random_images(6, 6).astype(np.float32)).save(path, format="TIFF")


def replace_by_32_bits(path: Path) -> None:
    Image.fromarray(random_images(6, 6).astype(np.int32)).save(path, format="TIFF")


@pytest.mark.parametrize("size", [6, 120])
@pytest.mark.parametrize("damage", [truncate, replace_by_text, replace_by_float, replace_by_32_bits])
def test_an_image_that_cannot_be_read_is_named(tmp_path, size, damage):
    write_folder(tmp_path, size=size)
    path = tmp_path / "train" / "dog" / "1.png"
    damage(path)
    with pytest.raises(DataError, match=f"cannot read {path}: .*; repair or remove the image"):
        images.load(f"folder:{tmp_path}", progress=False)


def test_classes_in_one_split_only_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "wolf")
    with pytest.raises(DataError, match=f"{tmp_path}: classes in only one of train and test: dog, wolf"):
        images.load(f"folder:{tmp_path}")


def test_an_empty_class_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path / 'test'}: expected a folder of images per class; .*bird"):
        images.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("function", [images.check, images.load])
def test_a_missing_or_empty_split_is_named(tmp_path, split, function):
    write_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{tmp_path / split}: expected a folder of images per class") as caught:
        function(f"folder:{tmp_path}")
    looked_for = {"train": "train", "test": "test or val or valid or validation"}[split]
    other = {"train": "test", "test": "train"}[split]
    assert f"looked for {looked_for} in {tmp_path}: there are: data, elsewhere, {other}" in str(caught.value)
    (tmp_path / split).mkdir()
    with pytest.raises(DataError, match=f"{tmp_path / split}: expected a folder of images per class"):
        images.load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("split", "near"), [("train", "Train"), ("train", "training"), ("test", "Val"), ("test", "tests")]
)
def test_a_split_under_a_similar_name_is_suggested(tmp_path, split, near):
    write_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / near)
    with pytest.raises(DataError, match=f"in {tmp_path}: did you mean '{near}'"):
        images.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_split_is_tested_on_where_there_is_no_test_split(tmp_path, name):
    write_folder(tmp_path)
    usual = images.load(f"folder:{tmp_path}", progress=False)
    (tmp_path / name / "wolf").mkdir(parents=True)
    assert torch.equal(images.load(f"folder:{tmp_path}", progress=False).test, usual.test)  # beside it, it is ignored
    (tmp_path / name / "wolf").rmdir()
    (tmp_path / name).rmdir()
    (tmp_path / "test").rename(tmp_path / name)
    found = images.load(f"folder:{tmp_path}", progress=False)
    assert torch.equal(found.test, usual.test)
    assert found.source == f"image folder {tmp_path} ({name} as test split), as 3x6x6"


def test_what_is_hidden_is_neither_a_class_nor_an_image(tmp_path):
    write_folder(tmp_path)
    before = images.load(f"folder:{tmp_path}", progress=False)
    picture = Image.fromarray(random_images(6, 6, 3, seed=9))
    for folder in (".ipynb_checkpoints", "__MACOSX", ".hidden", "cat/.ipynb_checkpoints", "dog/__MACOSX"):
        (tmp_path / "train" / folder).mkdir()
        picture.save(tmp_path / "train" / folder / "0-checkpoint.png")
    for name in ("._0.png", ".trash.png", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"no image")
    (tmp_path / "train" / "Thumbs.db").write_bytes(b"no class")
    (tmp_path / "train" / "dog" / "more").mkdir()
    picture.save(tmp_path / "train" / "dog" / "more" / "0.PNG")  # what lies deeper still counts
    found = images.load(f"folder:{tmp_path}", progress=False)
    assert found.classes == before.classes
    assert torch.equal(found.train[:-1], before.train)
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    """The file holds the image's rows and columns in another order, and its EXIF says in which."""
    write_folder(tmp_path)
    upright = np.kron([[0, 80], [160, 240]], np.ones((8, 8))).astype(np.uint8)
    as_stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: np.rot90,  # "turn it by 90 degrees clockwise to view it"
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = with_suffix(tmp_path / "train" / "cat" / "0.png", suffix)
    Image.fromarray(as_stored(upright)).save(path, exif=exif, **{"quality": 100} if suffix == "jpg" else {})
    first = images.load(f"folder:{tmp_path}", size=16, progress=False).train[0, 0].numpy()
    assert np.abs(first.astype(int) - upright).max() <= (2 if suffix == "jpg" else 0)


def test_damaged_exif_leaves_an_image_as_it_is(tmp_path):
    write_folder(tmp_path)
    picture = random_images(6, 6, 3, seed=9)
    Image.fromarray(picture).save(tmp_path / "train" / "cat" / "0.png", exif=b"Exif\0\0garbage")
    assert np.array_equal(images.load(f"folder:{tmp_path}", progress=False).train[0], picture.transpose(2, 0, 1))


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", "<u2")])
def test_sixteen_bit_grey_is_scaled_by_the_range_of_its_type(tmp_path, suffix, dtype):
    write_folder(tmp_path, channels=1)
    values = np.array([[0, 128, 129], [257, 32_767, 65_535]])  # 257 to a step: 128 is nearer to 0, 129 to 1
    picture = Image.fromarray(values.astype(dtype))
    path = with_suffix(tmp_path / "train" / "cat" / "0.png", suffix)
    picture.resize((6, 6), Image.Resampling.NEAREST).save(path)
    found = images.load(f"folder:{tmp_path}", progress=False)
    assert found.train[0, 0, ::3, ::2].tolist() == [[0, 0, 1], [1, 127, 255]]
    assert found.source == f"image folder {tmp_path} (16-bit grey scaled to 8 bits), as 1x6x6"
