"""Architectures: sizes known from the papers' code, initialisation, shapes, and names."""

import functools
import hashlib
import math
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from nadkit import architectures, files, seeds
from nadkit.architectures import MLP, ConvNet, ConvNeXt, LeNet, Mixer, ResNet18, ViT, pretrained
from nadkit.architectures.convnet import MAPS, STRIDES
from nadkit.architectures.pooling import Blur, MaxBlur, pooled_size, pooling_layer
from nadkit.inputs.derivatives import gradient, mixed_moment

PARAMETERS = {"lenet": 62_006, "vgg11": 9_756_426, "resnet18": 11_173_962, "densenet121": 6_956_298, "logreg": 30_730}
"""Weights of the CIFAR-10 forms: 3 x 32 x 32 inputs, ten classes."""

DIRECTIONS = {"mlp128": 411_146, "mlp512": 1_841_162, "mlp2048": 10_510_346, "convnet11": 7_790_794}
"""The same of the networks of the work on single directions."""

SMALL = {"vit": 29_418, "convnext": 132_058, "mixer": 27_306}
"""The same of the later families, whose docstrings say them."""

REFERENCE = {
    "logreg": ("6744258fd2b0", -1.03047),
    "lenet": ("1e02da8084d5", 0.104948),
    "vgg11": ("194d3aed5ddb", -0.00936636),
    "resnet18": ("57de925f489d", -0.0541094),
    "densenet121": ("5c0baaf1fdeb", 0.00800786),
    "lenet-nopool": ("67fbd1753393", -0.068752),
    "vgg11-nopool": ("16ad4d006de7", 0.00948272),
    "resnet18-nopool": ("a991658da9db", 0.0158783),
    "vit": ("c96c8bc85c1d", -0.131378),
    "mixer": ("c8eb8859ca3c", -0.21646),
    "convnext": ("0cf68ee942a6", -0.123183),
    "mlp128": ("b319915797a4", -0.0020894),
    "convnet11": ("180d9159117e", -0.0687659),
    "convnet11-nobn": ("4458ce15a8c5", -0.269158),
}
"""Hash of the weights that seed 3 gives a network of 1 x 32 x 32 inputs and one logit, and its output on one input."""

VARIANTS = ["lenet-average", "lenet-stride", "lenet-blur", "resnet18-blur", *SMALL]


def tiny(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def image(shape=(1, 32, 32), n=1):
    return torch.randn(n, *shape, generator=seeds.generator(3, "input"))


def n_weights(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS | SMALL | DIRECTIONS)
def test_number_of_weights(name):
    model = architectures.build(name, shape=(3, 32, 32), classes=10)
    assert n_weights(model) == (PARAMETERS | SMALL | DIRECTIONS)[name]


@pytest.mark.parametrize("family", [LeNet, ViT, ConvNeXt, Mixer, MLP, ConvNet])
def test_docstrings_state_the_number_of_weights(family):
    assert f"{n_weights(family(shape=(3, 32, 32), classes=10)):,} weights" in family.__doc__


@pytest.mark.parametrize("name", REFERENCE)
def test_networks_of_earlier_runs_stay_what_they_were(name):
    with seeds.seeded(3, "reference"):
        model = architectures.build(name, shape=(1, 32, 32), classes=1).eval()
    digest = hashlib.sha256()
    for key, values in model.state_dict().items():
        digest.update(key.encode() + values.double().numpy().tobytes())
    checksum, output = REFERENCE[name]
    assert digest.hexdigest()[:12] == checksum
    with torch.no_grad():
        assert model(image()).item() == pytest.approx(output, rel=1e-4)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 32, 32), 1), ((3, 40, 36), 7)])
def test_any_input_shape_and_class_count(name, shape, classes):
    model = architectures.build(name, shape=shape, classes=classes).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 32, 32), 1), ((3, 48, 16), 7)])
def test_variants_and_later_families_take_shapes_that_their_patches_divide(name, shape, classes):
    model = architectures.build(name, shape=shape, classes=classes).eval()
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("family", [functools.partial(ViT, patch=16), ConvNeXt, functools.partial(Mixer, patch=16)])
def test_later_families_take_photographs(family):
    model = architectures.build(family, shape=(3, 224, 224), classes=5).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seed_gives_one_network_in_any_memory_format_that_depends_on_its_input(name):
    def build():
        with seeds.seeded(0, "network", 7):
            return architectures.build(name, shape=(1, 32, 32), classes=1).eval()

    one, other = build(), build().to(memory_format=torch.channels_last)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    x = image()[0]
    g = gradient(one, x)
    torch.testing.assert_close(gradient(other, x), g, rtol=1e-3, atol=1e-6)
    far = one(x + 100 * image(n=2)).squeeze().diff()
    assert min(g.norm(), far.abs()) > 1e-6


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "resnet18-blur"])
def test_gradients_of_stacked_networks_are_those_of_each(name):
    models = [architectures.build(name, shape=(1, 32, 32), classes=1).eval() for _ in range(2)]
    params, buffers = stack_module_state(models)
    x = image()

    def output(params, buffers):
        return functional_call(models[0], (params, buffers), (x,)).squeeze()

    together = vmap(grad(output))(params, buffers)
    for i, model in enumerate(models):
        model(x).squeeze().backward()
        for key, p in model.named_parameters():
            torch.testing.assert_close(together[key][i], p.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet-blur", "vit", "convnext", "mixer"])
def test_the_mixed_derivative_exists(name):
    with seeds.seeded(0):
        model = architectures.build(name, shape=(1, 16, 16), classes=1).eval().double()
    moment = mixed_moment(model, image((1, 16, 16))[0].double())
    assert moment.trace() > 0
    torch.testing.assert_close(moment, moment.T)


def test_blur_is_the_binomial_filter_at_every_second_position():
    x = image((3, 7, 8), n=2).double()
    taps = torch.tensor([1, 2, 1], dtype=torch.float64)
    padded = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    windows = padded.unfold(2, 3, 2).unfold(3, 3, 2)
    torch.testing.assert_close(Blur().double()(x), (windows * taps.outer(taps) / 16).sum((-2, -1)))


@pytest.mark.parametrize("layer", [Blur(), MaxBlur(), pooling_layer("average"), pooling_layer("stride")])
def test_pooling_leaves_a_constant_as_it_is(layer):
    out = layer(torch.full((1, 2, 9, 12), 3.0))
    torch.testing.assert_close(out, torch.full_like(out, 3.0))


def test_only_blurring_takes_out_what_would_alias():
    """The fastest wave, +-1 in turn, looks like a constant at every second position; the filter removes it."""
    wave = (1 - 2.0 * (torch.arange(16) % 2)).expand(1, 1, 16, 16)
    assert pooling_layer("stride")(wave).unique().tolist() == [1.0]
    inside = Blur()(wave)[..., 1:]
    torch.testing.assert_close(inside, torch.zeros_like(inside))


@pytest.mark.parametrize("cycles", [2, 8, 16, 30])
def test_blur_weakens_a_wave_by_the_response_of_its_filter(cycles):
    """[1, 2, 1] / 4 multiplies a wave of angular frequency w by cos(w / 2)^2; edges aside."""
    w = 2 * math.pi * cycles / 64
    wave = torch.cos(w * torch.arange(64, dtype=torch.float64) + 0.3).expand(1, 1, 64, 64)
    blurred, thinned = Blur().double()(wave), pooling_layer("stride")(wave)
    torch.testing.assert_close(blurred[..., 1:], math.cos(w / 2) ** 2 * thinned[..., 1:])


@pytest.mark.parametrize("layer", [Blur(), MaxBlur()])
def test_blurred_pooling_moves_by_one_where_its_input_moves_by_two(layer):
    x = image((1, 16, 16))
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(layer(x.roll((2, -2), (2, 3)))[inside], layer(x).roll((1, -1), (2, 3))[inside])


@pytest.mark.parametrize("kind", ["max", "average", "blur", "stride", "none"])
@pytest.mark.parametrize("size", [2, 5, 8, 9])
def test_sizes_after_pooling(kind, size):
    out = pooling_layer(kind)(torch.zeros(1, 1, size, size))
    assert out.shape == (1, 1, pooled_size(size, kind), pooled_size(size, kind))


def test_blurred_resnet_halves_like_the_plain_one_but_without_strides():
    plain, blurred = (ResNet18(shape=(1, 33, 17), classes=2, pooling=p).eval() for p in ("stride", "blur"))
    assert all(m.stride == (1, 1) for m in blurred.modules() if isinstance(m, nn.Conv2d))
    assert n_weights(plain) == n_weights(blurred)
    x = image((1, 33, 17))
    with torch.no_grad():
        assert [m.stages(m.stem(x)).shape for m in (plain, blurred)] == [(1, 512, 5, 3)] * 2


def test_options_of_lenet():
    small = {"shape": (1, 32, 32), "classes": 2}
    assert isinstance(LeNet(**small).pool, nn.MaxPool2d)
    assert isinstance(LeNet(**small, pooling=False).pool, nn.Identity)
    wide = LeNet(**small, width=2)
    assert [wide.conv1.out_channels, wide.conv2.out_channels, wide.fc1.out_features] == [12, 32, 240]
    assert LeNet(**small, width=0.01).conv1.out_channels == 1
    assert LeNet(**small, depth=1).fc1.in_features == 6 * 14 * 14
    assert LeNet(**small, depth=3).fc1.in_features == 40 * 2 * 2
    assert sum(isinstance(m, nn.BatchNorm2d) for m in LeNet(**small, depth=3, batch_norm=True).modules()) == 3


def test_lenet_without_activation_and_with_average_pooling_is_affine():
    f = LeNet(shape=(1, 32, 32), classes=3, pooling="average", activation="identity").double()
    a, b = image(n=2).double().split(1)
    torch.testing.assert_close(f(a) + f(b), f(a + b) + f(torch.zeros_like(a)))


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("gelu", lambda x: x * (1 + (x / 2**0.5).erf()) / 2),
        ("tanh", torch.tanh),
    ],
)
def test_activations_of_lenet(activation, function):
    f = LeNet(shape=(1, 9, 9), classes=1, pooling="none", depth=1, activation=activation).double()
    x = image((1, 9, 9)).double()
    h = function(nn.functional.conv2d(x, f.conv1.weight, f.conv1.bias)).flatten(1)
    h = function(f.fc2(function(f.fc1(h))))
    torch.testing.assert_close(f(x), f.fc3(h))


def test_vision_transformer_against_its_definition():
    """Attention and layer norm by torch's own modules, patches by slicing."""
    f = ViT(shape=(2, 8, 12), classes=3, depth=1).eval().double()
    x = image((2, 8, 12), n=2).double()
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(2, 6, 32)
    h = patches @ f.embed.weight.reshape(32, 32).T + f.embed.bias + f.position
    (block,) = f.blocks
    own = nn.MultiheadAttention(32, 2, batch_first=True).double()
    qkv, out = block.attention.queries_keys_values, block.attention.out
    state = {"in_proj_weight": qkv.weight, "in_proj_bias": qkv.bias}
    own.load_state_dict(state | {"out_proj.weight": out.weight, "out_proj.bias": out.bias})
    normed = block.norm1(h)
    h = h + own(normed, normed, normed, need_weights=False)[0]
    h = h + block.mlp(block.norm2(h))
    torch.testing.assert_close(f(x), f.linear(f.norm(h)).mean(1))


def test_mixer_tells_patches_apart_and_a_transformer_only_by_their_position():
    x = image()
    swapped = x.clone()
    swapped[..., :4, :4], swapped[..., 4:8, :4] = x[..., 4:8, :4], x[..., :4, :4]
    vit, mixer = (architectures.build(n, shape=(1, 32, 32), classes=1).eval() for n in ("vit", "mixer"))
    with torch.no_grad():
        assert (mixer(x) - mixer(swapped)).abs() > 1e-6
        vit.position.zero_()
        torch.testing.assert_close(vit(x), vit(swapped))


# Single directions: MLP and ConvNet


def by_hand(model, x):
    """Go through a chain by its modules' weights alone, in eval mode; the last layer's input is averaged over space."""
    f, state, i = nn.functional, model.state_dict(), 1
    kind = "fc" if hasattr(model, "fc1") else "conv"
    h = x.flatten(1) if kind == "fc" else x
    while f"{kind}{i}.weight" in state:
        weight, bias = state[f"{kind}{i}.weight"], state.get(f"{kind}{i}.bias")
        h = f.linear(h, weight, bias) if kind == "fc" else f.conv2d(h, weight, bias, stride=STRIDES[i - 1], padding=1)
        if f"norm{i}.weight" in state:
            mean, var, scale, shift = (
                state[f"norm{i}.{key}"].view(1, -1, *[1] * (h.ndim - 2))
                for key in ("running_mean", "running_var", "weight", "bias")
            )
            h = (h - mean) / (var + 1e-5).sqrt() * scale + shift
        h, i = h.clamp(min=0), i + 1
    h = h if kind == "fc" else h.mean((2, 3))
    return h @ state["out.weight"].T + state["out.bias"]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "family", [functools.partial(MLP, width=5, depth=3), functools.partial(MLP, width=7), ConvNet], ids=str
)
def test_chains_against_their_definition(family, batch_norm, dropout):
    options = {"batch_norm": batch_norm, "dropout": dropout} | ({"width": 0.1} if family is ConvNet else {})
    model = family((2, 9, 10), 3, **options).double()
    x = image((2, 9, 10), n=6).double()
    model(x)  # moves the running statistics away from 0 and 1
    torch.testing.assert_close(model.eval()(x), by_hand(model, x))


def test_modules_of_an_mlp_by_name():
    plain = MLP((1, 4, 4), 3, width=5)
    assert [n for n, _ in plain.named_children()] == ["flatten", "fc1", "relu1", "fc2", "relu2", "out"]
    full = MLP((1, 4, 4), 3, width=5, depth=1, dropout=0.2, batch_norm=True)
    assert [n for n, _ in full.named_children()] == ["flatten", "fc1", "norm1", "relu1", "dropout1", "out"]
    assert full.dropout1.p == 0.2
    assert full.fc1.bias is None
    assert plain.fc1.bias is not None


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_modules_of_the_convnet_by_name(batch_norm, dropout):
    model = ConvNet((3, 32, 32), 10, width=0.05, batch_norm=batch_norm, dropout=dropout)
    kinds = ["conv", *["norm"] * batch_norm, "relu", *["dropout"] * (dropout > 0)]
    expected = [f"{kind}{i}" for i in range(1, 12) for kind in kinds] + ["pool", "flatten", "out"]
    assert [n for n, _ in model.named_children()] == expected
    assert isinstance(model, nn.Sequential)
    assert not any(m.inplace for m in model if isinstance(m, nn.ReLU))
    assert [model.get_submodule(f"conv{i}").bias is None for i in (1, 11)] == [batch_norm] * 2


def test_maps_and_positions_of_the_convnet():
    model, shapes = architectures.build("convnet11", shape=(3, 32, 32), classes=10).eval(), []
    for name, module in model.named_children():
        if name.startswith("relu"):
            module.register_forward_hook(lambda _module, _args, out: shapes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        model(image((3, 32, 32)))
    sides = [32] * 2 + [16] * 3 + [8] * 3 + [4] * 3
    assert shapes == [(maps, side, side) for maps, side in zip(MAPS, sides, strict=True)]


@pytest.mark.parametrize(("width", "maps"), [(0.5, [32, 64, 256]), (2, [128, 256, 1024]), (0.001, [1, 1, 1])])
def test_width_of_the_convnet(width, maps):
    with torch.device("meta"):
        model = ConvNet((1, 8, 8), 2, width=width)
    assert [model.get_submodule(f"conv{i}").out_channels for i in (2, 3, 11)] == maps


@pytest.mark.parametrize("name", ["mlp128", "mlp512", "convnet11", "convnet11-nobn"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (1, 1, 2)])
def test_chains_take_small_images(name, shape):
    model = architectures.build(name, shape=shape, classes=4).eval()
    with torch.no_grad():
        assert model(image(shape, n=2)).shape == (2, 4)


@pytest.mark.parametrize("name", ["mlp128", "convnet11-nobn"])
def test_a_slice_of_a_chain_is_a_chain_of_the_same_layers(name):
    model = architectures.build(name, shape=(1, 8, 8), classes=4).eval()
    x = image((1, 8, 8), n=2)
    first, second = model[:3], model[3:]
    assert first[1] is model[1]
    assert [*first._modules, *second._modules] == list(model._modules)
    with torch.no_grad():
        torch.testing.assert_close(second(first(x)), model(x), rtol=0, atol=0)


def test_dropout_of_a_convnet_takes_whole_maps_and_that_of_an_mlp_single_units():
    with seeds.seeded(0):
        maps = ConvNet((1, 8, 8), 2, width=0.5, dropout=0.5).dropout2(torch.ones(20, 32, 4, 4))
        units = MLP((1, 8, 8), 2, dropout=0.5).dropout1(torch.ones(20, 512))
    assert torch.equal(maps.amin((2, 3)), maps.amax((2, 3)))
    for values in (maps, units):
        assert values.unique().tolist() == [0, 2]
        assert values.bool().double().mean().item() == pytest.approx(0.5, abs=0.1)


def test_without_batch_norm_a_fresh_convnet_sees_its_input():
    """He's variance keeps the signal through 11 layers; with torch's, outputs would differ by less than 1e-5."""
    with seeds.seeded(0):
        deep = architectures.build("convnet11-nobn", shape=(1, 16, 16), classes=10).eval()
    for conv in (deep.conv2, deep.conv11):
        assert conv.weight.std().item() == pytest.approx((2 / (9 * conv.in_channels)) ** 0.5, rel=0.03)
        assert not conv.bias.any()
    with torch.no_grad():
        assert deep(image((1, 16, 16), n=50)).std(0).mean() > 0.01


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_convnet_can_be_trained_with_and_without_batch_norm(batch_norm):
    """Four classes of images, each brighter in a corner of its own."""
    x, y = image((1, 8, 8), n=32), torch.arange(32) % 4
    for label, corner in enumerate((x[..., :4, :4], x[..., :4, 4:], x[..., 4:, :4], x[..., 4:, 4:])):
        corner[y == label] += 3
    with seeds.seeded(0):
        model = ConvNet((1, 8, 8), 4, width=0.25, batch_norm=batch_norm)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(60):
        losses.append(nn.functional.cross_entropy(model(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.1 < 1 < losses[0]


# torchvision's networks with their weights


class Tiny(nn.Linear):
    """Stands for a ResNet-50, which would take seconds."""

    def __init__(self):
        super().__init__(2, 1)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A data folder, a cache, torch.hub's folder and a server, all empty; networks are `Tiny`."""
    from torchvision import models

    monkeypatch.setenv("NADKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(files, "user_cache_path", lambda name, **_: tmp_path / "cache" / name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(models, "get_model", lambda name, weights: Tiny())
    return tmp_path


def write_weights(folder, name="resnet50", state=None):
    """Write the weights of a `Tiny` under a name that ends in their checksum, as torchvision's do."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(Tiny().state_dict() if state is None else state, folder / "new")
    return (folder / "new").rename(folder / f"{name}-{files.sha256(folder / 'new')[:8]}.pth")


def offer(monkeypatch, path):
    """Let the file be what torchvision names first for ResNet-50, and its folder the server."""
    from torchvision import models

    kind = type("Weights", (), {"url": path.as_uri()})
    known = type("Known", (), {"__members__": {"IMAGENET1K_V1": kind}, "__iter__": lambda self: iter([kind])})
    known.__getitem__ = lambda self, name: kind
    monkeypatch.setattr(models, "get_model_weights", lambda name: known())


@pytest.mark.parametrize("place", ["data/weights", "cache/nadkit/weights", "hub/checkpoints"])
@pytest.mark.parametrize("options", [{}, {"weights": "IMAGENET1K_V1"}, {"name": "torchvision:resnet50"}])
def test_weights_are_found_in_the_data_folders_and_among_torch_hubs(places, monkeypatch, place, options):
    path = write_weights(places / place)
    offer(monkeypatch, path)
    state = torch.get_rng_state()
    model = pretrained(**options)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    torch.testing.assert_close(model.state_dict(), torch.load(path, weights_only=True))


def test_missing_weights_say_where_they_were_looked_for_and_how_to_get_them(places):
    with pytest.raises(files.DataError) as caught:
        pretrained()
    message = str(caught.value)
    assert f"looked for weights/resnet50-0676ba61.pth in {places / 'data'} (no such folder) and in " in message
    assert f"resnet50-0676ba61.pth in {places / 'hub' / 'checkpoints'}" in message
    assert "download=True" in message
    assert "https://download.pytorch.org/models/resnet50-0676ba61.pth" in message


def test_weights_are_downloaded_once(places, monkeypatch):
    path = write_weights(places / "server")
    offer(monkeypatch, path)
    first = pretrained(download=True)
    path.unlink()
    torch.testing.assert_close(pretrained().state_dict(), first.state_dict())
    assert (places / "data" / "weights" / path.name).is_file()


def test_a_damaged_download_of_weights_is_not_kept(places, monkeypatch):
    path = write_weights(places / "server")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    offer(monkeypatch, path)
    with pytest.raises(files.DataError, match=r"expected a SHA-256 that begins with .* try again"):
        pretrained(download=True)
    assert not list((places / "data").rglob("*.pth"))
    path.unlink()
    with pytest.raises(files.DataError, match=r"no weights of resnet50: looked for .* could not download"):
        pretrained(download=True)


def test_damaged_weights_are_refused(places, monkeypatch):
    path = write_weights(places / "data" / "weights")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    offer(monkeypatch, path)
    with pytest.raises(files.DataError, match=f"{path} is damaged: .*delete it and run again"):
        pretrained()


def test_weights_from_a_file_of_ones_own(places):
    own = write_weights(places / "elsewhere").rename(places / "mine.pth")
    for path in (own, str(own)):
        torch.testing.assert_close(pretrained(weights=path).state_dict(), torch.load(own, weights_only=True))
    other = write_weights(places, state={"weight": torch.zeros(3, 3)})
    with pytest.raises(files.DataError, match="does not hold weights of resnet50"):
        pretrained(weights=other)
    other = write_weights(places, state=torch.zeros(3))
    with pytest.raises(files.DataError, match="does not hold weights of resnet50"):
        pretrained(weights=other)


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", b"PK broken"])
def test_a_file_that_holds_no_weights_is_explained(places, content):
    (places / "mine.pth").write_bytes(content)
    with pytest.raises(files.DataError, match=r"mine.pth: expected a file of weights"):
        pretrained(weights=places / "mine.pth")


def test_code_in_a_file_of_weights_is_not_run(places):
    torch.save(Tiny(), places / "mine.pth")
    with pytest.raises(files.DataError, match=r"mine.pth: expected a file of weights"):
        pretrained(weights=places / "mine.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet-50"}, "did you mean 'resnet50'"),
        ({"name": "densenet121"}, "converts these weights itself"),
        ({"weights": "IMAGENET1K_V3"}, "expected a file or one of IMAGENET1K_V1, IMAGENET1K_V2, .*did you mean"),
        ({"weights": "nowhere.pth"}, "expected a file or one of .* got 'nowhere.pth'"),
    ],
)
def test_unknown_weights_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        pretrained(**options)


def test_real_networks_take_weights_of_torchvision(tmp_path):
    """The smallest one of torchvision, through its own state."""
    model = architectures.build("torchvision:squeezenet1_1", shape=(3, 224, 224), classes=1000).eval()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    loaded = pretrained("squeezenet1_1", weights=tmp_path / "own.pth")
    with torch.no_grad():
        x = image((3, 64, 64))
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


# Names and factories


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("lenet", "lenet"),
        (LeNet, "LeNet"),
        (functools.partial(LeNet, width=2), "LeNet(width=2)"),
        (functools.partial(LeNet, pooling="blur", depth=3), "LeNet(pooling='blur', depth=3)"),
        (functools.partial(functools.partial(LeNet, width=2), depth=1), "LeNet(width=2, depth=1)"),
        (functools.partial(LeNet, (1, 32, 32), hook=math.sqrt), "LeNet((1, 32, 32), hook=sqrt)"),
        (type("Make", (), {"__call__": lambda self: None})(), "custom"),
    ],
)
def test_names_for_records(architecture, name):
    assert architectures.name_of(architecture) == name


def test_a_partial_is_an_architecture():
    model = architectures.build(functools.partial(LeNet, width=2), shape=(1, 32, 32), classes=1)
    assert model.conv1.out_channels == 12


@pytest.mark.parametrize("name", ["lenet", "vgg11", "resnet18"])
def test_without_pooling_no_layer_subsamples(name):
    model = architectures.build(f"{name}-nopool", shape=(1, 32, 32), classes=2)
    pools = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    assert not any(isinstance(m, pools) for m in model.modules())
    assert all(m.stride == (1, 1) for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 2)


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
        ("lenet-blurr", "did you mean 'lenet-blur'"),
        ("ConvNext", "did you mean 'convnext'"),
        ("mlp256", "did you mean 'mlp512'"),
        ("convnet11-nobatchnorm", "did you mean 'convnet11-nobn'"),
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
        ({"architecture": lambda: None, "shape": (1, 8, 8), "classes": 2}, "expected a factory.shape"),
        ({"architecture": lambda shape, classes: 3, "shape": (1, 8, 8), "classes": 2}, "torch.nn.Module, got int"),
        ({"architecture": "lenet-blur", "shape": (1, 15, 32), "classes": 2}, "at least 16x16"),
        ({"architecture": "lenet-stride", "shape": (1, 12, 12), "classes": 2}, "at least 13x13"),
        ({"architecture": functools.partial(LeNet, depth=3), "shape": (1, 12, 12), "classes": 2}, "at least 20x20"),
        (
            {"architecture": functools.partial(LeNet, depth=4), "shape": (1, 32, 32), "classes": 2},
            "depth: expected 1 to 3",
        ),
        ({"architecture": functools.partial(LeNet, depth=0), "shape": (1, 32, 32), "classes": 2}, "depth"),
        ({"architecture": functools.partial(LeNet, width=0), "shape": (1, 32, 32), "classes": 2}, "width"),
        (
            {"architecture": functools.partial(LeNet, pooling="blurr"), "shape": (1, 32, 32), "classes": 2},
            "did you mean 'blur'",
        ),
        (
            {"architecture": functools.partial(LeNet, activation="rely"), "shape": (1, 32, 32), "classes": 2},
            "did you mean 'relu'",
        ),
        (
            {"architecture": functools.partial(ResNet18, pooling="max"), "shape": (1, 32, 32), "classes": 2},
            "one of stride, blur, none",
        ),
        ({"architecture": functools.partial(LeNet, widht=2), "shape": (1, 32, 32), "classes": 2}, "'widht'"),
        ({"architecture": "vit", "shape": (1, 32, 30), "classes": 2}, "multiples of 4, got 32x30"),
        ({"architecture": "mixer", "shape": (1, 30, 32), "classes": 2}, "multiples of 4, got 30x32"),
        ({"architecture": "convnext", "shape": (1, 24, 32), "classes": 2}, "multiples of 16, got 24x32"),
        ({"architecture": functools.partial(ViT, heads=3), "shape": (1, 32, 32), "classes": 2}, "divisor of dim 32"),
        ({"architecture": functools.partial(Mixer, depth=0), "shape": (1, 32, 32), "classes": 2}, "depth"),
        ({"architecture": "torchvision:alexnet", "shape": (3, 32, 32), "classes": 2}, "does not accept"),
        *(
            ({"architecture": functools.partial(family, **option), "shape": (1, 8, 8), "classes": 2}, message)
            for family, option, message in [
                (MLP, {"width": 0}, "width: expected an integer, at least 1"),
                (MLP, {"width": 0.5}, "width: expected an integer, got 0.5"),
                (MLP, {"depth": 0}, "depth: expected an integer, at least 1"),
                (MLP, {"dropout": 1.0}, "dropout: expected a probability"),
                (MLP, {"dropout": -0.1}, "dropout: expected a probability"),
                (MLP, {"dropout": "half"}, "dropout: expected a number, got 'half'"),
                (ConvNet, {"dropout": float("nan")}, "dropout: expected a probability"),
                (ConvNet, {"width": 0}, "width: expected a positive finite factor"),
                (ConvNet, {"width": float("inf")}, "width: expected a positive finite factor"),
                (ConvNet, {"depth": 3}, "'depth'"),
            ]
        ),
    ],
)
def test_impossible_networks_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        architectures.build(**options)
