"""Help after a wrong name."""

import difflib
from collections.abc import Iterable


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
