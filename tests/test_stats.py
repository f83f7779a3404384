"""Statistics against closed forms and scipy, and what cannot be measured."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from nadkit import stats
from nadkit.names import with_error
from nadkit.stats import Measured

rng = np.random.default_rng(0)
A, B = rng.normal(size=20), rng.integers(0, 6, size=20).astype(float)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_measurement_holds_plain_numbers_and_no_negative_error():
    found = Measured(np.float32(0.5), torch.tensor(0.25))
    assert (found, type(found.value), type(found.error)) == (Measured(0.5, 0.25), float, float)
    assert str(found) == "0.50 ± 0.25"
    assert str(Measured(2.0)) == "2"
    with pytest.raises(ValueError, match="error: expected at least 0, got -1"):
        Measured(1.0, -1.0)


def test_errors_propagate_as_of_independent_measurements():
    a, b = Measured(6.0, 3.0), Measured(-2.0, 4.0)
    assert a - b == Measured(8.0, 5.0)
    assert abs(b) == Measured(2.0, 4.0)
    assert -2 * a == a * -2 == Measured(-12.0, 6.0)
    ratio = a / b
    assert (ratio.value, ratio.error) == pytest.approx((-3.0, 3 * math.hypot(0.5, 2)))
    assert Measured(0.0, 0.1) / Measured(2.0, 0.1) == Measured(0.0, 0.05)


@pytest.mark.parametrize("found", [(None,), (math.nan,), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_is_not_measured(found):
    assert stats.measured(*found) is None


def test_a_table_has_nan_where_nothing_was_measured():
    assert stats.pair(Measured(1.0, 0.5)) == (1.0, 0.5)
    assert np.isnan(stats.pair(None)).all()


def test_mean_and_two_standard_errors():
    assert stats.mean([1, 2, 3, 4]) == Measured(2.5, 2 * scipy.stats.sem([1, 2, 3, 4]))
    assert stats.mean(torch.tensor([1.0, 2, 3, 4])) == stats.mean([4, math.nan, 3, 2, 1])
    assert stats.mean([1.0]) is None
    assert stats.mean([1.0, math.nan]) is None
    assert stats.mean([1.0], least=1) == Measured(1.0)
    assert stats.mean([1.0, 2.0], least=3) is None
    assert stats.mean([], least=0) is None
    assert stats.mean([1.0, math.inf]) is None


def test_a_contrast_of_independent_groups():
    found = stats.contrast((1, A), (-0.5, B[:10]))
    variance = scipy.stats.sem(A) ** 2 + 0.25 * scipy.stats.sem(B[:10]) ** 2
    assert found.value == pytest.approx(A.mean() - B[:10].mean() / 2)
    assert found.error == pytest.approx(2 * math.sqrt(variance))
    assert stats.contrast((1, A), (-1, [1.0])) is None
    assert stats.contrast((1, [1.0, math.nan])) is None


def test_a_proportion_has_the_binomial_error():
    found = stats.proportion(0.2, 100)
    assert (found.value, found.error) == (0.2, pytest.approx(2 * scipy.stats.binom(100, 0.2).std() / 100))
    assert stats.proportion(1.0, 100) == Measured(1.0, 0.02)
    assert stats.proportion(20, 100, of=100) == Measured(20, 100 * found.error)
    assert stats.proportion(math.nan, 100) is None
    for p, n in [(1.1, 10), (-0.1, 10), (0.5, 0)]:
        with pytest.raises(ValueError, match="expected"):
            stats.proportion(p, n)


def test_rank_correlation_is_that_of_scipy_row_by_row():
    expected = scipy.stats.spearmanr(A, B).statistic
    assert stats.rank_correlation(A, B) == pytest.approx(expected)
    rows = stats.rank_correlation(np.stack([A, -A]), np.stack([B, B]))
    assert rows == pytest.approx([expected, -expected])
    assert np.isnan(stats.rank_correlation(A, np.ones(20)))
    with pytest.raises(ValueError, match="of one shape"):
        stats.rank_correlation(A, B[:3])


def test_kendalls_tau_is_that_of_scipy_row_by_row():
    tied = np.round(A)
    expected = [scipy.stats.kendalltau(a, B).statistic for a in (A, -A, tied)]
    assert stats.kendall_tau(np.stack([A, -A, tied]), np.stack([B, B, B])) == pytest.approx(expected)
    assert np.isnan(stats.kendall_tau(A, np.ones(20)))
    with pytest.raises(ValueError, match="of one shape"):
        stats.kendall_tau(A, B[:3])


def test_kendalls_tau_takes_infinite_values():
    assert stats.kendall_tau([-np.inf, 1, 2], [0, 1, 5]) == 1
    both = stats.kendall_tau([-np.inf, -np.inf, 2], [0, 1, 5])
    assert both == pytest.approx(scipy.stats.kendalltau([0, 0, 2], [0, 1, 5]).statistic)


@pytest.mark.parametrize("r", [-0.6, 0.0, 0.8])
def test_fishers_interval(r):
    low, high = stats.fisher_interval(r, 28)
    assert math.atanh(high) - math.atanh(low) == pytest.approx(4 * math.sqrt((1 + r**2 / 2) / 25))
    assert math.atanh(high) + math.atanh(low) == pytest.approx(2 * math.atanh(r))
    assert stats.fisher_interval(1.0, 28) == (1.0, 1.0)
    with pytest.raises(ValueError, match="more than 3 pairs"):
        stats.fisher_interval(r, 3)


def test_spearman_has_the_longer_side_of_its_interval():
    found, r = stats.spearman(A, B), scipy.stats.spearmanr(A, B).statistic
    assert found.value == pytest.approx(r)
    assert found.error == pytest.approx(max(abs(r - end) for end in stats.fisher_interval(r, 20)))
    assert stats.spearman(A, -B).error == pytest.approx(found.error)
    fewer = stats.spearman(A, B, n=8)
    assert (fewer.value, fewer.error) == (found.value, pytest.approx(r_error(r, 8)))
    assert stats.spearman(A, B, interval="delta").error == pytest.approx(2 * (1 - r**2) / math.sqrt(17))


def r_error(r: float, n: int) -> float:
    return max(abs(r - end) for end in stats.fisher_interval(r, n))


def test_spearman_leaves_missing_pairs_out_and_ignores_labels():
    a, b = pd.Series([*A, math.nan, 1.0]), pd.Series([*B, 2.0, math.nan], index=range(5, 27))
    assert stats.spearman(a, b) == stats.spearman(A, B)


def test_no_order_is_not_measured():
    assert stats.spearman(A, np.ones(20)) is None
    assert stats.spearman(A[:3], B[:3]) is None
    assert stats.spearman([1, 2], [4, 3], interval="delta") == Measured(-1.0)
    assert stats.spearman(A, B, n=3) is None
    assert stats.spearman([], []) is None
    assert stats.spearman(A, 2 * A) is None
    capped = stats.spearman(A, -2 * A, cap=1 - 1e-6)
    half = 2 * math.sqrt(1.5 / 17)
    assert capped.value == -1
    assert capped.error == pytest.approx(1 - math.tanh(math.atanh(1 - 1e-6) - half))
    with pytest.raises(ValueError, match="shape"):
        stats.spearman(A, B[:3])


def test_bootstrap_is_two_deviations_over_resamples():
    found = stats.bootstrap(lambda x: x.mean(-1), A, generator=generator(), draws=4000)
    assert found.value == A.mean()
    assert found.error == pytest.approx(2 * A.std() / math.sqrt(len(A)), rel=0.05)
    again = stats.bootstrap(lambda x: x.mean(-1), A, generator=generator(), draws=4000, ddof=0)
    assert again.error == pytest.approx(found.error * math.sqrt(3999 / 4000))


def test_bootstrap_draws_the_same_observations_of_all_samples():
    found = stats.bootstrap(lambda a, b: (a - b).max(-1), A, A - 1, generator=generator())
    assert (found.value, found.error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))
    assert stats.bootstrap(stats.rank_correlation, A[:2], B[:2], generator=generator()) is None
    assert stats.bootstrap(stats.rank_correlation, A, np.ones(20), generator=generator()) is None


def test_the_jackknife_of_a_mean_is_its_standard_error():
    parts = list(A[:6])
    found = stats.jackknife(np.mean, parts)
    assert found.value == np.mean(parts)
    # the factor (n - 1)^2 / n of the sample variance of leave-one-out means is the squared standard error
    assert found.error == pytest.approx(2 * scipy.stats.sem(parts))
    both = stats.jackknife(lambda a, b: np.mean(a) - np.mean(b), parts, list(B[:4]))
    assert both.error == pytest.approx(2 * math.hypot(scipy.stats.sem(parts), scipy.stats.sem(B[:4])))
    with pytest.raises(ValueError, match="at least two parts"):
        stats.jackknife(np.mean, parts, [1.0])


def test_rank_correlation_within_groups_is_the_mean_of_those_that_have_one():
    a, b = [1, 2, 3, 9, 8, 7, 5], [1, 2, 3, 1, 2, 2, 4]
    groups = ["up", "up", "up", "down", "down", "down", "single"]
    down = stats.rank_correlation([9, 8, 7], [1, 2, 2])
    assert stats.rank_correlation_within(a, b, groups) == pytest.approx((1 + down) / 2)
    assert stats.rank_correlation_within([math.nan, *a[1:]], b, groups, least=3) == pytest.approx(down)
    assert math.isnan(stats.rank_correlation_within(a, [1] * 7, groups))


def test_within_groups_and_given_it_is_the_mean_of_the_partial_ones():
    groups = np.repeat([1, 2, 3], [9, 9, 2])
    given = np.tile([3.0, 1, 2, 5, 4], 4)
    parts = [stats.partial_rank_correlation(A[i], B[i], given[i]) for i in (slice(9), slice(9, 18))]
    # of two pairs the third correlation determines the others
    assert stats.rank_correlation_within(A, B, groups, given=given) == pytest.approx(np.mean(parts))
    assert math.isnan(stats.rank_correlation_within(A, B, groups, given=A))


def test_the_parts_of_a_rank_correlation_add_up_to_it():
    groups = np.repeat(["first", "second", "third"], [7, 4, 9])
    within, between = stats.rank_correlation_parts(A, B, groups)
    assert within + between == pytest.approx(float(stats.rank_correlation(A, B)))
    # the order of the groups alone, and no order in a group; then the other way round
    assert stats.rank_correlation_parts([1, 1, 2, 2], [3, 3, 4, 4], [0, 0, 1, 1]) == pytest.approx((0, 1))
    assert stats.rank_correlation_parts([1, 2, 1, 2], [3, 4, 3, 4], [0, 0, 1, 1]) == pytest.approx((1, 0))
    assert all(map(math.isnan, stats.rank_correlation_parts(A, np.ones(20), groups)))
    some = [*A[:19], math.nan]
    assert stats.rank_correlation_parts(some, B, groups) == stats.rank_correlation_parts(A[:19], B[:19], groups[:19])


def test_means_have_two_standard_errors_beside_them():
    table = pd.DataFrame({"kind": ["b", "a", "b", "a", "c"], "x": [1.0, 4, 3, math.nan, 7], "y": range(5)})
    found = stats.means(table, "kind", ["x", "y"])
    assert list(found.columns) == ["kind", "x", "error, x", "y", "error, y"]
    assert list(found.kind) == ["b", "a", "c"]
    assert list(found.x) == [2, 4, 7]
    one = stats.mean([1, 3])
    assert found["error, x"][0] == pytest.approx(one.error)
    assert found["error, x"][1:].isna().all()
    assert "± y" in stats.means(table, ["kind"], ["y"], error="± {}")
    assert list(stats.means(table, "x", ["y"]).x.isna()) == [False, False, False, True, False]
    with pytest.raises(ValueError, match="a name for each column"):
        stats.means(table, "kind", ["x", "y"], error="error")


def test_a_curve_first_falls_below_a_level_between_two_points():
    x = [0, 1, 2, 4, 8]
    assert stats.first_below(x, [1, 0.9, 0.6, 0.2, 0.7], 0.5) == pytest.approx(2.5)
    assert stats.first_below(x, [1, 0.5, 0.4, 0.9, 0.1], 0.5) == pytest.approx(1)
    assert math.isnan(stats.first_below(x, [0.4, 1, 1, 1, 0], 0.5))
    assert math.isnan(stats.first_below(x, [1, 1, 1, 1, 0.5], 0.5))
    assert math.isnan(stats.first_below(x, [1, math.nan, 0.2, 0.1, 0], 0.5))
    for y in ([], [1, 0]):
        with pytest.raises(ValueError, match="as many points"):
            stats.first_below([] if not y else x, y, 0.5)


def test_partial_rank_correlation_is_that_of_the_residuals():
    given = np.arange(20.0)
    ranks = [stats.rankdata(values) for values in (A, B)]
    residuals = [r - np.polyval(np.polyfit(given, r, 1), given) for r in ranks]
    assert stats.partial_rank_correlation(A, B, given) == pytest.approx(np.corrcoef(residuals)[0, 1])
    assert math.isnan(stats.partial_rank_correlation(A, given, given))


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0.30488, 0.0123, "0.305 ± 0.012"),
        (-2.789, 0.47, "-2.79 ± 0.47"),
        (1632.4, 12.3, "1632 ± 12"),
        (1632.4, 123.0, "1632 ± 1.2e+02"),
        (99.9712, 0.0012, "99.97 ± 0.0012"),
        (0.00001234, 0.2, "0.00 ± 0.20"),
        (0.0, 0.031, "0.000 ± 0.031"),
        (1.99, 2.0, "2.0 ± 2.0"),
        (0.4486, 0.03999, "0.449 ± 0.040"),
        (0.0, 1.2e-7, "0.00000000 ± 1.2e-07"),
        (0.5, 0.0, "0.5"),
        (1.0, 1.9e-16, "1"),
        (12345.6, 0.0, "1.235e+04"),
        (math.nan, 0.1, "nan ± 0.1"),
    ],
)
def test_a_number_is_said_with_no_more_digits_than_its_error_leaves_sure(value, error, words):
    assert with_error(value, error) == str(Measured(value, error)) == words
