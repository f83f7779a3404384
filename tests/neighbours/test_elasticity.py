"""Local elasticity: similarities against closed forms of linear and wide networks, and against plain slow steps."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nadkit.architectures import MLP, LeNet, LogReg
from nadkit.neighbours import elasticity
from nadkit.neighbours.elasticity import elasticity_along, single_steps, tangent_kernel
from nadkit.neighbours.kernels import normalised, symmetrised

N, SHAPE = 6, (1, 2, 3)
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(N, *SHAPE, generator=DRAW, dtype=torch.float64)
Y = torch.tensor([1, 0, 1, 1, 0, 0])
INNER = X.flatten(1) @ X.flatten(1).T + 1  # a bias is one more input that is always 1


def mlp(classes=2, seed=0, **options):
    torch.manual_seed(seed)
    return MLP(SHAPE, classes, **{"width": 7, "depth": 2, **options}).double()


def linear(classes):
    torch.manual_seed(0)
    return LogReg(SHAPE, classes).double()


class Functional(nn.Module):
    """A network whose ReLU is a function that works in place, with batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(F.dropout(torch.relu_(self.norm(self.first(x.flatten(1)))), training=self.training))


def network(kind):
    torch.manual_seed(1)
    made = {"one logit": lambda: mlp(1), "two logits": mlp, "functional": Functional}
    return made[kind]().double()


# ---- closed forms ----


@pytest.mark.parametrize(("classes", "factor"), [(1, 1), (2, 2)])
@pytest.mark.parametrize("rate", [None, 1e-3, 0.5])
def test_similarities_of_a_linear_network_are_inner_products_at_any_rate(classes, factor, rate):
    steps = single_steps(linear(classes), X, Y, rate=rate)
    assert torch.allclose(steps.relative, INNER.abs() / INNER.diagonal()[:, None], rtol=1e-6)
    assert torch.allclose(steps.kernel, factor * INNER, rtol=1e-6, atol=1e-8)
    assert torch.allclose(tangent_kernel(linear(classes), X), factor * INNER)


@pytest.mark.parametrize("layer", ["first", "last"])
def test_a_wide_relu_network_has_the_kernel_of_its_limit(layer):
    """With a the angle between x and x': (sin a + (pi - a) cos a) and (pi - a) cos a, times |x||x'| / (2 pi)."""
    width = 20_000
    wide = nn.Sequential(nn.Flatten(), nn.Linear(6, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))
    for number, weights in enumerate(wide.parameters()):
        nn.init.normal_(weights, generator=torch.Generator().manual_seed(number))
        weights.requires_grad_(layer == ("first", "last")[number])
    kernel = tangent_kernel(wide.double(), X) / width
    size = X.flatten(1).norm(dim=1)
    a = torch.acos((X.flatten(1) @ X.flatten(1).T / size / size[:, None]).clamp(-1, 1))
    angular = (math.pi - a) * torch.cos(a) + (torch.sin(a) if layer == "last" else 0)
    limit = size * size[:, None] * angular / (2 * math.pi)
    assert torch.allclose(kernel, limit, atol=0.04 * limit.max().item())


@pytest.mark.parametrize("loss", ["square", "cross-entropy"])
@pytest.mark.parametrize("kind", ["one logit", "two logits", "functional"])
def test_small_steps_give_the_tangent_kernel_the_closer_the_smaller(kind, loss):
    model = network(kind)
    kernel = tangent_kernel(model, X, loss=loss)
    off = [
        ((single_steps(model, X, Y, rate=rate, loss=loss).kernel - kernel).abs().max() / kernel.abs().max()).item()
        for rate in (1e-4, 1e-5, 1e-6)
    ]
    assert off[2] < 1e-4
    # the error is of first order in the rate
    assert off[0] / off[1] == pytest.approx(10, rel=0.2)


def test_elasticity_along_directions_of_a_linear_network():
    x, directions = X[0], torch.randn(4, 6, generator=DRAW, dtype=torch.float64)
    one = torch.cat([x.flatten(), torch.ones(1, dtype=torch.float64)])
    for scale in (0.0, 1e-4, 3.0):
        other = torch.cat([x.flatten() + scale * directions, torch.ones(4, 1, dtype=torch.float64)], 1)
        expected = 1 - F.cosine_similarity(one[None], other)
        found = elasticity_along(linear(2), x, directions, scale)
        assert torch.allclose(found, expected, atol=1e-12)


def test_elasticity_is_the_off_diagonal_of_the_normalised_kernel():
    model, directions = mlp(), torch.eye(6, dtype=torch.float64)
    points = torch.cat([X[:1], X[0] + 2 * directions.view(-1, *SHAPE)])
    expected = 1 - normalised(tangent_kernel(model, points))[0, 1:]
    assert torch.allclose(elasticity_along(model, X[0], directions, 2.0), expected, atol=1e-12)


def test_of_the_last_layer_alone_it_is_the_covariance_of_input_gradients():
    """v^T C v, C over all readouts alike, is the squared change of the features, known to the last layer's kernel."""
    body, v, t = mlp(5)[:-1], torch.randn(6, generator=DRAW, dtype=torch.float64), 1e-5
    jacobian = torch.func.jacrev(lambda z: body(z[None])[0])(X[0]).flatten(1)
    readout = nn.Linear(7, 1, bias=False).double()
    covariance = torch.zeros(6, 6, dtype=torch.float64)
    for unit in torch.eye(7, dtype=torch.float64):
        with torch.no_grad():
            readout.weight.copy_(unit[None])
        g = torch.func.grad(lambda z: readout(body(z[None])).squeeze())(X[0]).flatten()
        covariance += g.outer(g)
    assert torch.allclose(covariance, jacobian.T @ jacobian)
    whole = nn.Sequential(body.requires_grad_(False), readout)
    k = tangent_kernel(whole, torch.stack([X[0], X[0] + t * v.view(SHAPE)]))
    assert (k[0, 0] + k[1, 1] - 2 * k[0, 1]).item() / t**2 == pytest.approx((v @ covariance @ v).item(), rel=1e-3)


def test_up_to_the_critical_rate_descent_is_stable_and_beyond_it_is_not():
    data = X.flatten(1)
    kernel = data @ data.T
    rate = elasticity.critical_rate(kernel)
    assert rate == pytest.approx(N / torch.linalg.eigvalsh(kernel)[-1].item())
    for factor, grows in ((0.98, False), (1.02, True)):
        w, losses = torch.zeros(6, dtype=torch.float64), []
        for _ in range(500):
            error = data @ w - Y
            losses.append(error.square().mean().item())
            w -= factor * rate * 2 / N * data.T @ error
        assert (losses[-1] > losses[0]) == grows


# ---- a slow oracle, and invariances ----


@pytest.mark.parametrize("loss", ["square", "cross-entropy"])
@pytest.mark.parametrize("kind", ["one logit", "two logits", "functional"])
def test_steps_are_those_of_a_copy_that_is_really_trained(kind, loss):
    model, rate = network(kind), 0.01

    def f(trained):
        z = trained.eval()(X)
        z = z[:, -1] - z[:, 0] if z.shape[1] == 2 else z[:, 0]
        return z if loss == "square" else torch.sigmoid(z)

    steps = single_steps(model, X, Y, rate=rate, loss=loss)
    for i in range(N):
        trained = copy.deepcopy(model)
        optimizer = torch.optim.SGD(trained.parameters(), lr=rate)
        answer = f(trained)
        target = 2.0 * Y[i] - 1 if loss == "square" else Y[i].double()
        taken = nn.MSELoss() if loss == "square" else nn.BCELoss()
        taken(answer[i], target.double()).backward()
        optimizer.step()
        change = (f(trained) - answer).detach()
        p, y = answer[i].item(), Y[i].item()
        slope = 2 * (p - (2 * y - 1)) if loss == "square" else (p - y) / (p * (1 - p))
        assert torch.allclose(steps.change[i], change, rtol=1e-8, atol=1e-12)
        assert torch.allclose(steps.relative[i], (change / change[i]).abs(), rtol=1e-8)
        assert torch.allclose(steps.kernel[i], change / (-rate * slope), rtol=1e-8)


def test_neither_the_order_of_the_points_nor_the_memory_matters():
    model, order = mlp(), torch.tensor([3, 0, 5, 1, 4, 2])
    steps, other = single_steps(model, X, Y), single_steps(model, X[order], Y[order])
    assert torch.allclose(other.relative, steps.relative[order][:, order])
    kernel = tangent_kernel(model, X)
    for memory in (1, 500, 1000):
        assert torch.allclose(tangent_kernel(model, X, memory=memory), kernel, rtol=1e-12, atol=1e-14)
    assert torch.equal(kernel, kernel.T)
    assert torch.allclose(symmetrised(steps.relative), symmetrised(steps.relative.T))


def test_the_network_is_left_as_it_was():
    model = network("functional").train()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():  # the gradients that are needed are taken all the same
        single_steps(model, X, Y)
        tangent_kernel(model, X)
        elasticity_along(model, X[0], torch.eye(6, dtype=torch.float64))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Shifted(nn.Module):
    """A network that first subtracts 0.5 from its inputs, in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.rest = in_place, mlp()

    def forward(self, x):
        return self.rest(x.sub_(0.5) if self.in_place else x - 0.5)


def test_a_network_that_begins_in_place_changes_no_inputs():
    works, plain, before = Shifted(True), Shifted(False), X.clone()
    for measure in (
        lambda model: single_steps(model, X, Y).change,
        lambda model: tangent_kernel(model, X),
        lambda model: elasticity_along(model, X[0], torch.eye(6, dtype=torch.float64)),
    ):
        assert torch.equal(measure(works), measure(plain))
        assert torch.equal(X, before)


def test_convolutions_and_images_of_whole_numbers():
    torch.manual_seed(0)
    model = LeNet((1, 16, 16), 1, "average").double()
    images = torch.randint(256, (3, 1, 16, 16), generator=DRAW).byte()
    steps = single_steps(model, images, Y[:3])
    kernel = tangent_kernel(model, images)
    assert torch.allclose(steps.kernel, kernel, rtol=1e-4)
    assert torch.allclose(kernel, tangent_kernel(model, images.double() / 255), rtol=1e-6)


def test_weights_that_are_frozen_take_no_step():
    model = mlp()
    model.fc1.requires_grad_(False)
    frozen = tangent_kernel(model, X)
    model.fc1.requires_grad_(True)
    assert (frozen.diagonal() < tangent_kernel(model, X).diagonal()).all()


def test_a_rate_is_searched_for_where_the_first_changes_nothing_that_is_seen():
    model = mlp()
    with torch.no_grad():
        model.out.bias[1] += 1e9  # of which a small change is rounding
    steps = single_steps(model, X, Y)
    assert (steps.rate >= 1e-6).all()
    faint = mlp()
    with torch.no_grad():
        for p in faint.parameters():
            p *= 1e-6
    steps = single_steps(faint.float(), X, Y)
    assert (steps.rate > 1e-6).all()
    ratio = torch.log(steps.rate / 1e-6) / math.log(3)
    assert torch.allclose(ratio, ratio.round(), atol=1e-6)


def test_square_loss_is_that_of_the_difference_and_gives_the_logits():
    model = mlp()
    loss, logits = elasticity.square_loss(model, X, Y, 0)
    assert torch.equal(logits, model(X))
    by_hand = sum((z[1] - z[0] - (1 if y else -1)) ** 2 for z, y in zip(logits, Y, strict=True)) / N
    assert loss.item() == pytest.approx(by_hand.item())


# ---- what is refused ----


def fitted():
    model = mlp()
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.copy_(torch.tensor([0.0, 1.0]))
    return model


def dead():
    model = mlp(1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    model.out.bias.requires_grad_(False)
    return model


def sure():
    model = mlp()
    with torch.no_grad():
        model.out.bias[1] += 100
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: single_steps(mlp(), X, Y, rate=1e-25), "rate: a step of 1e-25 changes nothing at point 0"),
        (lambda: single_steps(mlp().float(), X, Y, rate=1e-9), r"rate: a step of 1e-09 .* model\.double\(\)"),
        (lambda: single_steps(mlp(), X, Y, rate=0.0), "rate: expected a positive finite number, got 0.0"),
        (lambda: single_steps(fitted(), X, Y), r"x: no step changes the answer at point 0 \(dL/df = 0, .*fitted"),
        (lambda: single_steps(dead(), X, Y), r"x: no step changes the answer at point 0 .*, \|grad f\| = 0.*dead"),
        (lambda: single_steps(sure(), X, Y, loss="cross-entropy"), "x: the network is so sure of point 0"),
        (lambda: single_steps(mlp(10), X, Y), r"model: expected one logit, or two .* shape \(1, 10\); wrap"),
        (lambda: single_steps(mlp().requires_grad_(False), X, Y), "model: expected a network with weights to train"),
        (lambda: single_steps(mlp(), X, Y + 1), "y: expected 0 to 1 for 2 classes, got 1 to 2"),
        (lambda: single_steps(mlp(), X, Y[1:]), "x and y: expected one label an input, got 6 inputs and 5 labels"),
        (lambda: single_steps(mlp(), X[..., :2], Y), r"the network does not take inputs of shape \(1, 1, 2, 2\)"),
        (lambda: elasticity_along(mlp(), X[0], torch.eye(5)), r"directions: expected rows of 6 numbers, got \(5, 5\)"),
        (lambda: elasticity_along(dead(), X[0], torch.eye(6)), "x: the network has no gradient in its weights there"),
        (lambda: elasticity.critical_rate(-INNER), "kernel: expected a positive eigenvalue"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
