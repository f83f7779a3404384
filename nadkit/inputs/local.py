"""Secants at the cost of what changes: one pixel reaches a small window of a convolution's maps, and only that is computed.

A step at pixel i changes the input in one place, the maps of a k x k convolution in k x k, the maps after that in a
few more. `Touched` is a batch of such inputs, known by one map that all share and by each one's difference from it
within a window. A convolution is linear, so it takes the differences alone:

    conv(base + d) = conv(base) + conv(d),

and what is not linear, act(base + d) - act(base), is taken in the windows only. Whatever no rule is written for, such
as a flattening, a mean over all positions, or a window as large as the map, gets the whole maps and goes on with them.

Source: incremental inference, Nakandala, Nagrecha, Kumar and Papakonstantinou 2020 (Krypton, ACM TODS 45).
"""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

aten = torch.ops.aten

STEP = 4
"""Distance of the pixels of one pass: their windows stay in step through two halvings of the image."""


@torch.no_grad()
def local_secant(f, x: Tensor, scale: float) -> Tensor:
    g = torch.empty_like(x)
    for row in range(min(STEP, x.shape[1])):
        for column in range(min(STEP, x.shape[2])):
            pixels = g[:, row::STEP, column::STEP]
            up, down = f(Touched.pixels(x, scale, (row, column))).view(2, *pixels.shape)
            pixels.copy_((up - down) / (2 * scale))
    return g.flatten()


class Touched(Tensor):
    """B = N R Q maps (C, H, W) that differ from one of them, the base, in windows on an R x Q grid.

    base: (1, C, H, W); delta: (N, R, Q, h, w, C), or 1 for R and Q
    """

    @staticmethod
    def __new__(cls, base, delta, start, step, grid):
        size = (delta.shape[0] * grid[0] * grid[1], *base.shape[1:])
        b, c, h, w = size
        strides = (c * h * w, 1, w * c, c)
        new = Tensor._make_wrapper_subclass(cls, size, strides=strides, dtype=base.dtype, device=base.device)
        new.base, new.delta, new.start, new.step, new.grid = base, delta, start, step, grid
        return new

    @classmethod
    def pixels(cls, x, scale, start):
        c = len(x)
        steps = scale * torch.eye(c, dtype=x.dtype, device=x.device)
        delta = torch.cat([steps, -steps]).view(2 * c, 1, 1, 1, 1, c)
        grid = tuple(-(-(n - s) // STEP) for n, s in zip(x.shape[1:], start))
        return cls(x[None], delta, start, STEP, grid)

    @property
    def window(self):
        return self.delta.shape[3:5]

    def padding(self, window=None, start=None):
        """left, right margins such that all windows lie in the padded map, along both axes."""
        window, start = window or self.window, start or self.start
        return [
            (max(0, -a), max(0, a + (r - 1) * self.step + h - n))
            for a, r, h, n in zip(start, self.grid, window, self.base.shape[2:])
        ]

    def seen(self, maps, window=None, start=None, fill=0.0):
        """Return the map in every window: a view (R, Q, h, w, C)."""
        window, start = window or self.window, start or self.start
        (top, bottom), (left, right) = self.padding(window, start)
        padded = F.pad(maps[0].permute(1, 2, 0), (0, 0, left, right, top, bottom), value=fill).contiguous()
        padded = padded[start[0] + top:, start[1] + left:]
        (r, q), (h, w), c = self.grid, window, padded.shape[2]
        row, column, _ = padded.stride()
        return padded.as_strided((r, q, h, w, c), (self.step * row, self.step * column, row, column, 1))

    def like(self, base, delta, start=None, step=None):
        new = Touched(base, delta, start or self.start, step or self.step, self.grid)
        h, w = new.window
        return new.whole() if h * w >= base.shape[2] * base.shape[3] else new

    def whole(self) -> Tensor:
        (top, bottom), (left, right) = self.padding()
        n, (r, q), (h, w) = self.delta.shape[0], self.grid, self.window
        padded = F.pad(self.base[0].permute(1, 2, 0), (0, 0, left, right, top, bottom)).contiguous()
        all_ = padded.expand(n, r, q, *padded.shape).contiguous()
        sn, sr, sq, row, column, _ = all_.stride()
        place = all_[..., self.start[0] + top:, self.start[1] + left:, :]
        place = place.as_strided((n, r, q, h, w, padded.shape[2]), (sn, sr + self.step * row, sq + self.step * column, row, column, 1))
        place += self.delta
        height, width = self.base.shape[2:]
        return all_[..., top:top + height, left:left + width, :].flatten(0, 2).contiguous().permute(0, 3, 1, 2)

    def inside(self):
        if not any(map(any, self.padding())):
            return self.delta
        return self.delta.where(self.seen(torch.ones_like(self.base[:, :1], dtype=torch.bool), fill=False), 0)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        x = args[0]
        if rule := RULES.get(func):
            found = rule(func, *args, **kwargs)
            if found is not NotImplemented:
                if str(func).split(".")[1].endswith("_") and isinstance(found, Touched):
                    vars(x).update(vars(found))
                    return x
                return found
        if LOG is not None: LOG.append((str(func), [ (tuple(t.window), tuple(t.shape)) for t in args if isinstance(t, Touched)]))
        args = torch.utils._pytree.tree_map_only(Touched, Touched.whole, args)
        return func(*args, **kwargs)
LOG = None

def touched(start, size, k, s, p):
    first = -(-(start + p - k + 1) // s)
    n = (start + size - 1 + p) // s - first + 1
    left = start - (first * s - p)
    return first, n, left, (n - 1) * s + k - left - size


def convolution(func, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed or not isinstance(x, Touched) or any(x.step % s for s in stride) or stride[0] != stride[1] or set(dilation) != {1}:
        return NotImplemented
    base = func(x.base, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    k = weight.shape[2:]
    (top, n, up, down), (left_, m, left, right) = (touched(*o) for o in zip(x.start, x.window, k, stride, padding))
    d = x.inside()
    flat = d.flatten(0, 2)
    (h, w), s = x.window, stride[0]
    if groups == 1 and h * w < k[0] * k[1]:
        M = weight.new_zeros(n, m, len(weight), up + h + down, left + w + right, weight.shape[1])
        so, sp, _, sr, sc, _ = M.stride()
        c_out, c_in = weight.shape[:2]
        M.as_strided((n, m, c_out, *k, c_in), (so + s * sr, sp + s * sc, M.stride(2), sr, sc, 1)).copy_(weight.permute(0, 2, 3, 1))
        M = M[..., up:up + h, left:left + w, :].reshape(n * m * c_out, -1)
        out = (flat.flatten(1) @ M.T).view(*d.shape[:3], n, m, c_out)
    else:
        flat = flat.permute(0, 3, 1, 2)
        if up == down >= 0 and left == right >= 0:
            pad = (up, left)
        else:
            flat, pad = F.pad(flat, (left, right, up, down)), (0, 0)
        out = func(flat, weight, None, stride, pad, dilation, False, output_padding, groups).permute(0, 2, 3, 1)
        out = out.reshape(*d.shape[:3], *out.shape[1:])
    return x.like(base, out, (top, left_), x.step // s)


def norm(func, x, weight, bias, mean, var, training, momentum, eps):
    if training or mean is None:
        return NotImplemented
    base = func(x.base, weight, bias, mean, var, training, momentum, eps)
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    return x.like(base[0], x.delta * scale), *base[1:]


def pointwise(func, x, *args, **kwargs):
    base = func(x.base.clone(), *args, **kwargs)
    values = func(x.seen(x.base) + x.delta, *args, **kwargs)
    return x.like(base, values.sub_(x.seen(base)))


def max_pool(func, x, kernel, stride=None, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    kernel, stride, padding = ((v[0], v[0]) if len(v) == 1 else v for v in (kernel, stride or kernel, padding))
    if ceil_mode or set(dilation) != {1} or any(x.step % s for s in stride) or stride[0] != stride[1]:
        return NotImplemented
    base, indices = func(x.base, kernel, stride, padding)
    (top, n, up, down), (left_, m, left, right) = (touched(*o) for o in zip(x.start, x.window, kernel, stride, padding))
    (h, w) = x.window
    region, at = (up + h + down, left + w + right), (x.start[0] - up, x.start[1] - left)
    v = x.seen(x.base, region, at, -math.inf).expand(len(x.delta), *x.grid, *region, -1).contiguous()
    v[..., up:up + h, left:left + w, :] += x.inside()
    v = F.max_pool2d(v.flatten(0, 2).permute(0, 3, 1, 2), kernel, stride).permute(0, 2, 3, 1)
    v = v.reshape(len(x.delta), *x.grid, *v.shape[1:])
    new = Touched(base, v, (top, left_), x.step // stride[0], x.grid)
    return x.like(base, v - new.seen(base), (top, left_), x.step // stride[0]), indices


def joined(xs):
    if not all(isinstance(x, Touched) and x.grid == xs[0].grid and x.step == xs[0].step and len(x.delta) == len(xs[0].delta) for x in xs):
        return None
    start = tuple(min(x.start[i] for x in xs) for i in (0, 1))
    end = tuple(max(x.start[i] + x.window[i] for x in xs) for i in (0, 1))
    out = []
    for x in xs:
        u, l = x.start[0] - start[0], x.start[1] - start[1]
        d, r = end[0] - x.start[0] - x.window[0], end[1] - x.start[1] - x.window[1]
        out.append(F.pad(x.delta, (0, 0, l, r, u, d)) if any((u, l, d, r)) else x.delta)
    return start, out


def add(func, x, y, *, alpha=1):
    if alpha != 1 or not (both := joined([x, y])):
        return NotImplemented
    start, (a, b) = both
    return x.like(x.base + y.base, a + b, start)


def cat(func, xs, dim=0):
    if dim != 1 or not (all_ := joined(xs)):
        return NotImplemented
    start, deltas = all_
    grid = torch.broadcast_shapes(*(d.shape[:5] for d in deltas))
    return xs[0].like(torch.cat([x.base for x in xs], 1), torch.cat([d.expand(*grid, -1) for d in deltas], -1), start)


RULES = {aten.convolution.default: convolution, aten.native_batch_norm.default: norm, aten.max_pool2d_with_indices.default: max_pool,
    aten.add.Tensor: add, aten.add_.Tensor: add, aten.cat.default: cat}
RULES |= {f: pointwise for f in (aten.relu.default, aten.relu_.default, aten.leaky_relu.default, aten.leaky_relu_.default, aten.gelu.default, aten.tanh.default)}
