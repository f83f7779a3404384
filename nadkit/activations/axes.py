"""Axes: along which axis of an activation its units lie, and along which its positions.

Convolutions and batch normalisation put feature maps on axis 1, (B, C, H, W); linear layers and layer normalisation put
units on the last, (B, T, C) or (B, H, W, C). On the way to an activation, axes may be permuted, pooled or summed. So
the network runs once with the outputs of such layers replaced by numbers that differ from unit to unit but not from
position to position. An activation then varies along the axis of its units.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nadkit.activations.calls import OnFunctions, Place, named_functions, watched
from nadkit.devices import double

__all__ = ["LAST", "Reading", "read_axes"]

_RECURRENT = ("gru", "lstm", "rnn_relu", "rnn_tanh")
LAST = named_functions(
    ("bilinear", "embedding", "layer_norm", "linear", "multi_head_attention_forward", "rms_norm", *_RECURRENT)
)
"""Functions whose outputs have their units on the last axis."""

_MAPS = {
    function: -n - 1
    for n in (1, 2, 3)
    for function in named_functions((f"conv{n}d", f"conv_transpose{n}d", f"avg_pool{n}d"))
}
_NORMS = dict.fromkeys(named_functions(("batch_norm", "group_norm", "instance_norm")), 1)
AXIS: dict[Callable, int] = dict.fromkeys(LAST, -1) | _MAPS | _NORMS
"""Functions after which the axis of the units is known."""


class Reading(NamedTuple):
    """What is known of an activation.

    Attributes:
        shape: for three samples.
        axes: those along which it differs from unit to unit.
    """

    shape: tuple[int, ...]
    axes: list[int]


@torch.no_grad()
def read_axes(model: nn.Module, x: Tensor, places: Collection[Place]) -> dict[tuple[Place, int], Reading]:
    """Return what is known of the activations at some places of a network in eval mode, by place and number of the use.

    Args:
        model: any network, also on the meta device.
        x: three samples, (3, ...).
        places: where the activations are.
    """
    readings: dict[tuple[Place, int], Reading] = {}

    def read(place: Place, use: int, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor):
            # before the activation, which may saturate; gated units have twice as many inputs, along the same axis
            before = inputs[0] if inputs and isinstance(inputs[0], Tensor) else output
            readings[place, use] = Reading(tuple(output.shape), _varying(before if _like(before, output) else output))

    def mark(axis: int, inputs: tuple, output: object) -> object:
        if isinstance(output, tuple):
            return tuple(mark(axis, inputs, part) for part in output)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        # after a norm over several axes, such as (C, H, W), the units stay where they were
        return inputs[0].clone() if _axes_normalised(inputs) > 1 else _marked(output, axis)

    if x.is_meta:
        model, x = _real(model), torch.zeros_like(x, device="cpu")
    # the channels of an image are its units; for other inputs, the axis of the units is open
    x = _marked(x, 1) if x.ndim == 4 else _marked(x.flatten(1), 1).view_as(x)
    with OnFunctions(AXIS, mark), watched(model, read, places):
        model(x)
    return readings


def _axes_normalised(inputs: tuple) -> int:
    """Return over how many axes a layer normalisation goes, 0 for other functions."""
    shape = inputs[1] if len(inputs) > 1 and isinstance(inputs[1], Sequence) else ()
    return len(shape) if all(isinstance(n, int) for n in shape) else 0


def _marked(t: Tensor, axis: int) -> Tensor:
    """Return a tensor of the same kind that holds the number of the unit, as one between 0.1 and 0.9."""
    golden = (5**0.5 - 1) / 2
    numbers = 0.1 + 0.8 * (torch.arange(t.shape[axis], device=t.device) * golden % 1)
    return torch.empty_like(t).copy_(numbers.view(-1, *[1] * (-axis - 1 if axis < 0 else t.ndim - axis - 1)))


def _varying(t: Tensor) -> list[int]:
    """Return the axes but the first along which numbers differ by more than rounding."""
    rounding = max(1e-3, 4 * torch.finfo(t.dtype).eps) if t.is_floating_point() else 0
    t = double(t)
    least = rounding * t.abs().max()
    return [axis for axis in range(1, t.ndim) if ((t.amax(axis) - t.amin(axis)) > least).any()]


def _like(a: Tensor, b: Tensor) -> bool:
    return a.ndim == b.ndim and sum(m != n for m, n in zip(a.shape, b.shape, strict=True)) <= 1


def _real(model: nn.Module) -> nn.Module:
    """Return a copy of a network on the meta device that has numbers."""
    model = copy.deepcopy(model).to_empty(device="cpu")
    for t in chain(model.parameters(), model.buffers()):
        t.fill_(1)
    return model
