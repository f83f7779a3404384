"""Secants at the cost of what changes: a pixel changes a window of a convolution's maps; only that is computed.

A step at pixel i changes k x k positions of the maps of a k x k convolution, a few more of the maps after that. So a
batch of such inputs is kept as one map, the base, and each input's difference d from it, in a window. Linear operations
take the differences alone, and the others are done in the windows:

    conv(base + d) = conv(base) + conv(d),      act(base + d) = act(base) + [act(base + d) - act(base)].

The rules are exact; only the rounding differs from a plain loop's. They apply to every network that begins with
convolutions, batch norms in eval mode, activations and poolings, with residual sums and dense concatenations among
them. From an operation without a rule, such as flattening, or a window as large as the map, whole maps are computed;
`reach` says where that begins. On a GPU this is unmeasured.

Source: the incremental inference of Krypton (Nakandala, Kumar and Papakonstantinou 2019, SIGMOD), there with values in
place of differences.
"""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from nadkit.inputs.derivatives import BATCH, Network

STEP = 4
"""Distance of the pixels of one pass: their windows stay on a grid through two halvings of the image."""

aten = torch.ops.aten


@torch.no_grad()
def local_secant(f: Network, x: Tensor, scale: float) -> Tensor:
    """Return `derivatives.secant`, [f(x + scale e_i) - f(x - scale e_i)] / (2 scale), computed in windows.

    Args:
        f: (B, C, H, W) -> (B, 1), which must treat its inputs independently, as networks in eval mode do.
        x: (C, H, W), the point.
        scale: half the step, in the units of x.
    """
    g, passes = torch.empty_like(x), _Passes()
    for row, column in ((i, j) for i in range(min(STEP, x.shape[1])) for j in range(min(STEP, x.shape[2]))):
        every = g[:, row::STEP, column::STEP]
        rows = max(1, BATCH[x.device.type] // (2 * len(x) * every.shape[2]))
        for i, some in enumerate(every.split(rows, dim=1)):
            changed = Changed.pixels(x, scale, (row + STEP * rows * i, column), some.shape[1:], passes)
            up, down = f(changed).reshape(2, *some.shape)
            some.copy_((up - down) / (2 * scale))
    return g.flatten()


@torch.no_grad()
def reach(f: Network, x: Tensor) -> list[str]:
    """Return the operations done in windows, each with its window and its map, such as "max_pool2d: 3x3 of 14x14".

    The list ends with the operation that needs whole maps. It is made for the pixel at the corner, which is as good as
    any.
    """
    passes = _Passes(trail=[])
    f(Changed.pixels(x, 1.0, (0, 0), (1, 1), passes))
    return passes.trail


@torch.no_grad()
def is_local(f: Network, x: Tensor, scale: float = 100.0) -> bool:
    """Say whether anything is done in windows, with the same result at the middle pixel as with whole maps.

    A change that a network makes through a view of its maps, such as ``h[:, 0].relu_()``, would not be seen.

    Args:
        f: (B, C, H, W) -> (B, 1).
        x: (C, H, W), the point.
        scale: half the step, in the units of x.
    """
    if len(reach(f, x)) <= 1:
        return False
    middle = tuple(size // 2 for size in x.shape[1:])
    changed = Changed.pixels(x, scale, middle, (1, 1))
    whole, local = (f(inputs).double() for inputs in (changed.whole(), changed))
    change = (whole - whole.mean(0)).abs().max()
    return bool((whole - local).abs().max() <= 1e-3 * change + 1e-5 * whole.abs().max())


@dataclass(eq=False)
class _Passes:
    """What the passes of one secant share: results that are the same for each. One pass may note its operations."""

    results: dict[Hashable, tuple[tuple, Any]] = field(default_factory=dict)
    trail: list[str] | None = None

    def once(self, function: Callable, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return function(*args, **kwargs), which the first pass computes; tensors are known by identity."""
        values = [tuple(a) if isinstance(a, list) else id(a) if isinstance(a, Tensor) else a for a in args]
        key = (function, *values, *kwargs.items())
        if key not in self.results:  # the arguments are kept, too: an identity lasts as long as its object
            self.results[key] = args, function(*args, **kwargs)
        return self.results[key][1]


class Changed(Tensor):
    """A batch of B = N R Q maps (C, H, W) that are all equal to one map, the base, except in one window each.

    The window of grid cell (i, j) begins at ``start + step (i, j)``; a part of it beyond the map has no meaning. To
    PyTorch it is a tensor (B, C, H, W) in the format channels_last.

    Attributes:
        base: (1, C, H, W).
        delta: (N, R, Q, h, w, C), or 1 in place of R and Q, the maps less the base within the windows.
        window: (h, w).
        start, step, grid: where the windows are; grid is (R, Q).
        passes: what this pass shares with others.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # operations are met where they are dispatched

    @staticmethod
    def __new__(
        cls: type[Self],
        base: Tensor,
        delta: Tensor,
        start: tuple[int, int],
        step: int,
        grid: tuple[int, int],
        passes: _Passes,
    ) -> Self:
        _, c, h, w = base.shape
        new = Tensor._make_wrapper_subclass(
            cls,
            (len(delta) * math.prod(grid), c, h, w),
            strides=(c * h * w, 1, w * c, c),
            dtype=base.dtype,
            device=base.device,
        )
        new.base, new.delta, new.window = base, delta, tuple(delta.shape[3:5])
        new.start, new.step, new.grid, new.passes = start, step, grid, passes
        return new

    @classmethod
    def pixels(
        cls, x: Tensor, scale: float, start: tuple[int, int], grid: tuple[int, int], passes: _Passes | None = None
    ) -> Self:
        """Return x: (C, H, W) with a step up, then down, in each channel at each pixel start + `STEP` (i, j)."""
        passes = passes or _Passes()
        return cls(passes.once(Tensor.unsqueeze, x, 0), passes.once(_steps, x, scale), start, STEP, grid, passes)

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401
        """Do an operation in the windows if it has a rule, else on whole maps."""
        kwargs, rule, name = kwargs or {}, RULES.get(func), func.overloadpacket.__name__
        done = rule(func, *args, **kwargs) if rule else None
        if done is None:
            full, options = tree_map_only(Changed, lambda x: x._whole(f"{name}: whole maps"), (args, kwargs))
            done = func(*full, **options)
            if func._schema.is_mutable and isinstance(args[0], Changed):
                return args[0].become(done)
        out = done[0] if isinstance(done, tuple) else done
        if isinstance(out, Changed) and out.passes.trail is not None:
            out._note(f"{name}: {'x'.join(map(str, out.window))} of {'x'.join(map(str, out.shape[2:]))}")
        return done

    def seen(self, maps: Tensor, start: tuple[int, int] | None = None, window: tuple[int, int] | None = None) -> Tensor:
        """Return maps (1, C, H, W), zero beyond their edges, in these windows or others: (R, Q, h, w, C)."""
        start, (h, w) = start or self.start, window or self.window
        margins = self._margins(start, (h, w))
        padded = self.passes.once(_padded, maps, *margins)
        row, column, channel = padded.stride()
        first = (start[0] + margins[0]) * row + (start[1] + margins[2]) * column
        size, strides = (*self.grid, h, w, padded.shape[2]), (self.step * row, self.step * column, row, column, channel)
        return padded.as_strided(size, strides, first)

    def inside(self) -> Tensor:
        """Return delta with zeros beyond the edges of the map: what the next layer's neighbourhoods see there."""
        if not any(self._margins(self.start, self.window)):
            return self.delta
        return self.delta * self.seen(self.passes.once(torch.ones_like, self.base))[..., :1]

    def after(self, base: Tensor, delta: Tensor, start: tuple[int, int], step: int) -> "Changed":
        """Return the maps after an operation."""
        return Changed(base, delta, start, step, self.grid, self.passes)

    def settled(self) -> Tensor:
        """Return these maps, or whole ones if a window is as large."""
        h, w = self.base.shape[2:]
        return self._whole(f"windows as large as the maps: {h}x{w}") if math.prod(self.window) >= h * w else self

    def whole(self) -> Tensor:
        """Return the maps in full: (B, C, H, W)."""
        top, bottom, left, right = self._margins(self.start, self.window)
        padded = self.passes.once(_padded, self.base, top, bottom, left, right)
        maps = padded.expand(len(self.delta), *self.grid, *padded.shape).contiguous()
        sample, i, j, row, column, channel = maps.stride()
        size = (len(self.delta), *self.grid, *self.delta.shape[3:])
        strides = (sample, i + self.step * row, j + self.step * column, row, column, channel)
        maps.as_strided(size, strides, (self.start[0] + top) * row + (self.start[1] + left) * column).add_(self.delta)
        h, w = self.base.shape[2:]
        return maps[..., top : top + h, left : left + w, :].flatten(0, 2).contiguous().permute(0, 3, 1, 2)

    def become(self, other: Tensor) -> Tensor:
        """Take another's maps: what an operation in place does."""
        if not isinstance(other, Changed):  # windows that are the map
            delta = (other - self.base).permute(0, 2, 3, 1)
            delta = delta.reshape(-1, *self.grid, *delta.shape[1:])
            other = Changed(self.base, delta, (0, 0), 0, self.grid, self.passes)
        vars(self).update(vars(other))
        return self

    def _margins(self, start: tuple[int, int], window: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return by how much windows go beyond the map: top, bottom, left, right."""
        ends = [a + (n - 1) * self.step + size for a, n, size in zip(start, self.grid, window, strict=True)]
        (h, w), (top, left) = self.base.shape[2:], (max(0, -a) for a in start)
        return top, max(0, ends[0] - h), left, max(0, ends[1] - w)

    def _whole(self, why: str) -> Tensor:
        self._note(why)
        return self.whole()

    def _note(self, line: str) -> None:
        if self.passes.trail is not None:
            self.passes.trail.append(line)


def _steps(x: Tensor, scale: float) -> Tensor:
    """Return steps up, then down, in each channel of one pixel: (2 C, 1, 1, 1, 1, C)."""
    up = scale * torch.eye(len(x), dtype=x.dtype, device=x.device)
    return torch.cat([up, -up]).view(-1, 1, 1, 1, 1, len(x))


def _padded(maps: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Return maps (1, C, H, W) with zeros around them, channels last: (H + top + bottom, W + left + right, C)."""
    return F.pad(maps[0].permute(1, 2, 0), (0, 0, left, right, top, bottom)).contiguous()


class _Outputs(NamedTuple):
    """The windows of a convolution's or pooling's outputs that see a change, and the zeros around it that they see."""

    start: tuple[int, int]
    size: tuple[int, int]
    step: int
    up: int
    down: int
    left: int
    right: int


def _outputs(x: Changed, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> _Outputs | None:
    """Return None where the stride would put the windows off their grid, or past the change."""
    if stride[0] != stride[1] or x.step % stride[0]:
        return None
    starts, sizes, zeros = [], [], []
    for a, h, k, s, p in zip(x.start, x.window, kernel, stride, padding, strict=True):
        first, last = math.ceil((a + p - k + 1) / s), (a + h - 1 + p) // s
        before = a - (first * s - p)
        starts.append(first)
        sizes.append(last - first + 1)
        zeros += [before, (last - first) * s + k - before - h]
    return _Outputs(tuple(starts), tuple(sizes), x.step // stride[0], *zeros) if min(sizes) > 0 else None


def _convolution(
    func: Callable,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor | None:
    if not isinstance(x, Changed) or transposed or set(dilation) != {1}:
        return None
    out = _outputs(x, weight.shape[2:], stride, padding)
    if out is None:
        return None
    rest = dilation, transposed, output_padding, groups
    base, d = x.passes.once(func, x.base, weight, bias, stride, padding, *rest), x.inside()
    if groups == 1 and math.prod(x.window) < math.prod(weight.shape[2:]):  # one matrix has fewer products
        matrix = x.passes.once(_as_matrix, weight, stride[0], x.window, out._replace(start=None))
        delta = (d.flatten(0, 2).flatten(1) @ matrix).view(*d.shape[:3], *out.size, len(weight))
    else:
        maps, margins = _as_maps(d), (out.up, out.left)
        if margins != (out.down, out.right) or min(margins) < 0:  # a convolution pads both sides alike
            maps, margins = F.pad(maps, (out.left, out.right, out.up, out.down)), (0, 0)
        delta = _as_windows(func(maps, weight, None, stride, margins, *rest), d.shape[1:3])
    return x.after(base, delta, out.start, out.step).settled()


def _as_matrix(weight: Tensor, stride: int, window: tuple[int, int], out: _Outputs) -> Tensor:
    """Return the convolution of a window as a matrix: (h w C, h' w' C')."""
    (h, w), (c_out, c_in, *kernel) = window, weight.shape
    matrix = weight.new_zeros(out.up + h + out.down, out.left + w + out.right, c_in, *out.size, c_out)
    row, column, channel, i, j, one = matrix.stride()
    diagonals = (stride * row + i, stride * column + j, row, column, channel, one)
    matrix.as_strided((*out.size, *kernel, c_in, c_out), diagonals).copy_(weight.permute(2, 3, 1, 0))
    return matrix[out.up : out.up + h, out.left : out.left + w].reshape(h * w * c_in, -1)


def _batch_norm(
    func: Callable,
    x: Changed,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...] | None:
    if training:
        return None
    base, *statistics = x.passes.once(func, x.base, weight, bias, mean, variance, training, momentum, eps)
    scale = (variance + eps).rsqrt()
    delta = x.delta * (scale if weight is None else scale * weight)
    return x.after(base, delta, x.start, x.step), *statistics


def _activation(func: Callable, x: Changed, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    base = x.passes.once(_of_a_copy, x.base, func, *args, **kwargs)
    values = func(x.seen(x.base) + x.delta, *args, **kwargs)
    new = x.after(base, values.sub_(x.seen(base)), x.start, x.step)
    return x.become(new) if func._schema.is_mutable else new


def _of_a_copy(maps: Tensor, func: Callable, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    """Return func(maps), which stay as they are even if func works in place."""
    return func(maps.clone(), *args, **kwargs)


def _max_pool(
    func: Callable,
    x: Changed,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor] | None:
    kernel, stride = _pairs(kernel, stride)
    if any(padding) or ceil_mode or set(dilation) != {1} or (out := _outputs(x, kernel, stride, (0, 0))) is None:
        return None
    base, indices = x.passes.once(func, x.base, kernel, stride)
    (h, w), start = x.window, (x.start[0] - out.up, x.start[1] - out.left)
    values = x.seen(x.base, start, (out.up + h + out.down, out.left + w + out.right))
    values = values.expand(len(x.delta), *values.shape).contiguous()
    values[..., out.up : out.up + h, out.left : out.left + w, :] += x.delta
    new = x.after(base, _largest(values, kernel, stride, out.size), out.start, out.step)
    new.delta -= new.seen(base)
    return new.settled(), indices


def _largest(values: Tensor, kernel: Sequence[int], stride: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return the maximum of each neighbourhood: PyTorch's pooling is slow on maps as small as windows."""
    (si, sj), (h, w) = stride, size
    places = itertools.product(range(kernel[0]), range(kernel[1]))
    shifted = (values[..., i : i + si * h : si, j : j + sj * w : sj, :] for i, j in places)
    return functools.reduce(torch.maximum, shifted)


def _avg_pool(
    func: Callable,
    x: Changed,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    *options: object,
) -> Tensor | None:
    kernel, stride = _pairs(kernel, stride)
    if any(padding) or any(options) or (out := _outputs(x, kernel, stride, (0, 0))) is None:
        return None
    d = x.inside()
    delta = func(F.pad(_as_maps(d), (out.left, out.right, out.up, out.down)), kernel, stride)
    base = x.passes.once(func, x.base, kernel, stride)
    return x.after(base, _as_windows(delta, d.shape[1:3]), out.start, out.step).settled()


def _add(func: Callable, x: Tensor, y: Tensor, *, alpha: float = 1) -> Tensor | None:
    if alpha != 1 or (united := _united([x, y])) is None:
        return None
    start, (dx, dy) = united
    new = x.after(x.passes.once(torch.add, x.base, y.base), dx + dy, start, x.step).settled()
    return x.become(new) if func._schema.is_mutable else new


def _cat(func: Callable, parts: list[Tensor], dim: int = 0) -> Tensor | None:
    if dim not in (1, -3) or (united := _united(parts)) is None:
        return None
    (start, deltas), x = united, parts[0]
    shape = torch.broadcast_shapes(*(d.shape[:-1] for d in deltas))
    delta = torch.cat([d.expand(*shape, -1) for d in deltas], dim=-1)
    return x.after(x.passes.once(_side_by_side, *(p.base for p in parts)), delta, start, x.step).settled()


def _side_by_side(*maps: Tensor) -> Tensor:
    return torch.cat(maps, dim=1)


def _united(parts: Sequence[Tensor]) -> tuple[tuple[int, int], list[Tensor]] | None:
    """Return where the window begins that holds those of all parts, and each one's differences in it."""
    if not all(isinstance(p, Changed) for p in parts):
        return None
    if len({(p.passes, p.step, p.grid, len(p.delta), *p.shape[2:]) for p in parts}) > 1:
        return None
    start = tuple(min(starts) for starts in zip(*(p.start for p in parts), strict=True))
    end = [max(p.start[axis] + p.window[axis] for p in parts) for axis in (0, 1)]
    deltas = []
    for p in parts:
        (top, left), (h, w) = (a - b for a, b in zip(p.start, start, strict=True)), p.window
        zeros = (0, 0, left, end[1] - p.start[1] - w, top, end[0] - p.start[0] - h)
        deltas.append(F.pad(p.delta, zeros) if any(zeros) else p.delta)
    return start, deltas


def _pairs(kernel: Sequence[int], stride: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return both as PyTorch means them: one number is for both axes, and no stride is the kernel's."""
    return tuple(tuple(v) * 2 if len(v) == 1 else tuple(v) for v in (kernel, stride or kernel))


def _as_maps(windows: Tensor) -> Tensor:
    """(N, R, Q, h, w, C) -> (N R Q, C, h, w)."""
    return windows.flatten(0, 2).permute(0, 3, 1, 2)


def _as_windows(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """(N R Q, C, h, w) -> (N, R, Q, h, w, C)."""
    maps = maps.permute(0, 2, 3, 1)
    return maps.reshape(-1, *grid, *maps.shape[1:])


RULES: dict[Callable, Callable] = {
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add,
    aten.cat.default: _cat,
}
"""What is done in windows: operation -> rule, which returns None for a case that needs whole maps."""

for _name in ("relu", "leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh", "hardswish"):
    RULES |= {getattr(aten, name).default: _activation for name in (_name, f"{_name}_") if hasattr(aten, name)}
