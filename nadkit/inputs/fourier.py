"""The Fourier basis of images, and the cells of the published map of accuracies over it."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nadkit import checks
from nadkit.architectures import Shape
from nadkit.inputs.basis import Basis

PARTS = ("real", "imaginary")
"""A wave's cosine and its sine."""


class Frequency(NamedTuple):
    """Where a Fourier direction lies: horizontal and vertical frequency in cycles per image, channel and part."""

    fx: int
    fy: int
    part: str = "real"
    channel: int = 0


@checks.typed
@dataclass(frozen=True, kw_only=True, eq=False)
class FourierBasis(Basis):
    """The complete real Fourier basis of C x H x W images; see `fourier_basis`."""

    @property
    def frequencies(self) -> list[Frequency]:
        """The frequency of each row, in order."""
        return _frequencies(self.shape)[: len(self)]

    def complete(self) -> "FourierBasis":
        """Return the complete Fourier basis, of which the rows of this one are the first."""
        return self if len(self) == math.prod(self.shape) else fourier_basis(self.shape)


@checks.typed
def fourier_basis(shape: Shape = (1, 32, 32)) -> FourierBasis:
    """Return the complete real Fourier basis, one row for each cell of the centred spectrum.

    Row (c H + fy + H/2) W + fx + W/2, for fx = -W/2 .. W/2 - 1 and fy likewise, is the normalised cosine
    cos 2 pi (fx x / W + fy y / H) where (fx, fy) leads the pair +-(fx, fy), and the sine of the pair elsewhere.
    So the published map's cell (x, y) is the cosine of fx = 2 (x - 8), fy = 2 (y - 8).
    """
    channels, height, width = shape
    grey = (1, height, width)
    waves = torch.stack([fourier_direction(f.fx, f.fy, shape=grey, part=f.part) for f in _frequencies(grey)])
    return FourierBasis(vectors=torch.block_diag(*[waves] * channels), shape=shape, name="Fourier")


@checks.typed
def fourier_direction(fx: int, fy: int, *, shape: Shape = (1, 32, 32), part: str = "real", channel: int = 0) -> Tensor:
    """Return the unit vector of one wave: (D,) float64.

    The phase is reduced modulo one turn in integers, so that the result is exact to rounding at every frequency.

    Raises:
        ValueError: a frequency that is not an integer, an unknown part or channel, or a sine that is zero on every
            pixel.
    """
    channels, height, width = shape
    checks.require_one_of("part", part, PARTS)
    checks.require_integer("channel", channel, 0, channels - 1)
    x, y = torch.arange(width), torch.arange(height)
    turns = (fx * height * x[None, :] + fy * width * y[:, None]) % (height * width)
    phase = turns.double() * (2 * math.pi / (height * width))
    wave = phase.cos() if part == "real" else phase.sin()
    if wave.norm() < 1e-9 * height * width:
        raise ValueError(f"frequency ({fx}, {fy}) has no imaginary part on {height}x{width} images")
    image = torch.zeros(channels, height, width, dtype=torch.float64)
    image[channel] = wave / wave.norm()
    return image.flatten()


class Cell(NamedTuple):
    """A cell of the published 16 x 16 Fourier map: column x, row y, and its frequency in cycles per image."""

    x: int
    y: int
    fx: int
    fy: int


@checks.typed
def map_cells(*, step: int = 1) -> list[Cell]:
    """Return the cells of the published map that were trained, every ``step``-th along both axes.

    Of its 16 x 16 cells only 9 x 16 were: the map repeats itself under x -> (16 - x) mod 16. The cells returned have
    fx = 0, 2, ..., 16 and fy = -16, -14, ..., 14; column 0 stands for fx = 16. In the columns fx = 0 and fx = 16 the
    frequencies (fx, fy) and (fx, -fy) are the same cosine, so the 144 cells are 130 distinct directions.

    Raises:
        ValueError: the step is not a positive integer.
    """
    step = checks.require_integer("step", step, 1)
    columns = [*range(8, 16), 0][::step]
    return [Cell(x, y, abs(2 * (x - 8)), 2 * (y - 8)) for y in range(0, 16, step) for x in columns]


def _frequencies(shape: Shape) -> list[Frequency]:
    """Return the frequencies of the real Fourier basis of C x H x W images, row by row of the centred spectrum."""
    channels, height, width = shape
    return [
        Frequency(fx, fy, "real" if _is_real(fx, fy, height, width) else "imaginary", channel)
        for channel in range(channels)
        for fy in range(-(height // 2), height - height // 2)
        for fx in range(-(width // 2), width - width // 2)
    ]


def _wrap(frequency: int, size: int) -> int:
    """Return the frequency that is the same on ``size`` samples, from -size/2 to size/2 - 1."""
    return (frequency + size // 2) % size - size // 2


def _is_real(fx: int, fy: int, height: int, width: int) -> bool:
    """Say whether (fx, fy) holds the cosine of the pair +-(fx, fy): it is its own opposite, or comes first."""
    return (fx, fy) >= (_wrap(-fx, width), _wrap(-fy, height))
