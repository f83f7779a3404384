"""Surfaces: points are where the equations put them, and distances are those of slow integrals and unfolded sheets."""

import math

import pytest
import torch
from scipy.integrate import quad

from nadkit.neighbours.surfaces import folded_boxes, torus
from nadkit.training import Problem


def test_helices_lie_on_one_torus_opposite_each_other():
    found = torus(40)
    x, y, z = found.points.view(-1, 3).double().T
    tube = torch.hypot(torch.hypot(x, y) - 8, z)
    assert torch.allclose(tube, torch.ones(40, dtype=torch.float64), atol=1e-6)
    # around the tube a helix turns four times as fast as around the axis, and the other is half a turn away
    turned = torch.atan2(torch.hypot(x, y) - 8, z) - 4 * torch.atan2(y, x)
    expected = torch.where(found.labels == 1, 1.0, -1.0).double()
    assert torch.allclose(torch.cos(turned), expected, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_distance_on_a_helix_is_the_integral_of_its_speed(sign):
    found = torus(20, seed=3)
    own = found.labels == (sign + 1) // 2
    x, y = found.points.view(-1, 3)[own, :2].double().T
    t = torch.atan2(y, x).tolist()

    def length(a, b):
        return quad(lambda u: math.sqrt(16 + (8 + sign * math.sin(4 * u)) ** 2), a, b, epsabs=1e-10, limit=200)[0]

    whole = length(-math.pi, math.pi)
    for i in range(10):
        for j in range(i):
            way = abs(length(t[i], t[j]))
            # the points are float32
            assert found.distance[own][:, own][i, j].item() == pytest.approx(min(way, whole - way), abs=2e-5)


def test_boxes_are_folded_at_x_zero_and_one_is_in_the_other():
    found = folded_boxes(80)
    x, y, z = found.points.view(-1, 3).double().T
    height = torch.where(found.labels == 1, 13.0, 11.0).double()
    assert torch.allclose(y.abs(), height - 1.2 * x.abs(), atol=1e-5)
    assert z.abs().max() <= 1
    for label in (0, 1):
        assert (y[found.labels == label] > 0).sum() == 20


@pytest.mark.parametrize("label", [1, 0])
def test_distance_on_a_box_is_that_of_the_unfolded_strip(label):
    """Slowly: the straight lines from a point to three copies of the other, one of them a turn to each side."""
    found = folded_boxes(32, seed=1)
    own = found.labels == label
    height = 13.0 if label else 11.0
    edge = math.hypot(height, height / 1.2)

    def unfolded(point):
        x, y, z = point
        along = x * 1.2 / height * edge
        return (along if y > 0 else 2 * edge - along), z

    points = [unfolded(p) for p in found.points.view(-1, 3)[own].double().tolist()]
    for i, (u, z) in enumerate(points):
        for j, (v, w) in enumerate(points):
            least = min(math.hypot(u - v + turn * 4 * edge, z - w) for turn in (-1, 0, 1))
            assert found.distance[own][:, own][i, j].item() == pytest.approx(least, abs=1e-5)


def test_on_one_face_the_distance_is_the_straight_line_and_elsewhere_it_is_longer():
    found = folded_boxes(200)
    own = found.labels == 1
    points = found.points.view(-1, 3)[own].double()
    straight, along = torch.cdist(points, points), found.distance[own][:, own]
    face = torch.sign(points[:, 0]) + 2 * torch.sign(points[:, 1])
    same = face[:, None] == face
    assert torch.allclose(along[same], straight[same], atol=1e-5)
    assert (along[~same] > straight[~same]).all()


@pytest.mark.parametrize("make", [torus, folded_boxes])
def test_distances_are_a_metric_on_each_surface_and_there_is_none_between(make):
    found = make(40)
    for label in (0, 1):
        own = found.labels == label
        d = found.distance[own][:, own]
        assert torch.equal(d, d.T)
        assert (d.diagonal() == 0).all()
        assert (d[:, None] <= d[:, :, None] + d[None] + 1e-9).all()
        assert found.distance[own][:, ~own].isnan().all()


@pytest.mark.parametrize("make", [torus, folded_boxes])
def test_surfaces_are_a_problem_and_depend_on_the_seed_alone(make):
    found, again, other = make(20), make(20), make(20, seed=1)
    assert isinstance(found, Problem)
    assert found.shape == (1, 1, 3)
    assert found.labels.tolist() == [1] * 10 + [0] * 10
    assert torch.equal(found.points, again.points)
    assert found.checksum() == again.checksum() != other.checksum()
    assert all(torch.equal(a, b) for a, b in zip(found.sample("train"), found.sample("test"), strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torus(5), "n: expected an even number of points, half for each class, got 5"),
        (lambda: folded_boxes(6), "n: expected a multiple of 4"),
        (lambda: torus(2), "n: expected an integer, at least 4"),
        (lambda: torus(8).sample("all"), "split: expected 'train' or 'test', got 'all'"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
