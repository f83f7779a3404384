"""Polynomial networks against brute-force expansions, their degree, and the second moment of their gradients."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from nadkit import architectures, seeds
from nadkit.inputs.covariance import gradient_covariance
from nadkit.inputs.derivatives import gradient, secant
from nadkit.inputs.population import Population
from nadkit.neighbours.inactive import without_activations
from nadkit.neighbours.polynomial import (
    CCP,
    MOST,
    NCP,
    TOLERANCE,
    ConvCCP,
    PiNet,
    PolynomialNet,
    degree_of,
    expected_moment,
    finite_differences,
)

KINDS = ("CCP", "NCP", "NCP-skip")
SHAPE = (1, 8, 8)


def seeded(factory, *args, seed=0, **options):
    with seeds.seeded(seed):
        return factory(*args, **options).eval()


def draws(*size, seed=0):
    return torch.randn(*size, generator=seeds.generator(seed, "draws"), dtype=torch.float64)


def net(shape=SHAPE, classes=3, seed=0, **options):
    return seeded(PolynomialNet, shape, classes, seed=seed, **options)


def pinet(shape=SHAPE, classes=3, seed=0, **options):
    return seeded(PiNet, shape, classes, seed=seed, **{"width": 4, "scale": 1.0, **options})


class Power(nn.Module):
    """The sum of the inputs to some power, two logits."""

    def __init__(self, degree):
        super().__init__()
        self.degree, self.weight = degree, nn.Parameter(torch.tensor([1e-6, 3.0]))

    def forward(self, x):
        return self.weight * x.flatten(1).sum(1, keepdim=True) ** self.degree


# ---- the networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_ccp_is_the_sum_of_all_products_of_the_first_map_with_others(degree):
    model, z = seeded(CCP, 4, 3, degree=degree).double(), draws(6, 4)
    maps = [u(z) for u in model.maps]
    subsets = (s for n in range(degree) for s in itertools.combinations(maps[1:], n))
    torch.testing.assert_close(model(z), sum(math.prod(s, start=maps[0]) for s in subsets))


def test_ccp_against_its_coefficients_one_by_one():
    """The coefficient of z_i z_j z_k is the product of three weights: no layer is called."""
    model, z = seeded(CCP, 3, 2, degree=3).double(), draws(3)
    u = [layer.weight.tolist() for layer in model.maps]
    expected = []
    for unit in range(2):
        total = 0.0
        for others in ((), (1,), (2,), (1, 2)):
            chosen = (0, *others)
            for index in itertools.product(range(3), repeat=len(chosen)):
                total += math.prod(u[n][unit][i] * z[i].item() for n, i in zip(chosen, index, strict=True))
        expected.append(total)
    torch.testing.assert_close(model(z[None]).squeeze(0), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("skip", [False, True])
def test_ncp_against_loops_over_its_units(skip):
    model, z = seeded(NCP, 3, 2, degree=3, skip=skip).double(), draws(3).tolist()
    a = [layer.weight.tolist() for layer in model.maps]
    s = [layer.weight.tolist() for layer in model.mixes]
    b = [layer.bias.tolist() for layer in model.mixes]
    x = [sum(a[0][k][i] * z[i] for i in range(3)) for k in range(2)]
    for n in (1, 2):
        inner = [sum(s[n - 1][k][j] * x[j] for j in range(2)) + b[n - 1][k] for k in range(2)]
        outer = [sum(a[n][k][i] * z[i] for i in range(3)) * inner[k] for k in range(2)]
        x = [outer[k] + skip * x[k] for k in range(2)]
    found = model(torch.tensor([z], dtype=torch.float64)).squeeze(0)
    torch.testing.assert_close(found, torch.tensor(x, dtype=torch.float64))


def test_ncp_without_a_mix_is_the_product_of_its_maps():
    model, z = seeded(NCP, 4, 3, degree=4).double(), draws(5, 4)
    for mix in model.mixes:
        nn.init.eye_(mix.weight)
        nn.init.zeros_(mix.bias)
    torch.testing.assert_close(model(z), math.prod(a(z) for a in model.maps))


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_polynomials_feed_one_into_the_next(kind):
    model = net(kind=kind, degree=[2, 3], width=5).double()
    x = draws(4, *SHAPE)
    first, second = model.polynomials
    torch.testing.assert_close(model(x), model.out(second(first(x.flatten(1)))))
    assert len(first.maps) == 2
    assert len(second.maps) == 3


def test_the_convolutions_of_the_tutorial():
    model, x = seeded(ConvCCP, SHAPE, 3, width=4).double(), draws(2, *SHAPE)
    a, b, c = (F.conv2d(x, u.weight, u.bias, padding=1) for u in model.maps)
    pooled = ((a + b * c) * (1 + b) - b * b * c + a * b * c).unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(model(x), model.out(model.hidden(pooled.flatten(1))))


def test_the_convolutions_start_with_the_variance_of_the_tutorials_library():
    model = seeded(ConvCCP, (3, 16, 16), 10, width=64)
    for layer in (*model.maps, model.hidden):
        fan_in = layer.weight[0].numel()
        assert layer.weight.var().item() * fan_in == pytest.approx(1, rel=0.1)
        assert layer.weight.abs().max().item() * math.sqrt(fan_in) < 2 / 0.8796
        assert not layer.bias.any()


@pytest.mark.parametrize("block", ["residual", "pi", "pi-1x1"])
@pytest.mark.parametrize("relu", [False, True])
def test_a_block_with_products_by_hand(block, relu):
    model = pinet(block=block, depth=2, relu=relu).double()
    activate = torch.relu if relu else nn.Identity()
    for layer in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.uniform_(layer.bias, -1, 1)
    x = draws(2, 4, 8, 8)
    for part in model.blocks:
        (c1, bn1), (c2, bn2) = part.first, part.second
        o = bn2(F.conv2d(activate(bn1(F.conv2d(x, c1.weight, stride=c1.stride, padding=1))), c2.weight, padding=1))
        i = x if isinstance(part.shortcut, nn.Identity) else part.shortcut[1](part.shortcut[0](x))
        third = {"residual": lambda p: 0 * p}.get(block, part.product)
        y = activate(o + i + third(o * i))
        torch.testing.assert_close(part(x), y)
        x = y
    assert sum(isinstance(part.shortcut, nn.Identity) for part in model.blocks) == 1


@pytest.mark.parametrize("block", ["residual", "pi", "pi-1x1"])
def test_with_a_scale_of_zero_a_block_is_its_shortcut(block):
    model, x = pinet(block=block, depth=4, scale=0.0), torch.randn(2, *SHAPE)
    through = nn.Sequential(*(part.shortcut for part in model.blocks))
    torch.testing.assert_close(model.blocks(model.stem(x)), through(model.stem(x)))


def test_the_tutorials_block_by_hand():
    model, x = pinet(block="tutorial", depth=1).double(), draws(2, *SHAPE)
    (block,) = model.blocks
    nn.init.constant_(block.alpha, 0.7)
    h = model.stem(x)
    s = block.one[0](h)
    s = (s - s.mean((2, 3), keepdim=True)) / (s.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    o = block.other(h)
    torch.testing.assert_close(model.blocks(h), s + 0.7 * o * s)


def test_the_tutorials_network_starts_as_a_constant():
    """Instance normalisation takes away the mean over positions, and nothing else is left to the pooling."""
    model, x = pinet(block="tutorial", depth=2).double(), draws(5, *SHAPE)
    torch.testing.assert_close(model(x), model.linear.bias.expand(5, -1))


@pytest.mark.parametrize(
    ("depth", "stages"), [(1, [1]), (2, [1, 1]), (4, [1] * 4), (7, [2, 2, 2, 1]), (8, [2] * 4), (9, [3, 2, 2, 2])]
)
def test_blocks_are_spread_over_four_stages(depth, stages):
    widths = [part.second[0].out_channels for part in PiNet((3, 32, 32), 10, depth=depth, width=2).blocks]
    assert widths == [2 * 2**i for i, count in enumerate(stages) for _ in range(count)]


def test_the_plain_network_is_resnet18():
    """Of the same size, and of the same output where weights are the same."""
    ours = PiNet((3, 32, 32), 10, block="residual", relu=True, scale=1.0).eval()
    theirs = architectures.build("resnet18", shape=(3, 32, 32), classes=10).eval()
    assert sum(p.numel() for p in ours.parameters()) == 11_173_962
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    "factory",
    [
        PolynomialNet,
        functools.partial(PolynomialNet, kind="NCP-skip", degree=[2, 2]),
        functools.partial(ConvCCP, width=4),
        functools.partial(PiNet, depth=3, width=2),
        functools.partial(PiNet, block="tutorial", depth=3, width=2),
    ],
)
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 9, 12)])
def test_any_shape_and_an_answer_that_depends_on_no_other_sample(factory, shape):
    model = seeded(architectures.build, factory, shape=shape, classes=4)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(5, *shape)
    with torch.no_grad():
        whole = model(x)
        torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(5)]), whole, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(model(x.flip(0)), whole.flip(0), rtol=1e-3, atol=1e-4)
    assert whole.std(0).min() > 0


def test_the_networks_are_architectures_by_name():
    model = architectures.build("nadkit.neighbours.polynomial:ConvCCP", shape=SHAPE, classes=2)
    assert isinstance(model, ConvCCP)
    assert len(architectures.build("nadkit.neighbours.polynomial:PiNet", shape=(3, 16, 16), classes=2).blocks) == 8


# ---- the degree -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "degree", "expected"),
    [
        *((kind, degree, degree) for kind in KINDS for degree in (1, 3)),
        *(("CCP", 12, 12), ("NCP", 5, 5), ("CCP", [2, 2], 4), ("NCP", [2, 3], 6), ("NCP-skip", [3, 2, 2], 12)),
    ],
)
def test_degree_of_polynomials(kind, degree, expected):
    assert degree_of(net(kind=kind, degree=degree, width=6), SHAPE, most=expected + 3, lines=2) == expected


@pytest.mark.parametrize(("block", "depth"), [("pi", 1), ("pi-1x1", 2), ("pi", 3), ("pi-1x1", 4)])
def test_each_block_doubles_the_degree(block, depth):
    assert degree_of(pinet(block=block, depth=depth, width=2), SHAPE, most=2**depth + 2, lines=1) == 2**depth


@pytest.mark.parametrize(
    ("options", "degree"),
    [
        ({"scale": 0.0, "depth": 3}, 1),
        ({"block": "residual", "depth": 3}, 1),
        ({"relu": True, "depth": 1}, None),
        ({"max_pool": True, "depth": 1}, None),
        ({"block": "tutorial", "depth": 1}, 0),
    ],
)
def test_degree_of_networks_of_images(options, degree):
    assert degree_of(pinet(**options), SHAPE, most=6, lines=2) == degree


def test_the_tutorials_networks():
    assert degree_of(ConvCCP(SHAPE, 3, width=4), SHAPE, most=8) == 3
    model = pinet(block="tutorial", depth=1)
    nn.init.ones_(model.blocks[0].alpha)
    assert degree_of(model, SHAPE, most=6) is None


@pytest.mark.parametrize("degree", [0, 1, 2, 7, 20, 30])
def test_degree_of_powers(degree):
    assert degree_of(Power(degree), SHAPE) == degree


def test_a_polynomial_of_too_high_a_degree_has_none_that_can_be_told():
    assert degree_of(Power(8), SHAPE, most=8) is None
    assert degree_of(Power(8), SHAPE, most=9) == 8


def test_degree_of_any_network():
    mlp = architectures.build("mlp128", shape=SHAPE, classes=3)
    assert degree_of(mlp, SHAPE, most=6) is None
    assert degree_of(architectures.build(without_activations("mlp128"), shape=SHAPE, classes=3), SHAPE, most=6) == 1
    without = architectures.build(without_activations("lenet"), shape=(1, 16, 16), classes=3)
    assert degree_of(without, (1, 16, 16), most=4) is None  # max pooling
    assert degree_of(net(degree=4).double(), SHAPE, most=6) == 4
    assert degree_of(net(degree=4).bfloat16(), SHAPE, most=6) == 4


def test_the_network_and_torchs_generators_stay_as_they_were():
    model, state = pinet(depth=1).train(), torch.get_rng_state()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    first = finite_differences(model, SHAPE, most=3)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(finite_differences(model, SHAPE, most=3), first)
    assert not torch.equal(finite_differences(model, SHAPE, most=3, seed=1), first)


@pytest.mark.parametrize(
    "factory", [lambda: pinet(depth=2, width=2), lambda: pinet(depth=1, width=2, relu=True), lambda: net(degree=3)]
)
def test_finite_differences_against_one_input_at_a_time(factory):
    model = factory()
    found = finite_differences(model, SHAPE, most=4, reach=3.0, lines=2)
    x, v = torch.randn(2, 2, 1, *SHAPE, generator=seeds.generator(0, "lines"), dtype=torch.float64)
    model = model.double()
    with torch.no_grad():
        for n in range(1, 5):
            ratios = []
            for line, logit in itertools.product(range(2), range(3)):
                f = [model(x[line] + (-3 + 6 * j / n) * v[line])[0, logit].item() for j in range(n + 1)]
                signed = math.fsum((-1) ** (n - j) * math.comb(n, j) * f[j] for j in range(n + 1))
                ratios.append(abs(signed) / math.fsum(math.comb(n, j) * abs(f[j]) for j in range(n + 1)))
            assert found[n - 1].item() == pytest.approx(max(ratios), rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("degree", [4, 16, 32])
def test_what_a_pure_power_leaves_is_what_the_docstring_says(degree):
    left = math.factorial(degree) / sum(math.comb(degree, j) * abs(j - degree / 2) ** degree for j in range(degree + 1))
    assert finite_differences(Power(degree), SHAPE, most=degree, reach=1e5)[-1].item() == pytest.approx(left, rel=1e-3)
    words = {4: "0.6 for N = 4", 16: "0.008 for 16", 32: "2e-5 for 32"}[degree]
    assert words in finite_differences.__doc__
    assert f"{left:.1g}".replace("e-05", "e-5") == words.split(" for")[0]


def test_the_tolerance_lies_between_rounding_and_what_the_highest_order_leaves():
    power = math.factorial(MOST) / sum(math.comb(MOST, j) * abs(j - MOST / 2) ** MOST for j in range(MOST + 1))
    rounding = max(
        finite_differences(model, SHAPE, most=18, lines=1)[degree:].max().item()
        for model, degree in ((net(degree=16), 16), (net(kind="NCP"), 4), (pinet(depth=4, width=2), 16))
    )
    assert 100 * rounding < TOLERANCE < power / 100


def test_answers_do_not_depend_on_the_scale_of_the_network():
    model = net(degree=4)
    first = finite_differences(model, SHAPE, most=4)
    with torch.no_grad():
        for p in model.out.parameters():
            p *= 2.0**-40
    torch.testing.assert_close(finite_differences(model, SHAPE, most=4), first)


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_secant_of_a_polynomial_is_off_by_its_third_derivative(degree):
    """Up to degree 4 the series f' + h^2 f''' / 6 ends here."""
    model, x = net((1, 2, 2), 1, degree=degree).double(), draws(1, 2, 2)
    directions = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2)

    def along(v):
        f = lambda t: model((x + t * v)[None]).squeeze()  # noqa: E731
        third = grad(grad(grad(f)))
        return third(torch.zeros((), dtype=torch.float64))

    third = torch.stack([along(v) for v in directions])
    for h in (1.0, 100.0):
        torch.testing.assert_close(secant(model, x, h), gradient(model, x) + h**2 * third / 6)
    assert (third.abs().max() > 1e-6) == (degree > 2)


SIGNS = [
    ({"kind": "CCP", "degree": 1}, 2),
    ({"kind": "CCP", "degree": 2}, 2),
    ({"kind": "CCP", "degree": 3}, 1),
    ({"kind": "CCP", "degree": 4}, 1),
    ({"kind": "CCP", "degree": 3, "bias": True}, 1),
    *(
        ({"kind": kind, "degree": degree}, units)
        for kind in KINDS[1:]
        for degree, units in ((1, 2), (2, 1), (2, 2), (4, 1))
    ),
]


@pytest.mark.parametrize(("options", "units"), SIGNS)
def test_the_moment_is_the_mean_over_all_signs_of_the_weights(options, units):
    """It depends on weights through their variances alone: so weights of one size and all signs have the same."""
    x = torch.tensor([0.7, -1.6], dtype=torch.float64).view(1, 1, 2)
    model = net((1, 1, 2), 1, width=units, **options).double()
    weights = {name: p.detach() for name, p in model.named_parameters() if not name.endswith(("out.bias",))}
    fixed = {name for name in weights if "mixes" in name and name.endswith("bias")}
    drawn = {name: p for name, p in weights.items() if name not in fixed}
    deviation = {name: 1 / math.sqrt(3 * (units if "mixes" in name or "out" in name else 2)) for name in drawn}
    count = sum(p.numel() for p in drawn.values())
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count)), dtype=torch.float64)
    pieces = signs.split([p.numel() for p in drawn.values()], dim=1)
    batches = {n: piece.view(-1, *drawn[n].shape) * deviation[n] for n, piece in zip(drawn, pieces, strict=True)}

    def of(weights):
        weights = weights | {name: torch.ones_like(model.get_parameter(name)) for name in fixed}
        return grad(lambda z: functional_call(model, weights, (z[None],)).squeeze())(x).flatten()

    g = vmap(of)(batches)
    a, b = expected_moment(x, **options)
    expected = a * torch.eye(2) + b * torch.outer(x.flatten(), x.flatten())
    torch.testing.assert_close(g.T @ g / len(g), expected)
    assert g.mean(0).abs().max() < 1e-12


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 8])
def test_the_moment_of_a_ccp_in_closed_form(degree):
    x = draws(20)
    s, n = 1 / 60, degree
    q = s * x.square().sum().item()
    a, b = expected_moment(x, degree=degree)
    assert a == pytest.approx(s * (1 + q) ** (n - 2) * (1 + n * q) / 3)
    assert b == pytest.approx(s**2 * (n - 1) * (1 + q) ** (n - 3) * (2 + n * q) / 3, abs=1e-15)
    top = s * (1 + q) ** (n - 3) * (1 + (3 * n - 1) * q + n**2 * q**2) / 3
    assert a + b * x.square().sum().item() == pytest.approx(top)


@pytest.mark.parametrize("kind", KINDS)
def test_random_networks_have_that_moment(kind):
    """With the initialisation that they really have, by the machinery of Part I."""
    x = torch.randn(1, 3, 3, generator=seeds.generator(0, "x"))
    factory = functools.partial(PolynomialNet, kind=kind, degree=3, width=32)
    found = gradient_covariance(Population(factory, (1, 3, 3), "gradient", x=x), networks=range(1200)).covariance()
    a, b = expected_moment(x, kind=kind, degree=3)
    v = (x / x.norm()).flatten().double()
    top, mean = a + b * x.square().sum().item(), a + b * x.square().sum().item() / 9
    assert (v @ found @ v).item() == pytest.approx(top, rel=0.25)
    assert found.trace().item() / 9 == pytest.approx(mean, rel=0.15)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: net(degree=0), "degree: expected an integer, at least 1, got 0"),
        (lambda: net(degree=[2, 0]), "degree: expected an integer, at least 1, got 0"),
        (lambda: net(degree=-3, kind="NCP"), "degree: expected an integer, at least 1, got -3"),
        (lambda: net(degree=2.5), "degree: expected .*, got 2.5"),
        (lambda: net(degree=[]), "degree: expected an integer or a list of them, at least one, got none"),
        (lambda: net(kind="ncp"), "kind: expected one of CCP, NCP, NCP-skip, got 'ncp'; did you mean 'NCP'"),
        (lambda: CCP(3, 2, degree=0), "degree: expected an integer, at least 1, got 0"),
        (lambda: NCP(3, 0), "units: expected an integer, at least 1, got 0"),
        (lambda: PiNet(SHAPE, 2, depth=0), "depth: expected an integer, at least 1, got 0"),
        (lambda: PiNet(SHAPE, 2, block="tutorial", relu=True), "relu: expected False with the block 'tutorial'"),
        (lambda: PiNet(SHAPE, 2, block="tutorial"), "shape: expected images of more than 8 pixels a side"),
        (lambda: PiNet(SHAPE, 2, block="pi1x1"), "block: expected one of residual, .*; did you mean 'pi-1x1'"),
        (lambda: ConvCCP((1, 1, 8), 2), "shape: expected images of at least 2x2, got 1x8"),
        (lambda: degree_of(net(), SHAPE, most=MOST + 1), f"most: expected an integer from 1 to {MOST}, got 41"),
        (lambda: degree_of(net(), (1, 7, 7)), r"the network does not accept inputs of shape \(2, 1, 7, 7\)"),
        (
            lambda: degree_of(Power(30), SHAPE, reach=1e30),
            "answers along the lines are not all finite; .* shorter reach",
        ),
        (lambda: expected_moment(torch.ones(3), degree=0), "degree: expected an integer, at least 1, got 0"),
        (lambda: expected_moment(torch.ones(0)), "x: expected at least one number, got none"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call()
