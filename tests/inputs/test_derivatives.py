"""Input derivatives against autograd."""

import torch
from small_networks import network, point

from nadkit import architectures, seeds
from nadkit.inputs.derivatives import BATCH, mixed_moment, secant


def test_mixed_derivative_against_autograd():
    model, x = network(0).double(), point().double()
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(z[None]).squeeze(), z, create_graph=True)
    weights = list(model.parameters())
    rows = []
    for component in g.flatten():
        parts = torch.autograd.grad(component, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(mixed_moment(model, x), jacobian @ jacobian.T)


def test_mixed_derivative_of_lenet_against_autograd():
    """A few entries: J J^T between unit vectors at four pixels."""
    with seeds.seeded(0):
        model = architectures.build("lenet", shape=(1, 16, 16), classes=1).double().eval()
    x = torch.randn(1, 16, 16, dtype=torch.float64, generator=seeds.generator(0, "x"))
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(z[None]).squeeze(), z, create_graph=True)
    pixels = [0, 37, 120, 136]
    rows = []
    for i in pixels:
        parts = torch.autograd.grad(g.flatten()[i], list(model.parameters()), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows)
    found = mixed_moment(model, x)[pixels][:, pixels]
    assert found.diagonal().min() > 0
    torch.testing.assert_close(found, jacobian @ jacobian.T)


def test_secant_does_not_depend_on_the_batch(monkeypatch):
    model = architectures.build("lenet", shape=(1, 16, 16), classes=1).eval()
    x = torch.randn(1, 16, 16)
    whole = secant(model, x, 100.0)
    monkeypatch.setitem(BATCH, "cpu", 14)
    torch.testing.assert_close(secant(model, x, 100.0), whole, rtol=1e-3, atol=1e-6)
