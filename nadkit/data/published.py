"""What others published: the arrays and accuracies of neural anisotropy directions, the numbers of single directions.

Source: of the former, github.com/LTS4/neural-anisotropy-directions (Apache-2.0), the code of arXiv 2006.09717; of the
latter, arXiv 1803.06959, and a replication by others.

The five arrays of NADs and LeNet's eigenvalues are verified against the checksums below. The other four eigenvalue
files have no published checksum: their structure alone is examined.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nadkit import files
from nadkit.files import DataError
from nadkit.inputs.directions import NADs
from nadkit.names import hint

NETWORKS = ("LogReg", "LeNet", "VGG11", "ResNet18", "DenseNet121")

PUBLISHED = tuple(network.lower() for network in NETWORKS)
"""The names of `nadkit.architectures` whose NADs were published."""

SOURCE = "https://raw.githubusercontent.com/LTS4/neural-anisotropy-directions/master/NADs/"

# Of the files in the authors' repository; the singular values of the other four were not at hand.
SHA256 = {
    "LogReg_NADs.npy": "41fa67a1be6728a5b0d1220f851492e573aedb5dcda989b69f18c24a076cf1ea",
    "LeNet_NADs.npy": "58bb4ca8d28dd73ea380f7c864557b0f48bf9d25d9632076e813ffea058de2bc",
    "LeNet_eigenvals.npy": "6a72a747ca141a2305d5d5074b44f70e1c56f712efe03ac35735dcbebbd6a822",
    "VGG11_NADs.npy": "53b9a78554972ff73bf2828795a60d667b17ccd8687f5b81a5dbf77d6ecb6a4d",
    "ResNet18_NADs.npy": "3d432df94b4f1a67d502d9fcabab222a55aa902bde5fef0d45aad16bc8c5d459",
    "DenseNet121_NADs.npy": "2434b5bd8670b93ac07d4489b50350314567aa377f47552043f56dfa12ac4bb1",
}

# About how many networks are behind each array: inferred from the arrays, because no file says it.
N_NETWORKS = {
    "LogReg": 10_000,
    "LeNet": 10_000,
    "VGG11": 10_000,
    "ResNet18": 5_000,
    "DenseNet121": 11_000,
}

FOURIER_MAP = "published/dft_accuracies_logreg_lenet.csv"
FOURIER_COLUMNS = {"LogReg": "acc_lr", "LeNet": "acc_ln"}
INDEX_CURVE = "published/nad_accuracies_lenet.csv"

INDEX_TABLE = {
    "lenet": {0: 1.0, 10: 1.0, 50: 0.900, 100: 0.818, 200: 0.665, 500: 0.542},
    "vgg11": {0: 1.0, 10: 0.855, 50: 0.592, 100: 0.535, 200: 0.515, 500: 0.509},
    "resnet18": {0: 0.979, 10: 0.992, 50: 0.937, 100: 0.692, 200: 0.614, 500: 0.531},
    "densenet121": {0: 1.0, 10: 0.676, 50: 0.567, 100: 0.509, 200: 0.506, 500: 0.500},
}
"""Test accuracy (0 to 1) on D(u_i), by architecture and index i of the NAD, with sigma = 1 and the classes at +-1.

Source: the data behind the paper's figure of accuracy by NAD index. It was measured at 0 to 10 and at every fourth
index from there; 100, 200 and 500 lie between two measured points, on the straight line that joins them.
"""

POISONING = {0: 0.17, 10: 0.37, 20: 0.45, 50: 0.42, 70: 0.66, 100: 0.42, 200: 0.49, 300: 0.78}
"""Accuracy (0 to 1) on clean test images of ResNet18, trained on CIFAR-10 poisoned along NAD i, by i.

Source: read off the paper's figure of the poisoning experiment, so certain to a few hundredths only.
"""

POISONING_BEYOND_400 = (0.72, 0.86)
"""Lowest and highest of those accuracies at the indices beyond 400, likewise read off."""


class Flipping(NamedTuple):
    """Test accuracies (0 to 1) of a network on data as they are, and on data reversed in the NAD basis."""

    original: float
    flipped: float


FLIPPING = {
    "lenet": Flipping(0.69, 0.48),
    "vgg11": Flipping(0.87, 0.53),
    "resnet18": Flipping(0.89, 0.58),
    "densenet121": Flipping(0.92, 0.56),
}
"""What flipping CIFAR-10 in its own NADs does to each architecture; the training error is about 0 either way.

Source: Ortiz-Jimenez et al. 2020, flipping experiment on CIFAR-10.
"""


class Reported(NamedTuple):
    """A number of the paper on single directions, with the figure it belongs to; as text, ``"0.914 (recalled)"``.

    A *recalled* number was noted down from memory of the paper and not looked up in it: quote it as reported, with
    the mark, and never as verified.
    """

    value: float
    figure: str
    recalled: bool

    def __str__(self) -> str:
        return f"{self.value:g}{' (recalled)' if self.recalled else ''}"


AUC_AND_TEST_LOSS = Reported(-0.728, "4b", recalled=True)
"""Spearman correlation over training, CIFAR-10: area under the cumulative ablation curve (AUC) and test loss.

Source: Morcos et al. 2018, figure 4b, recalled.
"""

AUC_AND_TEST_ACCURACY = Reported(0.914, "4c", recalled=True)
"""Spearman correlation over 192 networks on CIFAR-10, two of each of 96 settings: AUC and test accuracy.

Source: Morcos et al. 2018, figure 4c, recalled.
"""

IMPACT_AND_SELECTIVITY = {
    "mnist": Reported(0.095, "7", recalled=False),
    "cifar10": Reported(-0.428, "7", recalled=True),
}
"""Spearman correlation over all units, by image set: class selectivity and what ablating the unit alone costs.

That it is negative on CIFAR-10, because of the early layers, is sure; its size there is recalled.

Source: Morcos et al. 2018, figure 7.
"""


class Anchor(NamedTuple):
    """Training accuracies (0 to 1) of the replication at one level of corruption.

    Attributes:
        accuracy: by the number of units ablated, of 1024.
        auc: area under the cumulative ablation curve, over the fraction of units ablated.
        noise: accuracy by the scale of the noise.
    """

    accuracy: dict[int, float]
    auc: float
    noise: dict[float, float]


ANCHOR = {
    0.0: Anchor({108: 0.994, 216: 0.972, 539: 0.818}, 0.735, {0.164: 1.00, 0.562: 0.979}),
    0.2: Anchor({108: 0.623, 216: 0.477, 539: 0.278}, 0.343, {0.164: 0.938, 0.562: 0.522}),
    0.4: Anchor({108: 0.578, 216: 0.408, 539: 0.240}, 0.305, {0.164: 0.864, 0.562: 0.410}),
    0.6: Anchor({108: 0.499, 216: 0.354, 539: 0.201}, 0.269, {0.164: 0.848, 0.562: 0.371}),
    0.8: Anchor({108: 0.424, 216: 0.301, 539: 0.172}, 0.240, {0.164: 0.790, 0.562: 0.322}),
    1.0: Anchor({108: 0.429, 216: 0.284, 539: 0.174}, 0.238, {0.164: 0.796, 0.562: 0.320}),
}
"""Cumulative ablation and noise, by the fraction of examples whose labels are corrupted.

Of MLPs with two hidden layers of 512 units on MNIST, 20 % of its training data, ten random orderings. The levels 0.8
and 1.0 are not told apart.

Source: an independent replication of Morcos et al. 2018, figures 1a and 2a; not the paper.
"""

ANCHOR_WEIGHTS = {0.0: 0.022, 1.0: 0.064}
"""Mean absolute weight of the first layer of those networks at the two ends, between which it grows with corruption.

Source: as of `ANCHOR`.
"""


@dataclass(frozen=True, eq=False)
class IndexCurve:
    """Test accuracy on D(u_i) against the index i of the NAD u_i, at the P measured indices.

    Attributes:
        index: (P,) int64.
        accuracy: (P,) float64 in [0, 1].
        singular_value: (P,) float64, of the centred derivatives. The file says eigenvalue, but the
            column decays like the singular values of the published array, not like their squares.
    """

    index: Tensor
    accuracy: Tensor
    singular_value: Tensor


def published_nads(name: str, *, download: bool = True) -> NADs:
    """Return the authors' NADs of a network: 1023 directions of the 1x32x32 input.

    Vectors are (1023, 1024) float64, eigenvalues (1023,) float64. The authors' "eigenvalues" are
    the singular values s of N centred derivatives; the eigenvalues of the covariance are
    s^2 / (N - 1). The files come from ``published/`` in a data folder; else they are downloaded
    there, unless ``download`` is false. Checksums, where there are any, are verified every time.

    Raises:
        ValueError: the authors published no such network; near misses are suggested.
        DataError: a file cannot be found or fetched, or is damaged.
    """
    network = _network(name)
    path, vectors = _array(f"{network}_NADs.npy", download)
    singular_values = _singular_values(network, len(vectors), download)
    n_networks = N_NETWORKS[network]
    try:
        return NADs(
            vectors=vectors,
            shape=(1, 32, 32),
            name=f"{network}, published",
            eigenvalues=singular_values.square() / (n_networks - 1),
            n_networks=n_networks,
        )
    except ValueError as error:
        raise _damaged(path, f"orthonormal rows of 1024: {error}") from error


def is_at_hand(name: str) -> bool:
    """Return whether the NADs of that name were published and their files lie in a data folder."""
    network = {network.lower(): network for network in NETWORKS}.get(name.lower())
    return (
        network is not None
        and files.folder_with([f"published/{network}_NADs.npy", f"published/{network}_eigenvals.npy"]) is not None
    )


def published_fourier_map(name: str) -> Tensor | None:
    """Return the published test accuracy on D(v) over the Fourier grid: (16, 16) float64, [y, x].

    Accuracies are in [0, 1]. Cell (8, 8) is the constant direction; index i stands for the
    frequency 2 (i - 8). The map is read from ``published/`` in a data folder and never downloaded:
    None where it is not at hand.

    Raises:
        ValueError: the authors published no such network; near misses are suggested.
        DataError: the file is damaged.
    """
    column = FOURIER_COLUMNS.get(_network(name))
    path = files.find(FOURIER_MAP)
    if column is None or path is None:
        return None
    table = _table(path, ["x", "y", column])
    if sorted(zip(table.y, table.x, strict=True)) != [(y, x) for y in range(16) for x in range(16)]:
        raise _damaged(path, "each of the 16 x 16 cells once")
    return _fractions(path, table.pivot(index="y", columns="x", values=column))


def published_index_curve(name: str) -> IndexCurve | None:
    """Return the published test accuracy on D(u_i) against the NAD index i, as far as measured.

    The file has a row for every index, but was measured at 0 to 10 and at every fourth from there;
    the rest is interpolated and left out here. The curve comes from another run than the published
    array. It is read from ``published/`` in a data folder and never downloaded: None where it is
    not at hand.

    Raises:
        ValueError: the authors published no such network; near misses are suggested.
        DataError: the file is damaged.
    """
    path = files.find(INDEX_CURVE)
    if _network(name) != "LeNet" or path is None:
        return None
    table = _table(path, ["index", "acc_ln", "eig_ln"])
    if table["index"].tolist() != list(range(1023)):
        raise _damaged(path, "the indices 0 to 1022 in order")
    measured = table[(table["index"] <= 10) | (table["index"] % 4 == 2)]
    return IndexCurve(
        index=torch.tensor(measured["index"].to_numpy(), dtype=torch.int64),
        accuracy=_fractions(path, measured["acc_ln"]),
        singular_value=_descending(path, torch.tensor(measured["eig_ln"].to_numpy())),
    )


def _network(name: str) -> str:
    """Return the authors' spelling of a network's name, which may come in any case."""
    spellings = {network.lower(): network for network in NETWORKS}
    if name.lower() not in spellings:
        raise ValueError(f"no NADs were published of {name!r}{hint(name, NETWORKS)}; known: {', '.join(NETWORKS)}")
    return spellings[name.lower()]


def _singular_values(network: str, n: int, download: bool) -> Tensor:
    path, values = _array(f"{network}_eigenvals.npy", download)
    if values.shape != (n,):
        raise _damaged(path, f"{n} numbers, got an array of shape {tuple(values.shape)}")
    return _descending(path, values)


def _descending(path: Path, values: Tensor) -> Tensor:
    if not (values.isfinite().all() and values[-1] > 0 and (values.diff() <= 0).all()):
        raise _damaged(path, "positive singular values in descending order")
    return values


def _array(file: str, download: bool) -> tuple[Path, Tensor]:
    """Find or fetch an array of floats, verify it, and only then read it; return it in float64."""
    path = files.find(f"published/{file}") or _fetch(file, download)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256.get(file, found):
        raise _damaged(path, f"the SHA-256 {SHA256[file]}, got {found}")
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _damaged(path, f"an array in numpy's .npy format: {error}") from error
    if array.dtype.kind != "f":
        raise _damaged(path, f"floats, got {array.dtype}")
    return path, torch.from_numpy(array.astype(np.float64))


def _fetch(file: str, download: bool) -> Path:
    relative = Path("published") / file
    if not download:
        raise DataError(f"{files.describe_search([relative])}; it may be downloaded with download=True")
    try:
        target = files.download_folder() / relative
        return files.fetch(SOURCE + file, target, SHA256.get(file))
    except DataError as error:
        raise DataError(f"{files.describe_search([relative])}; {error}") from error


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, usecols=columns).astype(float)
    except ValueError as error:
        raise _damaged(path, f"columns of numbers named {', '.join(columns)}: {error}") from error


def _fractions(path: Path, percent: pd.DataFrame | pd.Series) -> Tensor:
    fractions = torch.tensor(percent.to_numpy() / 100)
    if not ((fractions >= 0) & (fractions <= 1)).all():
        raise _damaged(path, "accuracies from 0 to 100 percent")
    return fractions


def _damaged(path: Path, expected: str) -> DataError:
    return DataError(
        f"{path} is not the file that the authors published: expected {expected};"
        " delete it and run again, or put a good copy in its place"
    )
