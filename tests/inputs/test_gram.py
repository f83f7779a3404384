"""The leading NADs of large inputs, against the covariance and a singular value decomposition."""

import numpy as np
import pytest
import torch
from small_networks import SHAPE, tanh_network
from torch import nn

from nadkit import seeds
from nadkit.inputs import gram
from nadkit.inputs.covariance import compute_nads
from nadkit.inputs.gram import leading_nads

pytestmark = pytest.mark.filterwarnings("ignore:.*networks do not determine direction")  # these are few


def stacked_gradients(model, n, shape=SHAPE):
    """The derivatives that the library takes, (N, D) float64, from autograd."""
    rows, x = [], torch.randn(shape, generator=seeds.generator(0, "point"))
    for i in range(n):
        with seeds.seeded(0, "network", i):
            f = model(shape, 1).eval()
        z = x.clone().requires_grad_()
        rows.append(torch.autograd.grad(f(z[None]).squeeze(), z)[0].flatten())
    return torch.stack(rows).double()


@pytest.mark.parametrize("n", [9, 40])  # fewer networks than dimensions, and more
@pytest.mark.parametrize("method", ["gradient", "secant"])
def test_leading_nads_are_those_of_the_covariance(n, method):
    options = {"shape": SHAPE, "n_networks": n, "method": method, "scale": 2.0, "device": "cpu"}
    expected, found = compute_nads(tanh_network, **options).leading(5), leading_nads(tanh_network, 5, **options)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-6, atol=0)
    assert (found.vectors * expected.vectors).sum(1).abs() == pytest.approx([1] * 5, abs=1e-6)
    torch.testing.assert_close(found.overlap_of_halves, expected.overlap_of_halves[:5], rtol=0, atol=1e-6)
    for fact in ("shape", "name", "n_networks", "centred", "settings"):
        assert getattr(found, fact) == getattr(expected, fact)


def test_leading_nads_against_a_singular_value_decomposition(monkeypatch):
    monkeypatch.setattr(gram, "GRAM_CHUNK", 30)  # chunks of three columns and a last one of one
    g = stacked_gradients(tanh_network, 10)
    _, singular_values, vectors = np.linalg.svd((g - g.mean(0)).numpy(), full_matrices=False)
    found = leading_nads(tanh_network, 9, shape=SHAPE, n_networks=10, device="cpu")
    np.testing.assert_allclose((9 * found.eigenvalues).sqrt(), singular_values[:9], rtol=1e-5)
    np.testing.assert_allclose((found.vectors.numpy() * vectors[:9]).sum(1) ** 2, np.ones(9), rtol=1e-4)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-8)


def test_leading_nads_of_large_inputs():
    """D = 30,000: a covariance would take 7 GB."""
    nads = leading_nads("logreg", 3, shape=(3, 100, 100), n_networks=6, device="cpu")
    assert nads.vectors.shape == (3, 30_000)
    assert nads.images.shape == (3, 3, 100, 100)


def rank_two(shape, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes, bias=False))
    with torch.no_grad():
        model[1].weight[:, 2:] = 0
    return model


def broken(shape, classes):
    model = tanh_network(shape, classes)
    nn.init.constant_(model[3].weight, torch.nan)
    return model


def always_the_same(shape, classes):
    torch.manual_seed(0)
    return tanh_network(shape, classes)


def dead(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1).apply(lambda m: nn.init.zeros_(m.weight)))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (tanh_network, {"k": 6}, "k: expected 1 to 5, the rank that 6 centred derivatives of 16 numbers.*got 6"),
        (tanh_network, {"k": 17, "n_networks": 40}, "k: expected 1 to 16"),
        (tanh_network, {"k": 0}, "k: expected 1 to 5"),
        (tanh_network, {"k": 1.5}, "k: expected an integer, got 1.5"),
        (tanh_network, {"k": 3.0}, "k: expected an integer, got 3.0"),
        (tanh_network, {"n_networks": 1}, "n_networks: expected an integer, at least 2"),
        (tanh_network, {"method": "mixed"}, "'gradient' or 'secant', got 'mixed'"),
        (tanh_network, {"method": "grad"}, "expected one of secant, gradient, mixed"),
        (tanh_network, {"x": torch.zeros(1, 4, 5)}, "x: expected shape"),
        (rank_two, {"k": 3}, "span 2 directions only, got 3"),
        (dead, {}, "all input derivatives are zero"),
        (always_the_same, {}, "the 6 networks are all the same: .* draws new weights at every call"),
        (broken, {}, "network 0: an input derivative is NaN or infinite"),
        ("lenot", {}, "did you mean 'lenet'"),
    ],
)
def test_leading_nads_that_cannot_be_are_explained(architecture, options, message):
    options = {"k": 2, "shape": SHAPE, "n_networks": 6, "device": "cpu"} | options
    with pytest.raises(ValueError, match=message):
        leading_nads(architecture, **options)


def test_leading_nads_show_a_bar(capsys):
    leading_nads("logreg", 1, shape=SHAPE, n_networks=4, device="cpu", progress=True)
    assert "4/4" in capsys.readouterr().err
