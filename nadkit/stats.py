"""Statistics: a number with its uncertainty, or None where nothing can be measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, rankdata

from nadkit.names import with_error


@dataclass(frozen=True)
class Measured:
    """A number and the half-width of its uncertainty, two standard errors unless said otherwise.

    Differences and ratios take their two sides to be independent.

    Raises:
        ValueError: the error is negative.
    """

    value: float
    error: float = 0.0

    def __post_init__(self) -> None:
        # numbers of numpy and torch become plain
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "error", float(self.error))
        if self.error < 0:
            raise ValueError(f"error: expected at least 0, got {self.error}")

    def __sub__(self, other: Self) -> Self:
        return Measured(self.value - other.value, math.hypot(self.error, other.error))

    def __truediv__(self, other: Self) -> Self:
        ratio = self.value / other.value
        return Measured(ratio, math.hypot(self.error, ratio * other.error) / abs(other.value))

    def __mul__(self, factor: float) -> Self:
        return Measured(self.value * factor, self.error * abs(factor))

    __rmul__ = __mul__

    def __abs__(self) -> Self:
        return Measured(abs(self.value), self.error)

    def __str__(self) -> str:
        return with_error(self.value, self.error)


def measured(value: float | None, error: float = 0.0) -> Measured | None:
    """Return a number with its error, None where one of them is missing or not finite."""
    known = value is not None and math.isfinite(value) and math.isfinite(error)
    return Measured(value, error) if known else None


def pair(found: Measured | None) -> tuple[float, float]:
    """Return value and error for a table, NaN where nothing was measured."""
    return (math.nan, math.nan) if found is None else (found.value, found.error)


def mean(values: ArrayLike, *, least: int = 2) -> Measured | None:
    """Return the mean of independent values, and two standard errors 2 s / sqrt(n).

    Missing values (NaN) are left out. None for fewer than `least` values; a single one has no error.
    """
    values = pd.Series(np.asarray(values, dtype=float)).dropna()
    if len(values) < max(least, 1) or not np.isfinite(values).all():
        return None
    return measured(values.mean(), 2 * values.sem() if len(values) > 1 else 0.0)


def means(
    table: pd.DataFrame, by: str | Sequence[str], columns: Sequence[str], *, error: str = "error, {}"
) -> pd.DataFrame:
    """Return a row for each group of a table: the mean of each column, and beside it its two standard errors.

    `error` names the columns of errors. Missing values are left out; a single value has the error NaN.

    Raises:
        ValueError: two columns would have errors of one name.
    """
    if len(columns) > 1 and error.format("a") == error.format("b"):
        raise ValueError(f"error: expected a name for each column, with {{}} for the column's, got {error!r}")
    groups = table.groupby(by, sort=False, dropna=False)
    found = {}
    for column in columns:
        found[column], found[error.format(column)] = groups[column].mean(), 2 * groups[column].sem()
    return pd.DataFrame(found).reset_index()


def contrast(*terms: tuple[float, ArrayLike]) -> Measured | None:
    """Return a weighted sum of the means of independent groups, and two standard errors.

    A term is a weight w and the values of its group: sum w mean, 2 sqrt(sum w^2 s^2 / n). None where a
    group has fewer than two values.
    """
    groups = [(weight, np.asarray(values, dtype=float)) for weight, values in terms]
    if any(values.size < 2 for _, values in groups):
        return None
    variance = sum(weight**2 * values.var(ddof=1) / values.size for weight, values in groups)
    return measured(sum(weight * values.mean() for weight, values in groups), 2 * math.sqrt(variance))


def proportion(p: float, n: int, *, of: float = 1.0) -> Measured | None:
    """Return a share of n samples and two binomial standard errors, 2 sqrt(p (1 - p) / n).

    Near 0 and 1 the error is that of one sample, 2 / n, and not zero. `of` is the whole: 100 for percentages.

    Raises:
        ValueError: p is not between 0 and the whole, or n is less than 1.
    """
    share = p / of
    if share < 0 or share > 1:
        raise ValueError(f"p: expected a share between 0 and {of:g}, got {p}")
    if n < 1:
        raise ValueError(f"n: expected at least 1 sample, got {n}")
    return measured(p, 2 * of * math.sqrt(max(share * (1 - share), 1 / n) / n))


def rank_correlation(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Return Spearman's rank correlation along the last axis; NaN where all values of one are equal.

    Arrays of shape (..., n) give shape (...), two series of n values a number.

    Raises:
        ValueError: the shapes are not the same.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape, got {a.shape} and {b.shape}")
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(a, axis=-1), rankdata(b, axis=-1)))
    with np.errstate(invalid="ignore"):
        r = (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return r.clip(-1, 1)


def kendall_tau(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Return Kendall's rank correlation tau-b along the last axis; NaN where all values of one are equal.

        tau = (pairs in one order - pairs in opposite orders) / sqrt(pairs not tied in a * pairs not tied in b)

    Arrays of shape (..., n) give shape (...), two series of n values a number. Infinite values are ranked, too.

    Raises:
        ValueError: the shapes are not the same.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"expected two arrays of one shape, got {a.shape} and {b.shape}")
    with np.errstate(invalid="ignore"):
        return np.asarray(kendalltau(a, b, axis=-1).statistic)


def fisher_interval(r: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a rank correlation r of n pairs, tanh(artanh r -+ 2 sqrt((1 + r^2 / 2) / (n - 3))).

    That is Fisher's transform with the variance of Bonett and Wright (2000).

    Raises:
        ValueError: n is not above 3.
    """
    if not n > 3:
        raise ValueError(f"n: expected more than 3 pairs, got {n}")
    z = math.copysign(math.inf, r) if abs(r) >= 1 else math.atanh(r)
    return math.tanh(z - _half(r, n)), math.tanh(z + _half(r, n))


def _half(r: float, n: float) -> float:
    return 2 * math.sqrt((1 + r**2 / 2) / (n - 3))


def spearman(
    a: ArrayLike,
    b: ArrayLike,
    *,
    n: int | None = None,
    cap: float = 1.0,
    interval: Literal["fisher", "delta"] = "fisher",
) -> Measured | None:
    """Return Spearman's rank correlation r, and half its 95 % interval.

    The half is the longer side of Fisher's interval; or, by the delta method, 2 (1 - r^2) / sqrt(n - 3), with 1 in
    place of n - 3 if there are fewer than four pairs. Pairs with a missing value are left out. `n` is the number of
    independent pairs, where that is less than all. Beyond `cap`, r has the interval of `cap`: at 1, Fisher's has no
    length. None if there is no order, as for a constant, or no interval: by Fisher for fewer than four pairs, and for
    |r| = 1 without a cap.

    Raises:
        ValueError: the two are not equally long.
    """
    pairs = np.stack([np.asarray(a, dtype=float), np.asarray(b, dtype=float)])
    a, b = pairs[:, ~np.isnan(pairs).any(0)]
    n = len(a) if n is None else n
    if len(a) < 2 or math.isnan(r := float(rank_correlation(a, b))):
        return None
    if interval == "delta":
        return Measured(r, 2 * (1 - r**2) / math.sqrt(max(n - 3, 1)))
    if n < 4 or (size := min(abs(r), cap)) > 1 - 1e-12:
        return None
    return Measured(r, abs(r) - math.tanh(math.atanh(size) - _half(r, n)))


def first_below(x: ArrayLike, y: ArrayLike, level: float) -> float:
    """Return the x at which y, linear between its points in their order, first falls below a level.

    NaN if y begins below the level, never falls below it, or is missing just before.

    Raises:
        ValueError: there are no points, or not as many x as y.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or not x.size:
        raise ValueError(f"expected two series of as many points, one at least, got {x.shape} and {y.shape}")
    i = int((y < level).argmax())
    return math.nan if i == 0 else float(np.interp(level, y[[i, i - 1]], x[[i, i - 1]]))


def bootstrap(
    statistic: Callable[..., np.ndarray],
    *samples: ArrayLike,
    generator: torch.Generator,
    draws: int = 1000,
    ddof: int = 1,
) -> Measured | None:
    """Return a statistic of n observations, and twice its standard deviation over resamples of them.

    `statistic` reduces the last axis of arrays of shape (draws, n), one for each of `samples`; the same observations
    are drawn from all. Undefined draws (NaN) are left out. None for fewer than three observations.
    """
    samples = [np.asarray(values, dtype=float) for values in samples]
    n = len(samples[0])
    if n < 3:
        return None
    drawn = torch.randint(n, (draws, n), generator=generator).numpy()
    of_draws = statistic(*(values[drawn] for values in samples))
    of_draws = of_draws[~np.isnan(of_draws)]
    if len(of_draws) < 2:
        return None
    return measured(float(statistic(*samples)), 2 * of_draws.std(ddof=ddof))


def jackknife(estimate: Callable[..., float], *groups: Sequence) -> Measured:
    """Return an estimate from groups of independent parts, and two standard errors by leaving out one part at a time.

    The variance is the sum over groups of (n - 1)^2 / n times that of the n estimates without one part.

    Raises:
        ValueError: a group has fewer than two parts.
    """
    if min(map(len, groups)) < 2:
        raise ValueError("expected at least two parts in each group")
    variance = 0.0
    for group in groups:
        without = [
            estimate(*([part for j, part in enumerate(each) if each is not group or j != i] for each in groups))
            for i in range(len(group))
        ]
        variance += (len(group) - 1) ** 2 / len(group) * np.var(without, ddof=1)
    return Measured(estimate(*groups), 2 * math.sqrt(variance))


def rank_correlation_within(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike, *, given: ArrayLike | None = None, least: int = 2
) -> float:
    """Return the mean over groups of Spearman's rank correlation among the members of a group.

    With `given` it is the partial one (`partial_rank_correlation`). Pairs with a missing value are left out, and so are
    groups of fewer than `least` pairs or without a correlation; NaN if none is left.

    Raises:
        ValueError: they are not all equally long.
    """
    columns = {"a": a, "b": b, "group": groups} | ({} if given is None else {"given": given})
    frame = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()}).dropna()
    large = [rows.drop(columns="group") for _, rows in frame.groupby("group") if len(rows) >= max(least, 2)]
    correlation = rank_correlation if given is None else partial_rank_correlation
    return float(pd.Series([correlation(*(rows[name] for name in rows)) for rows in large], dtype=float).mean())


def rank_correlation_parts(a: ArrayLike, b: ArrayLike, groups: ArrayLike) -> tuple[float, float]:
    """Return the parts of Spearman's rank correlation within groups and between them; they add up to it.

    With standardised ranks r and s, and their means over the group of each member, r' and s', the parts are
    mean((r - r') (s - s')) and mean(r' s'). Pairs with a missing value are left out. NaN where all values of one are
    equal.

    Raises:
        ValueError: the three are not equally long.
    """
    frame = pd.DataFrame({"a": np.asarray(a), "b": np.asarray(b), "group": np.asarray(groups)}).dropna()
    ranks = frame[["a", "b"]].rank()
    ranks = (ranks - ranks.mean()) / ranks.std(ddof=0)
    means = ranks.groupby(frame.group).transform("mean")
    within, between = (part.prod(axis=1, skipna=False).mean() for part in (ranks - means, means))
    return float(within), float(between)


def partial_rank_correlation(a: ArrayLike, b: ArrayLike, given: ArrayLike) -> float:
    """Return the rank correlation of a and b given c, (r_ab - r_ac r_bc) / sqrt((1 - r_ac^2) (1 - r_bc^2)).

    NaN where all values of one are equal, or where c determines the order of a or b.

    Raises:
        ValueError: the three are not equally long.
    """
    ab, ac, bc = (float(rank_correlation(x, y)) for x, y in ((a, b), (a, given), (b, given)))
    left = (1 - ac**2) * (1 - bc**2)
    return (ab - ac * bc) / math.sqrt(left) if left > 1e-12 else math.nan
