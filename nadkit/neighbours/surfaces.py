"""Points in space whose distance along a surface is known: two helices on a torus, and two folded boxes.

Source: He and Su, "The local elasticity of neural networks", ICLR 2020, section on synthetic data, and their code.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nadkit import checks, seeds
from nadkit.architectures import Shape
from nadkit.devices import pick
from nadkit.storage import described, digest

__all__ = ["Surfaces", "folded_boxes", "torus"]

RADIUS, TURNS = 8.0, 4
"""Of the torus: distance of its tube from the axis (the tube's own radius is 1), and windings of a helix."""

SLOPE, HEIGHT, SHIFT = 1.2, 12.0, 1.0
"""Of the boxes: y = +-(HEIGHT +- SHIFT - SLOPE |x|)."""

FINE = 2**14
"""Steps of the integral of an arc length; its error is about 1e-7 of the whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surfaces:
    """Points on two surfaces, one a class: a `nadkit.training.Problem`, trained and tested on the same points.

    Attributes:
        points: (N, 1, 1, 3) float32, first those of class 1.
        labels: (N,) int64, the surface, 1 or 0.
        distance: (N, N) float64, shortest way along the surface; NaN from one surface to the other.
        name: of the pair, for records and plots.
    """

    points: Tensor
    labels: Tensor
    distance: Tensor
    name: str
    n_classes: int = 2

    @property
    def shape(self) -> Shape:
        """Shape of one point, (1, 1, 3)."""
        return tuple(self.points.shape[1:])

    @checks.typed
    def sample(self, split: Literal["train", "test"], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Return the points and their labels."""
        device = pick(device)
        return self.points.to(device), self.labels.to(device)

    def checksum(self) -> str:
        """Return 12 hexadecimal digits that differ between other points."""
        return digest(self.name, *described([self.points, self.labels]))


@checks.typed
def torus(n: int = 100, *, seed: int = 0) -> Surfaces:
    """Return n points on two helices that wind around one torus, opposite each other: a double helix, closed.

        x = ((8 + s sin 4t) cos t, (8 + s sin 4t) sin t, s cos 4t),   s = +1 and -1,   t uniform in [-pi, pi]

    The distance is the length of arc, the shorter way around: with |dx/dt|^2 = 16 + (8 + s sin 4t)^2,

        d(t, t') = min(a, L - a),   a = |int_t^t' |dx/dt| dt|,   L the length of the whole curve.

    Args:
        n: number of points, an even one; half of them are on each helix.
        seed: of the points.

    Raises:
        ValueError: n is odd or less than 4.

    Source: He and Su 2020; their code takes the difference in t as the distance.
    """
    half = _half(n)
    generator = seeds.generator(seed, "torus")
    t = math.pi * (2 * torch.rand(2, half, generator=generator, dtype=torch.float64) - 1)
    s = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    from_axis = RADIUS + s * torch.sin(TURNS * t)
    points = torch.stack([from_axis * torch.cos(t), from_axis * torch.sin(t), s * torch.cos(TURNS * t)], -1)
    distance = [_around(*_arc(row, sign)) for row, sign in zip(t, (1, -1), strict=True)]
    return _surfaces(points, distance, "torus")


def _arc(t: Tensor, s: int) -> tuple[Tensor, float]:
    """Return the length of a helix from -pi to each t, and that of the whole."""
    grid = torch.linspace(-math.pi, math.pi, FINE + 1, dtype=torch.float64)
    speed = torch.sqrt(TURNS**2 + (RADIUS + s * torch.sin(TURNS * grid)) ** 2)
    lengths = torch.cat([grid.new_zeros(1), torch.cumulative_trapezoid(speed, grid)])
    place = (t + math.pi) / (2 * math.pi) * FINE
    left = place.long().clamp(max=FINE - 1)
    return torch.lerp(lengths[left], lengths[left + 1], place - left), lengths[-1].item()


@checks.typed
def folded_boxes(n: int = 100, *, seed: int = 0) -> Surfaces:
    """Return n points on two boxes without ends, one in the other, each folded from a strip into a rhombus.

        y = +-(h - 1.2 |x|),   z uniform in [-1, 1],   h = 13 for class 1, the outer box, and 11 for class 0

    x is uniform in [-h / 1.2, h / 1.2], and half of a box's points have y > 0. Unfolded, the box is a ring of length
    L = 4 hypot(h, h / 1.2), on which u is the place of a point:

        d = hypot(min(|u - u'|, L - |u - u'|), z - z').

    Args:
        n: number of points, a multiple of 4; half of them are on each box.
        seed: of the points.

    Raises:
        ValueError: n is not a multiple of 4, or less than 4.

    Source: He and Su 2020, "two folded boxes"; the corners are where their code has them.
    """
    if checks.require_integer("n", n, 4) % 4:
        raise ValueError(f"n: expected a multiple of 4, a quarter for each half of a box, got {n}")
    generator = seeds.generator(seed, "folded boxes")
    points, distances = [], []
    for height in (HEIGHT + SHIFT, HEIGHT - SHIFT):
        corner, edge = height / SLOPE, math.hypot(height, height / SLOPE)
        x, z = 2 * torch.rand(2, n // 2, generator=generator, dtype=torch.float64) - 1
        upper = torch.arange(n // 2) < n // 4
        y = torch.where(upper, 1.0, -1.0) * height * (1 - x.abs())
        points.append(torch.stack([corner * x, y, z], -1))
        # from corner to corner over the upper half, and back over the lower one
        place = edge * torch.where(upper, x, 2 - x)
        distances.append(torch.hypot(_around(place, 4 * edge), z[:, None] - z))
    return _surfaces(torch.stack(points), distances, "boxes")


def _half(n: int) -> int:
    if checks.require_integer("n", n, 4) % 2:
        raise ValueError(f"n: expected an even number of points, half for each class, got {n}")
    return n // 2


def _around(place: Tensor, length: float) -> Tensor:
    """Return the shorter ways (N, N) between places (N,) on a ring."""
    way = (place[:, None] - place).abs()
    return torch.minimum(way, length - way)


def _surfaces(points: Tensor, distances: list[Tensor], name: str) -> Surfaces:
    """Return points (2, N / 2, 3), those of class 1 first, as a problem."""
    half = points.shape[1]
    between = torch.full((half, half), math.nan, dtype=torch.float64)
    distance = torch.cat([torch.cat([distances[0], between], 1), torch.cat([between, distances[1]], 1)])
    labels = torch.tensor([1, 0]).repeat_interleave(half)
    return Surfaces(points=points.view(-1, 1, 1, 3).float(), labels=labels, distance=distance, name=name)
