"""How well two runs of the same networks agree: closed forms, known spectra, and really independent networks."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from small_networks import SHAPE, decaying, tanh_network
from torch import nn

from nadkit import seeds, storage
from nadkit.inputs.basis import NADs
from nadkit.inputs.covariance import BLOCK, MOMENTS, PART, GradientCovariance, compute_nads, gradient_covariance, merged
from nadkit.inputs.gram import leading_nads
from nadkit.inputs.population import Population
from nadkit.inputs.reproducibility import NotReproducibleWarning, expected_overlap, overlaps
from nadkit.inputs.spectra import overlap_ceiling


def moments_of(g, first=0):
    found = GradientCovariance.empty((1, 1, g.shape[1]), {"architecture": "drawn", "seed": 0})
    found.update(g, (first, first + len(g)))
    return found


def drawn(spectrum, n, seed, tail=0.0):
    """N derivatives of a known covariance, whose sizes differ by exp(tail N(0, 1))."""
    generator = torch.Generator().manual_seed(seed)
    size = (tail * torch.randn(n, 1, generator=generator, dtype=torch.float64)).exp()
    return size * torch.randn(n, len(spectrum), generator=generator, dtype=torch.float64) * spectrum.sqrt()


def slow_overlap(one, other, k):
    a, b = (np.linalg.svd(g - g.mean(0), full_matrices=False)[2][:k] for g in (one, other))
    return np.square(a @ b.T).sum() / k


def cut(numbers, size):
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


# the halves and the whole


@pytest.mark.parametrize("method", ["secant", "gradient", "mixed"])
@pytest.mark.parametrize("networks", [range(7), range(3, 12)])
def test_keeping_halves_leaves_the_whole_as_it_was_to_the_last_bit(method, networks, small_parts, monkeypatch):
    """Against the sums over blocks, then parts, of all networks, and of those of even number."""
    monkeypatch.setitem(PART, method, 4)
    monkeypatch.setitem(BLOCK, method, 3)
    population = Population(tanh_network, SHAPE, method)
    sums = {(parity, moment): 0.0 for parity in ("", "even_") for moment in ("total", "second")}
    for part in cut(networks, 4):
        partial = dict.fromkeys(sums, 0.0)
        for block in cut(part, 3):
            for parity in ("", "even_"):
                chosen = [i for i in block if not parity or i % 2 == 0]
                g = [population.derivative(population.network(i)).double() for i in chosen]
                g = torch.stack(g) if g else torch.zeros(0, 16, dtype=torch.float64)
                whole = g.ndim == 3
                partial[parity, "total"] += torch.zeros(16).double() if whole else g.sum(0)
                partial[parity, "second"] += g.sum(0) if whole else g.T @ g
        sums = {key: sums[key] + partial[key] for key in sums}
    found = gradient_covariance(population, networks=networks, device="cpu", local=False)
    for (parity, moment), expected in sums.items():
        assert torch.equal(getattr(found, parity + moment), expected)


def test_halves_add_up_to_the_whole_to_the_last_bit():
    """Of whole numbers, whose sums have no rounding."""
    g = torch.randint(-50, 50, (21, 6), generator=torch.Generator().manual_seed(0)).double()
    found = merged([moments_of(g[5:8], 5), moments_of(g[8:], 8), moments_of(g[:5])])
    assert torch.equal(found.second, g.T @ g)
    even, odd = found.halves(centred=False)
    assert torch.equal(even, g[::2].T @ g[::2] / 11)
    assert torch.equal(odd, g[1::2].T @ g[1::2] / 10)
    for half, rows in zip(found.halves(), (g[::2], g[1::2]), strict=True):
        np.testing.assert_allclose(half, np.cov(rows.numpy().T), atol=1e-12 * found.second.max().item())


def test_halves_that_are_too_small_are_unknown():
    g = drawn(torch.ones(6), 4, 0)
    assert moments_of(g[:3]).halves() is None
    assert moments_of(g[:3]).nads().reproducibility(1) is None
    assert moments_of(g[:1]).halves(centred=False) is None
    assert moments_of(g[:2]).halves(centred=False) is not None
    assert compute_nads(decaying, shape=SHAPE, n_networks=1, method="mixed", device="cpu").overlap_of_halves is None


# the estimate


def test_overlaps_are_computed_where_the_directions_are():
    directions = torch.empty(4, 16, device="meta")
    assert overlaps(directions, directions).device.type == "meta"


def test_overlaps_for_every_k():
    a, b = (torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(s)))[0].T for s in (0, 1))
    expected = [np.square(a[:k].numpy() @ b[:k].numpy().T).sum() / k for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(overlaps(a, b), expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_estimates_in_closed_form(k):
    chance = expected_overlap(k / 50, k, 50)
    assert chance.value == pytest.approx(k / 50)
    sure = expected_overlap(1.0, k, 50)
    assert (sure.value, sure.error) == (1, 0)
    assert expected_overlap(1.0, 50, 50).value == 1  # all directions
    # of c = 1 / (1 + a / n), twice the networks; a = n and one direction of very many
    assert expected_overlap(1 / 4, 1, 10**9).value == pytest.approx((1 / 4 + 1 / 1.5**2) / 2)
    values = [expected_overlap(r, k, 50) for r in (0.0, 0.1, 0.3, 0.6, 0.9)]
    assert all(a.value < b.value for a, b in itertools.pairwise(values))


def test_one_direction_is_found_again_and_a_second_is_not():
    g = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.eye(8)[3]
    nads = moments_of(g).nads()
    assert (nads.reproducibility(1).value, nads.reproducibility(1).error) == pytest.approx((1, 0), abs=1e-9)
    assert nads.overlap_of_halves == pytest.approx([1 / k for k in range(1, 9)])


def test_without_a_preference_two_runs_share_what_chance_gives():
    found = [moments_of(drawn(torch.ones(40), 200, seed)).nads() for seed in range(30)]
    for k in (1, 5, 20, 40):
        mean = np.mean([nads.reproducibility(k).value for nads in found])
        assert mean == pytest.approx(k / 40, abs=0.03)


SPECTRA = {
    "flat": torch.ones(100),
    "power law": torch.arange(1, 101) ** -1.0,
    "flat power law": torch.arange(1, 101) ** -0.5,
    "spikes": torch.cat([torch.full((10,), 20.0), torch.ones(90)]),
    "decay": torch.exp(-torch.arange(100) / 10),
}


def agreement(spectrum, n, tail):
    """The overlap of the ten leading directions over pairs of independent samples, and the samples' NADs."""
    samples = [drawn(SPECTRA[spectrum].double(), n, seed, tail) for seed in range(20)]
    pairs = zip(samples[::2], samples[1::2], strict=True)
    return np.mean([slow_overlap(a.numpy(), b.numpy(), 10) for a, b in pairs]), [moments_of(g).nads() for g in samples]


@pytest.mark.parametrize("tail", [0.0, 1.0])  # Gaussian, and few networks with most of the variance
@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_estimate_is_right_where_the_sample_spectrum_promises_too_much(spectrum, n, tail):
    truth, found = agreement(spectrum, n, tail)
    estimates = [nads.reproducibility(10) for nads in found]
    assert np.mean([abs(e.value - truth) <= e.error for e in estimates]) >= 0.9
    if tail or spectrum == "flat":
        promised = overlap_ceiling(found[0].eigenvalues, 10, n_networks=(n, n)).mean
        assert promised > truth + max(0.05, estimates[0].error)


def test_the_estimate_errs_on_the_low_side_with_few_networks_a_direction():
    truth, found = agreement("spikes", 40, 0.0)
    halves, estimate = (
        np.mean(values)
        for values in zip(*[(nads.overlap_of_halves[9], nads.reproducibility(10).value) for nads in found], strict=True)
    )
    assert halves < estimate < truth


def small_cnn(shape, classes):
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, classes))


def normalised(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, classes))


def gradients(architecture, networks, shape):
    """Input gradients in float64, one network at a time."""
    x = torch.randn(shape, generator=seeds.generator(0, "point")).double().requires_grad_()
    rows = []
    for i in networks:
        with seeds.seeded(0, "network", i):
            f = architecture(shape, 1).eval()
        rows.append(torch.autograd.grad(f.double()(x[None]).squeeze(), x)[0].flatten())
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("architecture", [small_cnn, normalised])
def test_networks_of_two_independent_sets_agree_as_one_set_says(architecture):
    n, shape = 120, (1, 8, 8)
    nads = compute_nads(architecture, shape=shape, n_networks=n, method="gradient", device="cpu")
    others = [gradients(architecture, range(s * n, (s + 1) * n), shape) for s in range(1, 5)]
    truth = np.mean([slow_overlap(a, b, 10) for a, b in itertools.combinations(others, 2)])
    estimate = nads.reproducibility(10)
    assert abs(estimate.value - truth) <= estimate.error
    assert overlap_ceiling(nads.eigenvalues, 10, n_networks=(n, n)).mean > truth + estimate.error


# files and warnings


def test_the_estimate_is_saved_with_the_directions_and_older_files_load(tmp_path):
    nads = moments_of(drawn(SPECTRA["power law"], 50, 0)).nads()
    nads.save(tmp_path / "new.safetensors")
    again = NADs.load(tmp_path / "new.safetensors")
    assert torch.equal(again.overlap_of_halves, nads.overlap_of_halves)
    assert again.reproducibility(7) == nads.reproducibility(7)
    facts = {"shape": nads.shape, "name": nads.name, "n_networks": 50, "centred": True, "settings": None}
    tensors = {"vectors": nads.vectors, "eigenvalues": nads.eigenvalues}
    storage.write(tmp_path / "old.safetensors", "NADs", tensors, facts)
    assert NADs.load(tmp_path / "old.safetensors").reproducibility(7) is None


def test_moments_saved_before_there_were_halves_go_on_without(tmp_path):
    path = tmp_path / "moments.safetensors"
    options = {"shape": SHAPE, "device": "cpu", "checkpoint": path}
    first = gradient_covariance(tanh_network, networks=range(6), **options)
    assert torch.equal(GradientCovariance.load(path).even_second, first.even_second)
    facts = {"shape": first.shape, "settings": first.settings, "networks": first.networks}
    storage.write(path, "GradientCovariance", {name: getattr(first, name) for name in MOMENTS[:2]}, facts)
    resumed = gradient_covariance(tanh_network, networks=range(9), **options)
    assert resumed.count == 9
    assert resumed.nads().reproducibility(1) is None


@pytest.mark.parametrize("overlap_of_halves", [torch.ones(2, 2), torch.tensor([0.5, 1.5]), torch.tensor([torch.nan])])
def test_what_are_not_overlaps_is_refused(overlap_of_halves):
    with pytest.raises(ValueError, match="expected overlaps of halves in one dimension, from 0 to 1"):
        NADs(vectors=torch.eye(4), shape=(1, 2, 2), overlap_of_halves=overlap_of_halves)


def test_leading_directions_that_are_not_determined_come_with_a_warning():
    flat = moments_of(drawn(torch.ones(50), 60, 0)).nads()
    with pytest.warns(NotReproducibleWarning, match=r"drawn: 60 networks do not determine directions 0 to 9; .* 0\.2"):
        assert len(flat.leading(10)) == 10
    with pytest.warns(NotReproducibleWarning, match="4 networks do not determine direction 0;"):
        leading_nads(tanh_network, 1, shape=SHAPE, n_networks=4, device="cpu")
    steep = moments_of(drawn(torch.logspace(0, -8, 50).double(), 60, 0)).nads()
    unknown = NADs(vectors=torch.eye(4), shape=(1, 2, 2))
    with warnings.catch_warnings(action="error"):
        assert steep.leading(3).reproducibility(3) == steep.reproducibility(3)
        assert unknown.leading(2).reproducibility(2) is None
    with pytest.raises(ValueError, match="expected k from 1 to 3, got 4"), warnings.catch_warnings(action="ignore"):
        flat.leading(3).reproducibility(4)
