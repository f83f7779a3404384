"""The authors' published arrays: fabricated ones from a folder that stands for their repository, and the real ones."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nadkit import files
from nadkit.data import published
from nadkit.files import DataError

REAL = Path(os.environ.get("NADKIT_DATA", "")) / "published"


def real(file: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (REAL / file).is_file(), reason=f"needs published/{file} in NADKIT_DATA")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, chosen by NADKIT_DATA, and an empty cache."""
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(files, "user_cache_path", lambda name, **_: tmp_path / "cache" / name)
    return tmp_path / "data"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the authors' repository: pixels as LeNet's NADs, 3, 2.9, ... as singular values."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setattr(published, "SOURCE", folder.as_uri() + "/")
    monkeypatch.setattr(published, "SHA256", {})
    publish(folder, monkeypatch, "LeNet_NADs.npy", np.eye(1023, 1024, dtype=np.float32))
    np.save(folder / "LeNet_eigenvals.npy", np.linspace(3, 1, 1023, dtype=np.float32))
    return folder


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, array: np.ndarray) -> None:
    """Put an array into the stand-in for the repository, with its checksum in the table."""
    np.save(folder / file, array)
    checksum = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    monkeypatch.setitem(published.SHA256, file, checksum)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# NADs


def test_nads_are_downloaded_once_and_converted(repository, data):
    nads = published.published_nads("LeNet")
    assert sorted(path.name for path in data.rglob("*.npy")) == ["LeNet_NADs.npy", "LeNet_eigenvals.npy"]
    for path in repository.iterdir():
        path.unlink()
    again = published.published_nads("LeNet")
    for found in (nads, again):
        assert found.vectors.dtype == found.eigenvalues.dtype == torch.float64
        assert torch.equal(found.vectors, torch.eye(1024, dtype=torch.float64)[:1023])
        assert found.shape == (1, 32, 32)
        assert found.n_networks == 10_000
        assert found.eigenvalues[0].item() == pytest.approx(9 / 9999)
        assert found.eigenvalues[-1].item() == pytest.approx(1 / 9999)


@pytest.mark.parametrize("name", ["lenet", "LENET", "LeNet"])
def test_names_come_in_any_case(repository, name):
    assert published.published_nads(name).name == "LeNet, published"


def test_every_network_has_a_checksum_and_a_number_of_networks():
    assert {f"{network}_NADs.npy" for network in published.NETWORKS} <= set(published.SHA256)
    assert set(published.N_NETWORKS) == set(published.NETWORKS)
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in published.SHA256.values())


@pytest.mark.parametrize(
    "function", [published.published_nads, published.published_fourier_map, published.published_index_curve]
)
@pytest.mark.parametrize(("name", "hint"), [("resnet", "did you mean 'ResNet18'"), ("mlp", "known: LogReg, LeNet")])
def test_unknown_networks_are_refused_with_a_hint(function, name, hint):
    with pytest.raises(ValueError, match=hint):
        function(name)


def test_no_network_names_what_was_looked_for_and_the_remedy(repository, data):
    (repository / "LeNet_NADs.npy").unlink()
    with pytest.raises(DataError) as caught:
        published.published_nads("lenet")
    message = str(caught.value)
    assert f"looked for published/LeNet_NADs.npy in {data} and in" in message
    assert f"could not download {repository.as_uri()}/LeNet_NADs.npy" in message
    assert f"put it at {data / 'published' / 'LeNet_NADs.npy'}" in message


@pytest.mark.parametrize("damage", [lambda content: content[:5000], lambda content: content[:-1] + b"x"])
def test_a_damaged_download_is_not_kept(repository, data, damage):
    path = repository / "LeNet_NADs.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"has the SHA-256 .* fetch it by hand"):
        published.published_nads("LeNet")
    assert not any(path.is_file() for path in data.rglob("*"))


def test_a_file_changed_after_the_download_is_refused(repository, data):
    published.published_nads("LeNet")
    path = data / "published" / "LeNet_NADs.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is not the file .*SHA-256.* delete it and run again"):
        published.published_nads("LeNet")


def test_a_read_only_folder_is_read_and_downloads_go_to_the_cache(repository, data, tmp_path, monkeypatch):
    (data / "published").mkdir(parents=True)
    (repository / "LeNet_NADs.npy").rename(data / "published" / "LeNet_NADs.npy")
    monkeypatch.setattr(files.os, "access", lambda folder, mode: folder != data)
    published.published_nads("LeNet")
    assert [path.name for path in data.rglob("*.npy")] == ["LeNet_NADs.npy"]
    assert [path.name for path in (tmp_path / "cache").rglob("*.npy")] == ["LeNet_eigenvals.npy"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.linspace(1, 3, 1023), "positive singular values in descending order"),
        (np.linspace(3, -1, 1023), "positive singular values in descending order"),
        (np.full(1023, np.nan), "positive singular values in descending order"),
        (np.linspace(3, 1, 1022), "1023 numbers, got an array of shape \\(1022,\\)"),
        (np.arange(1023, 0, -1), "floats, got int64"),
        (np.array([{}] * 1023), "Object arrays cannot be loaded"),
    ],
)
def test_singular_values_without_a_checksum_are_examined(repository, values, problem):
    np.save(repository / "LeNet_eigenvals.npy", values)
    with pytest.raises(DataError, match=f"LeNet_eigenvals.npy .*{problem}"):
        published.published_nads("LeNet")


def test_a_page_in_place_of_singular_values_is_refused(repository):
    (repository / "LeNet_eigenvals.npy").write_text("<html>Please log in</html>")
    with pytest.raises(DataError, match=r"an array in numpy's .npy format"):
        published.published_nads("LeNet")


def test_rows_that_are_not_orthonormal_are_refused(repository, monkeypatch):
    publish(repository, monkeypatch, "LeNet_NADs.npy", np.full((1023, 1024), 1 / 32))
    with pytest.raises(DataError, match=r"LeNet_NADs.npy .*orthonormal rows"):
        published.published_nads("LeNet")


# Fourier map and index curve


def fourier_csv(broken: str = "") -> str:
    """A map with 50 + y + x / 100 percent for LeNet and 100 for logistic regression, its rows out of order."""
    rows = [f"{x},{y},100.0,{50 + y + x / 100}" for x in range(16) for y in range(16)]
    return "\n".join(["x,y,acc_lr,acc_ln", *rows]) + "\n" + broken


def test_fourier_map_is_indexed_by_row_and_column(data):
    write(data / published.FOURIER_MAP, fourier_csv())
    found = published.published_fourier_map("lenet")
    assert found.shape == (16, 16)
    assert found.dtype == torch.float64
    assert found[3, 7].item() == pytest.approx(0.5307)
    assert published.published_fourier_map("LogReg").unique().tolist() == [1.0]


def test_of_some_networks_there_is_neither_map_nor_curve():
    assert published.published_fourier_map("ResNet18") is None
    assert published.published_index_curve("ResNet18") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "columns of numbers named x, y, acc_ln"),
        ("x,y,accuracy\n0,0,50\n", "columns of numbers named x, y, acc_ln"),
        ("x,y,acc_ln\n0,0,fifty\n", "columns of numbers named x, y, acc_ln"),
        ("x,y,acc_ln\n0,0,50\n", "each of the 16 x 16 cells once"),
        (fourier_csv("0,0,100,50\n"), "each of the 16 x 16 cells once"),
        (fourier_csv().replace(",50.01\n", ",150.01\n"), "accuracies from 0 to 100 percent"),
        (fourier_csv().replace(",50.01\n", ",nan\n"), "accuracies from 0 to 100 percent"),
    ],
)
def test_a_damaged_map_is_named(data, text, problem):
    write(data / published.FOURIER_MAP, text)
    with pytest.raises(DataError, match=f"{published.FOURIER_MAP} .*{problem}"):
        published.published_fourier_map("LeNet")


def index_csv() -> str:
    """A curve that falls from 100 percent by 0.01 an index, with singular values 2 / (1 + index)."""
    rows = [f"{i},{100 - i / 100},{2 / (1 + i)}" for i in range(1023)]
    return "\n".join(["index,acc_ln,eig_ln", *rows]) + "\n"


def test_index_curve_has_the_measured_points_only(data):
    write(data / published.INDEX_CURVE, index_csv())
    curve = published.published_index_curve("LENET")
    assert curve.index.tolist() == [*range(11), *range(14, 1023, 4)]
    assert curve.index.dtype == torch.int64
    torch.testing.assert_close(curve.accuracy, 1 - curve.index.double() / 10_000)
    torch.testing.assert_close(curve.singular_value, 2 / (1 + curve.index.double()))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("index,acc_ln,eig_ln\n0,100,1\n", "the indices 0 to 1022"),
        (index_csv().replace("0,100.0,2.0", "0,100.0,-2.0"), "positive singular values"),
        (index_csv().replace("0,100.0,2.0", "0,101.0,2.0"), "accuracies from 0 to 100 percent"),
    ],
)
def test_a_damaged_curve_is_named(data, text, problem):
    write(data / published.INDEX_CURVE, text)
    with pytest.raises(DataError, match=f"{published.INDEX_CURVE} .*{problem}"):
        published.published_index_curve("LeNet")


# What comes with nadkit


def test_with_nothing_at_hand_what_comes_with_nadkit_is_read(data):
    assert published.published_fourier_map("LogReg")[0, 0] == 1
    assert published.published_index_curve("LeNet").accuracy[0].item() == 1
    assert published.published_spectrum("LeNet").shape == (1023,)
    assert published.known_nads("VGG11") is published.published_spectrum("VGG11") is None
    assert published.origin(published.FOURIER_MAP) == "the copy that comes with nadkit"
    assert sum(path.stat().st_size for path in published.SHIPPED.rglob("*") if path.is_file()) < 500_000
    write(data / published.FOURIER_MAP, fourier_csv())
    assert published.published_fourier_map("LogReg").unique().tolist() == [1.0]
    assert published.origin(published.FOURIER_MAP) == "files in a data folder"


def test_the_shipped_nads_are_few_and_say_so():
    nads = published.known_nads("lenet")
    assert len(nads) == len(nads.eigenvalues) == 50
    assert nads.name == "LeNet, published: the first 50, in half precision, which come with nadkit"
    torch.testing.assert_close(nads.vectors @ nads.vectors.T, torch.eye(50, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected all 1024 directions, this basis has 50"):
        nads.flip(torch.zeros(1, 1, 32, 32))


def test_the_whole_array_comes_before_the_shipped_rows(repository, data):
    published.published_nads("LeNet")
    assert len(published.known_nads("LeNet")) == 1023
    assert published.published_spectrum("lenet")[0].item() == pytest.approx(9 / 9999)


@real("LeNet_NADs.npy")
def test_the_shipped_rows_are_the_published_ones_but_for_rounding(monkeypatch):
    shipped, spectrum = published.known_nads("LeNet"), published.published_spectrum("LeNet")
    monkeypatch.setenv("NADKIT_DATA", str(REAL.parent))
    whole = published.published_nads("LeNet", download=False)
    torch.testing.assert_close(shipped.vectors, whole.vectors[:50], atol=1e-4, rtol=0)
    assert torch.equal(spectrum, whole.eigenvalues)


# Numbers from the paper


def test_numbers_from_the_paper_are_fractions_of_registered_architectures():
    for table in (published.FLIPPING, published.INDEX_TABLE):
        assert set(table) == set(published.PUBLISHED) - {"logreg"}
    flipping = [accuracy for pair in published.FLIPPING.values() for accuracy in pair]
    by_index = [accuracy for curve in published.INDEX_TABLE.values() for accuracy in curve.values()]
    poisoning = [*published.POISONING.values(), *published.POISONING_BEYOND_400]
    assert all(0.1 <= accuracy <= 1 for accuracy in flipping + poisoning)
    assert all(0.5 <= accuracy <= 1 for accuracy in by_index)


def test_every_network_loses_by_the_flip_and_towards_the_end_of_the_basis():
    assert all(pair.original > pair.flipped for pair in published.FLIPPING.values())
    assert all(curve[0] > curve[100] > curve[500] for curve in published.INDEX_TABLE.values())
    low, high = published.POISONING_BEYOND_400
    assert published.POISONING[0] < low < high


def test_a_new_number_needs_no_code(tmp_path, monkeypatch):
    write(tmp_path / "published_numbers" / "new.toml", 'table = { 3 = 0.5, "0.25" = 1.0, lenet = { 0 = 0.9 } }\n')
    monkeypatch.setattr(published.resources, "files", lambda package: tmp_path)
    assert published.numbers("new") == {"table": {3: 0.5, 0.25: 1.0, "lenet": {0: 0.9}}}
    with pytest.raises(ValueError, match="name: expected 'new', got 'none'"):
        published.numbers("none")


# Numbers of single directions


def test_correlations_of_single_directions_are_printed_as_in_the_paper():
    assert str(published.AUC_AND_TEST_LOSS) == "-0.728"
    assert str(published.AUC_AND_TEST_ACCURACY) == "0.914"
    assert str(published.IMPACT_AND_SELECTIVITY["mnist"]) == "0.095"
    assert str(published.IMPACT_AND_SELECTIVITY["cifar10"]) == "-0.428"
    assert published.AUC_AND_TEST_LOSS.value < 0 < published.AUC_AND_TEST_ACCURACY.value < 1


def test_the_anchor_table_falls_with_ablation_noise_and_up_to_the_last_two_levels_with_corruption():
    levels = list(published.ANCHOR.values())
    assert list(published.ANCHOR) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    for level in levels:
        assert 1 > level.accuracy[108] > level.accuracy[216] > level.accuracy[539] > 0.1
        assert 1 >= level.noise[0.164] > level.noise[0.562] > 0.1
        assert 0.1 < level.auc < level.accuracy[108]
    for column in (lambda a: a.auc, lambda a: a.noise[0.562], *(lambda a, n=n: a.accuracy[n] for n in (108, 216, 539))):
        values = [column(level) for level in levels[:-1]]
        assert values == sorted(values, reverse=True)
        assert column(levels[-1]) == pytest.approx(values[-1], abs=0.02)
    assert published.ANCHOR_WEIGHTS[0] < published.ANCHOR_WEIGHTS[1]


# The real files


@real("LeNet_NADs.npy")
def test_real_lenet_nads(monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(REAL.parent))
    nads = published.published_nads("lenet")
    assert nads.vectors.shape == (1023, 1024)
    gram = nads.vectors @ nads.vectors.T
    assert (gram - torch.eye(1023)).abs().max() < 1e-5
    assert (nads.eigenvalues[0] / nads.eigenvalues[-1]).sqrt().item() == pytest.approx(81.9, abs=0.1)


@real("dft_accuracies_logreg_lenet.csv")
def test_real_fourier_map(monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(REAL.parent))
    found = published.published_fourier_map("lenet")
    assert found[7, 8].item() == pytest.approx(0.816, abs=5e-4)
    assert found[0, 0].item() == pytest.approx(0.5027, abs=5e-5)
    # The map repeats itself in x, the last axis, and not in y: so the axes are not swapped.
    mirror = [(16 - index) % 16 for index in range(16)]
    assert torch.equal(found, found[:, mirror])
    assert not torch.equal(found, found[mirror])


@real("nad_accuracies_lenet.csv")
def test_real_index_curve(monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(REAL.parent))
    curve = published.published_index_curve("lenet")
    accuracy = dict(zip(curve.index.tolist(), curve.accuracy.tolist(), strict=True))
    assert [round(100 * accuracy[i], 1) for i in (0, 10, 50)] == [100.0, 100.0, 90.0]
    # Between measured points the file is a straight line, and at none of them.
    table = np.loadtxt(REAL / "nad_accuracies_lenet.csv", delimiter=",", skiprows=1)
    bends = np.flatnonzero(np.abs(np.diff(table[:, 1], 2)) > 1e-9) + 1
    assert set(bends) <= set(accuracy)


@real("nad_accuracies_lenet.csv")
def test_real_index_curve_agrees_with_the_table(monkeypatch):
    monkeypatch.setenv("NADKIT_DATA", str(REAL.parent))
    curve = published.published_index_curve("lenet")
    accuracy = dict(zip(curve.index.tolist(), curve.accuracy.tolist(), strict=True))
    known = {index: a for index, a in published.INDEX_TABLE["lenet"].items() if index in accuracy}
    assert set(known) == {0, 10, 50}
    assert {index: round(accuracy[index], 3) for index in known} == known
