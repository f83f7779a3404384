"""Activation functions: found, recorded and replaced as modules are, however they are spelled."""

import copy
import types
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack as modes
from torchvision.models import resnet18

from nadkit import architectures, seeds
from nadkit.activations import ablation
from nadkit.activations.ablation import cumulative_curve, evaluate_masks, noise_curve, unit_impact
from nadkit.activations.activity import record_activity
from nadkit.activations.calls import ACTIVATIONS, FUNCTIONS, OnFunctions
from nadkit.activations.moments import unit_moments
from nadkit.activations.selectivity import auroc
from nadkit.activations.sites import capture, evaluating, find_sites, replaced
from nadkit.activations.variants import Variants


def ignoring(function):
    """Return a call in place whose result is thrown away."""

    def call(x):
        function(x)
        return x

    return call


# spelling -> the module it is the same as, and its name
SPELLINGS = {
    "F.relu": (F.relu, nn.ReLU(), "relu"),
    "torch.relu": (torch.relu, nn.ReLU(), "relu"),
    "x.relu": (lambda x: x.relu(), nn.ReLU(), "relu"),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), nn.ReLU(), "relu"),
    "F.relu by name": (lambda x: F.relu(input=x, inplace=True), nn.ReLU(), "relu"),
    "torch.relu_": (torch.relu_, nn.ReLU(), "relu"),
    "x.relu_, as a statement": (ignoring(torch.Tensor.relu_), nn.ReLU(), "relu"),
    "F.relu as a statement": (ignoring(partial(F.relu, inplace=True)), nn.ReLU(), "relu"),
    "F.gelu": (F.gelu, nn.GELU(), "gelu"),
    "F.silu": (F.silu, nn.SiLU(), "silu"),
    "F.leaky_relu_": (F.leaky_relu_, nn.LeakyReLU(), "leaky_relu"),
    "F.elu": (F.elu, nn.ELU(), "elu"),
    "F.mish": (F.mish, nn.Mish(), "mish"),
    "F.logsigmoid": (F.logsigmoid, nn.LogSigmoid(), "logsigmoid"),
    "F.softplus": (F.softplus, nn.Softplus(), "softplus"),
    "F.hardswish": (F.hardswish, nn.Hardswish(), "hardswish"),
    "F.relu6": (F.relu6, nn.ReLU6(), "relu6"),
    "F.threshold": (lambda x: F.threshold(x, 0.1, 20.0), nn.Threshold(0.1, 20.0), "threshold"),
    "F.tanh": (F.tanh, nn.Tanh(), "tanh"),
    "x.sigmoid_": (torch.Tensor.sigmoid_, nn.Sigmoid(), "sigmoid"),
}


class Layers(nn.Module):
    """Two convolutions and a linear layer; after each but the last one activation, whatever that is."""

    def __init__(self, activation) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 2)
        self.activation, self.out = activation, nn.Linear(4, 3)

    def forward(self, x):
        h = self.activation(self.conv1(x))
        return self.out(self.activation(self.conv2(h)).mean((2, 3)))


def pair(spelling: str) -> tuple[nn.Module, nn.Module, str]:
    """A network with functions, the same with modules, and the functions' name."""
    function, module, name = SPELLINGS[spelling]
    with seeds.seeded(0, "layers"):
        functional = Layers(function)
    modular = Layers(module)
    modular.load_state_dict(functional.state_dict())
    return functional, modular, name


def data(samples: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 1, 5, 5, generator=seeds.generator(0, "x")), torch.arange(samples) % 3


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_functions_are_found_recorded_and_ablated_as_modules_are(spelling):
    functional, modular, name = pair(spelling)
    sites, others = find_sites(functional, (1, 5, 5)), find_sites(modular, (1, 5, 5))
    assert sites.names == [f"{name}[0]", f"{name}[1]"]
    assert [site.kind for site in sites] == [f"{name}()"] * 2
    assert [site.shape for site in sites] == [site.shape for site in others] == [(3, 3, 3), (4, 2, 2)]
    moments, theirs = unit_moments(functional, data()[0], sites), unit_moments(modular, data()[0], others)
    runs = [
        lambda n, s, m: unit_impact(n, data(), s, batch_size=4),
        lambda n, s, m: cumulative_curve(n, data(), s, orderings=2, steps=3, value="mean", moments=m),
        lambda n, s, m: noise_curve(n, data(), s[:1], [0.5], repeats=2, relative=False),
    ]
    for run in runs[:2]:
        ours, expected = run(functional, sites, moments), run(modular, others, theirs)
        torch.testing.assert_close(ours.loss, expected.loss)
        torch.testing.assert_close(ours.accuracy, expected.accuracy)
    assert (runs[2](functional, sites, moments).loss != unit_impact(functional, data(), sites).baseline.loss).all()
    activity = record_activity(functional, data(), sites)
    torch.testing.assert_close(activity.class_means, record_activity(modular, data(), others).class_means)
    torch.testing.assert_close(auroc(activity), auroc(record_activity(modular, data(), others)))
    assert Variants(functional, data(), sites).can_vmap  # what lies before a site is not computed for each variant
    assert modes() == []


def test_every_activation_module_calls_a_function_that_is_known():
    known = []
    options = {nn.Threshold: (0.1, 20.0)}
    for kind in ACTIVATIONS:
        with OnFunctions(FUNCTIONS, lambda name, inputs, output, kind=kind: known.append(kind)):
            kind(*options.get(kind, ()))(torch.zeros(2, 4))
    assert known == list(ACTIVATIONS)


def test_names_are_those_that_modules_would_have():
    """Torchvision's ResNet-18 with functions, and modules used twice."""
    model = resnet18(num_classes=3).eval()
    expected = find_sites(model, (3, 32, 32))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return torch.relu_(out + (x if self.downsample is None else self.downsample(x)))

    functional = copy.deepcopy(model)
    for block in functional.modules():
        if hasattr(block, "conv2"):
            block.forward = types.MethodType(forward, block)
    sites = find_sites(functional, (3, 32, 32))
    assert sites.names == expected.names
    assert [site.shape for site in sites] == [site.shape for site in expected]
    few = ["layer1.0.relu[1]", "layer4.1.relu[0]"]
    x, y = torch.randn(4, 3, 32, 32, generator=seeds.generator(0)), torch.tensor([0, 1, 2, 0])
    masks = torch.rand(5, 64 + 512, generator=seeds.generator(1)) < 0.5
    losses = [evaluate_masks(m, (x, y), s[few], masks).loss for m, s in ((model, expected), (functional, sites))]
    torch.testing.assert_close(*losses)
    assert find_sites(functional, (3, 32, 32), names=["layer1.0.relu"]).names == ["layer1.0.relu[0]", few[0]]
    assert find_sites(functional, (3, 32, 32), names=few).names == few
    with pytest.raises(ValueError, match=r"no module 'layer1.0.relu\[2\]' in ResNet; did you mean 'layer1.0.relu"):
        find_sites(functional, (3, 32, 32), names=["layer1.0.relu[2]"])
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Identity())
    block[1].forward = torch.tanh
    assert find_sites(nn.Sequential(block, block), (4, 3, 3)).names == ["0.1.tanh[0]", "0.1.tanh[1]"]


class Mixed(nn.Module):
    """A module and functions of one name, as many of the latter as the input says."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.out = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        h = self.relu(self.fc(x))
        for _ in range(2 if x.abs().sum() == 0 else 3):
            h = torch.relu(h - 0.1)
        return self.out(h)


def test_a_network_of_both_has_all_its_sites_also_when_its_course_depends_on_its_input():
    model = Mixed()
    sites = find_sites(model, (4,))
    assert sites.names == ["relu", "relu()[0]", "relu()[1]"]
    x = torch.rand(5, 4)
    with torch.no_grad(), capture(model, sites) as found:
        model(x)
    h = torch.relu(model.fc(x))
    torch.testing.assert_close(list(found.values()), [h, (h - 0.1).relu(), (h - 0.2).relu()])
    impact = unit_impact(model, (x, torch.tensor([0, 1, 2, 0, 1])), sites)
    assert impact.loss.shape == (12,)


def test_what_is_done_at_a_site_is_no_call_of_the_network():
    """Neither that of the edit itself, nor for blocks further out."""
    model = pair("torch.relu")[0]
    sites, (x, _) = find_sites(model, (1, 5, 5)), data()
    plus = {sites[0]: lambda a: torch.relu(a) + 1}
    with torch.no_grad(), capture(model, sites) as before, replaced(model, plus), capture(model, sites) as after:
        model(x)
        torch.relu(x)  # nor is this
    torch.testing.assert_close(after["relu[0]"], before["relu[0]"] + 1)
    torch.testing.assert_close(before["relu[1]"], torch.relu(model.conv2(after["relu[0]"])))
    torch.testing.assert_close(after["relu[1]"], before["relu[1]"])


def test_nothing_is_left_behind_when_a_network_fails():
    model = pair("torch.relu")[0]
    sites = find_sites(model, (1, 5, 5))
    with capture(model, sites) as found:
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 1, 2, 5))
        model(data()[0])
        assert list(found) == ["relu[0]", "relu[1]"]
    assert modes() == []
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_functions_are_seen_in_vmap_over_networks():
    models = [architectures.build("lenet", shape=(1, 16, 16), classes=2) for _ in range(3)]
    params, buffers = stack_module_state(models)
    skeleton, x = copy.deepcopy(models[0]).to("meta"), torch.randn(4, 1, 16, 16)
    sites = find_sites(skeleton, (1, 16, 16))

    def activity(params, buffers):
        with capture(skeleton, sites) as found:
            functional_call(skeleton, (params, buffers), (x,))
        return found["relu[2]"]

    together = vmap(activity)(params, buffers)
    for i, model in enumerate(models):
        with capture(model, sites) as found:
            model(x)
        torch.testing.assert_close(together[i], found["relu[2]"])


# --- other networks ---------------------------------------------------------------------------------------------------


def modular() -> nn.Module:
    return pair("F.relu")[1]


UNREACHABLE = {
    "scripted": (torch.jit.script, "is scripted or traced.* pass the module it was made of"),
    "parallel": (nn.DataParallel, r"wrapped in DataParallel; pass .*\.module"),
    "compiled": (torch.compile, r"compiled; pass .*\._orig_mod"),
    "in place": (lambda net: net.compile() or net, "compiled in place; pass a copy"),
    "part of one": (lambda net: nn.Sequential(nn.Identity(), torch.compile(net)), "module '1' is compiled"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", UNREACHABLE)
def test_networks_that_cannot_be_seen_into_are_refused(name):
    wrap, words = UNREACHABLE[name]
    plain = modular()
    sites, network = find_sites(plain, (1, 5, 5)), wrap(copy.deepcopy(plain))
    runs = [
        lambda: find_sites(network, (1, 5, 5)),
        lambda: unit_impact(network, data(), sites),
        lambda: record_activity(network, data(), sites),
        lambda: unit_moments(network, data()[0], sites),
    ]
    for run in runs:
        with pytest.raises(ValueError, match=words):
            run()


class Several(nn.Module):
    """A network that returns more than its logits."""

    def __init__(self, network: nn.Module, several) -> None:
        super().__init__()
        self.network, self.several = network, several

    def forward(self, x):
        return self.several(self.network(x))


@pytest.mark.parametrize(
    ("several", "where"),
    [
        (lambda logits: (logits, logits.sum()), "output[0]"),
        (lambda logits: [logits.sum(), logits], "output[1]"),
        (lambda logits: {"loss": None, "logits": logits}, "output['logits']"),
        (lambda logits: types.SimpleNamespace(loss=logits.sum(), scores=logits), "output.scores"),
    ],
)
def test_a_network_of_several_outputs_says_how_it_is_made_to_return_its_logits(several, where):
    plain = modular()
    network = Several(plain, several)
    sites = find_sites(network, (1, 5, 5))
    for run in (unit_impact, record_activity, partial(cumulative_curve, orderings=1)):
        with pytest.raises(ValueError, match=r"expected a network with logits .*model.register_forward_hook") as error:
            run(network, data(), sites)
        assert str(error.value).endswith(f"lambda module, inputs, output: {where})")
    network.register_forward_hook(eval(f"lambda module, inputs, output: {where}"))
    expected = unit_impact(plain, data(), find_sites(plain, (1, 5, 5)))
    torch.testing.assert_close(unit_impact(network, data(), sites).loss, expected.loss)


@pytest.mark.parametrize("spelling", ["F.relu", "module"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.bfloat16, 0.01)], ids=str)
def test_networks_of_any_precision_run_in_it(dtype, rtol, spelling):
    network = (modular() if spelling == "module" else pair(spelling)[0]).to(dtype)
    sites, (x, y) = find_sites(network, (1, 5, 5)), data()
    x = x.double() + 1e-9
    moments = unit_moments(network, x, sites)
    masks = torch.eye(7, dtype=torch.bool)
    bases = ablation._random_bases(sites, 0, 0)
    scores = {
        "masks": evaluate_masks(network, (x, y), sites, masks, value="mean", moments=moments),
        "impact": unit_impact(network, (x, y), sites, value="mean", moments=moments),
    }
    values, losses = sites.split(moments.mean), []
    for mask in masks:
        part = sites.split(mask)
        edits = {
            s: lambda a, s=s, part=part: torch.where(s.spread(part[s.name]), s.spread(values[s.name]).to(a), a)
            for s in sites
        }
        with torch.no_grad(), evaluating(network), replaced(network, edits):
            losses.append(F.cross_entropy(network(x.to(dtype)).double(), y))
    for found in scores.values():
        assert found.loss.dtype == found.accuracy.dtype == torch.float64
        torch.testing.assert_close(found.loss, torch.stack(losses), rtol=rtol, atol=0)
    rotated = evaluate_masks(network, (x, y), sites, torch.ones(1, 7, dtype=torch.bool), bases=bases)
    zeroed = evaluate_masks(network, (x, y), sites, torch.ones(1, 7, dtype=torch.bool))
    torch.testing.assert_close(rotated.loss, zeroed.loss, rtol=max(rtol, 1e-6), atol=0)
    assert noise_curve(network, (x, y), sites, [0, 0.1], repeats=2, moments=moments).loss.isfinite().all()
    activity = record_activity(network, (x, y), sites)
    torch.testing.assert_close(activity.mean, moments.mean, rtol=rtol, atol=0)
    assert record_activity(network, (data()[0].byte(), y), sites).samples == 9
