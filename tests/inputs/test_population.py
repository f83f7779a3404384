"""Populations: each network known by its seed and number; batch statistics."""

import pickle

import pytest
import torch
from small_networks import SHAPE, network, point, slow_secant, tanh_network
from torch import nn

from nadkit import architectures, seeds
from nadkit.identity import differences
from nadkit.inputs.covariance import gradient_covariance
from nadkit.inputs.population import Population, with_batch_statistics


def test_a_network_depends_on_its_number_and_the_seed_alone():
    population = Population(tanh_network, SHAPE)
    one, again, other = population.network(3), population.network(3), population.network(4)
    of_seed_1 = Population(tanh_network, SHAPE, seed=1).network(3)
    assert not one.training
    assert torch.equal(one[1].weight, again[1].weight)
    assert torch.equal(one[1].weight, network(3)[1].weight)
    for differing in (other, of_seed_1):
        assert not torch.equal(one[1].weight, differing[1].weight)


def test_derivatives_are_taken_at_the_point():
    x = torch.ones(SHAPE)
    for method, expected in (
        ("secant", slow_secant(network(2), x, 0.5)),
        ("gradient", slow_secant(network(2), x, 1e-4)),
    ):
        population = Population(tanh_network, SHAPE, method=method, scale=0.5, x=x)
        found = population.derivative(population.network(2))
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_point_is_drawn_from_the_seed_and_zero_for_mixed_derivatives():
    assert torch.equal(Population("lenet", SHAPE, seed=2).x, point(2))
    assert torch.equal(Population("lenet", SHAPE, "mixed").x, torch.zeros(SHAPE))


def test_a_population_is_an_architecture_with_its_options():
    population = Population(tanh_network, SHAPE, "gradient", seed=3)
    options = {"networks": range(4), "device": "cpu"}
    given = gradient_covariance(population, **options)
    spelled_out = gradient_covariance(tanh_network, shape=SHAPE, method="gradient", seed=3, **options)
    assert given.settings == spelled_out.settings == population.settings()
    assert torch.equal(given.second, spelled_out.second)
    with pytest.raises(TypeError, match="its own seed"):
        gradient_covariance(population, seed=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sede'"):
        gradient_covariance("lenet", sede=4)


def test_a_mixed_derivative_is_a_moment():
    population = Population(tanh_network, SHAPE, "mixed")
    moment = population.derivative(population.network(0))
    assert moment.shape == (16, 16)
    assert torch.equal(gradient_covariance(population, networks=range(1), device="cpu").second, moment.double())


def normed(shape, classes):
    """Two convolutions with batch norm, dropout between them."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3),
        nn.BatchNorm2d(3, momentum=0.2),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(3, 4, 2),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, classes),
    )


def test_batch_statistics_normalise_a_batch_in_eval_mode():
    factory = with_batch_statistics(normed, batch=500)
    with seeds.seeded(0):
        model = factory(SHAPE, 1).eval()
    x = torch.randn(500, *SHAPE, generator=seeds.generator(0, "batch statistics"))
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.BatchNorm2d):
            # not exactly: training divides by n where the statistics have n - 1
            torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), rtol=0, atol=2e-3)
            torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(x.shape[1]), rtol=0, atol=2e-3)
            assert module.momentum == {"1": 0.2, "5": 0.1}[name]


def test_batch_statistics_leave_weights_modes_and_generators_alone():
    with seeds.seeded(3):
        plain, after = normed(SHAPE, 1), torch.rand(1)
    with seeds.seeded(3):
        model, after_too = with_batch_statistics(normed)(SHAPE, 1), torch.rand(1)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(after, after_too)
    assert all(m.training for m in model.modules())
    assert not torch.equal(model[1].running_mean, plain[1].running_mean)


def test_batch_statistics_depend_on_their_batch():
    def statistics(**options):
        with seeds.seeded(3):
            return with_batch_statistics(normed, **options)(SHAPE, 1)[1].running_mean

    assert torch.equal(statistics(), statistics(batch=128, seed=0))
    assert not torch.equal(statistics(), statistics(seed=1))
    assert not torch.equal(statistics(), statistics(batch=64))


def test_batch_statistics_change_the_nads_and_travel(two_processes, small_parts):
    factory = with_batch_statistics(normed, batch=8)
    options = {"shape": SHAPE, "networks": range(3), "method": "gradient", "device": "cpu"}
    there = gradient_covariance(factory, executor=two_processes, **options)
    here, plain = gradient_covariance(factory, **options), gradient_covariance(normed, **options)
    assert differences(here.settings, there.settings) == ""
    torch.testing.assert_close(there.second, here.second, rtol=1e-4, atol=1e-6 * here.second.abs().max().item())
    assert here.settings["networks"] == plain.settings["networks"]  # weights: statistics vary with the threads
    assert not torch.allclose(here.second, plain.second, rtol=0.1)
    assert isinstance(pickle.loads(pickle.dumps(factory))(shape=SHAPE, classes=1), nn.Module)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet121"])
def test_every_network_with_batch_norms_takes_batch_statistics(name):
    with seeds.seeded(0):
        model = with_batch_statistics(name, batch=4)((1, 32, 32), 1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms)
    assert architectures.n_logits(model, (1, 32, 32)) == 1


def test_batch_statistics_have_a_name():
    assert architectures.name_of(with_batch_statistics("resnet18")) == "resnet18 (norms of a batch of 128)"
    assert architectures.name_of(with_batch_statistics(normed, batch=9, seed=2)) == (
        "normed (norms of a batch of 9, seed 2)"
    )


def test_batch_statistics_that_cannot_be_are_explained():
    with pytest.raises(ValueError, match="'lenet': it has no batch norm"):
        gradient_covariance(with_batch_statistics("lenet"), networks=range(1), device="cpu")
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        with_batch_statistics("resnet19")
    with pytest.raises(ValueError, match="batch: expected an integer, at least 2"):
        with_batch_statistics("resnet18", batch=1)
    with pytest.raises(ValueError, match="seed"):
        with_batch_statistics("resnet18", seed=-1)
