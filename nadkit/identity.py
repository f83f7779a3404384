"""What identifies a saved result: what its networks answer and what its functions do; and whether two are the same."""

import functools
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nadkit import seeds
from nadkit.architectures import Shape
from nadkit.storage import described, digest

Rows = list[list[float]]
"""Numbers that are compared with a tolerance, relative to the largest number in each row."""

TOLERANCE = 1e-4
"""Numbers count as the same up to this share of the largest in their row. Another number of threads changes the sixth
digit of a float32 network's output, the fifth of a deep network's output, and the third of its input gradient, which
jumps."""

SCALES = (1.0, 10.0, 100.0)
"""Sizes of the inputs: networks may differ for large activities only."""

INPUTS = 4
"""Inputs of each size."""


# ---- networks --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: nn.Module, shape: Shape, device: str | torch.device = "cpu") -> Rows:
    """Return a network's answers to fixed inputs, a row for each of `SCALES`.

    The inputs are N(0, I) times the scale, an answer is the sum of the logits with fixed weights. The network is left
    in eval mode, and torch's global generators as they were.
    """
    draws = seeds.generator(0, "outputs")
    x = torch.randn(len(SCALES), INPUTS, *shape, generator=draws) * torch.tensor(SCALES).view(-1, 1, 1, 1, 1)
    with seeds.seeded(0, "outputs", device=device):
        logits = model.eval()(x.flatten(0, 1).to(device)).cpu().double()
    answers = logits @ torch.randn(logits.shape[1], generator=draws, dtype=torch.float64)
    return rows(answers.view(len(SCALES), INPUTS))


def rows(values: Tensor) -> Rows:
    """Return a matrix as rows of numbers with six digits."""
    return [[float(f"{value:.6g}") for value in row] for row in values.tolist()]


# ---- functions -------------------------------------------------------------------------------------------------------


def code(function: object) -> str:
    """Return a short checksum of what a function does, whatever its name.

    It covers the compiled code, defaults, closures, options and attributes, and what the code names of its own module:
    functions and plain values. Other modules count by name. Versions of Python compile differently.
    """
    return digest("\0".join(_content(function, {})))


def _content(value: object, seen: dict[int, tuple[int, object]]) -> Iterator[str]:
    """Give words that differ between values with other contents, and are the same in every process."""
    yield type(value).__qualname__
    if id(value) in seen:  # a function may name itself
        yield f"number {seen[id(value)][0]}"
        return
    match value:
        case None | bool() | int() | float() | str() | bytes():
            yield repr(value)
        case Tensor() | np.ndarray():
            yield digest(*described([torch.as_tensor(value)]))
        case list() | tuple():
            yield str(len(value))
            for item in value:
                yield from _content(item, seen)
        case set() | frozenset():  # whose order differs between processes
            yield from sorted("\0".join(_content(item, dict(seen))) for item in value)
        case Mapping():
            yield str(len(value))
            for key, item in value.items():
                yield from (*_content(key, seen), *_content(item, seen))
        case functools.partial():
            yield from _content([value.func, value.args, dict(sorted(value.keywords.items()))], seen)
        case types.CodeType():
            yield value.co_code.hex()
            yield from _content([value.co_names, value.co_consts], seen)
        case types.FunctionType():
            seen[id(value)] = len(seen), value
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            yield from _content([value.__code__, value.__defaults__, value.__kwdefaults__, cells, _named(value)], seen)
        case types.MethodType():
            yield from _content([value.__func__, value.__self__], seen)
        case type() | types.ModuleType() | types.BuiltinFunctionType():
            yield getattr(value, "__qualname__", value.__name__)
        case _ if hasattr(value, "__dict__"):
            seen[id(value)] = len(seen), value
            kind = type(value)
            yield from _content([_functions(kind), vars(value)], seen)
        case _:
            yield repr(value).partition(" at 0x")[0]


def _named(function: types.FunctionType) -> dict[str, object]:
    """Return the functions of its own module, and the plain values, that a function names."""
    found = {name: function.__globals__.get(name) for name in sorted(_names(function.__code__))}
    plain = bool | int | float | str | tuple
    own = {n: v for n, v in found.items() if getattr(v, "__module__", None) == function.__module__}
    return {n: v for n, v in found.items() if isinstance(v, plain)} | {
        n: v for n, v in own.items() if isinstance(v, types.FunctionType)
    }


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _functions(kind: type) -> dict[str, types.FunctionType]:
    """Return the methods of a class and of its bases in the same module."""
    bases = [base for base in reversed(kind.__mro__) if base.__module__ == kind.__module__]
    members = {name: member for base in bases for name, member in vars(base).items()}
    return {name: members[name] for name in sorted(members) if isinstance(members[name], types.FunctionType)}


# ---- comparing -------------------------------------------------------------------------------------------------------


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how saved settings differ from today's, or nothing; `Rows` may differ up to `TOLERANCE`."""
    told = [
        words
        for name in dict(saved) | dict(now)
        if (words := _difference(name, saved.get(name), now.get(name))) is not None
    ]
    return ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")


def _difference(name: str, saved: object, now: object) -> str | None:
    if saved == now:
        return None
    if not _are_rows(now):
        return f"{name} was {saved!r}, now {now!r}"
    if not _are_rows(saved):
        return f"{name} were not noted by the older version that wrote it"
    share = _distance(saved, now)
    return None if share <= TOLERANCE else f"{name} differ" + (f" by {share:.2g} of the largest" * math.isfinite(share))


def _are_rows(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, list) for row in value)


def _distance(one: Rows, other: Rows) -> float:
    """Return the largest difference of two numbers over the largest in their row; infinity where one is not finite."""
    a, b = np.array(one, dtype=float), np.array(other, dtype=float)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return math.inf
    a, b = np.nan_to_num(a, posinf=0, neginf=0), np.nan_to_num(b, posinf=0, neginf=0)
    size = np.maximum(np.abs(a), np.abs(b)).max(axis=1, keepdims=True)
    return float((np.abs(a - b) / np.where(size > 0, size, 1)).max())
