"""Learned similarity: against bilinear forms written out window by window, and folded against not."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import nadkit
from nadkit import architectures, training
from nadkit.data import images, interventions
from nadkit.neighbours.similarity import (
    DynamicConv2d,
    MatrixDecay,
    SimilarityConv2d,
    Stages,
    folded,
    matrices,
    transplanted,
    with_similarity,
)
from nadkit.seeds import seeded

SHAPE = (2, 6, 5)
SMALL = functools.partial(Stages, width=0.06, convs=1)
GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0), "bias": False},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def built(factory, *, shape=SHAPE, classes=3, seed=0):
    with seeded(seed, "network"):
        return architectures.build(factory, shape=shape, classes=classes)


def bilinear(conv, x, matrix_at):
    """Return W^T M X + b, one window, filter and channel after the other; padding is by hand."""
    (up, left), (kh, kw), (sh, sw), (dh, dw) = _pads(conv), conv.kernel_size, conv.stride, conv.dilation
    x = F.pad(x, (left, left, up, up))
    rows = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    out = torch.zeros(len(x), conv.out_channels, rows, columns)
    for b in range(len(x)):
        for i in range(rows):
            for j in range(columns):
                window = x[b, :, i * sh : i * sh + dh * kh : dh, j * sw : j * sw + dw * kw : dw]
                for o in range(conv.out_channels):
                    for c in range(conv.in_channels):
                        w, m = conv.weight[o, c].flatten(), matrix_at(b, i * columns + j)
                        out[b, o, i, j] += w @ m @ window[c].flatten()
    return out if conv.bias is None else out + conv.bias[:, None, None]


def _pads(conv):
    if isinstance(conv.padding, str):
        return [
            d * (k - 1) // 2 * (conv.padding == "same") for d, k in zip(conv.dilation, conv.kernel_size, strict=True)
        ]
    return conv.padding


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_static_similarity_is_the_bilinear_form(geometry):
    conv = nn.Conv2d(2, 3, **geometry)
    matrix = torch.randn(conv.weight[0, 0].numel(), conv.weight[0, 0].numel())
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(SimilarityConv2d(conv, matrix)(x), bilinear(conv, x, lambda b, at: matrix))
    diagonal = matrix.diagonal()
    torch.testing.assert_close(
        SimilarityConv2d(conv, diagonal)(x), bilinear(conv, x, lambda b, at: torch.diag(diagonal))
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("diagonal", [False, True])
def test_a_dynamic_similarity_is_the_bilinear_form_with_a_matrix_of_each_window(geometry, diagonal):
    conv = nn.Conv2d(2, 3, **geometry)
    layer, x = DynamicConv2d(conv, diagonal=diagonal).eval(), torch.randn(2, *SHAPE)
    nn.init.normal_(layer.second.weight)  # far from the identity
    found = layer.matrices(x)
    assert (found.diff(dim=-1) != 0).any()
    torch.testing.assert_close(layer(x), bilinear(conv, x, lambda b, at: found[b, :, :, at]))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_dynamic_similarity_that_predicts_nothing_is_the_convolution(geometry):
    conv = nn.Conv2d(2, 3, **geometry)
    layer, x = DynamicConv2d(conv), torch.randn(2, *SHAPE)
    nn.init.zeros_(layer.second.weight)
    torch.testing.assert_close(layer(x), conv(x))


def test_the_matrix_of_a_window_depends_on_its_direction_not_its_size():
    layer, x = DynamicConv2d(nn.Conv2d(2, 3, 3)), torch.randn(2, *SHAPE)
    torch.testing.assert_close(layer.matrices(x), layer.matrices(3 * x), atol=1e-6, rtol=0)


def test_a_whole_dynamic_similarity_begins_near_the_identity_and_a_diagonal_far_away():
    conv, x = nn.Conv2d(16, 3, 3), torch.randn(4, 16, 6, 6)
    distance = DynamicConv2d(conv).matrices(x) - torch.eye(9)[:, :, None]
    assert 0 < distance.abs().max() < 0.1
    diagonal = DynamicConv2d(conv, diagonal=True).matrices(x).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal.mean((0, 1)), torch.ones(9))
    variance = diagonal.var((0, 1))  # not quite one: batch norm adds 1e-5 to a variance that is hardly more
    assert ((variance > 0.3) & (variance < 1)).all()


@pytest.mark.parametrize(("kind", "start"), [("static", "ones"), ("static-diagonal", "ones")])
def test_networks_with_a_static_similarity_begin_as_they_are_without(kind, start):
    x = torch.randn(4, *SHAPE)
    torch.testing.assert_close(built(with_similarity(SMALL, kind, start=start))(x), built(SMALL)(x))


def test_a_diagonal_that_begins_at_the_centre_sees_three_of_nine_taps():
    found = matrices(built(with_similarity(SMALL, "static-diagonal", start="centre")))
    for matrix in found.values():
        torch.testing.assert_close(matrix, torch.diag(torch.eye(3).flatten()))


def test_folding_leaves_every_answer_as_it_is():
    network = built(with_similarity(SMALL, "static"))
    for layer in network.modules():
        if isinstance(layer, SimilarityConv2d):
            nn.init.normal_(layer.matrix)
    plain, x = folded(network), torch.randn(4, *SHAPE)
    assert not any(isinstance(m, SimilarityConv2d) for m in plain.modules())
    assert [*plain.state_dict()] == [*built(SMALL).state_dict()]
    torch.testing.assert_close(plain.eval()(x), network.eval()(x), rtol=1e-10, atol=1e-12)


def test_the_covariance_of_folded_filters_is_that_of_the_similarity():
    conv, matrix = nn.Conv2d(1, 200_000, 3), torch.randn(9, 9)
    nn.init.normal_(conv.weight)
    w = SimilarityConv2d(conv, matrix).weight.flatten(1)
    expected = matrix.T @ matrix  # Cov(w M) of w ~ N(0, I)
    assert (w.T @ w / len(w) - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_transplant_is_not_trained_and_its_filters_are_new():
    given = {name: torch.randn(9, 9) for name in ("conv_root", "conv_2_1")}
    factory = transplanted(SMALL, given)
    one, other = built(factory), built(factory, seed=1)
    assert set(given) == {*matrices(one)} == {*matrices(other)}
    for name, matrix in given.items():
        torch.testing.assert_close(matrices(one)[name], matrix)
        assert not torch.equal(one.get_submodule(name).conv.weight, other.get_submodule(name).conv.weight)
    assert not any(name.endswith("matrix") for name, _ in one.named_parameters())
    assert [p.shape for p in one.parameters()] == [p.shape for p in built(SMALL).parameters()]


def test_what_was_learned_survives_a_training_run():
    torch.set_default_dtype(torch.float32)
    problem = interventions.Clean(images=images.load("digits", size=8).subset(60, 20, seed=0))
    recipe = training.Recipe(epochs=1, learning_rate=0.1, batch_size=20, clip=None)
    (trained,) = nadkit.fit_networks(
        with_similarity(SMALL, "static"), [problem], recipe, objective=MatrixDecay(0.005), device="cpu", strategy="loop"
    )
    found = matrices(trained.network())
    assert [*found] == ["conv_root", "conv_1_1", "conv_2_1", "conv_3_1"]
    assert all((matrix - torch.eye(9)).abs().max() > 1e-4 for matrix in found.values())


def test_the_first_convolution_can_be_left_as_it_is():
    assert [*matrices(built(with_similarity(SMALL, "static", root=False)))] == ["conv_1_1", "conv_2_1", "conv_3_1"]


def test_decay_pulls_similarities_towards_zero():
    network = built(with_similarity(SMALL, "static"))
    x, y = torch.randn(4, *SHAPE), torch.arange(4) % 3
    pulls = {}
    for decay in (0.0, 0.3):
        network.zero_grad()
        loss, _ = MatrixDecay(decay)(network, x, y, 0)
        loss.backward()
        pulls[decay] = {name: p.grad.clone() for name, p in network.named_parameters()}
    for name, p in network.named_parameters():
        extra = 0.3 * p.detach() if name.endswith("matrix") else torch.zeros_like(p)
        torch.testing.assert_close(pulls[0.3][name] - pulls[0.0][name], extra)


@pytest.mark.parametrize("kind", ["static", "static-diagonal", "dynamic", "dynamic-diagonal"])
def test_any_network_with_convolutions_learns_a_similarity(kind):
    torch.set_default_dtype(torch.float32)
    network = built(with_similarity("torchvision:resnet18", kind), shape=(1, 32, 32)).eval()
    kinds = [type(m).__name__ for m in network.modules() if "Conv2d" in type(m).__name__ and hasattr(m, "conv")]
    assert len(kinds) == 17  # but the three shortcuts, of kernel 1
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 3)


def test_the_papers_network_has_ten_convolutions():
    network = built(Stages, shape=(3, 32, 32), classes=10)
    maps = [m.out_channels for m in network if isinstance(m, nn.Conv2d)]
    assert maps == [32] * 4 + [64] * 3 + [128] * 3
    assert network.out.in_features == 128 * 8 * 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SimilarityConv2d(nn.Conv2d(1, 1, 3), torch.eye(4)),
            r"matrix: expected \(9, 9\) or \(9,\) .* \(4, 4\)",
        ),
        (lambda: SimilarityConv2d(nn.Conv2d(1, 1, 3), torch.full((9,), torch.nan)), "matrix: expected finite"),
        (
            lambda: SimilarityConv2d(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), torch.eye(9)),
            "conv: expected padding with zeros, got 'reflect'",
        ),
        (lambda: DynamicConv2d(nn.Conv2d(2, 2, 3, groups=2)), "conv: expected one without groups, got 2"),
        (lambda: with_similarity("lenet", "statc"), "kind: expected one of static, .* got 'statc'; did you mean"),
        (lambda: with_similarity("lenet", "dynamic", start="centre"), "start: 'centre' is of a 'static-diagonal'"),
        (lambda: with_similarity("lenett", "static"), "unknown architecture 'lenett'; did you mean 'lenet'"),
        (lambda: built(with_similarity("mlp128", "static")), "expected convolutions .*, mlp128 has none"),
        (lambda: built(transplanted(SMALL, {"conv_rot": torch.eye(9)})), "conv_rot: no convolution of .*'conv_root'"),
        (lambda: MatrixDecay(-1.0), "decay: expected a finite number, at least 0, got -1.0"),
        (lambda: Stages((1, 3, 8), 2), "shape: expected images of at least 4x4, got 3x8"),
        (lambda: Stages((1, 8, 8), 2, convs=0), "convs: expected an integer, at least 1, got 0"),
    ],
)
def test_bad_input_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
