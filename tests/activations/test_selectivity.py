"""Selectivity: closed forms, and scikit-learn on raw activities as oracle."""

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score, roc_auc_score
from torch.nn import functional as F

from nadkit.activations.activity import Activity, activity_of
from nadkit.activations.selectivity import auroc, class_auroc, class_selectivity, mutual_information

KINDS = ("quantile", "width")


def random_activities() -> tuple[torch.Tensor, torch.Tensor]:
    """Activities of ReLUs of very different sizes, the sixth unit signed, the last dead; 700 samples of 4 classes."""
    generator = torch.Generator().manual_seed(5)
    y = torch.randint(4, (700,), generator=generator)
    x = torch.randn(700, 7, generator=generator, dtype=torch.float64)
    x[:, :4] += F.one_hot(y, 4)
    x = torch.where(torch.arange(7) == 5, x, x.relu()) * torch.tensor([1e-3, 1.0, 7.0, 3e4, 1.0, 1.0, 0.0])
    return x, y


@pytest.fixture
def random() -> tuple[torch.Tensor, torch.Tensor]:
    return random_activities()


# --- the index --------------------------------------------------------------------------------------------------------


def test_index_in_closed_form():
    means = torch.tensor([[3.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 1.0, 2.0, 6.0]])
    expected = torch.tensor([2 / 4, 1, 0, 5 / 7], dtype=torch.float64)
    torch.testing.assert_close(class_selectivity(means), expected)


def test_index_of_hand_made_activities():
    """Classes of different sizes: the mean of the others is over classes, not over their samples."""
    y = torch.tensor([0, 1, 1, 1, 2])
    x = torch.tensor([[6.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    index = class_selectivity(activity_of(x, y))
    assert index[0] == (6 - 1) / (6 + 1)
    assert index[1].isnan()


def test_a_dead_unit_is_nan_and_counted(random):
    activity = activity_of(*random)
    assert activity.dead.tolist() == [False] * 6 + [True]
    assert class_selectivity(activity.class_means[[0, 6]]).isnan().tolist() == [False, True]
    assert activity.active[6] == activity.mean[6] == 0
    assert auroc(activity)[6] == 0.5
    assert mutual_information(activity).bits[6] == 0


def test_index_lies_between_zero_and_one_whatever_the_scale():
    means = torch.rand(1000, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 8
    index = class_selectivity(means)
    assert ((index >= 0) & (index <= 1)).all()
    torch.testing.assert_close(class_selectivity(means * 1e-6), index)
    shuffled = means[:, torch.randperm(10)]
    torch.testing.assert_close(class_selectivity(shuffled), index)


def test_the_index_is_not_for_units_that_may_be_negative(random):
    with pytest.raises(ValueError, match=r"1 of 2 units .* use auroc or mutual_information"):
        class_selectivity(torch.tensor([[1.0, 0.0], [-0.1, 2.0]]))
    with pytest.raises(ValueError, match="not negative"):
        class_selectivity(activity_of(random[0] - 10, random[1]))
    with pytest.raises(ValueError, match="or is NaN"):
        class_selectivity(torch.tensor([[math.nan, 0.0]]))
    with pytest.raises(ValueError, match="at least two classes"):
        class_selectivity(torch.ones(3, 1))


def test_a_unit_that_fires_once_has_index_one_but_tells_nothing():
    """The point of Gale et al. 2020."""
    y = torch.arange(10).repeat_interleave(100)
    x = torch.zeros(1000, 1)
    x[123] = 7
    activity = activity_of(x, y)
    assert class_selectivity(activity).item() == 1
    assert auroc(activity).item() == pytest.approx(0.505)
    assert class_auroc(activity)[0][0, 1] == pytest.approx(0.505)
    assert mutual_information(activity).bits.item() < 0.005
    assert activity.active.item() == pytest.approx(0.001)


# --- mutual information -----------------------------------------------------------------------------------------------


def cut(values: torch.Tensor, activity: Activity, unit: int, bins: int, kind: str) -> torch.Tensor:
    """Raw activities cut at the same edges, from the definition: fine bins first, then bins of whole fine bins."""
    width = activity.top[unit] / activity.resolution
    fine = torch.where(values < 0, -(values.abs() / width).floor() - 0.5, (values / width).floor() + 0.5)
    fine = torch.where(values == 0, 0, fine)
    if kind == "quantile":
        return ((fine[None] < fine[:, None]).sum(1) * bins).div(len(values), rounding_mode="floor")
    place = (fine * width - values.min()) / (values.max() - values.min())
    return (place * bins).floor().clamp(0, bins - 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [2, 7, 20])
@pytest.mark.parametrize("resolution", [32, 512])
def test_information_is_scikit_learns_of_the_raw_activities_cut_at_the_same_edges(random, kind, bins, resolution):
    x, y = random
    activity = activity_of(x, y, resolution=resolution)
    found = mutual_information(activity, bins, kind=kind)
    for unit in range(6):
        labels = cut(x[:, unit], activity, unit, bins, kind)
        expected = mutual_info_score(y.numpy(), labels.numpy()) / math.log(2)
        assert found.bits[unit].item() == pytest.approx(expected, abs=1e-12)
        assert found.used[unit] == len(labels.unique())
        cells = len(torch.stack([labels, y.to(labels)], dim=1).unique(dim=0))
        bias = (cells - len(labels.unique()) - 4 + 1) / (2 * len(x) * math.log(2))
        assert found.bias[unit].item() == pytest.approx(bias, abs=1e-12)
    assert found.bins == bins


@pytest.mark.parametrize("kind", KINDS)
def test_information_in_closed_form(kind):
    """All there is, nothing, one bit of two, and a constant unit."""
    y = torch.arange(4).repeat(16)
    x = torch.stack([y, torch.arange(4).repeat_interleave(16), y // 2, torch.full_like(y, 3)], dim=1).double()
    found = mutual_information(activity_of(x, y), 4, kind=kind)
    torch.testing.assert_close(found.bits, torch.tensor([2.0, 0.0, 1.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0)
    assert found.used.tolist() == [4, 4, 2, 1]
    n = 2 * 64 * math.log(2)
    torch.testing.assert_close(found.bias * n, torch.tensor([-3.0, 9.0, -1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found.corrected, found.bits - found.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bias_is_that_of_units_that_know_nothing(kind):
    """Over many units without information the plug-in estimate is too high on average, by the stated bias."""
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(1000, 400, generator=generator)
    found = mutual_information(activity_of(x, torch.randint(5, (1000,), generator=generator)), 8, kind=kind)
    error = 2 * found.bits.std() / math.sqrt(400)
    assert found.bits.mean() > 10 * error
    assert found.corrected.mean().abs() < error


def test_bins_of_equal_counts_hold_as_many_as_they_can():
    """Half of the samples are zero and fill one of four bins; the others are cut where quarters would end."""
    x = torch.cat([torch.zeros(400), torch.arange(1.0, 401.0)])[:, None]
    y = torch.cat([torch.zeros(400), torch.arange(400) // 100]).long()
    found = mutual_information(activity_of(x, y), 4)
    assert found.used.item() == 3
    labels = torch.cat([torch.zeros(400), 2 + torch.arange(400) // 200])
    assert found.bits.item() == pytest.approx(mutual_info_score(y, labels) / math.log(2), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_information_is_at_most_that_of_the_classes(random, kind):
    activity = activity_of(*random)
    share = activity.class_counts / activity.samples
    entropy = -(share * share.log2()).sum()
    bits = mutual_information(activity, 512, kind=kind).bits
    assert ((bits >= 0) & (bits <= entropy + 1e-12)).all()


def test_bins_that_are_not_possible(random):
    activity = activity_of(*random, resolution=16)
    with pytest.raises(ValueError, match="bins: expected 2 to 16"):
        mutual_information(activity, 17)
    with pytest.raises(ValueError, match="bins: expected 2 to 16"):
        mutual_information(activity, 1)
    with pytest.raises(ValueError, match="kind: expected 'quantile' or 'width', got 'quantiles'; did you mean"):
        mutual_information(activity, kind="quantiles")


# --- AUROC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [1, 32, 512, 4096])
def test_auroc_is_scikit_learns_within_the_stated_margin(random, resolution):
    x, y = random
    found, margin = class_auroc(activity_of(x, y, resolution=resolution))
    raw = [[roc_auc_score((y == k).numpy(), x[:, unit].numpy()) for k in range(4)] for unit in range(7)]
    error = (found - torch.tensor(raw, dtype=torch.float64)).abs()
    assert (error <= margin + 1e-12).all()
    assert (margin[:6] <= (0.5 if resolution == 1 else 2 / resolution)).all()
    assert (margin[6] == 0).all()
    torch.testing.assert_close(auroc(activity_of(x, y, resolution=resolution)), found.amax(1))


def test_auroc_is_exact_where_fine_bins_hold_single_values():
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(-60, 64, (300, 5), generator=generator).double()
    y = torch.randint(3, (300,), generator=generator)
    found, _ = class_auroc(activity_of(x, y))
    raw = [[roc_auc_score((y == k).numpy(), x[:, unit].numpy()) for k in range(3)] for unit in range(5)]
    torch.testing.assert_close(found, torch.tensor(raw, dtype=torch.float64), rtol=0, atol=1e-14)


def test_auroc_in_closed_form():
    """Always higher, always lower, all equal, and active at half of the class alone: 1/2 + 1/4."""
    y = torch.tensor([0] * 4 + [1] * 4)
    x = torch.tensor([[2.0] * 4 + [1.0] * 4, [0.0] * 4 + [1.0] * 4, [3.0] * 8, [1.0, 1.0] + [0.0] * 6]).T
    found, margin = class_auroc(activity_of(x, y))
    assert found[:, 0].tolist() == [1, 0, 0.5, 0.75]
    assert found[:, 1].tolist() == [0, 1, 0.5, 0.25]
    assert auroc(activity_of(x, y)).tolist() == [1, 1, 0.5, 0.75]
    assert margin[:, 0].tolist() == [0, 0, 0.5, 0]


def test_margins_of_ties_are_known_only_at_zero():
    """In every other fine bin, activities that are equal cannot be told from those that nearly are."""
    x = torch.tensor([[0.0, 5.0]] * 6)
    _, margin = class_auroc(activity_of(x, torch.tensor([0, 0, 1, 1, 1, 1])))
    assert margin.tolist() == [[0, 0], [0.5, 0.5]]
