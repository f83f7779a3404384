"""Polynomial networks: products in place of activation functions, their exact degree, and their input gradients.

Axis letters: B batch, C channels, D inputs, K units, N degree.

Source: Chrysos, Moschoglou, Bouritsas, Panagakis, Deng and Zafeiriou, "Pi-nets: deep polynomial neural networks", CVPR
2020, section 3; the blocks of image networks from the authors' later code.
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nadkit import architectures, checks, seeds
from nadkit.architectures import Shape

Kind = Literal["CCP", "NCP", "NCP-skip"]
Product = Literal["plain", "1x1"]
Block = Literal["residual", "pi", "pi-1x1", "tutorial"]

STAGES = 4
"""Stages of a `PiNet`, as in a ResNet."""

DEVIATION_CUT = 0.87962566103423978
"""Standard deviation of a standard normal number that is cut off at two."""

MOST = 40
"""Highest order of differences: beyond it, little is left even of a pure power (`finite_differences`)."""

TOLERANCE = 1e-10
"""Relative differences up to this count as zero (`degree_of`)."""


# ---- polynomials of vectors -----------------------------------------------------------------------------------------


@checks.typed
class CCP(nn.Module):
    """A polynomial whose coefficients have a coupled CP decomposition: (B, D) -> (B, K).

        x_1 = U_1 z,   x_n = (U_n z) * x_(n-1) + x_(n-1),   so that   x_N = (U_1 z) * prod_(n=2..N) (1 + U_n z)

    Args:
        inputs: D.
        units: K.
        degree: N.
        bias: whether each U_n z has a bias, as in the later version of the authors' tutorial.

    Raises:
        ValueError: a degree, or another number, below 1.

    Source: Chrysos et al. 2020, section 3.1 (CCP), without C and beta.
    """

    def __init__(self, inputs: checks.Count, units: checks.Count, *, degree: int = 4, bias: bool = False) -> None:
        super().__init__()
        degree = checks.require_integer("degree", degree, 1)
        self.maps = nn.ModuleList(nn.Linear(inputs, units, bias=bias) for _ in range(degree))

    def forward(self, z: Tensor) -> Tensor:
        first, *others = self.maps
        x = first(z)
        for u in others:
            x = u(z) * x + x
        return x


@checks.typed
class NCP(nn.Module):
    """A polynomial whose coefficients have a nested coupled CP decomposition: (B, D) -> (B, K).

        x_1 = A_1 z,   x_n = (A_n z) * (S_n x_(n-1) + b_n)   and, with ``skip``,   + x_(n-1)

    The paper's B_n^T b_n, a product of two learned factors that do not see z, is one learned vector here, and starts at
    one: so every degree from 1 to N is there from the start, as in `CCP`. In x_1 it would only scale A_1.

    Args:
        inputs: D.
        units: K.
        degree: N.
        skip: whether x_(n-1) is added (NCP-skip).

    Raises:
        ValueError: a degree, or another number, below 1.

    Source: Chrysos et al. 2020, sections 3.2 (NCP) and 3.3 (NCP-skip), without C and beta.
    """

    def __init__(self, inputs: checks.Count, units: checks.Count, *, degree: int = 4, skip: bool = False) -> None:
        super().__init__()
        degree = checks.require_integer("degree", degree, 1)
        self.skip = skip
        self.maps = nn.ModuleList(nn.Linear(inputs, units, bias=False) for _ in range(degree))
        self.mixes = nn.ModuleList(nn.Linear(units, units) for _ in range(degree - 1))
        for mix in self.mixes:
            nn.init.ones_(mix.bias)

    def forward(self, z: Tensor) -> Tensor:
        first, *others = self.maps
        x = first(z)
        for a, s in zip(others, self.mixes, strict=True):
            product = a(z) * s(x)
            x = product + x if self.skip else product
        return x


@checks.typed
class PolynomialNet(nn.Module):
    """Flattened inputs, polynomials one after the other, the logits: y = C p_L(... p_1(z)) + beta.

    One polynomial of degree 4 with 16 units is the network of the authors' tutorial on MNIST. Several are the paper's
    product of polynomials, whose degrees multiply. All weights start at PyTorch's default.

    Args:
        kind: ``"CCP"``, ``"NCP"`` or ``"NCP-skip"``.
        degree: of the polynomial, or of each of several.
        width: units K of each.
        bias: of the maps of a ``"CCP"``.

    Raises:
        ValueError: a degree below 1, an unknown kind.

    Source: Chrysos et al. 2020, sections 3.1 to 3.4.
    """

    def __init__(
        self,
        shape: Shape,
        classes: checks.Count,
        *,
        kind: Kind = "CCP",
        degree: int | Sequence[int] = 4,
        width: checks.Count = 16,
        bias: bool = False,
    ) -> None:
        super().__init__()
        degrees = list(degree) if isinstance(degree, Sequence) else [degree]
        if not degrees:
            raise ValueError("degree: expected an integer or a list of them, at least one, got none")
        sizes = [math.prod(shape), *[width] * (len(degrees) - 1)]
        option = {"bias": bias} if kind == "CCP" else {"skip": kind == "NCP-skip"}
        family = CCP if kind == "CCP" else NCP
        self.polynomials = nn.Sequential(
            *(family(size, width, degree=n, **option) for size, n in zip(sizes, degrees, strict=True))
        )
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.polynomials(x.flatten(1)))


# ---- polynomials of images ------------------------------------------------------------------------------------------


@checks.typed
class ConvCCP(nn.Module):
    """Three 3x3 convolutions of the image and their products, average pooling by 2, two linear layers, the logits.

        x_1 * x_2 * x_3 + x_1 * x_2 + x_2 * x_3 + x_1,   x_n = U_n z

    That is not a `CCP`, which has x_1 * x_3 in place of x_2 * x_3. Weights start from a normal distribution of variance
    1 / fan_in, cut off at two deviations, and biases from zero, as in the tutorial's library: PyTorch's default has a
    third of that variance.

    Args:
        width: feature maps of each convolution, and units between the two linear layers.

    Raises:
        ValueError: a width below 1, an image of a single row or column.

    Source: the authors' tutorial in JAX.
    """

    def __init__(self, shape: Shape, classes: checks.Count, *, width: checks.Count = 32) -> None:
        super().__init__()
        channels, height, columns = shape
        if min(height, columns) < 2:
            raise ValueError(f"shape: expected images of at least 2x2, got {height}x{columns}")
        self.maps = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in range(3))
        self.pool = nn.AvgPool2d(2)
        self.hidden = nn.Linear(width * (height // 2) * (columns // 2), width)
        self.out = nn.Linear(width, classes)
        for layer in (*self.maps, self.hidden, self.out):
            std = 1 / (DEVIATION_CUT * math.sqrt(layer.weight[0].numel()))
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = (u(x) for u in self.maps)
        x = one * two * three + one * two + two * three + one
        return self.out(self.hidden(self.pool(x).flatten(1)))


@checks.typed
class ProductBlock(nn.Module):
    """A residual block with the product of its two branches: (B, C, H, W) -> (B, width, H / stride, W / stride).

        o = BN2(c_2 BN1(c_1 x)),   i = skip(x),   y = o + i + BN3(o * i)

    With ``relu`` there is one after BN1 and one after the sum. With ``product`` ``"1x1"`` there is a 1x1 convolution of
    o * i before BN3, with None there is no product: a plain block. The scale of BN2 starts at ``scale``.

    Raises:
        ValueError: a number below 1, an unknown product, a scale that is not finite.

    Source: the authors' code for ImageNet without activation functions (2023), whose scale is 0.
    """

    def __init__(
        self,
        channels: checks.Count,
        width: checks.Count,
        stride: checks.Count = 1,
        *,
        product: Product | None = "plain",
        relu: bool = False,
        scale: float = 0.0,
    ) -> None:
        super().__init__()
        checks.require_finite_number("scale", scale)
        self.first = _conv_norm(channels, width, 3, stride)
        self.second = _conv_norm(width, width, 3)
        nn.init.constant_(self.second[-1].weight, scale)
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else _conv_norm(channels, width, 1, stride)
        self.activation = nn.ReLU() if relu else nn.Identity()
        self.product = None
        if product is not None:
            self.product = _conv_norm(width, width, 1) if product == "1x1" else nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        o, i = self.second(self.activation(self.first(x))), self.shortcut(x)
        y = o + i
        if self.product is not None:
            y = y + self.product(o * i)
        return self.activation(y)


@checks.typed
class TutorialBlock(nn.Module):
    """A block of degree 2 with a learned share of the product: (B, C, H, W) -> (B, width, H / stride, W / stride).

        s = IN(1x1 conv x),   o = BN(5x5 conv x),   y = s + alpha (o * s),   alpha from 0

    IN, instance normalisation, divides by the deviation of the input itself, so that y is not a polynomial of x.

    Raises:
        ValueError: a number below 1.

    Source: the authors' tutorial for CIFAR-10 in PyTorch, an NCP of degree 2.
    """

    def __init__(self, channels: checks.Count, width: checks.Count, stride: checks.Count = 1) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.InstanceNorm2d(width))
        self.other = _conv_norm(channels, width, 5, stride)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        s = self.one(x)
        return s + self.alpha * (self.other(x) * s)


@checks.typed
class PiNet(nn.Module):
    """A 3x3 stem, blocks in up to four stages, the mean over positions, the logits; each block may double the degree.

    Stage i has 2^i ``width`` feature maps, and each after the first halves the image by stride 2. Without ``relu`` and
    ``max_pool`` the network with blocks ``"pi"`` or ``"pi-1x1"`` is a polynomial of degree 2^depth; where the scale of
    BN2 is 0, as it starts, of degree 1. With ``"residual"`` it is affine.

    The stem is that of ResNets for small images. The authors' stem for ImageNet has a 7x7 convolution of stride 2 and a
    max pooling, with which the network is not a polynomial; ``max_pool`` adds such a pooling. Convolutions start from
    N(0, 2 / (k^2 out)), as theirs do.

    Args:
        block: ``"pi"`` and ``"pi-1x1"``, residual blocks with a product (`ProductBlock`); ``"residual"``, the same
            without; ``"tutorial"`` (`TutorialBlock`), 7 of which and a width of 64 are the tutorial's for CIFAR-10.
        depth: number of blocks; 8 are those of ResNet-18.
        width: feature maps of the first stage.
        relu: whether there are ReLUs, one in the stem and two in each block, where the authors have them.
        scale: of BN2 at the start.
        max_pool: whether a 3x3 max pooling of stride 2 follows the stem.

    Raises:
        ValueError: an unknown block, a depth or width below 1, a ReLU in the tutorial's block, an image too small for
            the instance normalisation in that.

    Source: the authors' code for ImageNet without activation functions (2023), and their tutorial.
    """

    def __init__(
        self,
        shape: Shape,
        classes: checks.Count,
        *,
        block: Block = "pi",
        depth: checks.Count = 8,
        width: checks.Count = 64,
        relu: bool = False,
        scale: float = 0.0,
        max_pool: bool = False,
    ) -> None:
        super().__init__()
        channels, *size = shape
        counts = [count for i in range(STAGES) if (count := (depth + STAGES - 1 - i) // STAGES)]
        if block == "tutorial":
            _require_for_tutorial(relu, size, len(counts) + max_pool)
        stem: list[nn.Module] = [_conv_norm(channels, width, 3)]
        stem += [nn.ReLU()] * relu + [nn.MaxPool2d(3, 2, padding=1)] * max_pool
        self.stem = nn.Sequential(*stem)
        if block == "tutorial":
            make = TutorialBlock
        else:
            product = {"pi": "plain", "pi-1x1": "1x1"}.get(block)
            make = functools.partial(ProductBlock, product=product, relu=relu, scale=scale)
        blocks: list[nn.Module] = []
        channels = width
        for stage, count in enumerate(counts):
            for i in range(count):
                blocks.append(make(channels, width * 2**stage, 2 if stage and not i else 1))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.blocks(self.stem(x))).flatten(1))


def _require_for_tutorial(relu: bool, size: Sequence[int], strides: int) -> None:
    """Raise ValueError of ReLUs, or where the instance normalisation of `TutorialBlock` would see a single pixel."""
    if relu:
        raise ValueError("relu: expected False with the block 'tutorial', which has none")
    if max(size) <= (least := 2 ** (strides - 1)):
        raise ValueError(f"shape: expected images of more than {least} pixels a side, got {size}")


def _conv_norm(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width))


# ---- the exact degree -----------------------------------------------------------------------------------------------


@checks.typed
@torch.no_grad()
def finite_differences(
    network: nn.Module, shape: Shape, *, most: int = 32, reach: float = 10.0, lines: int = 3, seed: int = 0
) -> Tensor:
    """Return the relative finite differences of a network along random lines, orders 1 to ``most``: (most,) float64.

        r_n = |sum_j (-1)^(n-j) B_nj f(x + t_j v)| / sum_j B_nj |f(x + t_j v)|,   B_nj = n! / (j! (n - j)!)

    with n + 1 equally spaced t_j from -reach to reach, the largest over lines and logits. It is from 0 to 1 and does
    not depend on the scale of f. For a polynomial of degree N it is zero for every n > N. Relative errors of the f up
    to d move it by at most d, whatever the order. Where the leading term is all that counts, r_N is
    N! / sum_j B_Nj |j - N/2|^N: 0.6 for N = 4, 0.008 for 16, 2e-5 for 32.

    Args:
        network: of logits (B, classes), on any device and in any precision. A copy in float64 and in eval mode is
            examined, in which batch normalisation is affine.
        shape: (C, H, W) of an input.
        most: highest order, at most `MOST`.
        reach: of the lines to both sides of x, in units of v; x and v are N(0, I).
        lines: number of lines.
        seed: of the lines.

    Raises:
        ValueError: an option is out of range; the network does not take such inputs; its answers are not finite.
    """
    checks.require_integer("most", most, 1, MOST)
    checks.require_integer("lines", lines, 1)
    checks.require_positive("reach", reach)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    architectures.n_logits(copy.deepcopy(network).to(device).float(), shape, device)
    model = copy.deepcopy(network).to(device).double().eval()
    draws = seeds.generator(seed, "lines")
    x, v = torch.randn(2, lines, 1, *shape, generator=draws, dtype=torch.float64).to(device)
    found = []
    for n in range(1, most + 1):
        t = torch.linspace(-reach, reach, n + 1, dtype=torch.float64, device=device).view(-1, 1, 1, 1)
        answers = model((x + t * v).flatten(0, 1)).unflatten(0, (lines, n + 1))
        found.append(_relative_difference(answers))
    return torch.stack(found).cpu()


def _relative_difference(answers: Tensor) -> Tensor:
    """Return r_n of answers (lines, n + 1, logits), the largest over lines and logits."""
    if not answers.isfinite().all():
        raise ValueError("the network's answers along the lines are not all finite; take a shorter reach")
    n = answers.shape[1] - 1
    binomials = torch.tensor([math.comb(n, j) for j in range(n + 1)], dtype=answers.dtype, device=answers.device)
    signs = 1 - 2 * (torch.arange(n, -1, -1, device=answers.device) % 2)
    size = torch.einsum("j,ljk->lk", binomials, answers.abs())
    difference = torch.einsum("j,ljk->lk", binomials * signs, answers).abs()
    return torch.where(size > 0, difference / size, 0.0).max()


@checks.typed
def degree_from(differences: Tensor, *, tolerance: float = TOLERANCE) -> int | None:
    """Return the highest order whose relative difference is above the tolerance, None if that is the last one.

    Args:
        differences: (most,) of orders 1 to ``most``, as `finite_differences` gives them.
        tolerance: differences up to this count as zero.

    Raises:
        ValueError: no differences, or some that are not finite; a tolerance that is not above 0.
    """
    checks.require_axes("differences", differences, "(most,)")
    checks.require_finite("differences", differences)
    checks.require_positive("tolerance", tolerance)
    present = (differences > tolerance).nonzero().flatten()
    degree = present.max().item() + 1 if len(present) else 0
    return degree if degree < len(differences) else None


@checks.typed
def degree_of(
    network: nn.Module,
    shape: Shape,
    *,
    most: int = 32,
    tolerance: float = TOLERANCE,
    reach: float = 10.0,
    lines: int = 3,
    seed: int = 0,
) -> int | None:
    """Return the degree of a network that is a polynomial of its input, or None if it is not one of degree < ``most``.

    It is the highest order whose relative finite difference along random lines is above the tolerance. If the
    difference of order ``most`` itself is above, as for a ReLU network or a polynomial of higher degree, the result is
    None.

    The tolerance has to be above the relative rounding error of the network's answers in float64, some 1e-15 to 1e-13,
    and below what the highest degree itself leaves, see `finite_differences`: so a leading term whose share of the
    answers at ``reach`` is below about 1e-10 is missed. A longer reach shows it.

    Args:
        network, shape, most, reach, lines, seed: as in `finite_differences`.
        tolerance: relative differences up to this count as zero.

    Raises:
        ValueError: as `finite_differences`; a tolerance that is not above 0.
    """
    checks.require_positive("tolerance", tolerance)
    found = finite_differences(network, shape, most=most, reach=reach, lines=lines, seed=seed)
    return degree_from(found, tolerance=tolerance)


# ---- the second moment of the input gradient ------------------------------------------------------------------------


@checks.typed
def expected_moment(x: Tensor, *, kind: Kind = "CCP", degree: int = 4, bias: bool = False) -> tuple[float, float]:
    """Return (a, b) of C = E[grad f grad f^T] = a I + b x x^T, over fresh one-logit networks `PolynomialNet`, at x.

    So x is an eigenvector, of eigenvalue a + b |x|^2; all directions orthogonal to x have the eigenvalue a. For a CCP,
    with s = 1 / (3 D) the variance of a weight and q = s |x|^2 (s more with ``bias``), C is a third, from the last
    layer, of

        a = s (1 + q)^(N-2) (1 + N q),   b = s^2 (N - 1) (1 + q)^(N-3) (2 + N q).

    All kinds follow one recursion: x_n = t y + x_(n-1) with t = u z, E[y^2] = k E[x_(n-1)^2] + c, where weights have
    zero mean and are independent; the width does not matter.

    Args:
        x: the point of evaluation, of D numbers in any shape.
        kind, degree, bias: of the network, which is of one polynomial.

    Raises:
        ValueError: a degree below 1, an unknown kind, an x that is empty or not finite.

    Source: derived here.
    """
    degree = checks.require_integer("degree", degree, 1)
    checks.require_one_of("kind", kind, get_args(Kind))
    checks.require_numbers("x", x)
    if not x.numel():
        raise ValueError("x: expected at least one number, got none")
    s = 1 / (3 * x.numel())
    q = s * (x.double().square().sum().item() + (bias and kind == "CCP"))
    gain, constant = (1.0, 0.0) if kind == "CCP" else (1 / 3, 1.0)
    skip = kind != "NCP"
    # of x_n: E[x_n^2], E[x_n grad x_n] = along x, E[grad x_n grad x_n^T] = a I + b x x^T
    square, along, a, b = q, s, s, 0.0
    for _ in range(degree - 1):
        of_y = gain * square + constant
        keep = q * gain + skip
        square, along, a, b = (
            q * of_y + skip * square,
            s * of_y + keep * along,
            s * of_y + keep * a,
            keep * b + 2 * s * gain * along,
        )
    return a / 3, b / 3
