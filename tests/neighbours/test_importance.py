"""Importance: scores of gates against explicit gates in float64, closed forms, and networks done by hand."""

import itertools
from collections import OrderedDict

import pytest
import torch
from networks import fresh
from torch import nn
from torch.nn import functional as F

from nadkit import seeds
from nadkit.activations.ablation import unit_impact
from nadkit.activations.sites import evaluating, find_sites, replaced
from nadkit.architectures import LeNet, ResNet18
from nadkit.neighbours.importance import CRITERIA, criteria_for, oracle, unit_scores
from nadkit.neighbours.pruning import LeNet252

SHAPE = (1, 16, 16)


def samples(n=11, shape=SHAPE, classes=10):
    x = torch.randn(n, *shape, dtype=torch.float64, generator=seeds.generator(0, "x"))
    return x, torch.arange(n) % classes


def narrow(**options):
    return fresh(LeNet252, SHAPE, 10, width=0.1, **options)


def at_gates(model):
    return find_sites(model, SHAPE, names=LeNet252.GATES)


class Explicit(nn.Module):
    """The narrow LeNet with a gate written behind each pooling or ReLU, as a parameter of its own."""

    def __init__(self, model, sites):
        super().__init__()
        self.model = model
        self.gates = nn.ParameterDict({s.name: nn.Parameter(torch.ones(s.units).double()) for s in sites})

    def forward(self, x):
        for name, module in self.model.named_children():
            x = module(x)
            if name in self.gates:
                x = x * self.gates[name].view(1, -1, *[1] * (x.ndim - 2))
        return x


def gradient(explicit, x, y):
    loss = F.cross_entropy(explicit.eval()(x), y)
    return torch.cat(torch.autograd.grad(loss, explicit.gates.values()))


# --- the gates' scores against explicit gates -------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 11])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_first_order_is_the_square_of_autograds_gradient(batch_size, batch_norm):
    model, (x, y) = narrow(batch_norm=batch_norm), samples()
    sites = at_gates(model)
    explicit = Explicit(model, sites)
    parts = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    squares = sum(len(a) * gradient(explicit, a, b).square() for a, b in parts) / len(x)
    each = sum(gradient(explicit, x[i : i + 1], y[i : i + 1]).square() for i in range(len(x))) / len(x)
    found = unit_scores(model, (x, y), sites, ["Taylor", "Taylor, each sample"], batch_size=batch_size)
    torch.testing.assert_close(found["Taylor"], squares)
    torch.testing.assert_close(found["Taylor, each sample"], each)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_curvature_is_the_diagonal_of_the_exact_hessian(activation):
    with seeds.seeded(0):
        model = nn.Sequential(
            OrderedDict(fc1=nn.Linear(3, 4), act1=activation(), fc2=nn.Linear(4, 5), act2=activation())
        )
        model.append(nn.Linear(5, 3)).double()
    x, y = samples(7, (3,), 3)
    sites = find_sites(model, (3,))

    def loss(z):
        first, second = z.split([4, 5])
        hidden = model.act2(model.fc2(model.act1(model.fc1(x)) * first)) * second
        return F.cross_entropy(model[4](hidden), y)

    ones = torch.ones(9, dtype=torch.float64)
    exact = torch.autograd.functional.hessian(loss, ones).diag()
    slope = torch.autograd.functional.jacobian(loss, ones)
    found = unit_scores(model, (x, y), sites, ["OBD", "Taylor, 2nd order"], batch_size=7)
    torch.testing.assert_close(found["OBD"], exact)
    torch.testing.assert_close(found["Taylor, 2nd order"], (exact / 2 - slope).square())


class Picky(torch.autograd.Function):
    """The identity, whose gradient torch cannot batch, as it looks at it."""

    looked = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Picky.looked += bool(gradient.isfinite().all())
        return gradient


def test_networks_that_torch_cannot_batch_are_differentiated_one_by_one():
    class Own(nn.Module):
        def __init__(self, step):
            super().__init__()
            self.fc, self.relu, self.out, self.step = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), step

        def forward(self, x):
            return self.out(self.step(self.relu(self.fc(x))))

    data, found = samples(7, (3,), 3), []
    for step in (torch.clone, Picky.apply):
        model = fresh(Own, step)
        found.append(unit_scores(model, data, find_sites(model, (3,)), ["OBD"])["OBD"])
    torch.testing.assert_close(*found)
    assert Picky.looked >= 4
    assert found[0].count_nonzero() > 1


def test_second_order_comes_closer_to_the_change_than_first_order():
    """Gates half closed: for ever smaller steps the guess is wrong by the square, or by the cube, of the step."""
    model, (x, y) = narrow(), samples(64)
    sites = at_gates(model)
    explicit = Explicit(model, sites)
    slope = gradient(explicit, x, y)
    curvature = unit_scores(model, (x, y), sites, ["OBD"], batch_size=64)["OBD"]
    unit = int(slope[-8:].abs().argmax()) + sites.n_units - 8  # of the last layer, behind which is no kink
    gate, errors = explicit.gates["relu4"], {}
    for step in (1e-2, 1e-3):
        with torch.no_grad():
            gate[unit - sites.offsets[3]] = 1 - step
            change = F.cross_entropy(explicit(x), y) - F.cross_entropy(model(x), y)
        first, second = -step * slope[unit], step**2 / 2 * curvature[unit]
        errors[step] = abs(change - first).item(), abs(change - first - second).item()
    assert errors[1e-3][0] / errors[1e-2][0] == pytest.approx(1e-2, rel=0.1)
    assert errors[1e-3][1] / errors[1e-2][1] == pytest.approx(1e-3, rel=0.3)


def test_output_score_by_hand():
    model, (x, y) = narrow(), samples(6)
    sites = at_gates(model)
    seen = {}

    def keep(site):
        def kept(h):
            h.retain_grad()
            return seen.setdefault(site.name, h)

        return kept

    with evaluating(model), replaced(model, {site: keep(site) for site in sites}):
        F.cross_entropy(model(x), y).backward()
    parts = []
    for h in seen.values():
        size = (h * h.grad).abs().flatten(2).mean(2) if h.ndim == 4 else (h * h.grad).abs()
        parts.append(F.normalize(size.mean(0), dim=0, eps=0))
    found = unit_scores(model, (x, y), sites, ["Taylor, output"], batch_size=6)["Taylor, output"]
    torch.testing.assert_close(found, torch.cat(parts).detach(), rtol=1e-4, atol=1e-12)


# --- weights: identities ----------------------------------------------------------------------------------------------


def test_weights_of_a_relu_unit_sum_to_its_gate():
    """By Euler's theorem: ReLU, pooling and all behind scale with a unit's weights and bias as with its gate."""
    model, (x, y) = narrow(), samples()
    sites = at_gates(model)
    F.cross_entropy(model.eval()(x), y).backward()
    layers = [model.conv1, model.conv2, model.fc3, model.fc4]
    sums = [(m.weight * m.weight.grad).flatten(1).sum(1) + m.bias * m.bias.grad for m in layers]
    found = unit_scores(model, (x, y), sites, ["Taylor"], batch_size=len(x))["Taylor"]
    torch.testing.assert_close(torch.cat(sums).square(), found)


def test_scale_and_shift_of_batch_norm_sum_to_the_gate():
    model, (x, y) = narrow(batch_norm=True), samples()
    sites = at_gates(model)
    F.cross_entropy(model.eval()(x), y).backward()
    norms = [model.norm1, model.norm2, model.norm3, model.norm4]
    sums = [m.weight * m.weight.grad + m.bias * m.bias.grad for m in norms]
    found = unit_scores(model, (x, y), sites, ["Taylor", "Taylor, BN scale", "BN scale"], batch_size=len(x))
    torch.testing.assert_close(torch.cat(sums).square(), found["Taylor"])
    torch.testing.assert_close(
        torch.cat([(m.weight * m.weight.grad).square() for m in norms]), found["Taylor, BN scale"]
    )
    torch.testing.assert_close(torch.cat([m.weight.abs() for m in norms]).detach(), found["BN scale"])


def test_scores_of_weights_by_hand():
    model, (x, y) = narrow(), samples()
    sites = at_gates(model)
    F.cross_entropy(model.eval()(x), y).backward()
    layers = [model.conv1, model.conv2, model.fc3, model.fc4]
    by_hand = {
        "Taylor, weights": lambda w: (w * w.grad).square().flatten(1).sum(1),
        "Taylor, weights, sum first": lambda w: (w * w.grad).flatten(1).sum(1).square(),
        "weight norm": lambda w: w.square().flatten(1).sum(1),
        "weight size": lambda w: w.abs().flatten(1).sum(1),
    }
    found = unit_scores(model, (x, y), sites, list(by_hand), batch_size=len(x))
    for name, score in by_hand.items():
        torch.testing.assert_close(found[name], torch.cat([score(m.weight) for m in layers]).detach())


# --- where gates stand ------------------------------------------------------------------------------------------------


def test_gates_before_and_after_pooling_are_the_same():
    model, data = narrow(), samples()
    after, before = at_gates(model), find_sites(model, SHAPE)
    assert before.names == ["relu1", "relu2", "relu3", "relu4"]
    for name in ("Taylor", "Taylor, each sample"):
        torch.testing.assert_close(*(unit_scores(model, data, sites, [name])[name] for sites in (before, after)))
    torch.testing.assert_close(*(oracle(model, data, sites).change for sites in (before, after)))


def test_functional_activations_and_operations_in_place_are_seen():
    """LeNet calls torch.relu_; a gate on a batch normalisation of ResNet-18 is overwritten by what follows."""
    model = fresh(LeNet, SHAPE, 10, width=0.5, batch_norm=True)
    data = samples(4)
    names = ["norm1", "norm2"]
    gated = unit_scores(model, data, find_sites(model, SHAPE, names=names), ["Taylor"], batch_size=4)["Taylor"]
    F.cross_entropy(model.eval()(data[0]), data[1]).backward()
    sums = [m.weight * m.weight.grad + m.bias * m.bias.grad for m in (model.norm1, model.norm2)]
    torch.testing.assert_close(torch.cat(sums).square(), gated)
    assert find_sites(model, SHAPE)[0].kind == "relu()"
    assert len(unit_scores(model, data, find_sites(model, SHAPE))["Taylor"]) == 3 + 8 + 60 + 42


def test_which_criteria_there_are():
    plain, normed = narrow(), narrow(batch_norm=True)
    assert criteria_for(normed, at_gates(normed)) == list(CRITERIA)
    assert set(CRITERIA) - set(criteria_for(plain, at_gates(plain))) == {"BN scale", "Taylor, BN scale"}
    resnet = ResNet18((1, 8, 8), 2)
    gates = [f"stages.{i}.{j}.first.1" for i, j in itertools.product(range(4), range(2))]
    assert criteria_for(resnet, find_sites(resnet, (1, 8, 8), names=gates)) == list(CRITERIA)
    after_addition = find_sites(resnet, (1, 8, 8))[-1:]
    assert "weight norm" not in criteria_for(resnet, after_addition)


# --- the oracle -------------------------------------------------------------------------------------------------------


def test_oracle_is_unit_impact_and_a_slow_loop():
    model, (x, y) = narrow(), samples()
    sites = at_gates(model)
    found = oracle(model, (x, y), sites, batch_size=4)
    explicit, slow = Explicit(model, sites), []
    with torch.no_grad():
        for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
            row, before = [], F.cross_entropy(model.eval()(x[part]), y[part])
            for site, unit in ((s, u) for s in sites for u in range(s.units)):
                explicit.gates[site.name][unit] = 0
                row.append(F.cross_entropy(explicit.eval()(x[part]), y[part]) - before)
                explicit.gates[site.name][unit] = 1
            slow.append(torch.stack(row))
    slow = torch.stack(slow)
    torch.testing.assert_close(found.changes, slow)
    assert found.samples.tolist() == [4, 4, 3]
    torch.testing.assert_close(found.absolute, found.samples @ slow.abs() / 11)
    impact = unit_impact(model, (x, y), sites)
    torch.testing.assert_close(found.change, impact.loss - impact.baseline.loss)
    torch.testing.assert_close(found.squared, found.change.square())


def test_a_unit_that_nothing_reads_has_no_importance():
    model, data = narrow(), samples()
    with torch.no_grad():
        model.out.weight[:, 2] = 0
    sites = at_gates(model)
    unit = sites.offsets[3] + 2
    assert oracle(model, data, sites).absolute[unit] == 0
    found = unit_scores(model, data, sites, ["Taylor", "Taylor, 2nd order", "Taylor, output", "Taylor, weights", "OBD"])
    assert all(scores[unit] == 0 for scores in found.values())


# --- invariances ------------------------------------------------------------------------------------------------------


def test_order_and_batches_of_samples_do_not_matter_where_they_should_not():
    model, (x, y) = narrow(batch_norm=True), samples()
    sites = at_gates(model)
    mixed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    once = unit_scores(model, (x, y), sites, criteria_for(model, sites), batch_size=11)
    for name, scores in unit_scores(model, (x[mixed], y[mixed]), sites, list(once), batch_size=11).items():
        torch.testing.assert_close(scores, once[name])
    for name in ("Taylor, each sample", "weight norm", "OBD"):  # means over samples, or of no sample
        torch.testing.assert_close(unit_scores(model, (x, y), sites, [name], batch_size=3)[name], once[name])


def test_network_and_seed_stay_as_they_were():
    model, data = narrow(batch_norm=True).train(), samples()
    sites, before = at_gates(model), {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    one, other = (unit_scores(model, data, sites, ["random"], seed=seed)["random"] for seed in (0, 0))
    assert one.equal(other)
    assert not one.equal(unit_scores(model, data, sites, ["random"], seed=1)["random"])
    unit_scores(model, data, sites, criteria_for(model, sites))
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(t.equal(before[name]) for name, t in model.state_dict().items())
    assert torch.get_rng_state().equal(state)
    frozen = narrow().requires_grad_(False)
    with pytest.raises(ValueError, match="the weights before site 'pool1' do not require a gradient"):
        unit_scores(frozen, data, at_gates(frozen), ["Taylor, weights"])
    assert unit_scores(frozen, data, at_gates(frozen))["Taylor"].count_nonzero() > 0


# --- bad input --------------------------------------------------------------------------------------------------------


def test_gates_that_are_not_there():
    model = narrow()
    with pytest.raises(ValueError, match=r"no module 'pool3' in LeNet252; did you mean 'pool2'\?"):
        find_sites(model, SHAPE, names=["pool3"])
    normed = narrow(batch_norm=True)
    elsewhere = find_sites(normed, SHAPE, names=["norm1"])
    for call in (lambda: unit_scores(model, samples(), elsewhere), lambda: oracle(model, samples(), elsewhere)):
        with pytest.raises(ValueError, match="site 'norm1': no such module in LeNet252"):
            call()


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        (["Tailor"], r"criteria: expected some of .*, got 'Tailor'; did you mean 'Taylor'\?"),
        ([], "criteria: expected a list of str, at least one"),
        (["BN scale"], "criterion 'BN scale': there is no batch normalisation with a scale before site 'pool1'"),
    ],
)
def test_criteria_that_are_not_there(criteria, message):
    model = narrow()
    with pytest.raises(ValueError, match=message):
        unit_scores(model, samples(), at_gates(model), criteria)


def test_data_that_do_not_fit():
    model, (x, y) = narrow(), samples()
    sites = at_gates(model)
    for scored in (unit_scores, oracle):
        with pytest.raises(ValueError, match="labels: expected 0 to 9 for 10 logits, got 0 to 10"):
            scored(model, (x, y + (y == 9)), sites)
        with pytest.raises(ValueError, match="batch_size: expected an integer, at least 1, got 0"):
            scored(model, (x, y), sites, batch_size=0)
