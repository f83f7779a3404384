"""Spectra against Gaussian matrices, closed forms and direct simulations."""

import pytest
import torch

from nadkit.inputs.covariance import GradientCovariance, compute_nads
from nadkit.inputs.spectra import (
    effective_dimension,
    marchenko_pastur_cdf,
    marchenko_pastur_edges,
    overlap_ceiling,
    overlap_ceilings,
    population_effective_dimension,
)


def test_linear_networks_are_isotropic_within_sampling_error():
    n = 400
    nads = compute_nads("logreg", shape=(1, 10, 10), n_networks=n, device="cpu")
    low, high = marchenko_pastur_edges(100, n)
    relative = nads.eigenvalues / nads.eigenvalues.mean()
    assert relative[0].item() == pytest.approx(high, rel=0.1)
    assert relative[-1].item() == pytest.approx(low, rel=0.15)


@pytest.mark.parametrize(("dimensions", "n"), [(60, 240), (240, 60), (120, 120)])
def test_marchenko_pastur_law_against_a_gaussian_matrix(dimensions, n):
    g = torch.randn(n, dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(g.T @ g / n)[-min(n, dimensions) :]
    share = (torch.arange(len(eigenvalues)) + 0.5) / len(eigenvalues)
    distance = (marchenko_pastur_cdf(eigenvalues, dimensions, n) - share).abs().max()
    assert distance < 0.04
    assert (marchenko_pastur_cdf(2 * eigenvalues, dimensions, n) - share).abs().max() > 0.1
    low, high = marchenko_pastur_edges(dimensions, n)
    ends = torch.tensor([low, high, high + 1])
    assert marchenko_pastur_cdf(ends, dimensions, n).tolist() == pytest.approx([0, 1, 1], abs=1e-6)


@pytest.mark.parametrize(("spectrum", "expected"), [([1, 0, 0], 1), ([2, 2, 2, 2], 4), ([3, 1], 1.6)])
def test_effective_dimension_of_known_spectra(spectrum, expected):
    assert effective_dimension(torch.tensor(spectrum)) == pytest.approx(expected)


@pytest.mark.parametrize("spectrum", [[0.0, 0.0], [1.0, -1.0], [1.0, torch.nan], [torch.inf, 1.0]])
def test_what_has_no_effective_dimension_is_refused(spectrum):
    with pytest.raises(ValueError, match="eigenvalues: expected finite numbers, not negative, not all zero"):
        effective_dimension(torch.tensor(spectrum))


def with_derivatives(g, first):
    part = GradientCovariance.empty((1, 1, g.shape[1]), {"seed": 0})
    part.update(g, (first, first + len(g)))
    return part


def test_population_effective_dimension_of_few_heavy_tailed_derivatives():
    """Networks whose derivatives differ in size as much as in direction; 20 of 60 dimensions count."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.cat([torch.ones(20), torch.full((40,), 0.01)]).double()
    truth = effective_dimension(spectrum)
    products = []
    for _ in range(500):
        size = (0.5 * torch.randn(24, 1, generator=generator, dtype=torch.float64)).exp()
        g = size * torch.randn(24, 60, generator=generator, dtype=torch.float64) * spectrum.sqrt()
        one, other = with_derivatives(g[:12], 0), with_derivatives(g[12:], 12)
        s, t = one.covariance(), other.covariance()
        products.append([s.trace() * t.trace(), (s @ t).trace()])
        expected = (products[-1][0] / products[-1][1]).item()
        assert population_effective_dimension(one, other) == pytest.approx(expected)
    found = torch.tensor(products, dtype=torch.float64).mean(0)
    assert (found[0] / found[1]).item() == pytest.approx(truth, rel=0.05)


def test_population_effective_dimension_wants_other_networks():
    one = with_derivatives(torch.eye(4), 0)
    with pytest.raises(ValueError, match="seen before"):
        population_effective_dimension(one, with_derivatives(torch.eye(4), 2))
    with pytest.raises(ValueError, match="one shape"):
        population_effective_dimension(one, with_derivatives(torch.eye(5), 4))
    of_a_step = with_derivatives(torch.eye(4), 4)
    of_a_step.settings = {"seed": 1, "scale": 2.0}
    with pytest.raises(ValueError, match="two samples of one experiment, got scale"):
        population_effective_dimension(one, of_a_step)
    one.settings |= {"outputs": [[1.0, 2.0]]}
    others = with_derivatives(torch.eye(4), 4)
    others.settings = {"seed": 0, "outputs": [[1.0, 3.0]]}  # another architecture of the same name
    with pytest.raises(ValueError, match="two samples of one experiment, got outputs"):
        population_effective_dimension(one, others)
    others.settings = {"seed": 0, "outputs": [[1.0, 2.00001]]}
    assert population_effective_dimension(one, others) > 0
    del one.settings["outputs"]
    with pytest.raises(ValueError, match="two networks in each, got 4 and 1"):
        population_effective_dimension(one, with_derivatives(torch.eye(4)[:1], 4))


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
    ceiling = overlap_ceiling(eigenvalues, 3, n_networks=(30, 50), repeats=200)
    assert ceiling.mean == pytest.approx(direct.mean().item(), abs=4 * direct.std().item() * (2 / 200) ** 0.5)
    assert ceiling.spread == pytest.approx(direct.std().item(), rel=0.3)


def test_the_ceiling_rises_with_the_networks_and_takes_few():
    eigenvalues = torch.logspace(0, -2, 12)
    few, some, many = (overlap_ceiling(eigenvalues, 3, n_networks=(n, n)) for n in (5, 50, 50_000))
    assert few.mean < some.mean < many.mean
    assert many.mean > 0.999
    assert many.spread < some.spread


def test_ceilings_of_several_sizes_are_those_of_each():
    eigenvalues = torch.logspace(0, -2, 12)
    found = overlap_ceilings(eigenvalues, [1, 3, 12], n_networks=(5, 50))
    assert found == {k: overlap_ceiling(eigenvalues, k, n_networks=(5, 50)) for k in (1, 3, 12)}
    assert overlap_ceilings(eigenvalues, [], n_networks=(5, 50)) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": 0}, "k from 1 to 12"), ({"k": 13}, "k from 1"), ({"n": 1}, "n_networks"), ({"repeats": 1}, "repeats")],
)
def test_impossible_ceilings_are_explained(options, message):
    options = {"k": 3, "n": 5} | options
    n = options.pop("n")
    with pytest.raises(ValueError, match=message):
        overlap_ceiling(torch.ones(12), **options, n_networks=(5, n))
