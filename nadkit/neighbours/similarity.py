"""Learned similarity: convolutions whose inner product W . X is replaced by a bilinear one, W^T M X.

One matrix M (k^2, k^2) per layer weighs the taps of its k x k windows against each other; all filters and all input
channels share it. A *static* M is learned like a weight; a *dynamic* one is predicted from the input, anew at every
position. A static M folds into the filters, W_eff = W M, so it does not change what a network can compute: it changes
which weights are likely at initialisation, Cov(w_eff) ~ M^T M, and how they are trained.

Source: Liu, Liu, Rehg and Song 2019, Neural Similarity Learning (arXiv 1910.13003).
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nadkit import architectures, checks
from nadkit.architectures import Architecture, Shape
from nadkit.architectures.chain import Chain, scaled
from nadkit.names import hint

__all__ = [
    "DynamicConv2d",
    "MatrixDecay",
    "SimilarityConv2d",
    "Stages",
    "folded",
    "matrices",
    "transplanted",
    "with_similarity",
]

Kind = Literal["static", "static-diagonal", "dynamic", "dynamic-diagonal"]
Start = Literal["ones", "centre"]

HIDDEN = {"dynamic": 128, "dynamic-diagonal": 64}
"""Feature maps between the two layers that predict a dynamic M."""
PREDICTOR_SCALES = (0.1, 0.001)
"""Standard deviations of their initial weights."""
MAPS = (32, 64, 128)
EPSILON = 1e-6


class SimilarityConv2d(nn.Module):
    """A convolution with a static similarity: out = W^T M X + b for every window X, as a convolution by W M.

    Args:
        conv: the convolution, whose weight W (O, C / groups, k, k) and bias b are taken over.
        matrix: (k^2, k^2), or its diagonal (k^2,).
        learned: whether M is trained; otherwise it is fixed.

    Raises:
        ValueError: a matrix of another size, or one that is not finite; padding other than with zeros.
    """

    @checks.typed
    def __init__(self, conv: nn.Conv2d, matrix: Tensor, *, learned: bool = True) -> None:
        super().__init__()
        _require_zero_padding(conv)
        taps = conv.weight[0, 0].numel()
        if tuple(matrix.shape) not in ((taps,), (taps, taps)):
            raise ValueError(
                f"matrix: expected ({taps}, {taps}) or ({taps},) for windows of {taps} taps, got {tuple(matrix.shape)}"
            )
        checks.require_finite("matrix", matrix)
        self.conv = conv
        matrix = matrix.detach().clone().to(conv.weight)
        if learned:
            self.matrix = nn.Parameter(matrix)
        else:
            self.register_buffer("matrix", matrix)

    @property
    def weight(self) -> Tensor:
        """W M, the filters of the plain convolution that computes the same: (O, C / groups, k, k)."""
        w = self.conv.weight.flatten(2)
        return (w * self.matrix if self.matrix.ndim == 1 else w @ self.matrix).view_as(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        return F.conv2d(x, self.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class DynamicConv2d(nn.Module):
    """A convolution with a dynamic similarity: out = W^T M(X) X + b, with M(X) predicted from the window.

        M(X) = I + V_2 relu(V_1 X / |X|)                (whole matrices, 128 maps between)
        M(X) = diag(1 + BN(V_2 relu(BN(V_1 X))))        (diagonals, 64 maps between)

    V_1 is a convolution of the layer's own kernel, V_2 one of kernel 1 (our choice; the paper does not say). They begin
    with normal weights of standard deviation .1 and .001, so that a whole M begins near the identity. A diagonal does
    not: its batch norm gives the predictions a variance near one from the start.

    Args:
        conv: the convolution, whose weight W and bias b are taken over.
        diagonal: predict diagonals.

    Raises:
        ValueError: a convolution in groups, or padding other than with zeros.
    """

    @checks.typed
    def __init__(self, conv: nn.Conv2d, *, diagonal: bool = False) -> None:
        super().__init__()
        _require_zero_padding(conv)
        if conv.groups != 1:
            raise ValueError(f"conv: expected one without groups, got {conv.groups}; a static similarity takes them")
        taps = conv.weight[0, 0].numel()
        hidden, out = HIDDEN["dynamic-diagonal" if diagonal else "dynamic"], taps if diagonal else taps**2
        self.conv, self.diagonal = conv, diagonal
        self.first = nn.Conv2d(
            conv.in_channels,
            hidden,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            bias=False,
        )
        self.second = nn.Conv2d(hidden, out, 1, bias=False)
        for layer, scale in zip((self.first, self.second), PREDICTOR_SCALES, strict=True):
            nn.init.normal_(layer.weight, std=scale)
        self.norms = nn.ModuleList([nn.BatchNorm2d(hidden), nn.BatchNorm2d(out)] if diagonal else [])

    def _predicted(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return M (B, k^2, k^2, L) or its diagonal (B, k^2, L), windows (B, C, k^2, L) and maps (B, h, H, W)."""
        conv, maps = self.conv, self.first(x)
        windows = F.unfold(x, conv.kernel_size, conv.dilation, _padding(conv), conv.stride)
        taps = windows.shape[1] // conv.in_channels
        if self.diagonal:
            found = 1 + self.norms[1](self.second(F.relu(self.norms[0](maps)))).flatten(2)
        else:
            size = windows.norm(dim=1).view(len(x), 1, *maps.shape[2:])
            found = self.second(F.relu(maps / (size + EPSILON))).flatten(2).unflatten(1, (taps, taps))
            found = found + torch.eye(taps, device=x.device, dtype=x.dtype)[:, :, None]
        return found, windows.unflatten(1, (-1, taps)), maps

    def matrices(self, x: Tensor) -> Tensor:
        """Return M at each of the L positions of inputs (B, C, H, W): (B, k^2, k^2, L)."""
        found, _, _ = self._predicted(x)
        return torch.diag_embed(found.movedim(1, -1)).movedim(1, -1) if self.diagonal else found

    def forward(self, x: Tensor) -> Tensor:
        found, windows, maps = self._predicted(x)
        weighed = found[:, None] * windows if self.diagonal else torch.einsum("bijl,bcjl->bcil", found, windows)
        out = torch.einsum("oci,bcil->bol", self.conv.weight.flatten(2), weighed)
        if self.conv.bias is not None:
            out = out + self.conv.bias[:, None]
        return out.unflatten(2, maps.shape[2:])


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    """Return the zeros on each side, of "same" half of what a window reaches over."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return conv.padding


def _require_zero_padding(conv: nn.Conv2d) -> None:
    if conv.padding_mode != "zeros":
        raise ValueError(f"conv: expected padding with zeros, got {conv.padding_mode!r}")


# ---- networks --------------------------------------------------------------------------------------------------------


@checks.typed
class Stages(Chain):
    """The paper's network for CIFAR: a first convolution, then stages of three, with 2x2 max pooling between.

    All are 3x3 with batch norm and ReLU; 32 maps in the first, then 32, 64 and 128. A linear layer reads what is left
    (our choice; the paper does not say what its head is).

    Args:
        width: factor on the numbers of maps.
        convs: convolutions per stage.

    Raises:
        ValueError: images smaller than 4x4, a width or a number out of range.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: checks.Count, *, width: float = 1.0, convs: int = 3
    ) -> None:
        channels, height, columns = shape
        if min(height, columns) < 4:
            raise ValueError(f"shape: expected images of at least 4x4, got {height}x{columns}")
        checks.require_integer("convs", convs, 1)
        layers: dict[str, nn.Module] = {}
        first, *maps = scaled((MAPS[0], *MAPS), width)
        names = ["root"] + [f"{stage}_{i}" for stage in (1, 2, 3) for i in range(1, convs + 1)]
        for name, out in zip(names, [first, *(n for n in maps for _ in range(convs))], strict=True):
            if name in ("2_1", "3_1"):
                layers[f"pool_{name[0]}"] = nn.MaxPool2d(2)
            layers[f"conv_{name}"] = nn.Conv2d(channels, out, 3, padding=1, bias=False)
            layers[f"norm_{name}"], layers[f"relu_{name}"] = nn.BatchNorm2d(out), nn.ReLU()
            channels = out
        layers["flatten"] = nn.Flatten()
        layers["out"] = nn.Linear(channels * (height // 4) * (columns // 4), classes)
        super().__init__(layers)


@checks.typed
def with_similarity(
    architecture: Architecture, kind: Kind, *, start: Start = "ones", root: bool = True
) -> Callable[..., nn.Module]:
    """Return a factory of an architecture in which the convolutions of kernel 2 and more learn a similarity.

    A whole static M begins at the identity. A diagonal begins at ones, or as the authors' at the *centre*: with 1 where
    the 3x3 identity has it, so that six of the nine taps begin at 0.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        kind: ``"static"`` or ``"dynamic"``, with ``"-diagonal"`` for diagonals.
        start: of a static diagonal, ``"ones"`` or ``"centre"``.
        root: whether the first convolution learns one, too; the paper's does not.

    Raises:
        ValueError: an unknown name; a start for a kind that has none; when a network is made, one without such
            convolutions.
    """
    architectures.factory(architecture)
    if start != "ones" and kind != "static-diagonal":
        raise ValueError(f"start: {start!r} is of a 'static-diagonal', {kind!r} has a start of its own")
    return functools.partial(_learning, architecture, kind, start, root)


@checks.typed
def transplanted(architecture: Architecture, given: Mapping[str, Tensor]) -> Callable[..., nn.Module]:
    """Return a factory of an architecture whose convolutions have these similarities, which are not trained.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        given: (k^2, k^2) by name of the convolution, as `matrices` gives them.

    Raises:
        ValueError: an unknown architecture, no similarity; when a network is made, names that are not convolutions of
            it, or matrices of another size.
    """
    architectures.factory(architecture)
    checks.require_all("given", given.values(), Tensor)
    return functools.partial(_given, architecture, {name: matrix.detach().cpu() for name, matrix in given.items()})


def _learning(
    architecture: Architecture, kind: Kind, start: Start, root: bool, *, shape: Shape, classes: int
) -> nn.Module:
    model = architectures.build(architecture, shape=shape, classes=classes)
    found = _convolutions(model)
    chosen = list(found)[0 if root else 1 :]
    if not chosen:
        raise ValueError(f"expected convolutions of kernel 2 and more, {architectures.name_of(architecture)} has none")
    for name in chosen:
        conv = found[name]
        if kind.startswith("dynamic"):
            learns = DynamicConv2d(conv, diagonal=kind.endswith("diagonal"))
        else:
            learns = SimilarityConv2d(conv, _first_matrix(conv, kind, start))
        model.set_submodule(name, learns)
    return model


def _first_matrix(conv: nn.Conv2d, kind: Kind, start: Start) -> Tensor:
    size = conv.kernel_size
    if kind == "static":
        return torch.eye(size[0] * size[1])
    return torch.eye(*size).flatten() if start == "centre" else torch.ones(size[0] * size[1])


def _given(architecture: Architecture, given: Mapping[str, Tensor], *, shape: Shape, classes: int) -> nn.Module:
    model = architectures.build(architecture, shape=shape, classes=classes)
    found = _convolutions(model)
    for name, matrix in given.items():
        if name not in found:
            raise ValueError(f"{name}: no convolution of {architectures.name_of(architecture)}{hint(name, found)}")
        model.set_submodule(name, SimilarityConv2d(found[name], matrix, learned=False))
    return model


def _convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions of kernel 2 and more by name, in the order of the network's definition."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    }


@checks.typed
def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return the static similarities of a network, (k^2, k^2) float on the CPU each, by name of the convolution."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SimilarityConv2d)}
    diagonal = {name: m.matrix.ndim == 1 for name, m in layers.items()}
    return {
        name: (torch.diag(m.matrix) if diagonal[name] else m.matrix).detach().cpu().clone()
        for name, m in layers.items()
    }


@checks.typed
def folded(model: nn.Module) -> nn.Module:
    """Return a copy of a network that computes the same, its static similarities folded into plain convolutions."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, SimilarityConv2d):
            weight = layer.weight.detach()
            layer.conv.weight = nn.Parameter(weight)
            model.set_submodule(name, layer.conv)
    return model


@checks.typed
@dataclass(frozen=True)
class MatrixDecay:
    """A training objective that pulls static similarities towards zero, as weight decay does.

        loss = cross-entropy + decay / 2 sum_layers |M|^2

    Called as ``objective(model, x, y, epoch)`` it returns the loss and the logits (B, K).

    Attributes:
        decay: beside what the recipe's weight decay takes from all weights; the authors have 5e-3 for M in all.

    Raises:
        ValueError: the decay is negative or not finite.

    Source: the code of Liu et al. 2019.
    """

    decay: float

    def __post_init__(self) -> None:
        checks.require_between("decay", self.decay, 0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, inputs (B, ...) and labels (B,), and its logits (B, K)."""
        logits = model(x)
        layers = [m.matrix for m in model.modules() if isinstance(m, SimilarityConv2d)]
        size = sum((matrix.square().sum() for matrix in layers), logits.new_zeros(()))
        return F.cross_entropy(logits, y) + self.decay / 2 * size, logits
