"""Pruning: removal against clamping in float64, schedules by hand, and networks whose units cannot be removed."""

import itertools
from collections import OrderedDict

import pytest
import torch
from networks import fresh
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from nadkit import seeds
from nadkit.activations.sites import evaluating, find_sites, replaced
from nadkit.architectures import MLP, VGG11, ConvNet, LeNet, ResNet18
from nadkit.neighbours.importance import WHILE_TRAINING, unit_scores
from nadkit.neighbours.pruning import LeNet252, Schedule, cost, lowest, prune_while_training, remove_units, seconds
from nadkit.neighbours.wiring import find_wires
from nadkit.training import Recipe, evaluate

SHAPE = (1, 16, 16)


def inputs(shape=SHAPE, n=5):
    return torch.randn(n, *shape, dtype=torch.float64, generator=seeds.generator(0, "x"))


def half(sites):
    """Every unit with a chance of a half, but for the first of each site."""
    mask = torch.rand(sites.n_units, generator=seeds.generator(0, "mask")) < 0.5
    mask[sites.offsets[:-1]] = False
    return mask


def clamped(model, sites, mask, x):
    keep = sites.split(~mask)
    with torch.no_grad(), replaced(model, {s: lambda h, s=s: h * s.spread(keep[s.name]) for s in sites}):
        return model(x)


class Functional(nn.Module):
    """Activations, poolings and a view that are functions, and two layers that read the same units."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.left, self.right = nn.Linear(6 * 4 * 4, 5), nn.Linear(6 * 4 * 4, 5)

    def forward(self, x):
        x = F.avg_pool2d(F.max_pool2d(F.gelu(self.norm(self.conv(x))), 2), 2)
        x = F.dropout(x, 0.5, self.training).view(x.size(0), -1)
        return self.left(x) - self.right(x)


INSIDE_BLOCKS = [f"stages.{i}.{j}.first.1" for i, j in itertools.product(range(4), range(2))]
CASES = {
    "LeNet252": (lambda: LeNet252(SHAPE, 10, width=0.2), SHAPE, LeNet252.GATES),
    "LeNet252, batch norm": (lambda: LeNet252(SHAPE, 10, width=0.2, batch_norm=True), SHAPE, LeNet252.GATES),
    "LeNet252, non-square": (lambda: LeNet252((3, 24, 28), 10, width=0.2), (3, 24, 28), LeNet252.GATES),
    "LeNet, functional": (lambda: LeNet(SHAPE, 10, batch_norm=True), SHAPE, None),
    "LeNet, average pooling, tanh": (lambda: LeNet(SHAPE, 10, "average", activation="tanh"), SHAPE, None),
    "ConvNet": (lambda: ConvNet((1, 8, 8), 4, width=0.1), (1, 8, 8), None),
    "ConvNet, dropout": (lambda: ConvNet((1, 8, 8), 4, width=0.1, batch_norm=False, dropout=0.5), (1, 8, 8), None),
    "MLP": (lambda: MLP(SHAPE, 10, width=9, batch_norm=True, dropout=0.5), SHAPE, None),
    "VGG11": (lambda: VGG11((1, 32, 32), 3), (1, 32, 32), None),
    "ResNet18, inside the blocks": (lambda: ResNet18((1, 8, 8), 3), (1, 8, 8), INSIDE_BLOCKS),
    "torchvision": (lambda: resnet18(num_classes=3), (3, 32, 32), [f"layer{i}.0.bn1" for i in (1, 2, 3, 4)]),
    "functional": (Functional, SHAPE, None),
}


@pytest.mark.parametrize("name", CASES)
def test_removed_units_leave_the_logits_of_clamped_ones(name):
    make, shape, names = CASES[name]
    model, x = fresh(make), inputs(shape)
    sites = find_sites(model, shape, names=names)
    mask, before = half(sites), {key: t.clone() for key, t in model.state_dict().items()}
    smaller = remove_units(model, sites, mask, x[:2])
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), clamped(model, sites, mask, x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(smaller(x), model(x))
    left = find_sites(smaller, shape, names=names)
    assert left.n_units == sites.n_units - mask.sum()
    assert all(t.equal(before[key]) for key, t in model.state_dict().items())
    assert type(smaller) is type(model)
    smaller.train()
    F.cross_entropy(smaller(x), torch.arange(len(x)) % 2).backward()  # it can be trained on
    assert all(p.grad.shape == p.shape for p in smaller.parameters())


def test_no_units_removed_is_a_copy():
    model, x = fresh(LeNet252, SHAPE, 10, width=0.2), inputs()
    sites = find_sites(model, SHAPE)
    same = remove_units(model, sites, torch.zeros(sites.n_units, dtype=torch.bool), x)
    assert all(t.equal(model.state_dict()[key]) for key, t in same.state_dict().items())
    assert next(same.parameters()) is not next(model.parameters())


def test_layers_that_make_and_read_units():
    model = fresh(LeNet252, SHAPE, 10, batch_norm=True)
    wires = find_wires(model, find_sites(model, SHAPE, names=LeNet252.GATES))
    assert [(w.layer, w.norms, w.readers) for w in wires.values()] == [
        ("conv1", ("norm1",), ("conv2",)),
        ("conv2", ("norm2",), ("fc3",)),
        ("fc3", ("norm3",), ("fc4",)),
        ("fc4", ("norm4",), ("out",)),
    ]
    both = fresh(Functional)
    (wires,) = find_wires(both, find_sites(both, SHAPE)).values()
    assert wires.readers == ("left", "right")


# --- what cannot be removed -------------------------------------------------------------------------------------------


def chain(**layers):
    return nn.Sequential(OrderedDict(layers))


class Branching(nn.Module):
    """Networks in which units of the ReLU go where no layer alone reads them."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.relu, self.out = how, nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        match self.how:
            case "added":
                return self.out(self.relu(self.first(x)) + x)
            case "read before":
                z = self.first(x)
                return self.out(self.relu(z)) + z[:, :2]
            case "twice":
                return self.out(self.relu(self.first(self.first(x))))
            case "depends":
                return self.out(self.relu(self.first(x))) if x.sum() >= 0 else x[:, :2]
            case "counts":
                return self.out(self.relu(self.first(x)).view(-1, 4))
            case "output":
                return self.relu(self.first(x))


NOT_ZERO = chain(fc=nn.Linear(4, 4), relu=nn.ReLU(), norm=nn.BatchNorm1d(4), out=nn.Linear(4, 2))
nn.init.ones_(NOT_ZERO.norm.bias)
GROUPED = chain(conv=nn.Conv2d(1, 4, 1), relu=nn.ReLU(), last=nn.Conv2d(4, 2, 1, groups=2), flat=nn.Flatten())
REFUSED = {
    "added": (Branching("added"), "site 'relu': its units cannot be removed, as an addition reads them"),
    "read before": (Branching("read before"), "Linear 'first' before it is read in several places, by ReLU 'relu' and"),
    "twice": (Branching("twice"), "'first' is used 2 times, and its weights shared"),
    "depends": (Branching("depends"), "torch.fx does not trace it"),
    "counts": (Branching("counts"), "the network's own code counts on their number"),
    "output": (Branching("output"), "the network's output reads them"),
    "not zero": (NOT_ZERO, "clamped to zero, they are not zero where 'out' reads them"),
    "grouped": (GROUPED, "'last' is a grouped convolution"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_units_that_cannot_be_removed_are_refused(name):
    model, message = REFUSED[name]
    shape = (1, 1, 1) if name == "grouped" else (4,)
    sites = find_sites(model, shape)
    mask = torch.tensor([False, True, False, False])
    with pytest.raises(ValueError, match=message):
        remove_units(model, sites, mask, torch.rand(3, *shape))


def test_units_of_a_residual_stream_are_refused():
    model = ResNet18((1, 8, 8), 3)
    sites = find_sites(model, (1, 8, 8))
    with pytest.raises(ValueError, match=r"site 'stem.2': its units cannot be removed, as an addition reads them"):
        remove_units(model, sites[:1], half(sites[:1]), torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"its units are no single layer's, they come from an addition"):
        find_wires(model, sites[2:3], readers=False)


def test_masks_are_checked():
    model, x = fresh(LeNet252, SHAPE, 10, width=0.2), inputs()
    sites = find_sites(model, SHAPE)
    with pytest.raises(ValueError, match=r"mask: expected \(50,\) bool, a unit each, got \(50,\) torch.float32"):
        remove_units(model, sites, torch.ones(sites.n_units), x)
    mask = torch.zeros(sites.n_units, dtype=torch.bool)
    mask[: sites[0].units] = True
    with pytest.raises(ValueError, match="mask: expected to leave a unit at each site, site 'relu1' would have none"):
        remove_units(model, sites, mask, x)


def test_a_site_that_holds_others_is_told_apart():
    model = ResNet18((1, 8, 8), 3)
    sites = find_sites(model, (1, 8, 8), names=["stages.0.0.first"])
    with pytest.raises(ValueError, match=r"expected a module that holds no others, .*'stages.0.0.first.1'"):
        find_wires(model, sites)


# --- the size of what is left -----------------------------------------------------------------------------------------


def test_cost_by_hand():
    model = LeNet252((1, 28, 28), 10)
    found = cost(model, torch.rand(3, 1, 28, 28))
    weights = 16 * 25 + 32 * 16 * 25 + 512 * 120 + 120 * 84 + 84 * 10
    assert found.parameters == weights + 252 + 10 == 85_822
    assert found.bytes == 4 * found.parameters
    products = 16 * 25 * 24**2 + 32 * 16 * 25 * 8**2 + 512 * 120 + 120 * 84 + 84 * 10
    assert found.flops == 2 * products
    sites = find_sites(model, (1, 28, 28))
    mask = torch.arange(sites.n_units) % 2 == 1
    smaller = cost(remove_units(model, sites, mask, torch.rand(2, 1, 28, 28)), torch.rand(1, 1, 28, 28))
    assert smaller.flops == 2 * (8 * 25 * 24**2 + 16 * 8 * 25 * 8**2 + 256 * 60 + 60 * 42 + 42 * 10)


def test_seconds_are_those_of_each_network():
    small, large = MLP(SHAPE, 2, width=2), MLP(SHAPE, 2, width=2048)
    found = seconds({"small": small, "large": large}, torch.rand(50, *SHAPE), repeats=3)
    assert 0 < found["small"] < found["large"]


# --- while training ---------------------------------------------------------------------------------------------------


def problem(n=64):
    x = torch.randn(n, *SHAPE, generator=seeds.generator(0, "x"))
    return x, (x.mean((1, 2, 3)) > 0).long()


def test_the_lowest_go_and_each_site_keeps_one():
    model = chain(a=nn.Linear(2, 3), relu1=nn.ReLU(), b=nn.Linear(3, 2), relu2=nn.ReLU(), out=nn.Linear(2, 2))
    sites = find_sites(model, (2,))
    scores = torch.tensor([0.3, 0.1, 0.2, 0.9, 0.8], dtype=torch.float64)
    pruned = torch.zeros(5, dtype=torch.bool)
    wanted = {1: [1], 2: [1, 2], 3: [1, 2, 4]}
    for count, units in wanted.items():
        pruned = lowest(sites, scores, pruned, count)
        assert pruned.nonzero().flatten().tolist() == units
    back = lowest(sites, 1 - scores, pruned, 3)  # what is pruned stays so, whatever its score
    assert back.equal(pruned)


@pytest.mark.parametrize("criterion", [name for name in WHILE_TRAINING if name != "BN scale"])
def test_units_go_by_the_schedule_and_stay_zero(criterion):
    with seeds.seeded(0):
        model = LeNet252(SHAPE, 2, width=0.1)
    sites, data = find_sites(model, SHAPE, names=LeNet252.GATES), problem()
    schedule, recipe = Schedule(total=11, units=4, every=3), Recipe(epochs=3, batch_size=16, learning_rate=0.1)
    options = {"criterion": criterion, "look": lambda network: evaluate(network, data), "device": "cpu"}
    done = prune_while_training(model, data, data, sites, schedule, recipe, **options)
    assert done.masks.sum(1).tolist() == [0, 4, 8, 11]
    assert (done.masks[1:] >= done.masks[:-1]).all()
    assert len(done.found) == 4
    smaller = remove_units(model, sites, done.masks[-1], data[0][:2])
    assert evaluate(smaller, data) == pytest.approx(done.found[-1], rel=1e-5)
    assert done.history.test_loss[-1] == pytest.approx(done.found[-1][0], rel=1e-5)


def test_scores_are_those_of_the_mini_batches_and_their_running_average():
    """Without learning, all is as if the network were scored where it stands."""
    with seeds.seeded(0):
        model = LeNet252(SHAPE, 2, width=0.1)
    sites, data = find_sites(model, SHAPE, names=LeNet252.GATES), problem(32)
    scores = unit_scores(model, data, sites, ["Taylor"], batch_size=16)["Taylor"]
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=1e-12, clip=None)
    whole = unit_scores(model, data, sites, ["Taylor"], batch_size=32)["Taylor"]
    done = prune_while_training(model, data, data, sites, Schedule(total=6, units=6, every=2), recipe, device="cpu")
    assert done.masks[-1].equal(lowest(sites, whole, done.masks[0], 6))
    assert not scores.allclose(whole)


def test_pruning_without_units_to_go_is_training():
    """Pruned at the last step only, a network has trained as `fit` trains it."""
    from nadkit.training import fit

    data, recipe, models = problem(), Recipe(epochs=2, batch_size=16, learning_rate=0.1), []
    for _ in range(2):
        with seeds.seeded(0):
            models.append(LeNet252(SHAPE, 2, width=0.1, batch_norm=True))
    sites = find_sites(models[0], SHAPE)
    plain = fit(models[0], data, data, recipe, seed=3, device="cpu")
    done = prune_while_training(
        models[1], data, data, sites, Schedule(total=1, units=1, every=7), recipe, seed=3, device="cpu"
    )
    assert done.history.train_loss[0] == pytest.approx(plain.train_loss[0], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criterion": "OBD"}, "criterion: expected some of Taylor, .*, got 'OBD'"),
        (
            {"criterion": "BN scale"},
            "criterion 'BN scale': there is no batch normalisation with a scale before site 'relu1'",
        ),
        (
            {"schedule": Schedule(total=26, units=1)},
            "schedule: expected at most 21 units, .* 4 sites keeps one, got 26",
        ),
        (
            {"schedule": Schedule(total=9, units=2)},
            "more than 150 mini-batches, 5 times 30, got one of 4; train for more",
        ),
    ],
)
def test_what_cannot_be_pruned_is_told(change, message):
    model, data = LeNet252(SHAPE, 2, width=0.1), problem()
    given = {"schedule": Schedule(total=2, units=1, every=1), "criterion": "Taylor"} | change
    with pytest.raises(ValueError, match=message):
        prune_while_training(
            model, data, data, find_sites(model, SHAPE), given["schedule"], Recipe(epochs=1, batch_size=16),
            criterion=given["criterion"], device="cpu",
        )  # fmt: skip


def test_schedules_are_checked():
    assert Schedule(total=7, units=3, every=1).counts == [3, 6, 7]
    for options, message in (
        ({"total": 0, "units": 1}, "total: expected an integer, at least 1, got 0"),
        ({"total": 1, "units": 1, "momentum": 1.5}, "momentum: expected a number from 0 to 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Schedule(**options)


def test_networks_come_back_in_their_modes():
    model = LeNet252(SHAPE, 10, width=0.2).train()
    sites, x = find_sites(model, SHAPE), torch.rand(2, *SHAPE)
    smaller = remove_units(model, sites, half(sites), x)
    cost(model, x)
    seconds({"": model}, x, repeats=1)
    assert model.training
    assert smaller.training
    with evaluating(model):
        assert not model.training


def test_the_memory_format_of_weights_stays():
    """Of the first convolution's, too, whose single channel has it both ways."""
    model = LeNet252(SHAPE, 10, width=0.5).to(memory_format=torch.channels_last)
    sites, x = find_sites(model, SHAPE), torch.rand(2, *SHAPE)
    smaller = remove_units(model, sites, half(sites), x)
    assert smaller.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert not smaller.conv2.weight.is_contiguous()
    assert smaller.conv1.weight.stride() == model.conv1.weight.stride()
