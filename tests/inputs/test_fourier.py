"""The Fourier basis, and the conventions of the published map."""

import functools

import numpy as np
import pytest
import torch

from nadkit.inputs.fourier import fourier_basis, fourier_direction, map_cells

SHAPE = (2, 4, 6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 4, 6), (1, 5, 7), (1, 2, 2)])
def test_fourier_basis_is_complete_and_orthonormal(shape):
    basis = fourier_basis(shape)
    size = shape[0] * shape[1] * shape[2]
    torch.testing.assert_close(basis.vectors @ basis.vectors.T, torch.eye(size, dtype=torch.float64))


def test_fourier_rows_are_what_they_are_called():
    basis = fourier_basis(SHAPE)
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


def test_fourier_row_order_is_the_centred_spectrum():
    basis = fourier_basis((1, 32, 32))
    rows = {(f.fx, f.fy): row for row, f in enumerate(basis.frequencies)}
    assert rows[0, 0] == 16 * 32 + 16
    assert rows[-16, -16] == 0
    assert rows[2, 3] == (3 + 16) * 32 + 2 + 16
    constant = basis[rows[0, 0]]
    torch.testing.assert_close(constant, torch.full((1024,), 1 / 32, dtype=torch.float64))


def test_some_rows_have_their_own_frequencies():
    whole = fourier_basis(SHAPE)
    some = whole[:5]
    assert some.frequencies == whole.leading(5).frequencies == whole.frequencies[:5]
    again = some.complete()
    assert again.frequencies == whole.frequencies
    assert torch.equal(again.vectors, whole.vectors)


def test_map_cells_are_the_independent_half_of_the_published_map():
    cells = map_cells()
    assert len({(c.x, c.y) for c in cells}) == 9 * 16
    mirrored = {((16 - c.x) % 16, c.y) for c in cells} | {(c.x, c.y) for c in cells}
    assert len(mirrored) == 256
    for cell in cells:
        assert cell.fx >= 0
        published = fourier_direction(2 * (cell.x - 8), 2 * (cell.y - 8))
        torch.testing.assert_close(fourier_direction(cell.fx, cell.fy), published)


def test_map_cells_are_130_distinct_directions():
    """In the columns fx = 0 and fx = 16 the rows fy and -fy are one cosine: 14 cells are there twice."""
    waves = torch.stack([fourier_direction(c.fx, c.fy) for c in map_cells()])
    same = (waves @ waves.T).abs() > 0.999
    assert (same.sum(1) <= 2).all()
    assert (1 / same.sum(1)).sum().item() == pytest.approx(130)


def test_map_cells_can_be_thinned():
    assert [(c.x, c.y) for c in map_cells(step=8)] == [(8, 0), (0, 0), (8, 8), (0, 8)]
    for step in (0, -1, 1.5):
        with pytest.raises(ValueError, match="step"):
            map_cells(step=step)


def test_waves_that_do_not_exist_are_refused():
    find = functools.partial(fourier_direction, shape=(2, 4, 4))
    for channel in (2, -1):
        with pytest.raises(ValueError, match="channel: expected an integer from 0 to 1"):
            find(1, 1, channel=channel)
    for frequency, name in (((1.5, 0), "fx"), ((0, 2.0), "fy")):
        with pytest.raises(ValueError, match=f"{name}: expected an integer"):
            find(*frequency)
    find(np.int64(1), np.int64(1))


def test_a_sine_that_vanishes_is_refused():
    with pytest.raises(ValueError, match="no imaginary part"):
        fourier_direction(0, 16, part="imaginary")
    with pytest.raises(ValueError, match="'real' or 'imaginary'"):
        fourier_direction(1, 1, part="cosine")
