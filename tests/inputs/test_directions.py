"""Bases: closed forms, round trips, and the conventions of the published files."""

import dataclasses

import numpy as np
import pytest
import torch

from nadkit import storage
from nadkit.files import DataError
from nadkit.inputs import directions
from nadkit.inputs.directions import Basis, NADs

SHAPE = (2, 4, 6)


@pytest.fixture
def basis():
    return directions.random((1, 6, 4), seed=3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 4, 6), (1, 5, 7), (1, 2, 2)])
def test_fourier_basis_is_complete_and_orthonormal(shape):
    basis = directions.fourier(shape)
    size = shape[0] * shape[1] * shape[2]
    torch.testing.assert_close(basis.vectors @ basis.vectors.T, torch.eye(size, dtype=torch.float64))


def test_fourier_rows_are_what_they_are_called():
    basis = directions.fourier(SHAPE)
    for row, frequency in enumerate(basis.frequencies):
        spectrum = torch.fft.fft2(basis.images[row])
        power = spectrum.abs().square()
        assert power[1 - frequency.channel].max() < 1e-20
        there = power[frequency.channel, frequency.fy % 4, frequency.fx % 6]
        back = power[frequency.channel, -frequency.fy % 4, -frequency.fx % 6]
        own_opposite = (frequency.fy % 4, frequency.fx % 6) == (-frequency.fy % 4, -frequency.fx % 6)
        assert (there if own_opposite else there + back) == pytest.approx(power.sum())
        part = spectrum.real if frequency.part == "real" else spectrum.imag
        torch.testing.assert_close(part.square().sum(), power.sum())
        assert basis.row(*frequency) == row
        assert basis.row(-frequency.fx, -frequency.fy, frequency.part, frequency.channel) == row


def test_fourier_row_order_is_the_centred_spectrum():
    basis = directions.fourier((1, 32, 32))
    assert basis.row(0, 0) == 16 * 32 + 16
    assert basis.row(-16, -16) == 0
    assert basis.row(2, 3) == (3 + 16) * 32 + 2 + 16
    constant = basis[basis.row(0, 0)]
    torch.testing.assert_close(constant, torch.full((1024,), 1 / 32, dtype=torch.float64))


def test_map_cells_are_the_independent_half_of_the_published_map():
    cells = directions.map_cells()
    assert len({(c.x, c.y) for c in cells}) == 9 * 16
    mirrored = {((16 - c.x) % 16, c.y) for c in cells} | {(c.x, c.y) for c in cells}
    assert len(mirrored) == 256
    for cell in cells:
        assert cell.fx >= 0
        published = directions.fourier_direction(2 * (cell.x - 8), 2 * (cell.y - 8))
        torch.testing.assert_close(directions.fourier_direction(cell.fx, cell.fy), published)


def test_map_cells_are_130_distinct_directions():
    """In the columns fx = 0 and fx = 16 the rows fy and -fy are one cosine: 14 cells are there twice."""
    waves = torch.stack([directions.fourier_direction(c.fx, c.fy) for c in directions.map_cells()])
    same = (waves @ waves.T).abs() > 0.999
    assert (same.sum(1) <= 2).all()
    assert (1 / same.sum(1)).sum().item() == pytest.approx(130)


def test_map_cells_can_be_thinned():
    assert [(c.x, c.y) for c in directions.map_cells(step=8)] == [(8, 0), (0, 0), (8, 8), (0, 8)]
    for step in (0, -1, 1.5):
        with pytest.raises(ValueError, match="step"):
            directions.map_cells(step=step)


@pytest.mark.parametrize("find", [lambda *a, **k: directions.fourier((2, 4, 4)).row(*a, **k), None])
def test_waves_that_do_not_exist_are_refused(find):
    find = find or (lambda *a, **k: directions.fourier_direction(*a, shape=(2, 4, 4), **k))
    for channel in (2, -1):
        with pytest.raises(ValueError, match="channel: expected 0 to 1"):
            find(1, 1, channel=channel)
    for frequency in ((1.5, 0), (0, 2.0)):
        with pytest.raises(ValueError, match="frequency: expected integers"):
            find(*frequency)
    find(np.int64(1), np.int64(1))


def test_a_sine_that_vanishes_is_refused():
    with pytest.raises(ValueError, match="no imaginary part"):
        directions.fourier_direction(0, 16, part="imaginary")
    with pytest.raises(ValueError, match="no imaginary part"):
        directions.fourier((1, 4, 4)).row(2, 0, "imaginary")
    with pytest.raises(ValueError, match="'real' or 'imaginary'"):
        directions.fourier_direction(1, 1, part="cosine")


def test_random_bases_are_rotations_and_seeded(basis):
    torch.testing.assert_close(basis.vectors @ basis.vectors.T, torch.eye(24, dtype=torch.float64))
    assert torch.equal(basis.vectors, directions.random((1, 6, 4), seed=3).vectors)
    assert not torch.equal(basis.vectors, directions.random((1, 6, 4), seed=4).vectors)


def test_coordinates_and_reconstruction_are_inverse(basis):
    x = torch.randn(5, 1, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(basis.reconstruct(basis.coordinates(x)), x)
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


def test_remove_takes_away_just_that(basis):
    x = torch.randn(5, 1, 6, 4, dtype=torch.float64)
    coordinates = basis.coordinates(basis.remove(x, [2, 5]))
    expected = basis.coordinates(x)
    expected[:, [2, 5]] = 0
    torch.testing.assert_close(coordinates, expected)
    torch.testing.assert_close(basis.remove(x, 2), basis.remove(x, [2]))
    torch.testing.assert_close(basis.remove(x, []), x)


@pytest.mark.parametrize("indices", [[2, 2, 5], [2, 5, -22], np.array([2, 5, 5]), torch.tensor([5, 2]), range(2, 6, 3)])
def test_a_direction_is_removed_once_however_it_is_given(basis, indices):
    x = torch.randn(5, 1, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(basis.remove(x, indices), basis.remove(x, [2, 5]))
    torch.testing.assert_close(basis.remove(x, np.int64(-1)), basis.remove(x, 23))
    assert torch.equal(basis[np.int64(-1)], basis[23])


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
    q = directions.random((1, 2, 2), seed=0).vectors
    mixed = Basis(vectors=torch.cat([q @ basis.vectors[:4], -basis.vectors[4:]]), shape=basis.shape)
    assert basis.overlap(mixed, 4) == pytest.approx(1)
    assert basis.overlap(mixed, 9) == pytest.approx(1)


def test_the_ceiling_agrees_with_a_direct_simulation():
    """Bartlett's decomposition against Gaussian samples, for which it is a shortcut."""
    eigenvalues = torch.logspace(0, -2, 12)
    direct = []
    for trial in range(200):
        generator = torch.Generator().manual_seed(trial)
        bases = []
        for n in (30, 50):
            x = torch.randn(n, 12, generator=generator, dtype=torch.float64) * eigenvalues.sqrt()
            bases.append(torch.linalg.svd(x, full_matrices=False).Vh[:3])
        direct.append(((bases[0] @ bases[1].T).square().sum() / 3).item())
    direct = torch.tensor(direct)
    ceiling = directions.overlap_ceiling(eigenvalues, 3, n_networks=(30, 50), repeats=200)
    assert ceiling.mean == pytest.approx(direct.mean().item(), abs=4 * direct.std().item() * (2 / 200) ** 0.5)
    assert ceiling.spread == pytest.approx(direct.std().item(), rel=0.3)


def test_the_ceiling_rises_with_the_networks_and_takes_few():
    eigenvalues = torch.logspace(0, -2, 12)
    few, some, many = (directions.overlap_ceiling(eigenvalues, 3, n_networks=(n, n)) for n in (5, 50, 50_000))
    assert few.mean < some.mean < many.mean
    assert many.mean > 0.999
    assert many.spread < some.spread


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k from 1 to 12"), ({"k": 13}, "k from 1"), ({"n": 1}, "n_networks"), ({"repeats": 1}, "repeats")],
)
def test_impossible_ceilings_are_explained(options, message):
    options = {"k": 3, "n": 5} | options
    n = options.pop("n")
    with pytest.raises(ValueError, match=message):
        directions.overlap_ceiling(torch.ones(12), **options, n_networks=(5, n))


def test_nads_give_the_singular_values_of_the_derivatives():
    g = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = g - g.mean(0)
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / 49)
    nads = NADs(vectors=vectors.T.flip(0), eigenvalues=eigenvalues.flip(0), shape=(1, 2, 3), n_networks=50)
    torch.testing.assert_close(nads.singular_values, torch.linalg.svdvals(centred))


def test_nads_that_are_not_centred_give_their_singular_values(tmp_path):
    g = torch.tensor([[3.0, 0.0, 4.0, 0.0]])
    eigenvalues, vectors = torch.linalg.eigh(g.T @ g)
    nads = NADs(
        vectors=vectors.T.flip(0), eigenvalues=eigenvalues.flip(0), shape=(1, 2, 2), n_networks=1, centred=False
    )
    nads.save(tmp_path / "nads.safetensors")
    for found in (nads, NADs.load(tmp_path / "nads.safetensors")):
        assert found.singular_values.tolist() == pytest.approx([5, 0, 0, 0], abs=1e-2)


def test_saving_and_loading_gives_the_same(tmp_path, basis):
    nads = NADs(
        vectors=basis.vectors,
        eigenvalues=torch.arange(24, 0, -1).double(),
        shape=basis.shape,
        name="mine",
        n_networks=7,
        settings={"architecture": "lenet", "scale": 100.0},
    )
    for saved in (basis, nads, directions.fourier((1, 4, 4))):
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
    for one in (basis, nads, directions.fourier((1, 2, 2))):
        assert one == one
        assert one != dataclasses.replace(one)


def test_misfits_are_explained(basis):
    with pytest.raises(ValueError, match=r"expected inputs of shape \(\.\.\., 1, 6, 4\), got \(3, 1, 6, 5\); .*resize"):
        basis.coordinates(torch.zeros(3, 1, 6, 5))
    with pytest.raises(ValueError, match="expected 24 coordinates"):
        basis.reconstruct(torch.zeros(3, 23))
    with pytest.raises(IndexError, match=r"from 0 to 23, got 24$"):
        basis[24]
    with pytest.raises(IndexError, match=r"from 0 to 9, got 23 \(it has 10 of 24 directions\)"):
        basis.leading(10)[23]
    with pytest.raises(IndexError, match="from 0 to 23"):
        basis.remove(torch.zeros(1, 6, 4), [0, -25])
    for wrong in (slice(0, 2), 1.0):
        with pytest.raises(TypeError, match=r"expected an integer index.*\.vectors or \.leading"):
            basis[wrong]
    with pytest.raises(ValueError, match="expected k from 1 to 24"):
        basis.leading(25)
    with pytest.raises(ValueError, match="overlap"):
        basis.overlap(directions.pixel((1, 4, 6)), 1)
    with pytest.raises(ValueError, match="one a vector"):
        dataclasses.replace(basis, eigenvalues=torch.zeros(3))
    with pytest.raises(ValueError, match="no eigenvalues"):
        _ = NADs(vectors=basis.vectors, shape=basis.shape).singular_values
