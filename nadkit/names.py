"""Words for people: help after a wrong name, and numbers with their errors."""

import difflib
import math
from collections.abc import Iterable

MOST_PLACES = 6
"""An error with more decimals is written with an exponent."""

ROUNDING = 1e-12
"""Errors of float64 numbers below this share of the number come from rounding."""


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option nearest to ``name``, in any case, or None if none is near."""
    spellings = {option.lower(): option for option in options}
    near = difflib.get_close_matches(name.lower(), spellings, n=1)
    return spellings[near[0]] if near else None


def hint(name: str, options: Iterable[str]) -> str:
    """Return ``"; did you mean 'lenet'?"``, or nothing where no option is near."""
    near = nearest(name, options)
    return f"; did you mean {near!r}?" if near else ""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return ``"did you mean 'lenet'?"``, or the list of all options where none is near."""
    options = list(options)
    if near := nearest(name, options):
        return f"did you mean {near!r}?"
    return f"there are: {', '.join(options)}" if options else "there are none"


def with_error(value: float, error: float = 0.0) -> str:
    """Return a number with two digits of its error, and no more digits than that supports: '0.305 ± 0.012'.

    At most four significant digits are given, as without an error. An error that is only rounding is left out.
    """
    if error <= ROUNDING * abs(value):
        error = 0.0
    if not error or not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
    places = 1 - math.floor(math.log10(error))  # of the error's second digit
    most = 3 - math.floor(math.log10(abs(value))) if value else places
    rounded = f"{error:.{places}f}" if 0 <= places <= MOST_PLACES else f"{error:.2g}"
    return f"{value:.{max(0, min(places, most))}f} ± {rounded}"
