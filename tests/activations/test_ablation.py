"""Ablation: exact answers for networks done by hand, a slow float64 oracle for all others, and Captum's."""

import copy
import math
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18

from nadkit import seeds
from nadkit.activations import ablation
from nadkit.activations.ablation import (
    area_under_curve,
    class_impact,
    cumulative_curve,
    evaluate_masks,
    layer_curves,
    noise_curve,
    unit_impact,
)
from nadkit.activations.moments import Moments, unit_moments
from nadkit.activations.sites import evaluating, find_sites, replaced
from nadkit.architectures.convnet import ConvNet
from nadkit.architectures.mlp import MLP

SIZES = [{}, {"batch_size": 1}, {"batch_size": 2, "memory": 1}, {"memory": 100}, {"memory": 2**30}]


# --- networks done by hand --------------------------------------------------------------------------------------------


def chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def set_to(module: nn.Module, weight: list, bias: list | None = None) -> nn.Module:
    """Give a module whole numbers as weights."""
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight).view_as(module.weight))
        if bias is None:
            module.bias.zero_()
        else:
            module.bias.copy_(torch.tensor(bias))
    return module


def mlp_by_hand() -> tuple[nn.Module, tuple, dict[str, list]]:
    """x -> relu -> relu -> logits on three samples, and the logits with each of the five units clamped."""
    model = chain(
        fc1=set_to(nn.Linear(2, 3), [[1, 0], [0, 1], [1, 1]], [0, 0, -1]),
        relu1=nn.ReLU(),
        fc2=set_to(nn.Linear(3, 2), [[1, 0, 1], [0, 2, 0]], [0, -1]),
        relu2=nn.ReLU(),
        out=set_to(nn.Linear(2, 2), [[1, 0], [0, 1]]),
    )
    # first layer: (2, 1, 2), (0, 2, 1), (1, 1, 1)
    data = torch.tensor([[2.0, 1], [0, 2], [1, 1]]), torch.tensor([0, 1, 1])
    logits = {
        "baseline": [[4, 1], [1, 3], [2, 1]],
        "zero": [
            [[2, 1], [1, 3], [1, 1]],
            [[4, 0], [1, 0], [2, 0]],
            [[2, 1], [0, 3], [1, 1]],
            [[0, 1], [0, 3], [0, 1]],
            [[4, 0], [1, 0], [2, 0]],
        ],
        "mean": [  # to 1, 1, 1 in the first layer and 2, 1 in the second
            [[3, 1], [2, 3], [2, 1]],
            [[4, 1], [1, 1], [2, 1]],
            [[3, 1], [1, 3], [2, 1]],
            [[2, 1], [2, 3], [2, 1]],
            [[4, 1], [1, 1], [2, 1]],
        ],
        "means": [1, 1, 1, 2, 1],
        "all": [[0, 0]] * 3,
    }
    return model, data, logits


def conv_by_hand() -> tuple[nn.Module, tuple, dict[str, list]]:
    """Maps s = (x, relu(2 - x)) on 2 x 2 images, their sums (sum s_0, sum s_0 + sum s_1) as logits."""
    ones = torch.ones(2, 2).tolist()
    none = torch.zeros(2, 2).tolist()
    model = chain(
        conv1=set_to(nn.Conv2d(1, 2, 1), [1, -1], [0, 2]),
        relu1=nn.ReLU(inplace=True),
        drop=nn.Dropout2d(0.5),
        conv2=set_to(nn.Conv2d(2, 2, 2), [[ones, none], [ones, ones]]),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        out=set_to(nn.Linear(2, 2), [[1, 0], [0, 1]]),
    )
    # the maps' sums are (3, 5) and (5, 4)
    data = torch.tensor([[[[1.0, 0], [2, 0]]], [[[3, 1], [1, 0]]]]), torch.tensor([1, 0])
    logits = {
        "baseline": [[3, 8], [5, 9]],
        "zero": [[[0, 5], [0, 4]], [[3, 3], [5, 5]], [[0, 8], [0, 9]], [[3, 0], [5, 0]]],
        "mean": [[[4, 9], [4, 8]], [[3, 7], [5, 9]], [[4, 8], [4, 9]], [[3, 7], [5, 7]]],  # to 1, 1 and 4, 7
        "means": [1, 1, 4, 7],
        "all": [[0, 0]] * 2,
    }
    return model, data, logits


HAND = [mlp_by_hand, conv_by_hand]


def scores_of(logits: list, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Accuracy, loss and accuracy by class of logits (..., N, classes), as defined."""
    logits = torch.tensor(logits, dtype=torch.float64)
    right = (logits.argmax(-1) == labels).double()
    loss = logits.logsumexp(-1) - logits[..., range(len(labels)), labels]
    by_class = [right[..., labels == c].mean(-1) for c in range(logits.shape[-1])]
    return {"accuracy": right.mean(-1), "loss": loss.mean(-1), "class_accuracy": torch.stack(by_class, -1)}


def same(found: ablation.Scores, expected: dict[str, torch.Tensor], rtol: float = 1e-6) -> None:
    """Accuracies agree exactly, losses to float32 rounding."""
    assert torch.equal(found.accuracy.nan_to_num(-1), expected["accuracy"].nan_to_num(-1))
    assert torch.equal(found.class_accuracy.nan_to_num(-1), expected["class_accuracy"].nan_to_num(-1))
    torch.testing.assert_close(found.loss, expected["loss"], rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("value", ["zero", "mean"])
@pytest.mark.parametrize("network", HAND)
def test_impact_of_each_unit_by_hand(network, value, sizes):
    model, (x, y), logits = network()
    sites = find_sites(model, x.shape[1:])
    means = torch.tensor(logits["means"], dtype=torch.float64)
    impact = unit_impact(model, (x, y), sites, value=value, moments=Moments(sites, means, means), **sizes)
    same(impact, scores_of(logits[value], y))
    same(impact.baseline, scores_of(logits["baseline"], y))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("network", HAND)
def test_masks_by_hand(network, sizes):
    model, (x, y), logits = network()
    sites = find_sites(model, x.shape[1:])
    n = sites.n_units
    masks = torch.cat([torch.eye(n), torch.ones(1, n), torch.zeros(1, n)]).bool()
    same(
        evaluate_masks(model, (x, y), sites, masks, **sizes),
        scores_of([*logits["zero"], logits["all"], logits["baseline"]], y),
    )


@pytest.mark.parametrize("network", HAND)
def test_curve_by_hand(network):
    model, (x, y), logits = network()
    sites = find_sites(model, x.shape[1:])
    curve = cumulative_curve(model, (x, y), sites, orderings=20, steps=[1])
    assert curve.counts.tolist() == [0, 1, sites.n_units]
    assert curve.fraction.tolist() == pytest.approx([0, 1 / sites.n_units, 1])
    assert curve.accuracy.shape == curve.loss.shape == (20, 3)
    assert curve.class_accuracy.shape == (20, 3, 2)
    ends = scores_of([logits["baseline"], logits["all"]], y)
    for row in (0, 19):
        assert curve.accuracy[row, [0, 2]].tolist() == ends["accuracy"].tolist()
    single = {round(loss, 5) for loss in scores_of(logits["zero"], y)["loss"].tolist()}
    assert {round(loss, 5) for loss in curve.loss[:, 1].tolist()} == single


# --- any network, against the definition ------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block, with a site inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.conv2(self.relu(self.norm(self.conv1(x)))))


class NoVmap(nn.Module):
    """Writes activations that depend on the variant into a tensor that does not, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.out = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        h = x.new_zeros(len(x), 6)
        h += self.relu(self.fc(x.flatten(1)))
        return self.out(h)


class Tokens(nn.Module):
    """Tokens (B, T, C): units on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.out = nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.act(self.fc(x.flatten(1, 2)))).mean(1)


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], dict]]:
    """Networks, the shapes of their inputs, and which of their sites to take."""
    with seeds.seeded(0, "networks"):
        mlp = MLP((1, 4, 4), 3, width=9, batch_norm=True, dropout=0.5)
        convnet = ConvNet((3, 16, 16), 3, width=0.06)
        pools = nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4)),
            nn.Sequential(nn.Conv2d(4, 6, (3, 1), padding="same"), nn.Tanh(), nn.AvgPool2d(2, padding=1)),
            nn.Sequential(nn.Conv2d(6, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.GELU()),
            nn.Sequential(nn.Flatten(), nn.Linear(45, 7), nn.ReLU(), nn.Linear(7, 3)),
        )
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        residual = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Block(4), *head)
        relu = nn.ReLU()
        shared = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 3))
        named = chain(fc=nn.Linear(3, 4), relu=nn.ReLU(inplace=True), out=nn.Linear(4, 3))
        build = {
            "mlp": (mlp, (1, 4, 4), {}),
            "convnet": (convnet, (3, 16, 16), {}),
            "pools": (pools, (2, 16, 16), {}),
            "residual": (residual, (2, 8, 8), {}),
            "shared": (shared, (1, 2, 2), {}),
            "no vmap": (NoVmap(), (1, 2, 2), {}),
            "tokens": (Tokens(), (3, 2, 4), {"axis": -1}),
            "before the ReLU": (named, (3,), {"names": ["fc", "relu"]}),
        }
        for model, _, _ in build.values():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    nn.init.normal_(module.running_mean, 0, 0.1)
                    nn.init.uniform_(module.running_var, 0.5, 2)
                    nn.init.uniform_(module.weight, 0.5, 2)
                    nn.init.normal_(module.bias)
    build["channels last"] = (copy.deepcopy(build["convnet"][0]).to(memory_format=torch.channels_last), (3, 16, 16), {})
    return build


NAMES = list(networks())


def setting(name: str, samples: int = 11) -> tuple:
    """A network in training mode, data of which a class is empty, its sites and moments."""
    model, shape, options = networks()[name]
    generator = seeds.generator(0, "data", name)
    x, y = torch.randn(samples, *shape, generator=generator), torch.randint(0, 2, (samples,), generator=generator)
    sites = find_sites(model, shape, **options)
    return model.train(), (x, y), sites, unit_moments(model, x, sites)


def oracle(model: nn.Module, data: tuple, edits: list[dict]) -> dict[str, torch.Tensor]:
    """Scores by one pass for each variant, in float64, with functions of activations by site."""
    double, (x, y) = copy.deepcopy(model).double(), data
    logits = []
    with torch.no_grad(), evaluating(double):
        for functions in edits:
            with replaced(double, functions):
                logits.append(double(x.double()))
    with warnings.catch_warnings():  # the mean of no samples
        warnings.simplefilter("ignore")
        return scores_of(torch.stack(logits).tolist(), y)


def clamping(sites, mask, values) -> dict:
    mask, values = sites.split(mask), sites.split(values)
    return {s: lambda a, s=s: torch.where(s.spread(mask[s.name]), s.spread(values[s.name]), a) for s in sites}


def some_masks(n: int, count: int = 9) -> torch.Tensor:
    """Masks of few and many units, with none and with all."""
    share = torch.linspace(0, 1, count)[:, None]
    return torch.rand(count, n, generator=seeds.generator(0, "masks")) < share


@pytest.mark.parametrize("value", ["zero", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_any_network_is_what_the_definition_says(name, value):
    model, data, sites, m = setting(name)
    values = m.mean if value == "mean" else torch.zeros_like(m.mean)
    options = {"value": value, "moments": m, "batch_size": 4}
    masks = some_masks(sites.n_units)
    expected = oracle(model, data, [clamping(sites, mask, values) for mask in masks])
    for memory in (1, 2**13, None):
        same(evaluate_masks(model, data, sites, masks, memory=memory, **options), expected, rtol=1e-5)
    units = torch.eye(sites.n_units, dtype=torch.bool)
    expected = oracle(model, data, [clamping(sites, unit, values) for unit in units])
    impact = unit_impact(model, data, sites, **options)
    same(impact, expected, rtol=1e-5)
    assert impact.class_accuracy[:, 2].isnan().all()  # no sample is of class 2
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_what_the_definition_says(name):
    model, data, sites, m = setting(name)
    scales, std = [0.0, 0.3, 2.0], sites.split(m.std)
    curve = noise_curve(model, data, sites, scales, repeats=2, moments=m, seed=5)
    assert curve.accuracy.shape == curve.loss.shape == (2, 3)
    edits = []
    for r in range(2):
        e = {s: ablation._noise(s, torch.ones(s.units), range(11), (5, "noise", r), torch.device("cpu")) for s in sites}
        e = {s: e[s].movedim(1, s.axis).double() * s.spread(std[s.name]) for s in sites}
        edits += [{s: lambda a, s=s, e=e, scale=scale: a + scale * e[s] for s in sites} for scale in scales]
    expected = {key: part.unflatten(0, (2, 3)) for key, part in oracle(model, data, edits).items()}
    same(curve, expected, rtol=1e-5)
    absolute = noise_curve(model, data, sites, scales, repeats=2, relative=False, seed=5)
    assert (absolute.loss[:, 0] == curve.loss[:, 0]).all()
    assert (absolute.loss[:, 1:] != curve.loss[:, 1:]).any()


@pytest.mark.parametrize("name", ["mlp", "convnet", "residual", "tokens", "no vmap"])
def test_random_directions_are_what_the_definition_says(name):
    model, data, sites, m = setting(name)
    masks = some_masks(sites.n_units)
    bases = ablation._random_bases(sites, 3, 0)

    def edit(mask: torch.Tensor) -> dict:
        mask, means = sites.split(mask), sites.split(m.mean)

        def along(a: torch.Tensor, s) -> torch.Tensor:
            q = bases[s.name]
            projector = q.T @ torch.diag(mask[s.name].double()) @ q
            rows = a.movedim(s.axis, -1)
            return (rows - (rows - means[s.name]) @ projector).movedim(-1, s.axis)

        return {s: lambda a, s=s: along(a, s) for s in sites}

    expected = oracle(model, data, [edit(mask) for mask in masks])
    options = {"value": "mean", "moments": m}
    same(evaluate_masks(model, data, sites, masks, bases=bases, batch_size=3, **options), expected, rtol=1e-5)
    units = evaluate_masks(model, data, sites, masks, **options)
    identity = {site.name: torch.eye(site.units) for site in sites}
    same(evaluate_masks(model, data, sites, masks, bases=identity, **options), vars(units))
    # without any direction there is none left, whatever the basis
    every = torch.ones(1, sites.n_units, dtype=torch.bool)
    rotated = evaluate_masks(model, data, sites, every, bases=bases, **options)
    same(rotated, vars(evaluate_masks(model, data, sites, every, **options)), rtol=1e-5)
    curve, plain = (cumulative_curve(model, data, sites, orderings=2, steps=3, basis=b) for b in ("random", "units"))
    torch.testing.assert_close(curve.loss[:, [0, -1]], plain.loss[:, [0, -1]], rtol=1e-5, atol=1e-6)
    assert curve.loss[0, 1] != curve.loss[1, 1] != plain.loss[1, 1]


def test_torchvisions_resnet_and_its_prefix():
    """Masked inside blocks, at either use of a ReLU; what lies before is not computed for each mask."""
    with seeds.seeded(0, "resnet"):
        model = resnet18(num_classes=3)
    x, y = torch.randn(4, 3, 32, 32, generator=seeds.generator(0, "x")), torch.tensor([0, 1, 2, 0])
    sites = find_sites(model, (3, 32, 32))[["layer2.1.relu[0]", "layer3.0.relu[1]", "layer4.1.relu[0]"]]
    masks = some_masks(sites.n_units, 6)
    expected = oracle(model, (x, y), [clamping(sites, mask, torch.zeros(sites.n_units).double()) for mask in masks])
    same(evaluate_masks(model, (x, y), sites, masks), expected, rtol=1e-5)
    with Watch() as watch:
        evaluate_masks(model, (x, y), sites, masks, memory=2**30)
    assert {1, 4, 5 * 4} <= set(watch.batches)  # the trial of one sample; before the sites; after, for five masks
    late = [size for size in watch.batches if size == 20]
    assert len(late) == 9 + 2  # convolutions after layer2.1.relu[0], two of them shortcuts
    impact = unit_impact(model, (x, y), sites[["layer4.1.relu[0]"]], batch_size=3)
    units = torch.zeros(512, sites.n_units, dtype=torch.bool)
    units[:, -512:] = torch.eye(512)
    same(impact, vars(evaluate_masks(model, (x, y), sites, units)), rtol=1e-5)


# --- invariances ------------------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Notes the batch of each convolution and the bytes of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.batches, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            self.batches.append(args[0].shape[0])
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("name", ["mlp", "convnet", "residual"])
def test_answers_do_not_depend_on_chunks_batches_or_order(name):
    model, data, sites, m = setting(name, 37)
    masks = some_masks(sites.n_units)
    runs = [
        lambda **o: evaluate_masks(model, data, sites, masks, value="mean", moments=m, **o),
        lambda **o: unit_impact(model, data, sites, **o),
        lambda **o: cumulative_curve(model, data, sites, orderings=2, steps=3, **o),
        lambda **o: noise_curve(model, data, sites, [0.1, 1.0], repeats=2, moments=m, **o),
    ]
    for run in runs:
        first = run()
        for sizes in ({"batch_size": 5, "memory": 1}, {"batch_size": 37, "memory": 2**30}):
            same(run(**sizes), vars(first), rtol=1e-5)
    order = torch.randperm(len(masks), generator=seeds.generator(0, "order"))
    shuffled = evaluate_masks(model, data, sites, masks[order])
    same(shuffled, {k: v[order] for k, v in vars(evaluate_masks(model, data, sites, masks)).items()}, rtol=1e-5)
    swapped = type(sites)(reversed(sites))
    parts = masks.split([s.units for s in sites], 1)
    same(
        evaluate_masks(model, data, swapped, torch.cat(parts[::-1], 1)),
        vars(evaluate_masks(model, data, sites, masks)),
        rtol=1e-5,
    )


def test_noise_is_gaussian_and_addressed(monkeypatch):
    model, data, sites, _ = setting("convnet", 40)
    site, device = sites[3], torch.device("cpu")
    std = torch.linspace(0, 2, site.units)
    whole = ablation._noise(site, std, range(2000), (0, "noise", 0), device)
    assert whole.shape == (2000, *site.shape)
    assert whole.mean().item() == pytest.approx(0, abs=0.01)
    assert whole.std((0, 2, 3)).tolist() == pytest.approx(std.tolist(), abs=0.02)
    monkeypatch.setattr(ablation, "NOISE", 3 * math.prod(site.shape))  # three samples a draw
    whole = ablation._noise(site, std, range(10), (0, "noise", 0), device)
    assert torch.equal(whole[4:8], ablation._noise(site, std, range(4, 8), (0, "noise", 0), device))
    assert not torch.equal(whole[0:3], whole[3:6])
    curves = [noise_curve(model, data, sites, [1.0], repeats=2, relative=False, seed=s).loss for s in (0, 0, 1)]
    assert torch.equal(curves[0], curves[1])
    assert not torch.equal(curves[0], curves[2])
    assert curves[0][0] != curves[0][1]


def test_orderings_are_nested_addressed_and_the_same_at_all_steps():
    model, data, sites, _ = setting("mlp", 60)
    curve = cumulative_curve(model, data, sites, orderings=3, steps=6, seed=1)
    assert curve.counts.tolist() == [0, 3, 6, 9, 12, 15, 18]
    fewer = cumulative_curve(model, data, sites, orderings=2, steps=[6, 15, 6], seed=1)
    assert fewer.counts.tolist() == [0, 6, 15, 18]
    torch.testing.assert_close(fewer.loss, curve.loss[:2, [0, 2, 5, 6]])
    assert not torch.equal(cumulative_curve(model, data, sites, orderings=3, steps=6, seed=2).loss, curve.loss)
    assert cumulative_curve(model, data, sites, orderings=2, steps=1).counts.tolist() == [0, 18]
    assert cumulative_curve(model, data, sites, orderings=1, steps=1000).counts.tolist() == list(range(19))
    last = cumulative_curve(model, data, sites.last(1), orderings=2, steps=3)
    assert last.counts.tolist() == [0, 3, 6, 9]
    uint8 = (data[0] * 40 + 100).clamp(0, 255).byte(), data[1]
    scaled = uint8[0].float() / 255, data[1]
    a, b = (cumulative_curve(model, d, sites, orderings=1, steps=2).loss for d in (uint8, scaled))
    torch.testing.assert_close(a, b)


def test_curves_of_each_layer_are_those_of_its_site_alone():
    model, data, sites, m = setting("mlp", 30)
    options = {"orderings": 2, "steps": 3, "value": "mean", "moments": m, "seed": 4}
    curves = layer_curves(model, data, sites, **options)
    assert list(curves) == sites.names
    for i, curve in enumerate(curves.values()):
        assert torch.equal(curve.loss, cumulative_curve(model, data, sites[i : i + 1], **options).loss)
    assert not torch.equal(curves["relu1"].loss, curves["relu2"].loss)


def test_what_ablation_costs_the_classes_adds_up_to_what_it_costs():
    with seeds.seeded(0, "classes"):
        model = MLP((1, 4, 4), 4, width=6).double()
    data = torch.randn(30, 1, 4, 4, generator=seeds.generator(0)).double(), torch.arange(30) % 3
    sites = find_sites(model, (1, 4, 4))
    found, whole = class_impact(model, data, sites, 4), unit_impact(model, data, sites)
    assert found.images.tolist() == [10, 10, 10, 0]
    torch.testing.assert_close(found.loss.sum(1) / 30, whole.loss - whole.baseline.loss)
    lost = found.images[:3] * (whole.baseline.class_accuracy - whole.class_accuracy)[:, :3]
    torch.testing.assert_close(found.lost[:, :3], lost)
    assert (found.loss[:, 3] == 0).all()
    assert (found.lost[:, 3] == 0).all()
    at_mean = {"value": "mean", "moments": unit_moments(model, data[0], sites)}
    clamped, impact = class_impact(model, data, sites, 4, **at_mean), unit_impact(model, data, sites, **at_mean)
    torch.testing.assert_close(clamped.loss.sum(1) / 30, impact.loss - impact.baseline.loss)
    for x, y, classes in ((data[0], data[1], 2), (data[0], data[1] - 1, 4), (data[0][:5], data[1], 4)):
        with pytest.raises(ValueError, match="labels"):
            class_impact(model, (x, y), sites, classes)
    with pytest.raises(ValueError, match="expected"):
        class_impact(model, (data[0][:0], data[1][:0]), sites, 4)


def test_dead_units_change_nothing_and_cost_nothing():
    """Exactly so, and what comes after them is not computed for them."""
    with seeds.seeded(0, "dead"):
        model = MLP((1, 4, 4), 3, width=20)
    with torch.no_grad():
        model.fc1.bias[:7] = -1000
        model.fc2.bias[:] = -1000
    x, y = torch.randn(30, 1, 4, 4, generator=seeds.generator(0)), torch.arange(30) % 3
    sites = find_sites(model, (1, 4, 4))
    impact = unit_impact(model, (x, y), sites)
    dead = torch.tensor([*range(7), *range(20, 40)])
    for name in ("accuracy", "loss", "class_accuracy"):
        assert (getattr(impact, name)[dead] == getattr(impact.baseline, name)).all()
    assert unit_impact(model, (x, y), sites[["relu2"]]).loss.unique().numel() == 1
    rows, forward = [], model.out.forward  # a hook would have all units computed

    def counted(inputs: torch.Tensor) -> torch.Tensor:
        rows.append(len(inputs))
        return forward(inputs)

    model.out.forward = counted
    unit_impact(model, (x, y), sites[["relu2"]])
    assert sum(rows) == 2 * 30 + 2  # the network as it is, the linear map after the site, and trials of one sample
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[0, dead] = True
    assert evaluate_masks(model, (x, y), sites, mask).loss == pytest.approx(impact.baseline.loss.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["relu2", "fc2", "out"])
def test_hooks_of_the_user_are_heeded(name):
    with seeds.seeded(0, "hooked"):
        model = MLP((1, 4, 4), 3, width=6)
    data = torch.randn(30, 1, 4, 4, generator=seeds.generator(0)), torch.arange(30) % 3
    sites = find_sites(model, (1, 4, 4))
    getattr(model, name).register_forward_hook(lambda module, inputs, out: 3 * out.flip(1))
    impact = unit_impact(model, data, sites)
    slow = evaluate_masks(model, data, sites, torch.eye(12, dtype=torch.bool))
    torch.testing.assert_close(impact.loss, slow.loss, rtol=1e-6, atol=0)


def test_what_comes_first_is_computed_once_and_memory_is_bounded():
    """However many units and samples there are."""
    with seeds.seeded(0, "large"):
        model = MLP((1, 8, 8), 10, width=128)
    x, y = torch.randn(600, 1, 8, 8, generator=seeds.generator(0)), torch.arange(600) % 10
    sites = find_sites(model, (1, 8, 8))
    rows = []
    hook = model.fc1.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    m = unit_moments(model, x, sites)
    rows.clear()
    runs = [
        lambda **o: unit_impact(model, (x, y), sites, **o),
        lambda **o: cumulative_curve(model, (x, y), sites, orderings=10, **o),
        lambda **o: noise_curve(model, (x, y), sites, [0.1, 0.2, 0.5, 1, 2], repeats=4, moments=m, **o),
    ]
    for run in runs:
        with Watch() as watch:
            run(memory=2**17, batch_size=64)
        assert sum(rows) <= 2 * 600 + 2  # as it is, and up to the first site
        rows.clear()
        # a chunk, or the data as they came; the activations of all variants would be 40 MB and more
        assert watch.largest <= max(2**17, x.nbytes)
    hook.remove()


# --- other people's ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "convnet", "pools"])
def test_captum_agrees(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import LayerFeatureAblation
    model, (x, y), sites, _ = setting(name)
    impact = unit_impact(model, (x, y), sites)
    model.eval()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y, reduction="none")

    offsets = sites.offsets
    for site, begin in zip(sites, offsets, strict=False):
        units = torch.arange(site.units).view(1, -1, *[1] * (len(site.shape) - 1))
        method = LayerFeatureAblation(loss, model.get_submodule(site.path))
        drop = method.attribute(x, layer_baselines=0, layer_mask=units).flatten(2 if len(site.shape) > 1 else 1)
        drop = drop[..., 0] if len(site.shape) > 1 else drop
        ours = impact.loss[begin : begin + site.units] - impact.baseline.loss
        torch.testing.assert_close(ours, -drop.double().mean(0), rtol=1e-5, atol=1e-6)


# --- areas ------------------------------------------------------------------------------------------------------------


def test_area_under_curve_in_closed_form():
    fraction = torch.tensor([0, 0.1, 0.5, 1.0])
    accuracy = torch.stack([0.8 * (1 - fraction), torch.full((4,), 0.8), torch.tensor([1, 0.5, 0.5, 0.0])])
    assert area_under_curve(fraction, accuracy).tolist() == pytest.approx([0.4, 0.8, 0.075 + 0.2 + 0.125])
    assert area_under_curve(fraction, accuracy, normalised=True).tolist() == pytest.approx([0.5, 1, 0.4])
    assert area_under_curve(fraction, accuracy[0]).shape == ()


@pytest.mark.parametrize("fraction", [[0, 1.0], [0, 0.5, 0.9], [0.1, 0.5, 1], [0, 0.5, 0.5], [0.0, 0.7, 0.3]])
def test_area_needs_a_whole_curve(fraction):
    with pytest.raises(ValueError, match="expected"):
        area_under_curve(torch.tensor(fraction), torch.ones(2, 3))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_masks_data_and_sites_say_what_is_wrong():
    model, (x, y), sites, _ = setting("mlp")
    other, masks = setting("convnet"), some_masks(sites.n_units)
    one_logit = chain(fc=nn.Linear(3, 4), relu=nn.ReLU(), out=nn.Linear(4, 1))
    cases = [
        (r"masks: expected \(K, 18\) bool", evaluate_masks, model, (x, y), sites, masks[:, 1:]),
        ("masks", evaluate_masks, model, (x, y), sites, masks.float()),
        ("masks", evaluate_masks, model, (x, y), sites, masks[0]),
        ("masks", evaluate_masks, model, (x, y), sites, masks[:0]),
        ("no such module", unit_impact, model, (x, y), other[2]),
        ("one label an input, got 0", unit_impact, model, (x[:0], y[:0]), sites),
        ("one label an input", unit_impact, model, (x, y[:5]), sites),
        ("int64", unit_impact, model, (x, y.float()), sites),
        ("tensors", unit_impact, model, (x.numpy(), y), sites),
        ("expected 0 to 2 for 3 logits, got 0 to 3", unit_impact, model, (x, 3 * y), sites),
        ("at least two classes", unit_impact, one_logit, (torch.ones(2, 3), y[:2]), find_sites(one_logit, (3,))),
        ("does not take inputs", unit_impact, model, (x[:, :, :3], y), sites),
    ]
    for words, function, *arguments in cases:
        with pytest.raises(ValueError, match=words):
            function(*arguments)
    with pytest.raises(ValueError, match="no site 'relu3'; did you mean"):
        unit_impact(model, (x, y), sites[["relu3"]])


def test_bad_options_say_what_is_wrong():
    model, data, sites, m = setting("mlp")
    other, masks = setting("convnet")[3], some_masks(sites.n_units)
    run = {
        "masks": lambda **options: evaluate_masks(model, data, sites, masks, **options),
        "impact": lambda **options: unit_impact(model, data, sites, **options),
        "curve": lambda **options: cumulative_curve(model, data, sites, **options),
        "noise": lambda **options: noise_curve(model, data, sites, **({"scales": [1.0], "moments": m} | options)),
    }
    cases = [
        ("expected 'zero' or 'mean', got 'meen'; did you mean 'mean'", "impact", {"value": "meen"}),
        ("value='mean' needs moments", "impact", {"value": "mean"}),
        ("moments: expected those of", "impact", {"value": "mean", "moments": other}),
        ("moments: expected those of", "impact", {"value": "mean", "moments": m["relu1"]}),
        ("batch_size", "impact", {"batch_size": 0}),
        ("memory", "impact", {"memory": 0}),
        ("orderings", "curve", {"orderings": 0}),
        ("steps", "curve", {"steps": 0}),
        ("steps: expected numbers of units from 0 to 18", "curve", {"steps": [1, 19]}),
        ("steps", "curve", {"steps": [-1]}),
        ("steps", "curve", {"steps": [0.5]}),
        ("steps", "curve", {"steps": []}),
        ("basis: expected 'units' or 'random'", "curve", {"basis": "unit"}),
        ("seed", "curve", {"seed": -1}),
        ("there is none for 'relu2'", "masks", {"bases": {"relu1": torch.eye(9)}}),
        ("orthonormal", "masks", {"bases": {"relu1": 2 * torch.eye(9)}}),
        ("orthonormal", "masks", {"bases": {"relu1": torch.eye(8)}}),
        ("scales", "noise", {"scales": []}),
        ("scales", "noise", {"scales": [-1.0]}),
        ("scales", "noise", {"scales": [math.inf]}),
        ("repeats", "noise", {"repeats": 0}),
        ("relative noise needs moments", "noise", {"moments": None}),
        ("moments: expected those of", "noise", {"moments": other}),
    ]
    for words, name, options in cases:
        with pytest.raises(ValueError, match=words):
            run[name](**options)


def test_nan_activations_and_statistics_of_the_batch_are_refused():
    model, (x, y), sites, _ = setting("mlp")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.fc2.weight[3, 2] = math.nan
    for run in (unit_impact, cumulative_curve):
        with pytest.raises(ValueError, match=r"site 'relu2': .* NaN"):
            run(broken, (x, y), sites)
    x[3] = math.nan
    with pytest.raises(ValueError, match="data: expected finite numbers, got NaN"):
        unit_impact(model, (x, y), sites)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    batchwise = chain(fc=nn.Linear(3, 4), norm=norm, relu=nn.ReLU(), out=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="module 'norm' normalises by the statistics of the batch"):
        unit_impact(batchwise, (torch.ones(2, 3), torch.tensor([0, 1])), find_sites(batchwise, (3,)))


def test_sites_of_another_size_are_refused():
    small, large = (MLP((1, 4, 4), 3, width=w) for w in (5, 6))
    data = torch.ones(2, 1, 4, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"site 'relu1': expected activations of shape \(5,\), here they are \(6,\)"):
        unit_impact(large, data, find_sites(small, (1, 4, 4)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_the_device_does_not_matter(name):
    model, data, sites, m = setting(name, 50)
    masks = some_masks(sites.n_units)
    runs = [
        lambda model, m: evaluate_masks(model, data, sites, masks, value="mean", moments=m),
        lambda model, m: unit_impact(model, data, sites, value="mean", moments=m),
        lambda model, m: cumulative_curve(model, data, sites, orderings=2, steps=3, basis="random"),
    ]
    for run in runs:
        here = run(model, m)
        there = run(copy.deepcopy(model).cuda(), Moments(sites, m.mean.cuda(), m.std.cuda()))
        torch.testing.assert_close(there.loss, here.loss, rtol=1e-3, atol=1e-4)
    model.cuda()
    curves = [noise_curve(model, data, sites, [1.0], moments=m, batch_size=b).loss for b in (7, 50)]
    torch.testing.assert_close(*curves, rtol=1e-4, atol=1e-5)
