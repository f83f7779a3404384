"""Moments: those of all samples and positions in double precision, whatever the batches are."""

import pytest
import torch
from test_sites import hooks, mlp
from torch import nn
from torchvision.models import resnet18

from nadkit.activations.moments import Moments, unit_moments
from nadkit.activations.sites import Site, Sites, capture, evaluating, find_sites


def identity(shape: tuple[int, ...], units: int) -> tuple[nn.Module, Sites]:
    """A network whose one site holds its input."""
    model = nn.Sequential(nn.Identity())
    return model, Sites([Site("0", "0", 0, (units, *shape[1:]))])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_moments_are_those_of_all_samples_and_positions(batch_size):
    torch.manual_seed(1)
    x = torch.randn(50, 3, 2, 5) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1) + 2
    model, sites = identity((3, 2, 5), 3)
    found = unit_moments(model, x, sites, batch_size=batch_size)
    raw = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean, raw.mean(1), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.std, raw.std(1, correction=0), rtol=1e-13, atol=0)


def test_moments_of_a_far_and_of_a_constant_unit():
    """Nothing cancels: squares less the squared mean would lose digits of the one, and not be zero for the other."""
    x = torch.stack([torch.tensor([1e6 + 1, 1e6 + 3] * 20), torch.full((40,), 0.1)], dim=1)
    model, sites = identity((2,), 2)
    found = unit_moments(model, x, sites, batch_size=3)
    torch.testing.assert_close(found.mean, torch.tensor([1e6 + 2, torch.tensor(0.1).item()], dtype=torch.float64))
    torch.testing.assert_close(found.std, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=1e-9, atol=0)


def test_moments_do_not_depend_on_blocks(monkeypatch):
    x = torch.randn(20, 3, 4, 4)
    model, sites = identity((3, 4, 4), 3)
    whole = unit_moments(model, x, sites)
    monkeypatch.setattr("nadkit.activations.moments.BLOCK", 1)
    parts = unit_moments(model, x, sites)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(parts.std, whole.std, rtol=1e-12, atol=0)


def test_moments_site_by_site_in_eval_mode():
    model = nn.Sequential(*mlp()[:3], nn.Dropout(0.5), *mlp()[3:]).train()
    sites = find_sites(model, (1, 2, 2))
    x = torch.rand(9, 1, 2, 2)
    found = unit_moments(model, x, sites, batch_size=4)
    assert isinstance(found["2"], Moments)
    assert found["2"].sites.names == ["2"]
    with torch.no_grad():
        h = model[:3](x).double()
    torch.testing.assert_close(found["2"].mean, h.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.std[:4], h.std(0, correction=0), rtol=1e-5, atol=1e-7)
    assert found.mean.shape == (8,)
    assert model.training


def test_moments_of_bytes_are_those_of_numbers_up_to_one():
    x = torch.randint(256, (10, 1, 2, 2), dtype=torch.uint8)
    model, sites = identity((1, 2, 2), 1)
    torch.testing.assert_close(unit_moments(model, x, sites).mean, (x / 255).double().mean().view(1))


def test_moments_of_a_reused_module_in_a_residual_network():
    torch.manual_seed(0)
    residual = resnet18(num_classes=5)
    x = torch.randn(4, 3, 32, 32)
    sites = find_sites(residual, (3, 32, 32))[["relu", "layer1.0.relu[1]"]]
    found = unit_moments(residual, x, sites, batch_size=4)
    with torch.no_grad(), evaluating(residual), capture(residual, sites) as activations:
        residual(x)
    for name in sites.names:
        mean = activations[name].double().mean((0, 2, 3))
        torch.testing.assert_close(found[name].mean, mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_named(bad):
    model = mlp()
    sites = find_sites(model, (1, 2, 2))
    with torch.no_grad():
        model.fc2.bias[2] = bad
    with pytest.raises(
        ValueError, match=r"site 'relu2'.*1 of its 4 units \(the first is number 2\) is NaN or infinite"
    ):
        unit_moments(model, torch.rand(5, 1, 2, 2), sites, batch_size=2)
    assert hooks(model) == 0


def test_moments_need_samples():
    model, sites = identity((3,), 3)
    with pytest.raises(ValueError, match="at least one sample"):
        unit_moments(model, torch.empty(0, 3), sites)
    with pytest.raises(ValueError, match="batch_size"):
        unit_moments(model, torch.ones(2, 3), sites, batch_size=0)


def test_moments_of_another_networks_sites_are_refused():
    sites, x = find_sites(mlp(), (1, 2, 2)), torch.rand(5, 1, 2, 2)
    with pytest.raises(ValueError, match=r"site 'relu1': expected activations of shape \(4,\), here they are \(3,\)"):
        unit_moments(mlp(3), x, sites)
    with pytest.raises(ValueError, match=r"site 'relu1\[1\]': Sequential does not run it"):
        unit_moments(mlp(), x, Sites([Site("relu1[1]", "relu1", 1, (4,))]))
    with pytest.raises(ValueError, match=r"does not take inputs of shape \(1, 1, 3, 2\)"):
        unit_moments(mlp(), torch.rand(5, 1, 3, 2), sites)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moments_on_a_gpu_are_those_on_the_cpu():
    model = mlp()
    x = torch.rand(100, 1, 2, 2)
    sites = find_sites(model, (1, 2, 2))
    cpu = unit_moments(model, x, sites)
    gpu = unit_moments(model.cuda(), x, find_sites(model, (1, 2, 2)))
    assert gpu.mean.is_cuda
    torch.testing.assert_close(gpu.std.cpu(), cpu.std, rtol=1e-5, atol=1e-7)
