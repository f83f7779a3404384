"""Bases: closed forms, round trips, files."""

import dataclasses

import numpy as np
import pytest
import torch

from nadkit import storage
from nadkit.files import DataError
from nadkit.inputs.basis import Basis, NADs, pixel_basis, random_basis
from nadkit.inputs.fourier import fourier_basis


@pytest.fixture
def basis():
    return random_basis((1, 6, 4), seed=3)


def test_random_bases_are_rotations_and_seeded(basis):
    torch.testing.assert_close(basis.vectors @ basis.vectors.T, torch.eye(24, dtype=torch.float64))
    assert torch.equal(basis.vectors, random_basis((1, 6, 4), seed=3).vectors)
    assert not torch.equal(basis.vectors, random_basis((1, 6, 4), seed=4).vectors)


def test_coordinates_are_inner_products(basis):
    x = torch.randn(5, 1, 6, 4, dtype=torch.float64)
    torch.testing.assert_close((basis.coordinates(x) @ basis.vectors).view(x.shape), x)
    torch.testing.assert_close(basis.coordinates(x[0]), basis.coordinates(x)[0])
    torch.testing.assert_close(basis.coordinates(x)[2, 7], (x[2].flatten() * basis[7]).sum())


def test_a_one_channel_basis_acts_on_each_channel(basis):
    x = torch.randn(5, 3, 6, 4)
    coordinates = basis.coordinates(x)
    assert coordinates.shape == (5, 3, 24)
    for channel in range(3):
        torch.testing.assert_close(coordinates[:, channel], basis.coordinates(x[:, channel : channel + 1]))
    assert basis.flip(x).shape == x.shape


def test_bytes_are_taken_as_numbers(basis):
    x = torch.randint(256, (5, 1, 6, 4), dtype=torch.uint8)
    torch.testing.assert_close(basis.coordinates(x), basis.coordinates(x.float()))


def test_flip_reverses_the_coordinates(basis):
    x = torch.randn(5, 1, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(basis.coordinates(basis.flip(x)), basis.coordinates(x).flip(-1))
    torch.testing.assert_close(basis.flip(basis.flip(x)), x)


def test_completion_adds_what_was_missing(basis):
    short = dataclasses.replace(basis.leading(20), eigenvalues=torch.arange(20, 0, -1).double())
    whole = short.complete()
    assert torch.equal(whole.vectors[:20], short.vectors)
    torch.testing.assert_close(whole.vectors @ whole.vectors.T, torch.eye(24, dtype=torch.float64))
    assert whole.eigenvalues.tolist() == [*range(20, 0, -1), 0, 0, 0, 0]
    with pytest.raises(ValueError, match="complete"):
        short.flip(torch.zeros(1, 1, 6, 4))


def test_overlap_of_known_subspaces():
    e = torch.eye(4, dtype=torch.float64)
    a = Basis(vectors=e, shape=(1, 2, 2))
    b = Basis(vectors=e[[0, 2, 1, 3]], shape=(1, 2, 2))
    assert [a.overlap(b, k) for k in (1, 2, 3, 4)] == [1, 0.5, 1, 1]
    turned = Basis(vectors=torch.tensor([[0.6, 0.8, 0, 0]], dtype=torch.float64), shape=(1, 2, 2))
    assert a.overlap(turned, 1) == pytest.approx(0.36)


def test_overlap_ignores_signs_and_rotations_within(basis):
    q = random_basis((1, 2, 2), seed=0).vectors
    mixed = Basis(vectors=torch.cat([q @ basis.vectors[:4], -basis.vectors[4:]]), shape=basis.shape)
    assert basis.overlap(mixed, 4) == pytest.approx(1)
    assert basis.overlap(mixed, 9) == pytest.approx(1)


def test_saving_and_loading_gives_the_same(tmp_path, basis):
    nads = NADs(
        vectors=basis.vectors,
        eigenvalues=torch.arange(24, 0, -1).double(),
        shape=basis.shape,
        name="mine",
        n_networks=7,
        settings={"architecture": "lenet", "scale": 100.0},
    )
    for saved in (basis, nads, fourier_basis((1, 4, 4))):
        saved.save(tmp_path / "basis.safetensors")
        loaded = type(saved).load(tmp_path / "basis.safetensors")
        for field in dataclasses.fields(saved):
            ours, theirs = getattr(saved, field.name), getattr(loaded, field.name)
            assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_a_damaged_or_foreign_file_is_refused(tmp_path, basis):
    path = tmp_path / "basis.safetensors"
    basis.save(path)
    with pytest.raises(ValueError, match="expected a saved NADs, found Basis"):
        NADs.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        Basis.load(path)
    with pytest.raises(FileNotFoundError):
        Basis.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="found a folder"):
        Basis.load(tmp_path)
    storage.write(path, "Basis", {"vectors": basis.vectors}, {})
    with pytest.raises(ValueError, match=r"damaged Basis .*shape"):
        Basis.load(path)


def test_a_failed_save_leaves_the_earlier_file(tmp_path, basis, monkeypatch):
    path = tmp_path / "basis.safetensors"
    basis.save(path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DataError, match="space"):
        basis.leading(3).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.eye(5), "expected vectors of shape"),
        (torch.eye(4) * torch.nan, "finite"),
        (torch.eye(4) * 2, "orthonormal"),
        (torch.ones(2, 4) / 2, "orthonormal"),
        (torch.ones(0, 4), "at least one vector"),
    ],
)
def test_what_is_not_a_basis_is_refused(vectors, message):
    with pytest.raises(ValueError, match=message):
        Basis(vectors=vectors, shape=(1, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_bases_are_float64(dtype):
    basis = Basis(vectors=torch.eye(4, dtype=dtype), shape=(1, 2, 2), eigenvalues=torch.tensor([4, 3, 2, 1]))
    assert basis.vectors.dtype == basis.eigenvalues.dtype == torch.float64


@pytest.mark.parametrize("eigenvalues", [[3, 2, 1, -1], [1, 2, 0, 0], [3, 2, 1, torch.nan], [torch.inf, 2, 1, 0]])
def test_what_is_not_a_spectrum_is_refused(eigenvalues):
    with pytest.raises(ValueError, match="finite, not negative, in descending order"):
        Basis(vectors=torch.eye(4), shape=(1, 2, 2), eigenvalues=torch.tensor(eigenvalues))


def test_rounding_in_a_spectrum_is_accepted():
    Basis(vectors=torch.eye(4), shape=(1, 2, 2), eigenvalues=torch.tensor([1, 0, 1e-9, -1e-9]))


def test_bases_are_compared_by_identity(basis):
    nads = NADs(vectors=basis.vectors, shape=basis.shape)
    for one in (basis, nads, fourier_basis((1, 2, 2))):
        assert one == one
        assert one != dataclasses.replace(one)


def test_a_slice_is_a_basis_of_its_directions(basis):
    nads = NADs(vectors=basis.vectors, shape=basis.shape, eigenvalues=torch.arange(24, 0, -1.0), n_networks=7, name="N")
    for leading in (nads[:10], nads[0:10], nads[:-14]):
        assert isinstance(leading, NADs)
        assert (len(leading), leading.n_networks, leading.shape, leading.name) == (10, 7, basis.shape, "N")
        assert torch.equal(leading.vectors, nads.leading(10).vectors)
        assert leading.overlap(nads, 10) == pytest.approx(1)
    assert len(nads[:100]) == 24
    for index, name, positions in [
        (slice(2, 5), "N[2:5]", [2, 3, 4]),
        (slice(0, 9, 4), "N[0:9:4]", [0, 4, 8]),
        (slice(-2, None), "N[22:24]", [22, 23]),
    ]:
        part = nads[index]
        assert (type(part), part.name) == (Basis, name)
        assert torch.equal(part.vectors, nads.vectors[positions])
        assert torch.equal(part.eigenvalues, nads.eigenvalues[positions])
    assert basis[2:5].eigenvalues is None


def test_misfits_are_explained(basis):
    with pytest.raises(ValueError, match=r"expected inputs of shape \(\.\.\., 1, 6, 4\), got \(3, 1, 6, 5\); .*resize"):
        basis.coordinates(torch.zeros(3, 1, 6, 5))
    with pytest.raises(IndexError, match=r"from 0 to 23, got 24$"):
        basis[24]
    with pytest.raises(IndexError, match=r"from 0 to 9, got 23 \(it has 10 of 24 directions\)"):
        basis.leading(10)[23]
    with pytest.raises(IndexError, match="from 0 to 23"):
        basis[-25]
    assert torch.equal(basis[np.int64(-1)], basis[23])
    for wrong in (1.0, [0, 1], "0"):
        with pytest.raises(TypeError, match=r"expected an integer or a slice such as \[:10\], got .*\.vectors"):
            basis[wrong]
    for wrong in (slice(3, 3), slice(None, 0), slice(24, None), slice(None, None, -1)):
        with pytest.raises(ValueError, match="expected a slice of some of 24 directions in order, got slice"):
            basis[wrong]
    with pytest.raises(ValueError, match="expected k from 1 to 24"):
        basis.leading(25)
    with pytest.raises(ValueError, match="overlap"):
        basis.overlap(pixel_basis((1, 4, 6)), 1)
    with pytest.raises(ValueError, match="one a vector"):
        dataclasses.replace(basis, eigenvalues=torch.zeros(3))
