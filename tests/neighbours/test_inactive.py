"""Networks without activations against their matrices."""

import functools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nadkit import architectures, seeds, training
from nadkit.data import synthetic
from nadkit.neighbours.inactive import without_activations

SHAPE = (1, 8, 8)


def seeded(factory, **options):
    with seeds.seeded(0):
        return factory(**options).eval()


def test_a_network_without_its_activations_is_the_product_of_its_matrices():
    factory = functools.partial(architectures.MLP, width=6)
    with_relu, without = (seeded(f, shape=SHAPE, classes=3) for f in (factory, without_activations(factory)))
    torch.testing.assert_close(without.network.state_dict(), with_relu.state_dict(), rtol=0, atol=0)
    x = torch.randn(4, *SHAPE)
    expected = with_relu.out(with_relu.fc2(with_relu.fc1(x.flatten(1))))
    torch.testing.assert_close(without(x), expected)
    assert not torch.allclose(with_relu(x), expected)


@pytest.mark.parametrize(
    "relu",
    [nn.ReLU(), nn.ReLU(inplace=True), F.gelu, torch.relu, torch.relu_, lambda x: x.relu_(), lambda x: F.relu(input=x)],
)
def test_modules_functions_and_methods_are_left_out(relu):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.relu, self.two = nn.Linear(64, 5), relu, nn.Linear(5, 3)

        def forward(self, x):
            return self.two(self.relu(self.one(x.flatten(1))))

    model = without_activations(lambda shape, classes: Network())(SHAPE, 3)
    x = torch.randn(4, *SHAPE)
    torch.testing.assert_close(model(x), model.network.two(model.network.one(x.flatten(1))))


def test_without_activations_is_picklable_named_and_trained_like_any_other():
    factory = without_activations("mlp128")
    assert architectures.name_of(pickle.loads(pickle.dumps(factory))) == "mlp128 without activations"
    problem = synthetic.Separable(v=torch.ones(16), shape=(1, 4, 4), n_train=32, n_test=8)
    recipe = training.Recipe(epochs=1, batch_size=16)
    loop, together = (
        training.fit_networks(factory, [problem] * 4, recipe, strategy=strategy, device="cpu")
        for strategy in ("loop", "vmap")
    )
    for one, other in zip(loop, together, strict=True):
        torch.testing.assert_close(one.weights[1], other.weights[1], rtol=1e-3, atol=1e-5)


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match="unknown architecture 'lenett'; did you mean 'lenet'"):
        without_activations("lenett")
