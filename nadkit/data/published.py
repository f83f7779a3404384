"""What others published: arrays and accuracies of neural anisotropy directions, and numbers on single directions.

Source: for the former, github.com/LTS4/neural-anisotropy-directions (Apache-2.0), the code of arXiv 2006.09717; for the
latter, arXiv 1803.06959, and a replication by others.

Numbers are kept in ``published_numbers/*.toml``, each with its source, and are read by `numbers`. The five arrays of
NADs and LeNet's eigenvalues are verified against checksums. The other four eigenvalue files have no published checksum:
only their structure is checked.

Small files come with the package, in `SHIPPED`: the accuracies of logistic regression and LeNet, LeNet's spectrum, and
its leading 50 NADs. Files in a data folder come first; `origin` says which are read.
"""

import hashlib
import io
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nadkit import checks, files
from nadkit.files import DataError
from nadkit.inputs.basis import NADs
from nadkit.names import hint


class Flipping(NamedTuple):
    """Test accuracies (0 to 1) of a network on data as they are, and on data reversed in the NAD basis."""

    original: float
    flipped: float


class Reported(NamedTuple):
    """A number that the paper on single directions prints in the named figure; as text, ``"0.914"``."""

    value: float
    figure: str

    def __str__(self) -> str:
        return f"{self.value:g}"


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


@checks.typed
def numbers(name: str) -> dict[str, Any]:
    """Return the tables of ``published_numbers/NAME.toml``; keys that are numbers are returned as numbers.

    Raises:
        ValueError: there is no such file; near misses are suggested.
    """
    folder = resources.files("nadkit.data") / "published_numbers"
    tables = {file.name.removesuffix(".toml"): file for file in folder.iterdir()}
    checks.require_one_of("name", name, sorted(tables))
    return _by_number(tomllib.loads(tables[name].read_text()))


def _by_number(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        return value
    return {_number(key): _by_number(content) for key, content in value.items()}


def _number(key: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(key)
        except ValueError:
            pass
    return key


_arrays, _inputs, _units = (numbers(name) for name in ("arrays", "input_directions", "single_directions"))
_replicated = numbers("replication")

N_NETWORKS: dict[str, int] = _arrays["n_networks"]
"""The approximate number of networks behind each array of NADs."""

SHA256: dict[str, str] = _arrays["sha256"]
"""Checksums of the authors' files, where they were at hand."""

NETWORKS = tuple(N_NETWORKS)

PUBLISHED = tuple(network.lower() for network in NETWORKS)
"""The names of `nadkit.architectures` whose NADs were published."""

SOURCE = "https://raw.githubusercontent.com/LTS4/neural-anisotropy-directions/master/NADs/"

FOURIER_MAP = "published/dft_accuracies_logreg_lenet.csv"
FOURIER_COLUMNS = {"LogReg": "acc_lr", "LeNet": "acc_ln"}
INDEX_CURVE = "published/nad_accuracies_lenet.csv"
LEADING = "published/{}_NADs_leading.npy"
"""The first rows of an array of NADs, in half precision."""

SHIPPED = Path(__file__).parent / "shipped"
"""A data folder that comes with the package."""

INDEX_TABLE: dict[str, dict[int, float]] = _inputs["accuracy_by_index"]
"""Test accuracy (0 to 1) on D(u_i), by architecture and index i of the NAD, with sigma = 1 and the classes at +-1."""

POISONING: dict[int, float] = _inputs["poisoning"]["by_index"]
"""Accuracy (0 to 1) on clean test images of ResNet18, trained on CIFAR-10 poisoned along NAD i, by i."""

POISONING_BEYOND_400: tuple[float, float] = tuple(_inputs["poisoning"]["beyond_400"])
"""Lowest and highest of those accuracies at the indices beyond 400."""

FLIPPING = {name: Flipping(**pair) for name, pair in _inputs["flipping"].items()}
"""What flipping CIFAR-10 in its own NADs does to each architecture."""

AUC_AND_TEST_LOSS = Reported(**_units["auc_and_test_loss"])
"""Spearman correlation over training: area under the cumulative ablation curve (AUC) and test loss."""

AUC_AND_TEST_ACCURACY = Reported(**_units["auc_and_test_accuracy"])
"""Spearman correlation over 192 networks on CIFAR-10, two of each of 96 settings: AUC and test accuracy."""

IMPACT_AND_SELECTIVITY = {name: Reported(**found) for name, found in _units["impact_and_selectivity"].items()}
"""Spearman correlation over all units, by image set: class selectivity and what ablating the unit alone costs."""

ANCHOR = {level: Anchor(**found) for level, found in _replicated["memorisation"].items()}
"""A replication's cumulative ablation and noise, by the fraction of examples whose labels are corrupted."""

ANCHOR_WEIGHTS: dict[float, float] = _replicated["first_layer_weights"]
"""Mean absolute weight of the first layer of those networks, by the fraction of corrupted labels."""


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


@checks.typed
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
    singular_values = _singular_values(_found(f"{network}_eigenvals.npy", download), len(vectors))
    try:
        return NADs(
            vectors=vectors,
            shape=(1, 32, 32),
            name=f"{network}, published",
            eigenvalues=_eigenvalues(network, singular_values),
            n_networks=N_NETWORKS[network],
        )
    except ValueError as error:
        raise _damaged(path, f"orthonormal rows of 1024: {error}") from error


@checks.typed
def is_at_hand(name: str) -> bool:
    """Return whether the NADs of that name were published and their files lie in a data folder."""
    network = {network.lower(): network for network in NETWORKS}.get(name.lower())
    return (
        network is not None
        and files.folder_with([f"published/{network}_NADs.npy", f"published/{network}_eigenvals.npy"]) is not None
    )


@checks.typed
def find(relative: str | Path) -> Path | None:
    """Return the published file at ``relative`` in a data folder, else the one that comes with nadkit, else None."""
    shipped = SHIPPED / relative
    return files.find(relative) or (shipped if shipped.is_file() else None)


def origin(*relative: str | Path) -> str:
    """Return words for readers: where the published files of these names are read from."""
    of = {path is not None and path.is_relative_to(SHIPPED) for path in map(find, relative)}
    words = {True: "the copy that comes with nadkit", False: "files in a data folder"}
    return " and ".join(words[shipped] for shipped in sorted(of))


@checks.typed
def known_nads(name: str) -> NADs | None:
    """Return what is at hand of a network's published NADs: all 1023, else those that come with nadkit, else None.

    LeNet's first 50 come with nadkit, rounded to half precision; here they are made orthonormal again. Flipping, and
    poisoning along later ones, need all of them: use `published_nads`.

    Raises:
        ValueError: the authors published no such network; near misses are suggested.
        DataError: a file is damaged.
    """
    network = _network(name)
    if is_at_hand(name):
        return published_nads(name, download=False)
    path, spectrum = SHIPPED / LEADING.format(network), published_spectrum(name)
    if spectrum is None or not path.is_file():
        return None
    # The orthonormal rows nearest to the rounded ones.
    left, _, right = torch.linalg.svd(_read_array(path), full_matrices=False)
    return NADs(
        vectors=left @ right,
        shape=(1, 32, 32),
        name=f"{network}, published: the first {len(left)}, in half precision, which come with nadkit",
        eigenvalues=spectrum[: len(left)],
        n_networks=N_NETWORKS[network],
    )


@checks.typed
def published_spectrum(name: str) -> Tensor | None:
    """Return the eigenvalues of a network's 1023 published NADs, s^2 / (N - 1): (1023,) float64, never downloaded.

    None if they are neither at hand nor come with nadkit; only LeNet's come with it.

    Raises:
        ValueError: the authors published no such network; near misses are suggested.
        DataError: the file is damaged.
    """
    network = _network(name)
    path = find(f"published/{network}_eigenvals.npy")
    return None if path is None else _eigenvalues(network, _singular_values(path, 1023))


@checks.typed
def published_fourier_map(name: str) -> Tensor | None:
    """Return the published test accuracy on D(v) over the Fourier grid: (16, 16) float64, [y, x].

    Accuracies are in [0, 1]. Cell (8, 8) is the constant direction; index i stands for the
    frequency 2 (i - 8). The maps of logistic regression and LeNet come with nadkit; there are no others, so other
    networks give None.

    Raises:
        ValueError: the authors published no such network; near misses are suggested.
        DataError: the file is damaged.
    """
    column = FOURIER_COLUMNS.get(_network(name))
    if column is None:
        return None
    path = find(FOURIER_MAP)
    table = _table(path, ["x", "y", column])
    if sorted(zip(table.y, table.x, strict=True)) != [(y, x) for y in range(16) for x in range(16)]:
        raise _damaged(path, "each of the 16 x 16 cells once")
    return _fractions(path, table.pivot(index="y", columns="x", values=column))


@checks.typed
def published_index_curve(name: str) -> IndexCurve | None:
    """Return the published test accuracy on D(u_i) against the NAD index i, as far as measured.

    The file has a row for every index, but was measured at 0 to 10 and at every fourth from there;
    the rest is interpolated and left out here. The curve comes from another run than the published
    array. LeNet's comes with nadkit; there are no others, so other networks give None.

    Raises:
        ValueError: the authors published no such network; near misses are suggested.
        DataError: the file is damaged.
    """
    if _network(name) != "LeNet":
        return None
    path = find(INDEX_CURVE)
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


def _eigenvalues(network: str, singular_values: Tensor) -> Tensor:
    return singular_values.square() / (N_NETWORKS[network] - 1)


def _singular_values(path: Path, n: int) -> Tensor:
    values = _read_array(path)
    if values.shape != (n,):
        raise _damaged(path, f"{n} numbers, got an array of shape {tuple(values.shape)}")
    return _descending(path, values)


def _descending(path: Path, values: Tensor) -> Tensor:
    if not (values.isfinite().all() and values[-1] > 0 and (values.diff() <= 0).all()):
        raise _damaged(path, "positive singular values in descending order")
    return values


def _array(file: str, download: bool) -> tuple[Path, Tensor]:
    path = _found(file, download)
    return path, _read_array(path)


def _found(file: str, download: bool) -> Path:
    """Return where an array is in a data folder; it is fetched if need be."""
    return files.find(f"published/{file}") or _fetch(file, download)


def _read_array(path: Path) -> Tensor:
    """Verify an array of floats, and only then read it; return it in float64."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256.get(path.name, found):
        raise _damaged(path, f"the SHA-256 {SHA256[path.name]}, got {found}")
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _damaged(path, f"an array in numpy's .npy format: {error}") from error
    if array.dtype.kind != "f":
        raise _damaged(path, f"floats, got {array.dtype}")
    return torch.from_numpy(array.astype(np.float64))


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
