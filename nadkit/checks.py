"""Checks of arguments that all modules share; each names the argument, what was expected and what was given.

`typed` compares the arguments of a call with their annotations, so that a function's signature is its check of types.
The others check values, about which annotations say nothing.
"""

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from nadkit.names import hint

if TYPE_CHECKING:
    from torch import Tensor

C = TypeVar("C", bound=Callable)

SHAPE = tuple[int, int, int]
"""The shape of an input, (C, H, W): wherever an annotation uses it, the three numbers must be positive."""
Count = Annotated[int, "at least 1"]
"""The number of classes, for example."""


def require_integer(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return ``value`` as a Python integer.

    Raises:
        ValueError: it is not an integer, smaller than ``least`` or larger than ``most``.
    """
    if not _is(value, int) or value < least or (most is not None and value > most):
        span = f"an integer, at least {least}" if most is None else f"an integer from {least} to {most}"
        raise ValueError(f"{name}: expected {span}, got {found(value)}")
    return int(value)


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a positive finite number."""
    if not (_is(value, float) and 0 < value < math.inf):
        raise ValueError(f"{name}: expected a positive finite number, got {found(value)}")


def require_between(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise ValueError unless ``value`` is a finite number from ``least`` to ``most``."""
    if not (_is(value, float) and least <= value <= most and math.isfinite(value)):
        span = f"a number from {least} to {most}" if most < math.inf else f"a finite number, at least {least}"
        raise ValueError(f"{name}: expected {span}, got {found(value)}")


def require_finite_number(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number."""
    if not (_is(value, float) and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number, got {found(value)}")


def require_one_of(name: str, value: object, options: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the options; near misses are suggested."""
    if not (isinstance(value, str) and value in options):
        near = hint(value, options) if isinstance(value, str) else ""
        raise ValueError(f"{name}: expected {_choice(options)}, got {found(value)}{near}")


def require_numbers(name: str, value: object) -> "Tensor":
    """Return a tensor, array or list of finite numbers as a tensor; raise ValueError of anything else."""
    import torch

    try:
        values = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers, got {found(value)} ({error})") from error
    require_finite(name, values)
    return values


def require_finite(name: str, values: "Tensor") -> None:
    """Raise ValueError if a tensor holds NaN or infinity."""
    # by the smallest and the largest number (NaN shows up there): several times as fast as checking each number
    if values.numel() and not all(end.isfinite() for end in values.aminmax()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def require_axes(name: str, values: "Tensor", axes: str) -> None:
    """Raise ValueError unless a tensor has the axes, ``"(N, C, H, W)"`` for instance, and none of them is empty."""
    if values.ndim != axes.count(",") + (not axes.endswith(",)")) or not values.numel():
        raise ValueError(f"{name}: expected numbers of shape {axes}, at least one, got {found(values)}")


def require_samples(x: "Tensor", y: "Tensor", name: str = "data", labels: str = "labels") -> None:
    """Raise ValueError unless there are inputs (N, ...), uint8 or finite floats, and one int64 label for each."""
    require_label_each(x, y, name, labels)
    require_inputs(name, x)


def require_label_each(x: "Tensor", y: "Tensor", name: str = "data", labels: str = "labels") -> None:
    """Raise ValueError unless there is at least one sample, and one int64 label (N,) for each."""
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{name}: expected one label an input, got {len(x)} inputs and {len(y)} labels")
    if str(y.dtype) != "torch.int64" or y.ndim != 1:
        raise ValueError(f"{labels}: expected torch.int64 of shape (N,), got {tuple(y.shape)} {y.dtype}")


def require_inputs(name: str, x: "Tensor") -> None:
    """Raise ValueError unless there are inputs (N, ...), uint8 or finite floats."""
    if x.ndim < 2 or not x.numel():
        raise ValueError(f"{name}: expected inputs (N, ...) of at least one sample, got {found(x)}")
    if str(x.dtype) != "torch.uint8" and not x.is_floating_point():
        raise ValueError(f"{name}: expected inputs in uint8 (from 0 to 255) or float, got {x.dtype}")
    require_finite(name, x)


def require_labels(name: str, y: "Tensor", classes: int, of: str = "logits") -> None:
    """Raise ValueError unless labels (N,) are numbers of classes, from 0."""
    low, high = (end.item() for end in y.aminmax())
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: expected 0 to {classes - 1} for {classes} {of}, got {low} to {high}")


def require_all(name: str, items: Iterable, kind: type) -> list:
    """Return the items as a list; raise ValueError unless there is one at least, and all are of one kind."""
    items = list(items)
    if not items or not all(isinstance(item, kind) for item in items):
        came = next((found(item) for item in items if not isinstance(item, kind)), "none")
        raise ValueError(f"{name}: expected a list of {kind.__name__}, at least one, got {came}")
    return items


def require_takes(name: str, function: Callable, *arguments: str) -> None:
    """Raise ValueError if a function cannot be called with as many arguments as are named here."""
    try:
        signature = inspect.signature(getattr(function, "forward", function))
        signature.bind(*arguments)
    except TypeError as error:
        raise ValueError(f"{name}: expected a function of ({', '.join(arguments)}), got one of {signature}") from error
    except ValueError:  # built-in functions have no signature
        return


# ---- types ----------------------------------------------------------------------------------------------------------


def typed(function: C) -> C:
    """Make a function, or the constructor of a class, refuse arguments that are not what their annotations say.

    An ``int`` is any integer but a bool, a ``float`` any real number, of numpy and torch, too; a tuple or a sequence
    may be a list or an array as well. A class is not taken for its instance, nor an instance for its factory. The
    function itself has to check the items of a sequence and the values of numbers.

    Raises:
        ValueError: by the function, when it is called with another kind of argument.
    """
    if isinstance(function, type):
        function.__init__ = typed(function.__init__)
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # which Python words better: with the function's name
            return function(*args, **kwargs)
        kinds = _annotations(function)
        for name, value in given.items():
            if not _is(value, kind := kinds.get(name, Any)):
                raise ValueError(f"{name}: expected {_words(kind)}, got {found(value)}{_help(value, kind)}")
        return function(*args, **kwargs)

    return checked


@functools.cache
def _annotations(function: Callable) -> dict[str, Any]:
    """Return the annotations, those in quotes resolved, for which all modules must have been imported."""
    return typing.get_type_hints(function, include_extras=True)


def _is(value: object, kind: Any) -> bool:  # noqa: ANN401
    """Say whether a value is what an annotation asks for; what `typed` cannot tell passes."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, option) for option in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is collections.abc.Callable:
        made = args[1] if isinstance(args[1], type) else ()
        return issubclass(value, made) if isinstance(value, type) else callable(value) and not isinstance(value, made)
    if origin is tuple:
        items = _items(value)
        args = args[:1] * len(items or ()) if args[-1] is ... else args
        fits = items is not None and len(items) == len(args) and all(map(_is, items, args))
        return fits and (kind != SHAPE or min(items) > 0)
    if origin in (list, collections.abc.Sequence):
        return _items(value) is not None
    if kind == Count:
        return _is_number(value, int) and value >= 1
    if kind in (int, float, bool):
        return _is_number(value, kind)
    if kind is Sequence:
        return _items(value) is not None
    if kind is None:
        return value is None
    try:
        return isinstance(value, origin or kind) and not isinstance(value, type)
    except TypeError:  # such as `Any`
        return True


def _is_number(value: object, kind: type) -> bool:
    if getattr(value, "ndim", None) == 0:  # of numpy or torch
        value = value.item()
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, Integral if kind is int else Real)


def _items(value: object) -> Sequence | None:
    """Return the items of a sequence or an array, None of anything else."""
    if getattr(value, "ndim", 0):
        return value.tolist()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


# ---- words ----------------------------------------------------------------------------------------------------------

_NOUNS = {"int": "integer", "float": "number", "str": "string", "Module": "network", "Tensor": "tensor"}
_NUMERALS = {2: "two", 3: "three"}


def found(value: object) -> str:
    """Return in a few words what was given instead."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | Real | None):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    if getattr(value, "ndim", None) is not None and hasattr(value, "dtype"):
        noun = "tensor" if type(value).__module__.startswith("torch") else "numpy array"
        return f"a {noun} of shape {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, list | tuple) and len(value) <= 4:
        items = [repr(item) if isinstance(item, str | Real | None) else type(item).__name__ for item in value]
        return f"({', '.join(items)})"
    return _one(type(value).__name__)


def _words(kind: Any) -> str:  # noqa: ANN401
    """Return in words what an annotation asks for."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, args)))
    if origin is Literal:
        return _choice(args)
    if origin is collections.abc.Callable:
        makes = getattr(args[1], "__name__", "") == "Module"
        return "a factory that makes networks" if makes else "a function"
    if kind == Count:
        return "an integer, at least 1"
    if kind == SHAPE:
        return "(channels, height, width), all positive"
    if origin is tuple and args[-1] is not ...:
        alike = len({*args}) == 1 and isinstance(args[0], type)
        return f"{_NUMERALS[len(args)]} {_noun(args[0])}s" if alike else f"({', '.join(map(_words, args))})"
    if origin is tuple:
        return f"a tuple of {_noun(args[0])}s"
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable) or kind is Sequence:
        return "a list"
    if kind in (None, types.NoneType):
        return "None"
    return "True or False" if kind is bool else _one(_noun(origin or kind))


def _choice(options: Sequence[str]) -> str:
    return " or ".join(map(repr, options)) if len(options) <= 2 else f"one of {', '.join(options)}"


def _noun(kind: type) -> str:
    return _NOUNS.get(kind.__name__, kind.__name__)


def _one(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeioAEIO' else 'a'} {noun}"


def _help(value: object, kind: Any) -> str:  # noqa: ANN401
    """Return what to do, where that is plain."""
    if isinstance(value, str):
        choices = [kind, *typing.get_args(kind)]
        return hint(value, [name for c in choices if typing.get_origin(c) is Literal for name in typing.get_args(c)])
    if isinstance(value, type) and typing.get_origin(kind) is not collections.abc.Callable:
        return "; make an instance of it"
    return "; torch.as_tensor(...) makes a tensor" if "tensor" in _words(kind) and hasattr(value, "__array__") else ""
