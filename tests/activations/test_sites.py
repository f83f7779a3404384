"""Sites: found in order, each use of a module apart, recorded and replaced without a trace."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torchvision.models import resnet18

from nadkit import architectures
from nadkit.activations.sites import Site, Sites, capture, evaluating, find_sites, replaced


def mlp(width: int = 4) -> nn.Sequential:
    """Two hidden layers on 2 x 2 images."""
    layers = {"flatten": nn.Flatten(), "fc1": nn.Linear(4, width), "relu1": nn.ReLU(), "fc2": nn.Linear(width, width)}
    return nn.Sequential(OrderedDict(layers | {"relu2": nn.ReLU(), "out": nn.Linear(width, 3)}))


class Reused(nn.Module):
    """One in-place ReLU used twice, on integers: h = relu(x - 1), out = relu(2 h - 2); may fail between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.spare = nn.Tanh()
        self.fail = False

    def forward(self, x):
        h = self.relu(x - 1)
        if self.fail:
            raise RuntimeError("on the way")
        return self.relu(2 * h - 2)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def residual() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=5)


@pytest.fixture(scope="module")
def residual_sites(residual):
    return find_sites(residual, (3, 32, 32))


# --- finding ----------------------------------------------------------------------------------------------------------


def test_activation_modules_are_found_in_order_of_execution():
    sites = find_sites(mlp(), (1, 2, 2))
    assert sites.names == ["relu1", "relu2"]
    assert sites[0] == Site("relu1", "relu1", 0, (4,), 1, "ReLU")
    assert sites[0].units == 4


def test_each_use_of_a_residual_networks_relu_is_a_site(residual, residual_sites):
    assert len(residual_sites) == 17
    assert residual_sites.names[:3] == ["relu", "layer1.0.relu[0]", "layer1.0.relu[1]"]
    assert residual_sites["relu"].shape == (64, 16, 16)
    assert residual_sites[-1].shape == (512, 1, 1)
    assert residual_sites.n_units == 64 * 5 + 4 * (128 + 256 + 512)
    assert hooks(residual) == 0


def test_order_is_that_of_execution_not_of_definition():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.ReLU(), nn.GELU()

        def forward(self, x):
            return self.second(self.first(x))

    assert find_sites(Backwards(), (3,)).names == ["first", "second"]


def test_a_module_with_two_paths_is_one_module():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 2), relu, nn.Linear(2, 2), relu)
    assert find_sites(model, (3,)).names == ["1[0]", "1[1]"]
    assert find_sites(model, (3,), names=["3"]).names == ["1[0]", "1[1]"]


def test_parametrised_activations_count_and_softmax_and_attention_do_not():
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.prelu, self.gated, self.softmax = nn.PReLU(4), nn.GLU(), nn.Softmax(1)

        def forward(self, x):
            return self.softmax(self.gated(self.prelu(self.attention(x, x, x)[0].mean(1))))

    sites = find_sites(Attends(), (5, 4))
    assert [(site.name, site.units) for site in sites] == [("prelu", 4), ("gated", 2)]
    with pytest.raises(ValueError, match="site 'attention': expected a tensor, its output is a tuple"):
        find_sites(Attends(), (5, 4), names=["attention"])


def test_units_of_tokens_lie_on_the_last_axis():
    model = architectures.build("vit", shape=(1, 16, 16), classes=2)
    sites = find_sites(model, (1, 16, 16))
    assert {(site.shape, site.axis) for site in sites} == {((128, 16), 2)}
    with capture(model, sites) as found:
        model(torch.zeros(3, 1, 16, 16))
    activation = found[sites.names[0]]
    assert activation.shape == (3, 16, 128)
    assert sites[0].units_first(activation).shape == (3, 128, 16)
    assert sites[0].spread(torch.arange(128)).shape == (1, 1, 128)


def test_numbers_of_units_spread_over_maps():
    assert Site("maps", "maps", 0, (5, 2, 3)).spread(torch.arange(5)).shape == (1, 5, 1, 1)
    assert Site("units", "units", 0, (5,)).spread(torch.arange(5)).shape == (1, 5)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["layer1.0.relu"], ["layer1.0.relu[0]", "layer1.0.relu[1]"]),
        (["layer1.0.relu[1]"], ["layer1.0.relu[1]"]),
        ("layer4", ["layer4"]),
        (["layer2", "bn1"], ["bn1", "layer2"]),
    ],
)
def test_other_modules_can_be_named(residual, names, found):
    assert find_sites(residual, (3, 32, 32), names=names).names == found


def test_wrong_names_are_answered(residual):
    with pytest.raises(ValueError, match=r"no module 'layer1.0.rel' in ResNet; did you mean 'layer1.0.relu'\?"):
        find_sites(residual, (3, 32, 32), names=["layer1.0.rel"])
    with pytest.raises(ValueError, match="'spare' of Reused is there but does not run"):
        find_sites(Reused(), (3,), names=["spare"])
    with pytest.raises(ValueError, match="at least one"):
        find_sites(residual, (3, 32, 32), names=[])


def test_a_network_without_activations_is_told_what_to_do():
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"no activation in Sequential, neither.* torch.relu; .*names=.*flatten, fc"):
        find_sites(model, (1, 2, 2))


def test_what_does_not_fit_is_said(residual):
    with pytest.raises(ValueError, match=r"does not take inputs of shape \(2, 1, 32, 32\)"):
        find_sites(residual, (1, 32, 32))
    with pytest.raises(ValueError, match=r"site 'relu1'.*units on axis 2.*shape \(2, 4\)"):
        find_sites(mlp(), (1, 2, 2), axis=2)
    with pytest.raises(ValueError, match="units on axis 0"):
        find_sites(mlp(), (1, 2, 2), axis=0)
    whole = nn.Sequential(OrderedDict(mix=nn.Flatten(0), relu=nn.ReLU()))
    with pytest.raises(ValueError, match=r"for 2 samples has shape \(6,\)"):
        find_sites(whole, (3,))


@pytest.mark.parametrize("shape", [(1, 2, 2), (7,)])
def test_each_module_keeps_its_mode(shape):
    """Whether the network ran or failed; a layer frozen by hand stays frozen."""
    model = mlp().train()
    model.fc1.eval()
    before = [module.training for module in model.modules()]
    try:
        find_sites(model, shape)
    except ValueError:
        assert shape == (7,)
    assert [module.training for module in model.modules()] == before
    assert hooks(model) == 0


def test_evaluating_is_eval_mode_and_back():
    model = mlp().train()
    with evaluating(model):
        assert not model.relu1.training
    assert model.relu1.training


def test_a_network_of_double_precision_is_run_in_it():
    assert find_sites(mlp().double(), (1, 2, 2)).names == ["relu1", "relu2"]


def test_statistics_of_batch_norm_stay():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    find_sites(model, (3,))
    assert model[0].num_batches_tracked == 0


# --- Sites ------------------------------------------------------------------------------------------------------------

MAPS = Site("b<1>", "b", 1, (10, 4, 4), 1, "GELU")
THREE = Sites([Site("a", "a", 0, (2,), 1, "ReLU"), MAPS, Site("c", "c", 0, (1,))])


def test_sites_are_a_sequence_with_names():
    assert len(THREE) == 3
    assert THREE["c"] is THREE[2] is THREE[-1]
    assert THREE[1:].names == THREE.last(2).names == THREE[["b<1>", "c"]].names == ["b<1>", "c"]
    assert [site.units for site in THREE] == [2, 10, 1]
    assert (THREE.n_units, THREE.offsets) == (13, [0, 2, 12, 13])
    assert THREE.layers.tolist() == [1] * 2 + [2] * 10 + [3]
    assert THREE == Sites(THREE) != THREE[1:]
    assert pickle.loads(pickle.dumps(THREE)) == THREE


def test_numbers_of_all_units_split_by_site():
    values = torch.arange(26).view(2, 13)
    parts = THREE.split(values)
    assert {name: part.shape for name, part in parts.items()} == {"a": (2, 2), "b<1>": (2, 10), "c": (2, 1)}
    torch.testing.assert_close(torch.cat(list(parts.values()), dim=1), values)
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 13\), a number for each unit, got \(13, 2\)"):
        THREE.split(values.T)


def test_sites_that_are_not_there():
    with pytest.raises(ValueError, match=r"no site 'b<2>'; did you mean 'b<1>'\?"):
        THREE["b<2>"]
    with pytest.raises(ValueError, match="k: expected 1 to 3"):
        THREE.last(4)
    with pytest.raises(ValueError, match="k: expected an integer, at least 1"):
        THREE.last(0)
    with pytest.raises(ValueError, match="at least one"):
        THREE[3:]
    with pytest.raises(ValueError, match="each once"):
        Sites([THREE[0], THREE[0]])
    with pytest.raises(IndexError):
        THREE[3]


def test_what_was_found_is_a_table_to_read():
    assert repr(THREE).splitlines() == [
        "3 sites, 13 units",
        "  site  module  units  positions",
        "  a     ReLU        2          1",
        "  b<1>  GELU       10      4 x 4",
        "  c                 1          1",
    ]
    page = THREE._repr_html_()
    assert "<caption>3 sites, 13 units</caption>" in page
    assert "<td>b&lt;1&gt;</td><td>GELU</td><td>10</td><td>4 x 4</td>" in page
    assert repr(THREE.last(1)).startswith("1 site, 1 unit\n")


# --- capture and replaced ---------------------------------------------------------------------------------------------


def test_uses_are_told_apart_and_operations_in_place_do_not_show():
    model = Reused()
    sites = find_sites(model, (4,))
    x = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    with capture(model, sites) as found:
        out = model(x)
    torch.testing.assert_close(found["relu[0]"], torch.tensor([[0.0, 0.0, 1.0, 3.0]]))
    torch.testing.assert_close(found["relu[1]"], torch.tensor([[0.0, 0.0, 0.0, 4.0]]))
    out.zero_()
    assert found["relu[1]"].sum() == 4


def test_what_comes_before_an_operation_in_place_is_seen_as_it_was():
    model = nn.Sequential(OrderedDict(fc=nn.Linear(3, 3), relu=nn.ReLU(inplace=True)))
    x = torch.randn(8, 3)
    with capture(model, find_sites(model, (3,), names=["fc"])) as found:
        model(x)
    torch.testing.assert_close(found["fc"], model.fc(x))
    assert (found["fc"] < 0).any()


def test_uses_are_counted_anew_in_each_pass_also_after_a_failure():
    model = Reused()
    sites = find_sites(model, (4,))
    x = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    with capture(model, sites) as found:
        model.fail = True
        with pytest.raises(RuntimeError, match="on the way"):
            model(x)
        model.fail = False
        for _ in range(2):
            model(x)
            assert found["relu[0]"].max() == 3
            assert found["relu[1]"].max() == 4


def test_hooks_are_gone_after_the_block_also_after_a_failure():
    model = Reused()
    sites = find_sites(model, (4,))
    model.fail = True
    with capture(model, sites), replaced(model, {sites[0]: torch.relu}):
        assert hooks(model) == 4
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="on the way"), capture(model, sites):
        model(torch.zeros(1, 4))
    assert hooks(model) == 0
    stranger = Site("other", "rely", 0, (4,))
    with pytest.raises(ValueError, match=r"site 'other': no such module in Reused; did you mean 'relu'\?"):
        capture(model, [*sites, stranger]).__enter__()
    assert hooks(model) == 0


def test_the_dict_holds_the_last_pass_alone():
    model = mlp()
    with capture(model, find_sites(model, (1, 2, 2))) as found:
        model(torch.zeros(3, 1, 2, 2))
        with pytest.raises(RuntimeError):
            model(torch.zeros(3, 7))
        assert found == {}
        model(torch.zeros(5, 1, 2, 2))
    assert found["relu2"].shape == (5, 4)


def test_activations_can_be_reduced_as_they_come():
    model = mlp()
    sites = find_sites(model, (1, 2, 2))
    with capture(model, sites[1:], lambda site, a: (site.name, a.sum().item())) as found:
        model(torch.ones(2, 1, 2, 2))
    with capture(model, sites) as whole:
        model(torch.ones(2, 1, 2, 2))
    assert found == {"relu2": ("relu2", whole["relu2"].sum().item())}


def test_captured_activations_carry_gradients():
    model = mlp().train()
    x = torch.rand(6, 1, 2, 2)
    with capture(model, find_sites(model, (1, 2, 2))) as found:
        model(x)
    found["relu1"].sum().backward()
    active = (model[:3](x) > 0).float()
    torch.testing.assert_close(model.fc1.weight.grad, active.T @ x.flatten(1))
    assert model.out.weight.grad is None


def test_capture_works_in_vmap_over_networks():
    torch.manual_seed(3)
    models = [mlp() for _ in range(3)]
    params, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    sites = find_sites(skeleton, (1, 2, 2))
    x = torch.randn(6, 1, 2, 2)

    def activity(params, buffers):
        with capture(skeleton, sites) as found:
            functional_call(skeleton, (params, buffers), (x,))
        return found["relu2"].square().sum()

    together = vmap(grad(activity), in_dims=(0, 0))(params, buffers)
    for i, model in enumerate(models):
        with capture(model, sites) as found:
            model(x)
        found["relu2"].square().sum().backward()
        torch.testing.assert_close(together["fc1.weight"][i], model.fc1.weight.grad)
    assert hooks(skeleton) == 0


def test_a_replaced_output_goes_on_through_the_network():
    model = Reused()
    sites = find_sites(model, (4,))
    x = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    with replaced(model, {sites[0]: lambda a: a * mask}):
        torch.testing.assert_close(model(x), torch.zeros(1, 4))
    with replaced(model, {sites[1]: lambda a: a + 1}):
        torch.testing.assert_close(model(x), torch.tensor([[1.0, 1.0, 1.0, 5.0]]))
    with replaced(model, {sites[0]: lambda a: a + 1, sites[1]: lambda a: -a}):
        torch.testing.assert_close(model(x), torch.tensor([[0.0, 0.0, -2.0, -6.0]]))
    torch.testing.assert_close(model(x), torch.tensor([[0.0, 0.0, 0.0, 4.0]]))


def test_a_capture_outside_sees_the_original_and_one_inside_the_replacement():
    model = mlp()
    sites = find_sites(model, (1, 2, 2))
    x = torch.rand(2, 1, 2, 2)
    with capture(model, sites) as before, replaced(model, {sites[0]: torch.zeros_like}), capture(model, sites) as after:
        model(x)
    torch.testing.assert_close(before["relu1"], model[:3](x))
    assert (after["relu1"] == 0).all()
    torch.testing.assert_close(before["relu2"], after["relu2"])


def test_an_identity_in_every_block_changes_nothing(residual, residual_sites):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), evaluating(residual):
        out = residual(x)
        with replaced(residual, {site: torch.clone for site in residual_sites}):
            torch.testing.assert_close(residual(x), out, rtol=0, atol=0)
        with replaced(residual, {residual_sites["layer2.0.relu[0]"]: torch.zeros_like}):
            assert not torch.allclose(residual(x), out)
