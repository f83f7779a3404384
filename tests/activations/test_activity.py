"""Activity: one pass that no order or batch changes, and plain passes in double precision as oracle."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from test_selectivity import KINDS, random_activities
from torch import nn

from nadkit.activations.activity import Activity, activity_of, record_activity
from nadkit.activations.selectivity import auroc, class_auroc, class_selectivity, mutual_information
from nadkit.activations.sites import Site, Sites, capture, find_sites
from nadkit.architectures import ConvNet


@pytest.fixture
def random() -> tuple[torch.Tensor, torch.Tensor]:
    return random_activities()


def fed(x: torch.Tensor, y: torch.Tensor, batches: list[torch.Tensor], **options) -> Activity:
    sites = Sites([Site("units", "units", 0, (x.shape[1],))])
    activity = Activity.empty(sites, int(y.max()) + 1, **options)
    for batch in batches:
        activity.update(x[batch], y[batch])
    return activity


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
    with pytest.raises(ValueError, match=r"values: expected numbers of shape \(N, C\), at least one"):
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
    with pytest.raises(ValueError, match="data: expected finite numbers, got NaN"):
        record_activity(model, (torch.where(torch.rand(60, 1, 1, 1) < 0.1, math.nan, x), y), sites)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = math.nan
    with pytest.raises(ValueError, match=r"site 'relu1'.*NaN or infinite"):
        record_activity(broken, (x, y), sites)
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
