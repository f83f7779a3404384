"""Architectures: sizes known from the papers' code, initialisation, shapes, and names."""

import sys

import pytest
import torch
from torch import nn

from nadkit import architectures, seeds

PARAMETERS = {"lenet": 62_006, "vgg11": 9_756_426, "resnet18": 11_173_962, "densenet121": 6_956_298, "logreg": 30_730}
"""Weights of the CIFAR-10 forms: 3 x 32 x 32 inputs, ten classes."""


def tiny(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_weights(name):
    model = architectures.build(name, shape=(3, 32, 32), classes=10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 32, 32), 1), ((3, 40, 36), 7)])
def test_any_input_shape_and_class_count(name, shape, classes):
    model = architectures.build(name, shape=shape, classes=classes).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", ["lenet", "vgg11", "resnet18"])
def test_without_pooling_no_layer_subsamples(name):
    model = architectures.build(f"{name}-nopool", shape=(1, 32, 32), classes=2)
    pools = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    assert not any(isinstance(m, pools) for m in model.modules())
    assert all(m.stride == (1, 1) for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize("name", ["lenet", "lenet-nopool"])
def test_pooling_is_left_out_by_name_or_by_argument(name):
    assert name in architectures.NAMES
    one, other = (
        architectures.build(*names, shape=(1, 16, 16), classes=2, **options).state_dict()
        for names, options in ((["lenet-nopool"], {}), ([name], {"pooling": False}))
    )
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}


def test_initialisation_of_vgg_is_that_of_the_authors():
    with seeds.seeded(0):
        model = architectures.build("vgg11", shape=(1, 32, 32), classes=2)
    for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.15)
        assert not conv.bias.any()


def test_lenet_against_its_definition():
    """A hand-written forward pass: convolution, ReLU, pooling, twice, then three linear layers."""
    model = architectures.build("lenet", shape=(1, 32, 32), classes=3).double()
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    f = nn.functional
    h = f.max_pool2d(f.conv2d(x, model.conv1.weight, model.conv1.bias).clamp(min=0), 2)
    h = f.max_pool2d(f.conv2d(h, model.conv2.weight, model.conv2.bias).clamp(min=0), 2).reshape(2, -1)
    for layer in (model.fc1, model.fc2):
        h = (h @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(model(x), h @ model.fc3.weight.T + model.fc3.bias)


@pytest.mark.parametrize("architecture", [tiny, f"{__name__}:tiny"])
def test_a_factory_works_where_a_name_does(architecture):
    model = architectures.build(architecture, shape=(1, 4, 4), classes=3)
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def test_torchvision_models_take_any_channels():
    model = architectures.build("torchvision:resnet18", shape=(1, 32, 32), classes=4).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenett", "did you mean 'lenet'"),
        ("ResNet-18", "did you mean 'resnet18'"),
        ("torchvision:resnet19", "did you mean 'resnet18'"),
        ("no_such_module:make", "no_such_module"),
        ("math:no_such_function", "no_such_function"),
        ("math:pi", "expected a callable"),
        ("lenet-nopol", "did you mean 'lenet-nopool'"),
        ("densenet121-nopool", "unknown architecture"),
        (".relative:make", "'.relative:make'.*TypeError"),
        (":make", "':make'.*ValueError"),
    ],
)
def test_unknown_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        architectures.check(name)


def test_a_module_that_fails_while_it_is_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "nadkit_test_broken.py").write_text("1 / 0")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ValueError, match=r"nadkit_test_broken.*ZeroDivisionError: division by zero"):
        architectures.check("nadkit_test_broken:make")


def test_the_number_of_logits_is_found_by_trying():
    assert architectures.n_logits(tiny((1, 4, 4), 3), (1, 4, 4)) == 3
    for model, message in [
        (nn.Linear(4, 3), r"\(2, 1, 4, 4\) to logits \(2, classes\), got shape \(2, 1, 4, 3\)"),
        (tiny((1, 5, 5), 3), r"does not accept inputs of shape \(2, 1, 4, 4\)"),
        (nn.LSTM(4, 3), "does not accept"),
    ]:
        with pytest.raises(ValueError, match=message):
            architectures.n_logits(model, (1, 4, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "lenet", "shape": (1, 12, 12), "classes": 2}, "at least 16x16"),
        ({"architecture": "vgg11", "shape": (1, 16, 16), "classes": 2}, "at least 32x32"),
        ({"architecture": "densenet121", "shape": (1, 4, 4), "classes": 2}, "at least 8x8"),
        ({"architecture": "lenet", "shape": (32, 32), "classes": 2}, "channels, height, width"),
        ({"architecture": "lenet", "shape": (1, 32, 32), "classes": 0}, "classes"),
        ({"architecture": "densenet121", "shape": (1, 32, 32), "classes": 2, "pooling": False}, "without pooling"),
        ({"architecture": tiny, "shape": (1, 8, 8), "classes": 2, "pooling": False}, "in your factory"),
        ({"architecture": lambda: None, "shape": (1, 8, 8), "classes": 2}, "expected a factory.shape"),
        ({"architecture": lambda shape, classes: 3, "shape": (1, 8, 8), "classes": 2}, "torch.nn.Module, got int"),
        ({"architecture": "torchvision:alexnet", "shape": (3, 32, 32), "classes": 2}, "does not accept"),
    ],
)
def test_impossible_networks_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        architectures.build(**options)
