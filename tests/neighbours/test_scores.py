"""Scores without training: NASWOT's kernel by brute force in float64, closed forms, what they leave as it is."""

import functools
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nadkit import architectures
from nadkit.inputs.covariance import gradient_covariance
from nadkit.inputs.fourier import fourier_direction
from nadkit.inputs.population import Population
from nadkit.neighbours import kernels, scores
from nadkit.neighbours.cells import CellNetwork, cell_of, random_cells
from nadkit.seeds import seeded

SHAPE = (1, 6, 6)


def cell_network(cell, seed=0):
    factory = functools.partial(CellNetwork, cell=cell, channels=3, cells=1, stages=2)
    with seeded(seed, "network"):
        return architectures.build(factory, shape=SHAPE, classes=4)


class Functional(nn.Module):
    """ReLUs as functions, in place, as modules used twice, and as another kind."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.again = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.relu, self.relu6, self.drop = nn.ReLU(inplace=True), nn.ReLU6(), nn.Dropout(0.5)
        self.out = nn.Linear(48, 4)
        self.inputs = []

    def note(self, x):
        self.inputs.append(x.detach().clone())
        return x

    def forward(self, x):
        self.inputs.clear()
        x = F.relu(self.note(self.norm(self.conv(x))))
        x = self.relu(self.note(self.again(x) - 0.1))
        x = torch.relu_(self.note(self.drop(x - 0.2)))
        x = F.leaky_relu(self.note(x - 0.3))
        x = self.relu6(self.note(self.relu(self.note(x))))
        return self.out(F.gelu(x.flatten(1)))


def by_hand(inputs):
    """Return the kernel, one pair of images and one unit after the other, in float64."""
    codes = torch.cat([(x > 0).flatten(1) for x in inputs], dim=1).double()
    b, n = codes.shape
    kernel = torch.zeros(b, b, dtype=torch.float64)
    for i, j in itertools.product(range(b), repeat=2):
        for a in range(n):
            kernel[i, j] += codes[i, a] * codes[j, a] + (1 - codes[i, a]) * (1 - codes[j, a])
    return kernel


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Functional()


X = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
Y = torch.arange(5) % 4


# ---- NASWOT


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_the_kernel_is_that_by_brute_force(network, batch_statistics):
    found = scores.code_kernel(network, X, batch_statistics=batch_statistics)
    assert len(network.inputs) == 6
    expected = by_hand(network.inputs)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float64
    assert (found.diagonal() == 6 * 48).all()
    sign, log = np.linalg.slogdet(expected.numpy())
    assert sign == 1
    assert scores.naswot(network, X, batch_statistics=batch_statistics) == pytest.approx(log, rel=1e-9)


def test_the_kernel_of_modules_is_that_of_the_authors_formula():
    """With hooks on modules, as their code has them, in train mode."""
    network, codes = cell_network(random_cells(1, seed=5)[0]).train(), []
    relus = [m for m in network.modules() if isinstance(m, nn.ReLU)]
    for module in relus:
        module.register_forward_hook(lambda _m, inputs, _out: codes.append((inputs[0] > 0).flatten(1).double()))
    with torch.no_grad():
        network(X)
    expected = sum(x @ x.T + (1 - x) @ (1 - x).T for x in codes)
    assert len(codes) == len(relus) > 3
    assert torch.equal(scores.code_kernel(network, X), expected)


def test_a_kernel_worked_out_on_paper():
    """Codes 11, 10, 00 and 01: K_ij = 2 - Hamming, a circulant with eigenvalues 4, 2, 2 and 0."""
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 2))
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    found = scores.code_kernel(network, x)
    assert found.tolist() == [[2, 1, 0, 1], [1, 2, 1, 0], [0, 1, 2, 1], [1, 0, 1, 2]]
    assert kernels.log_determinant(found) == -math.inf
    assert scores.naswot(network, x[:3]) == pytest.approx(math.log(4))
    assert scores.naswot(network, x[:3], normalised=True) == pytest.approx(math.log(4 / 8))


def test_normalising_takes_the_number_of_units_away(network):
    raw, normalised = (scores.naswot(network, X, normalised=n) for n in (False, True))
    assert normalised == pytest.approx(raw - len(X) * math.log(6 * 48))
    twice = 2 * scores.code_kernel(network, X)  # each unit counted twice
    assert kernels.log_determinant(kernels.normalised(twice)) == pytest.approx(normalised)


def test_order_and_size_of_the_batch(network):
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = scores.code_kernel(network, X)
    torch.testing.assert_close(scores.code_kernel(network, X[order]), whole[order][:, order])
    assert scores.naswot(network, X[order]) == pytest.approx(scores.naswot(network, X))
    # in eval mode an image's code does not depend on the others
    alone = scores.code_kernel(network, X, batch_statistics=False)
    assert torch.equal(scores.code_kernel(network, X[:3], batch_statistics=False), alone[:3, :3])


def test_large_activations_are_counted_in_parts(network, monkeypatch):
    expected = scores.code_kernel(network, X)
    monkeypatch.setattr(scores, "CHUNK", 7)
    assert torch.equal(scores.code_kernel(network, X), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_precisions_and_bytes_work(network, dtype):
    found = scores.code_kernel(network.to(dtype), X)
    assert (found.diagonal() == 6 * 48).all()
    assert (scores.code_kernel(network, (255 * X.abs().clamp(max=1)).byte()).diagonal() == 6 * 48).all()


@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_network_is_changed(network, training):
    network.train(training)
    network.drop.eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    random = torch.get_rng_state()
    first = scores.naswot(network, X), scores.gradient_norm(network, (X, Y)), scores.synflow(network, SHAPE)
    again = scores.naswot(network, X), scores.gradient_norm(network, (X, Y)), scores.synflow(network, SHAPE)
    assert first == again  # dropout is off
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert [m.training for m in (network, network.norm, network.drop)] == [training, training, False]
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_identical_images_are_explained(network):
    x = X[[0, 1, 2, 1]]
    with pytest.warns(RuntimeWarning, match="score is -inf: images 1 and 3 have one code at all 288 units.*identical"):
        assert scores.naswot(network, x) == -math.inf
    with pytest.warns(RuntimeWarning, match="images 0 and 3, and 2 more pairs have one code"):
        scores.naswot(network, X[[0, 1, 2, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.log_determinant(scores.code_kernel(network, x)) == -math.inf  # says nothing


def test_a_network_that_lets_nothing_through_is_explained():
    network = cell_network(cell_of(["none"] * 6))
    with pytest.warns(RuntimeWarning, match="images 0 and 1, and 9 more pairs have one code.*lets nothing through"):
        assert scores.naswot(network, X) == -math.inf


def test_too_few_units_are_explained():
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(2, 2))
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
    with pytest.warns(
        RuntimeWarning, match="codes of 4 images at 2 units are linearly dependent; take a smaller batch"
    ):
        assert scores.naswot(network, x) == -math.inf


class PositionsFirst(nn.Module):
    def forward(self, x):
        return torch.relu(x.flatten(1).T).T


class WithBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 36))

    def forward(self, x):
        return torch.relu(x.flatten(1) + torch.relu(self.bias))


def test_activations_that_are_not_of_inputs_are_left_out():
    assert scores.code_kernel(WithBias(), X)[0, 0] == 36


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(36, 2), nn.GELU(), nn.Tanh()),
            X,
            "with ReLUs, .* Sequential has GELU, Tanh",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), X, "with ReLUs, .* Sequential has no activations"),
        (nn.Sequential(PositionsFirst()), X, r"5 inputs on the first axis, at '0.relu' they have shape \(36, 5\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2), nn.ReLU()), X, r"does not take inputs of shape \(5, 1, 6, 6\)"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), X[:1], "x: expected a batch of at least two inputs, got 1"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), X * torch.nan, "x: expected finite numbers"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), X.long(), "x: expected inputs in uint8"),
    ],
)
def test_what_has_no_score_is_refused(model, x, message):
    for score in (scores.naswot, scores.code_kernel):
        with pytest.raises(ValueError, match=message):
            score(model, x)


# ---- other scores


def test_the_gradient_norm_is_that_of_backward(network):
    network.eval()
    found = scores.gradient_norm(network, (X, Y), batch_statistics=False)
    F.cross_entropy(network(X), Y).backward()
    matrices = [p for p in network.parameters() if p.ndim > 1]
    assert len(matrices) == 3
    assert found == pytest.approx(sum(p.grad.norm().item() for p in matrices), rel=1e-6)


def test_the_gradient_norm_of_a_linear_layer():
    """dL / dW = sum_n (p_n - e_n) x_n^T / B, and with W = 0 all p are 1/2."""
    layer = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    nn.init.zeros_(layer[1].weight)
    nn.init.zeros_(layer[1].bias)
    x, y = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0, 1])
    assert scores.gradient_norm(layer, (x, y)) == pytest.approx(math.sqrt(2) * 0.5 * 5 / 2)
    frozen = layer.requires_grad_(False)
    assert scores.gradient_norm(frozen, (x, y)) == pytest.approx(math.sqrt(2) * 0.5 * 5 / 2)


def test_gradient_norm_refuses_what_it_cannot_take(network):
    with pytest.raises(ValueError, match="labels: expected 0 to 3 for 4 logits, got 0 to 4"):
        scores.gradient_norm(network, (X, torch.arange(5)))
    with pytest.raises(ValueError, match="data: expected a batch of at least two inputs, got 1"):
        scores.gradient_norm(network, (X[:1], Y[:1]))
    with pytest.raises(ValueError, match="expected a network with weights"):
        scores.gradient_norm(nn.Flatten(), (X, Y))


def test_the_synaptic_flow_of_a_chain_is_its_depth_times_the_product_of_its_weights():
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 4, bias=False),
        nn.ReLU(),
        nn.Linear(4, 3, bias=False),
    ]
    first, second, third = (layers[i].weight.detach().double().abs() for i in (0, 2, 4))
    expected = 3 * (third @ second @ first).sum().item()
    assert scores.synflow(nn.Sequential(nn.Flatten(), *layers), (1, 2, 3)) == pytest.approx(expected, rel=1e-12)
    normed = [layers[0], nn.BatchNorm1d(5, affine=True), *layers[1:]]
    nn.init.constant_(normed[1].weight, 7.0)
    assert scores.synflow(nn.Sequential(nn.Flatten(), *normed), (1, 2, 3)) == pytest.approx(expected, rel=1e-12)


def test_synflow_is_the_sum_of_weights_times_finite_differences(network):
    """R of a network with biases, its derivative taken along each matrix, dR(W + t W) / dt."""

    def response(scaled=None, factor=1.0):
        copy = Functional().double().eval()
        weights = {n: p.detach().double().abs() * (factor if n == scaled else 1) for n, p in network.named_parameters()}
        copy.norm = nn.Identity()
        copy.load_state_dict({n: w for n, w in weights.items() if "norm" not in n})
        with torch.no_grad():
            return copy(torch.ones(1, *SHAPE).double()).sum().item()

    expected = 0.0
    for name, p in network.named_parameters():
        if p.ndim > 1:
            expected += (response(name, 1 + 1e-6) - response(name, 1 - 1e-6)) / 2e-6
    assert scores.synflow(network, SHAPE) == pytest.approx(expected, rel=1e-6)


def test_no_flow_is_zero():
    assert scores.synflow(cell_network(cell_of(["none"] * 6)), SHAPE) == 0
    with pytest.raises(ValueError, match="does not take inputs of shape"):
        scores.synflow(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), SHAPE)
    with pytest.raises(ValueError, match="expected a network with weights"):
        scores.synflow(nn.Flatten(), SHAPE)


# ---- energy and search


def test_the_energy_of_a_direction():
    c = torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert scores.energy(c, torch.tensor([2.0, 0, 0, 0])) == pytest.approx(3)
    assert scores.energy(c, torch.eye(4)) == pytest.approx(1)
    assert scores.energy(torch.eye(4), torch.randn(7, 1, 2, 2)) == pytest.approx(1)
    x = torch.randn(50, 4, dtype=torch.float64)
    expected = 4 * torch.trace(c.double() @ x.T @ x) / (4 * x.square().sum())
    assert scores.energy(c, x) == pytest.approx(expected.item())


def test_logistic_regression_prefers_no_wave():
    shape = (1, 4, 4)
    moments = gradient_covariance(Population("logreg", shape, "gradient"), networks=range(200), device="cpu")
    found = [scores.energy(moments.covariance(), fourier_direction(fx, 1, shape=shape)) for fx in range(3)]
    assert found == pytest.approx([1, 1, 1], abs=0.4)


@pytest.mark.parametrize(
    ("c", "x", "message"),
    [
        (torch.eye(4), torch.ones(3), "x: expected inputs of 4 numbers each"),
        (torch.eye(4), torch.ones(2, 8), "x: expected inputs of 4 numbers each"),
        (torch.ones(4, 3), torch.ones(4), "x: expected inputs of 4 numbers each"),
        (torch.zeros(4, 4), torch.ones(4), "not all zero"),
        (torch.eye(4), torch.zeros(4), "not all zero"),
    ],
)
def test_energies_of_nothing_are_refused(c, x, message):
    with pytest.raises(ValueError, match=message):
        scores.energy(c, x)


def test_the_best_of_many_among_very_many_is_a_number():
    values = np.linspace(0, 1, 15_625)
    mean, deviation = scores.best_of(values, values, 1000)
    # the largest of n of P numbers 0 to P - 1 is n (P + 1) / (n + 1) - 1 on average
    assert mean == pytest.approx((1000 * 15_626 / 1001 - 1) / 15_624)
    assert 0 < deviation < 0.002


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_best_of_n_is_that_over_all_subsets(n):
    order = [0.3, -math.inf, 2.0, 1.0, -1.0, 5.0, 0.0]
    values = [90.0, 10.0, 70.0, 95.0, 60.0, 80.0, 50.0]
    chosen = [values[max(subset, key=lambda i: order[i])] for subset in itertools.combinations(range(7), n)]
    mean, deviation = scores.best_of(order, values, n)
    assert (mean, deviation) == (pytest.approx(np.mean(chosen)), pytest.approx(np.std(chosen), abs=1e-9))


@pytest.mark.parametrize(
    ("order", "values", "n", "message"),
    [
        ([1.0, 2.0], [1.0], 1, "scores: expected a score"),
        ([], [], 1, "scores: expected a score"),
        ([1.0, math.nan], [1.0, 2.0], 1, "scores: expected numbers"),
        ([1.0, 2.0], [1.0, math.inf], 1, "scores: expected numbers"),
        ([1.0, 2.0], [1.0, 2.0], 3, "n: expected an integer from 1 to 2"),
    ],
)
def test_searches_of_nothing_are_refused(order, values, n, message):
    with pytest.raises(ValueError, match=message):
        scores.best_of(order, values, n)
