"""Checks of arguments that several modules share; each names the argument, what was expected and what came."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def require_integer(name: str, value: int, least: int) -> int:
    """Return ``value`` as a Python integer.

    Raises:
        ValueError: it is not an integer, or smaller than ``least``.
    """
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: expected an integer, at least {least}, got {value!r}")
    return int(value)


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a positive finite number."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: expected a positive finite number, got {value}")


def require_finite(name: str, values: "Tensor") -> None:
    """Raise ValueError if a tensor holds NaN or infinity."""
    if not values.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def require_one_of(name: str, value: object, options: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of the options."""
    if value not in options:
        known = " or ".join(map(repr, options)) if len(options) == 2 else f"one of {', '.join(options)}"
        raise ValueError(f"{name}: expected {known}, got {value!r}")
