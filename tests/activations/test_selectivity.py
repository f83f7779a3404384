"""Selectivity: closed forms, scikit-learn on raw activities as oracle, one pass that no order or batch changes."""

import copy
import dataclasses
import math
import pickle
from functools import partial

import pytest
import torch
from sklearn.metrics import mutual_info_score, roc_auc_score
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F

from nadkit.activations.activity import Activity, activity_of, record_activity
from nadkit.activations.objective import SelectivityObjective
from nadkit.activations.selectivity import auroc, class_auroc, class_selectivity, mutual_information
from nadkit.activations.sites import Site, Sites, capture, find_sites
from nadkit.architectures import MLP, ConvNet

KINDS = ("quantile", "width")


@pytest.fixture
def random() -> tuple[torch.Tensor, torch.Tensor]:
    """Activities of ReLUs of very different sizes, the sixth unit signed, the last dead; 700 samples of 4 classes."""
    generator = torch.Generator().manual_seed(5)
    y = torch.randint(4, (700,), generator=generator)
    x = torch.randn(700, 7, generator=generator, dtype=torch.float64)
    x[:, :4] += F.one_hot(y, 4)
    x = torch.where(torch.arange(7) == 5, x, x.relu()) * torch.tensor([1e-3, 1.0, 7.0, 3e4, 1.0, 1.0, 0.0])
    return x, y


def fed(x: torch.Tensor, y: torch.Tensor, batches: list[torch.Tensor], **options) -> Activity:
    sites = Sites([Site("units", "units", 0, (x.shape[1],))])
    activity = Activity.empty(sites, int(y.max()) + 1, **options)
    for batch in batches:
        activity.update(x[batch], y[batch])
    return activity


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


# --- the pass over the data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 13, 700])
@pytest.mark.parametrize("order", ["given", "random", "ascending", "descending"])
def test_counts_depend_neither_on_order_nor_on_batches(random, order, batch_size):
    x, y = random
    by_size = x[:, 5].argsort()
    orders = {"given": torch.arange(700), "random": torch.randperm(700), "ascending": by_size}
    rows = orders.get(order, by_size.flip(0))
    found, once = fed(x, y, rows.split(batch_size)), activity_of(x, y)
    for name in ("counts", "top", "low", "high", "class_counts"):
        assert torch.equal(getattr(found, name), getattr(once, name)), name
    torch.testing.assert_close(found.total, once.total, rtol=1e-13, atol=1e-13)
    assert torch.equal(auroc(found), auroc(once))
    for kind in KINDS:
        assert torch.equal(mutual_information(found, kind=kind).bits, mutual_information(once, kind=kind).bits)


def test_bins_merge_exactly_while_the_range_grows_by_hundreds_of_powers_of_two():
    exponents = torch.arange(-140, 120, dtype=torch.float64)
    x = torch.cat([1.5 * 2**exponents, -(2**exponents), torch.zeros(20, dtype=torch.float64)])[:, None]
    y = torch.arange(len(x)) % 2
    one_by_one, once = fed(x, y, list(torch.arange(len(x)).split(1))), activity_of(x, y)
    assert torch.equal(one_by_one.counts, once.counts)
    assert once.counts[:, :, 0].sum() == 20
    assert one_by_one.top.item() == 2.0**120


def test_fine_bins_are_as_described():
    """The largest magnitude, 5, gives top 8 and, with four bins, width 2."""
    x = torch.tensor([0.0, 1e-9, 1.99, 2.0, 5.0, -0.1, -5.0, -3.0])[:, None]
    activity = activity_of(x, torch.tensor([0, 1] * 4), resolution=4)
    assert activity.top.item() == 8
    assert activity.zero == 4
    assert activity.histograms(slice(None)).sum(1).tolist() == [[0, 1, 1, 1, 1, 2, 1, 1, 0]]
    assert activity.bin_centres(slice(None)).tolist() == [[-7, -5, -3, -1, 0, 1, 3, 5, 7]]
    assert (activity.low.item(), activity.high.item()) == (-5, 5)


def test_units_without_negative_activities_need_half_the_memory(random):
    x, y = random
    positive = activity_of(x[:, :5], y)
    assert positive.counts.shape == (5, 4, 513)
    assert positive.zero == 0
    assert activity_of(x, y).counts.shape == (7, 4, 1025)


def test_memory_does_not_grow_with_the_samples(random):
    x, y = random
    activity = fed(x, y, [torch.arange(700)] * 30)
    assert activity.samples == 21_000
    assert activity.counts.sum() == 21_000 * 7
    assert activity.counts.shape == activity_of(x, y).counts.shape
    torch.testing.assert_close(auroc(activity), auroc(activity_of(x, y)))


def test_units_may_come_in_any_order(random):
    x, y = random
    order = torch.randperm(7)
    there, here = activity_of(x[:, order], y), activity_of(x, y)
    assert torch.equal(auroc(there), auroc(here)[order])
    assert torch.equal(mutual_information(there).bits, mutual_information(here).bits[order])
    some = order[order < 5]  # those that are never negative
    index = class_selectivity(activity_of(x[:, some], y))
    torch.testing.assert_close(index, class_selectivity(activity_of(x[:, :5], y))[some], rtol=1e-12, atol=0)


def test_measures_do_not_depend_on_how_many_units_are_looked_at_together(random, monkeypatch):
    activity = activity_of(*random)
    whole = class_auroc(activity), [mutual_information(activity, kind=kind).bits for kind in KINDS]
    monkeypatch.setattr("nadkit.activations.activity.BLOCK", 2 * 4 * 1025)
    assert all(torch.equal(a, b) for a, b in zip(class_auroc(activity), whole[0], strict=True))
    for kind, bits in zip(KINDS, whole[1], strict=True):
        assert torch.equal(mutual_information(activity, kind=kind).bits, bits)


def test_facts_about_units(random):
    x, y = random
    activity = activity_of(x, y)
    torch.testing.assert_close(activity.mean, x.mean(0))
    torch.testing.assert_close(activity.active, (x != 0).double().mean(0))
    means = torch.stack([x[y == k].mean(0) for k in range(4)], dim=1)
    torch.testing.assert_close(activity.class_means, means)
    assert (activity.classes, activity.samples) == (4, 700)
    assert activity.class_counts.tolist() == y.bincount().tolist()
    again = pickle.loads(pickle.dumps(activity))
    assert torch.equal(again.counts, activity.counts)


def test_bad_activities_and_labels(random):
    x, y = random
    with pytest.raises(ValueError, match="labels: expected 0 to 2 for 3 classes, got 0 to 3"):
        activity_of(x, y, classes=3)
    with pytest.raises(ValueError, match="labels: expected 0 to 3"):
        activity_of(x, y - 1, classes=4)
    with pytest.raises(ValueError, match=r"labels: expected torch\.int64"):
        activity_of(x, y.int())
    with pytest.raises(ValueError, match="class 4: no samples"):
        activity_of(x, y, classes=5)
    with pytest.raises(ValueError, match="needs at least 2, got 1"):
        activity_of(x, torch.zeros_like(y))
    with pytest.raises(ValueError, match="resolution: expected a power of two"):
        activity_of(x, y, resolution=100)
    with pytest.raises(ValueError, match=r"expected activities \(B, 7\) and labels \(B,\)"):
        activity_of(x, y).update(x[:, :3], y)
    with pytest.raises(ValueError, match="at least one unit and sample"):
        activity_of(x[:0], y[:0])
    x[3, 2] = math.nan
    with pytest.raises(ValueError, match=r"site 'units'.*1 of its 7 units \(the first is number 2\) is NaN"):
        activity_of(x, y)


def test_a_class_without_samples_yet_is_an_error_of_every_measure(random):
    x, y = random
    activity = Activity.empty(Sites([Site("units", "units", 0, (7,))]), 4)
    activity.update(x[y < 2], y[y < 2])
    for measure in (class_selectivity, mutual_information, auroc, class_auroc):
        with pytest.raises(ValueError, match="class 2, 3: no samples"):
            measure(activity)


# --- networks ---------------------------------------------------------------------------------------------------------


class Integers(nn.Module):
    """Two feature maps of 1 x 2 images: ReLU(x) and ReLU(-x); the logits are their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(torch.cat([x, -x], dim=1)).sum((2, 3))


def test_activity_of_an_integer_network():
    """Maps are averaged over positions before anything else."""
    x = torch.tensor([[4.0, 2.0], [-2.0, 6.0], [-8.0, 0.0], [-1.0, -1.0]]).view(4, 1, 1, 2)
    y = torch.tensor([0, 0, 1, 1])
    model = Integers()
    sites = find_sites(model, (1, 1, 2))
    activity = record_activity(model, (x, y), sites, batch_size=3)
    assert activity.class_means.tolist() == [[3, 0], [0.5, 2.5]]
    assert class_selectivity(activity).tolist() == [1, 2 / 3]
    assert activity.active.tolist() == [0.5, 0.75]
    assert auroc(activity).tolist() == [1, 7 / 8]
    assert activity.sites == sites


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(4)
    model = ConvNet((1, 8, 8), 3, width=1 / 16)
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    model.train()(x)
    return model, (x, y)


def test_activity_of_a_convnet_is_that_of_a_plain_pass_in_double_precision(trained):
    model, (x, y) = trained
    sites = find_sites(model, (1, 8, 8))
    activity = record_activity(model, (x, y), sites, batch_size=17)
    assert model.training
    exact = copy.deepcopy(model).double().eval()
    with torch.no_grad(), capture(exact, sites) as found:
        exact(x.double())
    for name, values in sites.split(activity.class_means.T).items():
        means = found[name].mean((2, 3))
        expected = torch.stack([means[y == k].mean(0) for k in range(3)])
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
    assert (class_selectivity(activity)[~activity.dead] <= 1).all()


def test_activity_is_the_same_in_any_batches(trained):
    model, (x, y) = trained
    sites = find_sites(model, (1, 8, 8))
    one, two = (record_activity(model, (x, y), sites, batch_size=size) for size in (60, 7))
    torch.testing.assert_close(one.class_means, two.class_means, rtol=1e-4, atol=1e-6)
    assert torch.equal(one.dead, two.dead)


def test_units_of_tokens_and_bytes():
    model = nn.Sequential(nn.Flatten(2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    x, y = torch.randint(256, (20, 3, 2, 2), dtype=torch.uint8), torch.arange(20) % 2
    activity = record_activity(model, (x, y), find_sites(model, (3, 2, 2), axis=-1))
    torch.testing.assert_close(activity.mean, (x.double() / 255).mean((0, 1)).flatten(), rtol=1e-5, atol=0)


def test_data_that_does_not_fit(trained):
    model, (x, y) = trained
    sites = find_sites(model, (1, 8, 8))
    with pytest.raises(ValueError, match="one label an input, got 60 inputs"):
        record_activity(model, (x, y[:-1]), sites)
    with pytest.raises(ValueError, match="one label an input, got 0 inputs"):
        record_activity(model, (x[:0], y[:0]), sites)
    with pytest.raises(ValueError, match="labels: expected 0 to 2 for 3 classes, got 0 to 7"):
        record_activity(model, (x, torch.where(torch.arange(60) == 59, 7, y)), sites, batch_size=10)
    with pytest.raises(ValueError, match="class 1, 2: no samples"):
        record_activity(model, (x, torch.zeros_like(y)), sites)
    with pytest.raises(ValueError, match="needs at least 2, got 1"):
        record_activity(model, (x, torch.zeros_like(y)), sites, classes=1)
    with pytest.raises(ValueError, match=r"site 'relu1'.*NaN or infinite"):
        record_activity(model, (torch.where(torch.rand(60, 1, 1, 1) < 0.1, math.nan, x), y), sites)
    with pytest.raises(ValueError, match="site 'relu1': expected activations of shape"):
        record_activity(model, (x[..., :2], y), sites)
    with pytest.raises(ValueError, match=r"site 'relu1\[1\]': .* does not run it"):
        record_activity(model, (x, y), Sites([dataclasses.replace(sites[0], name="relu1[1]", call=1)]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_activity_on_a_gpu_is_that_on_the_cpu(trained):
    model, (x, y) = trained
    sites = find_sites(model, (1, 8, 8))
    cpu = record_activity(model, (x, y), sites)
    gpu = record_activity(copy.deepcopy(model).cuda(), (x, y), sites, batch_size=7)
    assert not gpu.counts.is_cuda
    torch.testing.assert_close(gpu.class_means, cpu.class_means, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(auroc(gpu), auroc(cpu), rtol=0, atol=0.05)


# --- training ---------------------------------------------------------------------------------------------------------

ARCHITECTURES = {
    "mlp": partial(MLP, shape=(1, 8, 8), classes=3, width=8),
    "mlp with batch norm": partial(MLP, shape=(1, 8, 8), classes=3, width=8, batch_norm=True),
    "convnet": partial(ConvNet, shape=(1, 8, 8), classes=3, width=1 / 16),
    "convnet without batch norm": partial(ConvNet, shape=(1, 8, 8), classes=3, width=1 / 16, batch_norm=False),
}


def batch(classes: int = 3, seed: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.randint(classes, (12,), generator=generator)


def selectivity_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor, present: list[int]) -> torch.Tensor:
    """Mean over sites of the mean over units of the index, by the function for recorded means; silent units count 0."""
    found_sites = find_sites(model, (1, 8, 8))
    with capture(model, found_sites) as found:
        model(x)
    sites = []
    for activation in found.values():
        activity = activation.flatten(2).mean(2) if activation.ndim > 2 else activation
        sites.append(class_selectivity(torch.stack([activity[y == k].mean(0) for k in present], dim=1)).nan_to_num())
    return torch.stack([site.mean() for site in sites]).mean()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("alpha", [1.0, -20.0])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_objective_is_cross_entropy_less_alpha_times_the_selectivity_of_the_batch(name, alpha, given):
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES[name]().train(), batch()
    sites = find_sites(model, (1, 8, 8)) if given else None
    loss, logits = SelectivityObjective(alpha, sites, epsilon=1e-20)(model, x, y, 0)
    torch.testing.assert_close(logits, model(x))
    expected = F.cross_entropy(logits, y) - alpha * selectivity_of(model, x, y, [0, 1, 2]).float()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def test_classes_that_are_not_in_the_batch_do_not_count():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"](), batch(2)
    loss, logits = SelectivityObjective(1.0)(model, x, 2 * y, 0)
    expected = F.cross_entropy(logits, 2 * y) - selectivity_of(model, x, 2 * y, [0, 2]).float()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_of_one_class_has_no_selectivity():
    model, (x, _) = ARCHITECTURES["mlp"](), batch()
    y = torch.ones(12, dtype=torch.int64)
    loss, logits = SelectivityObjective(5.0)(model, x, y, 0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y))


def test_some_epochs_and_some_sites_only():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"](), batch()
    sites = find_sites(model, (1, 8, 8))
    objective = SelectivityObjective(2.0, epochs=(1, 3))
    losses = [objective(model, x, y, epoch)[0].item() for epoch in range(5)]
    plain = F.cross_entropy(model(x), y).item()
    always = SelectivityObjective(2.0)(model, x, y, 0)[0].item()
    assert losses == pytest.approx([plain, always, always, plain, plain])
    assert always < plain
    assert SelectivityObjective(0.0)(model, x, y, 0)[0].item() == pytest.approx(plain)
    each = [SelectivityObjective(2.0, sites[i : i + 1])(model, x, y, 0)[0].item() for i in range(2)]
    assert sum(each) / 2 == pytest.approx(always)


def test_the_gradient_is_that_of_the_loss():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"]().double(), batch()
    objective, names = SelectivityObjective(3.0), ["fc1.weight", "fc2.bias"]

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = model

            def forward(self):
                return objective(self.network, x.double(), y, 0)[0]

        return functional_call(Whole(), {f"network.{n}": w for n, w in zip(names, weights, strict=True)}, ())

    weights = tuple(model.get_parameter(name).detach().clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(loss, weights, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_trained_together_have_the_gradients_of_each_alone(name, given):
    torch.manual_seed(2)
    models = [ARCHITECTURES[name]().train() for _ in range(3)]
    sites = find_sites(models[0], (1, 8, 8)) if given else None
    x, y = (torch.stack(part) for part in zip(*(batch(3 - (i == 2), seed=i) for i in range(3)), strict=True))
    objective = SelectivityObjective(-2.0, sites, epochs=(0, 5))
    params, buffers = stack_module_state([copy.deepcopy(model) for model in models])
    skeleton = copy.deepcopy(models[0]).to("meta")

    class Trainee(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = skeleton

        def forward(self, x, y):
            return objective(self.network, x, y, 3)

    def loss(params, buffers, x, y):
        return functional_call(Trainee(), {f"network.{n}": t for n, t in {**params, **buffers}.items()}, (x, y))

    params = {name: p.detach() for name, p in params.items()}
    grads, (losses, _) = vmap(grad_and_value(loss, has_aux=True), randomness="different")(params, buffers, x, y)
    for i, model in enumerate(models):
        alone, _ = objective(model, x[i], y[i], 3)
        alone.backward()
        torch.testing.assert_close(losses[i], alone, rtol=1e-4, atol=1e-5)
        for path, p in model.named_parameters():
            torch.testing.assert_close(grads[path][i], p.grad, rtol=1e-3, atol=1e-4)


def test_a_positive_alpha_raises_selectivity_and_a_negative_one_lowers_it():
    x, y = batch()

    def after(alpha: float) -> float:
        torch.manual_seed(0)
        model = ARCHITECTURES["mlp"]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            SelectivityObjective(alpha)(model, x, y, 0)[0].backward()
            optimizer.step()
        return selectivity_of(model, x, y, [0, 1, 2]).item()

    low, plain, high = map(after, (-2.0, 0.0, 2.0))
    assert low + 0.1 < plain < high - 0.1


def test_gradients_are_finite_where_units_are_silent():
    model, (x, y) = ARCHITECTURES["mlp"](), batch()
    with torch.no_grad():
        model.fc1.bias.fill_(-1e4)
    loss, _ = SelectivityObjective(1.0)(model, x, y, 0)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_objective_under_bfloat16_is_nearly_that_in_float32():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"](), batch()
    objective = SelectivityObjective(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(model, x, y, 0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(objective(model, x, y, 0)[0].item(), rel=0.05)


def test_objectives_can_be_sent_to_workers():
    objective = SelectivityObjective(-1.0, find_sites(ARCHITECTURES["mlp"](), (1, 8, 8)), (0, 10))
    assert pickle.loads(pickle.dumps(objective)) == objective


def test_objectives_that_cannot_be():
    x, y = batch()
    with pytest.raises(ValueError, match="alpha: expected a finite number"):
        SelectivityObjective(math.nan)
    with pytest.raises(ValueError, match=r"epochs: expected \(first, end\)"):
        SelectivityObjective(1.0, epochs=(5, 5))
    with pytest.raises(ValueError, match="epsilon: expected a positive"):
        SelectivityObjective(1.0, epsilon=0.0)
    with pytest.raises(ValueError, match="no activation module in Sequential"):
        SelectivityObjective(1.0)(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x, y, 0)
    signed = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="Sequential has a Tanh; give the sites"):
        SelectivityObjective(1.0)(signed, x, y, 0)
