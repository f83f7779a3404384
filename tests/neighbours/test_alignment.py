"""Alignment: inputs without directions, data and units along them; closed forms, and slow loops in double precision."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nadkit.activations.sites import find_sites
from nadkit.architectures import LeNet
from nadkit.data.images import ImageSet
from nadkit.data.interventions import Flipped, Rotated
from nadkit.inputs.basis import pixel_basis, random_basis
from nadkit.neighbours.alignment import (
    RemovalCurve,
    area_over_variance,
    exchanged,
    principal_basis,
    removal_curve,
    remove,
    signal_along,
    units_along,
    variance_along,
)

GREY, COLOUR = (1, 4, 4), (3, 4, 4)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Small(nn.Module):
    """Feature maps, then units; one activation is a function, and works in place."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv, self.act = nn.Conv2d(channels, 3, 3), nn.Tanh()
            self.fc, self.out = nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.relu_(self.fc(self.act(self.conv(x)).flatten(1))))


# ---- inputs without directions ----


def test_without_pixels_only_their_mean_is_left():
    x = draw(6, *GREY)
    left = remove(x, pixel_basis(GREY), 5).flatten(1)
    torch.testing.assert_close(left[:, :5], x.flatten(1)[:, :5].mean(0).expand(6, 5))
    torch.testing.assert_close(left[:, 5:], x.flatten(1)[:, 5:])
    zeros = remove(x, pixel_basis(GREY), 5, value="zero").flatten(1)
    torch.testing.assert_close(zeros[:, :5], torch.zeros(6, 5).double(), atol=1e-15, rtol=0)


@pytest.mark.parametrize("value", ["mean", "zero"])
@pytest.mark.parametrize(("shape", "axes"), [(COLOUR, GREY), (COLOUR, COLOUR)])
def test_removing_is_the_projection_of_a_loop(shape, axes, value):
    x, basis, k = draw(4, *shape), random_basis(axes, seed=2), 7
    expected = x.clone()
    m = x.mean(0) if value == "mean" else torch.zeros(shape).double()
    for n in range(4):
        parts = expected[n].flatten() if axes == COLOUR else expected[n].flatten(1)
        middle = m.flatten() if axes == COLOUR else m.flatten(1)
        for u in basis.vectors[:k]:
            for row, centre in zip(parts.view(-1, len(u)), middle.view(-1, len(u)), strict=True):
                row -= ((row - centre) @ u) * u
    torch.testing.assert_close(remove(x, basis, k, value=value), expected)


def test_removing_none_or_all_and_twice():
    x, basis = draw(4, *GREY), random_basis(GREY)
    assert torch.equal(remove(x, basis, 0), x)
    torch.testing.assert_close(remove(x, basis, 16), x.mean(0).expand_as(x))
    once = remove(x, basis, 5)
    torch.testing.assert_close(remove(once, basis, 5), once)
    pixels = (255 * torch.rand(3, *GREY)).byte()
    torch.testing.assert_close(remove(pixels, basis, 3), remove(pixels.float() / 255, basis, 3))


# ---- the data ----


def test_variance_and_signal_of_data_made_by_hand():
    """Pixel j has the standard deviation j, and two classes differ by 3 and 4 in the first two pixels."""
    signs = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double()
    x = torch.zeros(4, 2).double()
    x[:, 0], x[:, 1] = signs.flatten(), 2 * signs.T.flatten()
    x = x.view(4, 1, 1, 2)
    basis = pixel_basis((1, 1, 2))
    centred = x - x.mean(0)
    expected = centred.square().sum(0).flatten() / centred.square().sum()
    torch.testing.assert_close(variance_along(x, basis), expected)
    y = torch.tensor([0, 0, 1, 1])
    apart = torch.zeros(4, 1, 1, 2).double()
    apart[y == 1] = torch.tensor([3.0, 4.0]).double()
    torch.testing.assert_close(signal_along((apart, y), basis), torch.tensor([9.0, 16.0]).double() / 25)


@pytest.mark.parametrize("axes", [GREY, COLOUR])
def test_shares_of_a_complete_basis_sum_to_one_in_any_order_of_the_samples(axes):
    x, y, basis = draw(30, *COLOUR), torch.arange(30) % 4, random_basis(axes)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for shares, again in (
        (variance_along(x, basis), variance_along(x[order], basis)),
        (signal_along((x, y), basis), signal_along((x[order], y[order]), basis)),
    ):
        assert shares.sum().item() == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(shares, again)


def test_signal_is_that_of_a_loop_over_classes_of_unequal_size():
    x, y, basis = draw(20, *COLOUR), torch.tensor([0] * 3 + [2] * 12 + [5] * 5), random_basis(GREY)
    energy = torch.zeros(16).double()
    for label, count in ((0, 3), (2, 12), (5, 5)):
        apart = x[y == label].mean(0) - x.mean(0)
        for channel in apart:
            energy += count * (basis.vectors @ channel.flatten()).square()
    torch.testing.assert_close(signal_along((x, y), basis), energy / energy.sum())


def test_principal_directions_are_ordered_by_variance_and_take_most_of_it():
    scales = torch.arange(16, 0, -1).double().view(GREY)
    turn = random_basis(GREY, seed=4)
    x = (draw(4000, *GREY) * scales).flatten(1) @ turn.vectors
    x = x.view(-1, *GREY)
    basis = principal_basis(x)
    torch.testing.assert_close(variance_along(x, basis), basis.eigenvalues / basis.eigenvalues.sum())
    assert (basis.eigenvalues.diff() <= 0).all()
    rows = (x - x.mean(0)).flatten(1)
    torch.testing.assert_close(basis.eigenvalues, torch.linalg.eigvalsh(rows.T @ rows / 4000).flip(0))
    assert basis.overlap(turn, 4) > 0.95
    for k in (1, 5, 10):
        assert variance_along(x, basis)[:k].sum() >= variance_along(x, turn)[:k].sum()
    of_channels = principal_basis(torch.cat([x, 2 * x], dim=1))
    torch.testing.assert_close(of_channels.eigenvalues, 5 * basis.eigenvalues)


def test_exchange_goes_from_nothing_to_the_flip():
    x, basis = draw(5, *COLOUR), random_basis(GREY)
    one = torch.zeros(8, dtype=torch.bool)
    torch.testing.assert_close(exchanged(basis, one).coordinates(x).view_as(x), x)
    everything = exchanged(basis, ~one)
    torch.testing.assert_close(everything.coordinates(x).view_as(x), basis.flip(x))
    one[2] = True
    some = exchanged(basis, one)
    expected = basis.coordinates(x)
    expected[..., [2, 13]] = expected[..., [13, 2]]
    moved = some.coordinates(x).view_as(x)
    torch.testing.assert_close(basis.coordinates(moved), expected)
    torch.testing.assert_close(some.coordinates(moved).view_as(x), x)
    torch.testing.assert_close(torch.pdist(moved.flatten(1)), torch.pdist(x.flatten(1)))


def test_images_rotated_by_the_whole_exchange_are_flipped_images():
    pixels, y = (255 * torch.rand(8, *GREY)).byte(), torch.arange(8) % 2
    pictures, basis = ImageSet(pixels, y, pixels, y, ("a", "b"), "toy", "random"), random_basis(GREY)
    rotated = Rotated(images=pictures, basis=exchanged(basis, torch.ones(8, dtype=torch.bool)))
    flipped = Flipped(images=pictures, basis=basis).sample("train")[0]
    torch.testing.assert_close(rotated.sample("train")[0], flipped)


# ---- the network ----


def test_a_linear_classifier_falls_to_chance_with_its_direction():
    """Classes at +-1 along u_3 alone: nothing is lost before u_3 goes, and then everything."""
    basis = random_basis(GREY, seed=5)
    y = torch.arange(40) % 2
    x = (2 * y - 1).double()[:, None] * basis.vectors[3] + 0.5 * draw(40, 16) @ (
        torch.eye(16).double() - torch.outer(basis.vectors[3], basis.vectors[3])
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-basis.vectors[3], basis.vectors[3]]))
        model[1].bias.copy_(torch.tensor([0.0, 1e-9]))  # ties go to class 1
    curve = removal_curve(model, (x.view(-1, *GREY), y), basis, counts=[1, 3, 4, 9])
    assert curve.counts.tolist() == [0, 1, 3, 4, 9, 16]
    torch.testing.assert_close(curve.fraction, curve.counts.double() / 16)
    assert curve.accuracy.tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
    torch.testing.assert_close(
        curve.variance, torch.tensor([0, *variance_along(x.view(-1, *GREY), basis).cumsum(0)])[curve.counts]
    )
    assert curve.variance[-1] == 1


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("value", ["mean", "zero"])
@pytest.mark.parametrize("axes", [GREY, COLOUR])
def test_the_curve_is_that_of_a_loop(axes, value, batch_size):
    model, basis = Small(3).double().train(), random_basis(axes, seed=1)
    x, y = draw(23, *COLOUR), torch.arange(23) % 3
    curve = removal_curve(model, (x, y), basis, counts=[3, 10], value=value, batch_size=batch_size)
    assert model.training
    for step, k in enumerate(curve.counts.tolist()):
        with torch.no_grad():
            logits = model(remove(x, basis, k, value=value))
        assert curve.accuracy[step].item() == pytest.approx((logits.argmax(1) == y).double().mean().item())
        assert curve.loss[step].item() == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-9)


def test_the_order_of_the_samples_does_not_matter():
    model, basis, x, y = Small(), random_basis(GREY), draw(20, *GREY, dtype=torch.float32), torch.arange(20) % 3
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    one, other = (removal_curve(model, d, basis, counts=[4, 8]) for d in ((x, y), (x[order], y[order])))
    assert one.accuracy.tolist() == other.accuracy.tolist()
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.variance, other.variance)


def test_area_over_variance_is_the_trapezoids_of_it():
    scores = {"accuracy": torch.tensor([0.8, 0.8, 0.4, 0.2]).double(), "class_accuracy": torch.zeros(4, 2)}
    counts = torch.tensor([0, 1, 2, 3])
    ends = {"counts": counts, "fraction": counts / 3, "loss": torch.zeros(4)}
    # a direction without variance has no width
    curve = RemovalCurve(**scores, **ends, variance=torch.tensor([0, 0.5, 0.5, 1]).double())
    assert area_over_variance(curve) == pytest.approx(0.5 * 0.8 + 0.5 * 0.3)
    assert area_over_variance(curve, normalised=True) == pytest.approx(0.55 / 0.8)
    with pytest.raises(ValueError, match=r"expected one of a complete basis, this one ends at 0.9 of"):
        area_over_variance(RemovalCurve(**scores, **ends, variance=torch.tensor([0, 0.5, 0.5, 0.9]).double()))


def test_a_basis_that_is_not_complete_gives_a_curve_that_ends_early():
    x, y = draw(10, *GREY, dtype=torch.float32), torch.arange(10) % 3
    basis = random_basis(GREY)
    curve = removal_curve(Small(), (x, y), basis[:6], counts=[2])
    assert curve.counts.tolist() == [0, 2, 6]
    assert curve.variance[-1].item() == pytest.approx(variance_along(x, basis)[:6].sum().item())


# ---- its units ----


def test_a_unit_behind_the_input_has_the_share_of_its_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softplus(), nn.Linear(4, 2)).double()
    basis, weights = random_basis(GREY), model[1].weight.detach()
    (found,) = units_along(model, draw(9, *GREY), find_sites(model, GREY), [basis])
    expected = (weights @ basis.vectors.T).square() / weights.square().sum(1, keepdim=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(4).double())


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_units_are_those_of_finite_differences(batch_size):
    """Feature maps and units of a nonlinear network, pixel by pixel."""
    model, x, bases = Small(3).double(), draw(5, *COLOUR), [random_basis(GREY)[:3], random_basis(COLOUR, seed=1)]
    sites = find_sites(model, COLOUR)
    with torch.no_grad():
        model.fc.bias += 0.5  # all units are alive

    def activities(inputs):
        maps = torch.tanh(model.conv(inputs))
        return torch.cat([maps.mean((2, 3)), torch.relu(model.fc(maps.flatten(1)))], dim=1)

    step, g = 1e-6, torch.zeros(5, 8, 48).double()
    with torch.no_grad():
        for i in range(48):
            e = torch.zeros(48).double()
            e[i] = step
            g[:, :, i] = (activities(x + e.view(COLOUR)) - activities(x - e.view(COLOUR))) / (2 * step)
    total = g.square().sum((0, 2))
    assert (total > 0).all()
    by_channel = sum((part @ bases[0].vectors.T).square().sum(0) for part in g.view(5, 8, 3, 16).unbind(2))
    whole = (g @ bases[1].vectors.T).square().sum(0)
    found = units_along(model, x, sites, bases, batch_size=batch_size)
    for share, energy in zip(found, (by_channel, whole), strict=True):
        torch.testing.assert_close(share, energy / total[:, None], rtol=1e-6, atol=1e-9)


def test_a_dead_unit_is_nan_and_what_follows_it_is_not():
    model = Small().double()
    with torch.no_grad():
        model.fc.bias[2] = -100
    (found,) = units_along(model, draw(6, *GREY), find_sites(model, GREY), [random_basis(GREY)])
    assert found.isnan().any(1).nonzero().flatten().tolist() == [3 + 2]


def test_random_directions_have_their_share():
    model = LeNet((1, 16, 16), 10)
    shares = [
        units_along(
            model,
            draw(2, 1, 16, 16, dtype=torch.float32),
            find_sites(model, (1, 16, 16)),
            [random_basis((1, 16, 16), seed=s)[:64]],
        )[0].sum(1)
        for s in range(2)
    ]
    assert torch.stack(shares).nanmean().item() == pytest.approx(0.25, abs=0.03)


def test_the_network_comes_back_as_it_was():
    model = Small().train()
    model.act.eval()
    units_along(model, draw(3, *GREY, dtype=torch.float32), find_sites(model, GREY), [random_basis(GREY)])
    assert (model.training, model.act.training) == (True, False)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# ---- bad input ----

X, Y, PIXELS = torch.rand(4, *GREY), torch.tensor([0, 1, 2, 0]), pixel_basis(GREY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remove(X, PIXELS, 17), "k: expected an integer from 0 to 16, got 17"),
        (lambda: remove(X[0], PIXELS, 1), r"x: expected numbers of shape \(N, C, H, W\), at least one, got"),
        (
            lambda: remove(torch.rand(4, 1, 5, 5), PIXELS, 1),
            r"x: expected inputs of shape \(N, 1, 4, 4\) as pixel is for, or of more channels, got \(4, 1, 5, 5\)",
        ),
        (lambda: remove(X * math.nan, PIXELS, 1), "x: expected finite numbers"),
        (lambda: remove(X, PIXELS, 1, value="men"), "value: expected 'mean' or 'zero', got 'men'"),
        (lambda: variance_along(X[:1], PIXELS), "x: expected inputs that differ"),
        (lambda: principal_basis(X[:1]), "x: expected inputs that differ"),
        (lambda: signal_along((X, Y[:3]), PIXELS), "data: expected one label an input, got 4 inputs and 3 labels"),
        (lambda: signal_along((X, 0 * Y), PIXELS), "labels: expected at least two classes, got 1"),
        (lambda: exchanged(PIXELS[:4], torch.ones(2) > 0), "pixel: expected all 16 directions"),
        (lambda: exchanged(PIXELS, torch.ones(8)), r"chosen: expected \(8,\) bool, one for each pair, got a tensor"),
        (lambda: removal_curve(Small(), (X, Y), PIXELS, counts=[1, 17]), "counts: expected an integer from 0 to 16"),
        (lambda: removal_curve(Small(), (X, Y + 1), PIXELS, counts=[1]), "labels: expected 0 to 2 for 3 logits"),
        (lambda: removal_curve(nn.Flatten(0), (X, Y), PIXELS, counts=[1]), "expected a network with logits"),
        (lambda: units_along(Small(), X, find_sites(Small(), GREY), []), "bases: expected a list of Basis"),
        (
            lambda: units_along(
                Small(3), torch.rand(4, *COLOUR), find_sites(LeNet((1, 16, 16), 3), (1, 16, 16)), [PIXELS]
            ),
            "site 'relu",
        ),
    ],
)
def test_bad_input_is_told_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
