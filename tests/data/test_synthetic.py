"""D(v): what its definition says, on both conventions. Corrupted labels: which change, and what stays."""

import itertools

import pytest
import torch

from nadkit.data.synthetic import SIGMA, Separable, corrupt_labels
from nadkit.inputs.fourier import Frequency, fourier_basis, fourier_direction
from nadkit.training import Problem

SHAPE = (1, 8, 8)


def problem(**options):
    return Separable(
        **{"v": fourier_direction(1, 2, shape=SHAPE), "shape": SHAPE, "n_train": 4000, "n_test": 100} | options
    )


@pytest.mark.parametrize(("convention", "shift"), [("paper", 1.5), ("code", 0.75)])
@pytest.mark.parametrize("sigma", [*SIGMA.values(), 0.0])
def test_each_class_sits_on_one_point_along_v(convention, shift, sigma):
    x, y = problem(sigma=sigma, epsilon=1.5, convention=convention).sample("train")
    along = x.flatten(1).double() @ problem().v
    torch.testing.assert_close(along, shift * (2.0 * y - 1).double(), atol=1e-5, rtol=0)


def test_the_data_are_linearly_separable_along_v_alone():
    """The sign along v is the label; along any other direction of an orthonormal basis it is a coin."""
    basis = fourier_basis(SHAPE)
    x, y = problem().sample("train")
    right = ((basis.coordinates(x) > 0) == y[:, None].bool()).double().mean(0)
    signal = basis.frequencies.index(Frequency(1, 2))
    assert right[signal] == 1
    others = torch.cat([right[:signal], right[signal + 1 :]])
    assert (others - 0.5).abs().max() < 5 * 0.5 / 4000**0.5


def test_the_noise_is_isotropic_around_v():
    sigma = 3.0
    x, _ = problem(sigma=sigma, n_train=20_000).sample("train")
    v = problem().v
    covariance = torch.cov(x.flatten(1).double().T)
    expected = sigma**2 * (torch.eye(64, dtype=torch.float64) - torch.outer(v, v)) + torch.outer(v, v)
    assert (covariance - expected).abs().max() < 6 * sigma**2 * (2 / 20_000) ** 0.5


def test_labels_are_balanced_on_average():
    _, y = problem(n_train=10_000).sample("train")
    assert set(y.tolist()) == {0, 1}
    assert y.double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_splits_and_seeds_are_independent_and_repeatable():
    x, y = problem().sample("train")
    again, same = problem().sample("train")
    assert torch.equal(x, again)
    assert torch.equal(y, same)
    assert not torch.equal(x[:100], problem().sample("test")[0])
    assert not torch.equal(x, problem(seed=1).sample("train")[0])


def test_v_is_normalised_and_may_be_an_image():
    v = problem().v
    x, _ = problem(v=7 * v.view(SHAPE)).sample("test")
    torch.testing.assert_close(x, problem().sample("test")[0])
    for same in (v.tolist(), v.numpy()):
        torch.testing.assert_close(problem(v=same).sample("test")[0], x)


def test_a_problem_keeps_its_own_direction():
    """Neither a change of the array it was made from, nor the whole basis behind a row, comes along."""
    basis = torch.eye(64)
    kept = problem(v=basis[3])
    assert kept.v.untyped_storage().nbytes() == 4 * 64
    basis[3] = 0
    assert kept.v[3] == 1
    assert not problem(v=torch.ones(64, requires_grad=True)).v.requires_grad


def test_it_is_a_problem_to_train_on():
    assert isinstance(problem(), Problem)
    assert problem().n_classes == len(problem().sample("train")[1].unique())


def test_checksums_tell_problems_apart():
    v = problem().v
    other = fourier_direction(2, 1, shape=SHAPE)
    changes = [{"sigma": 2.0}, {"epsilon": 2.0}, {"convention": "code"}, {"n_train": 9}, {"n_test": 9}, {"seed": 1}]
    distinct = [problem(), problem(v=other), *(problem(**change) for change in changes)]
    assert len({p.checksum() for p in distinct}) == len(distinct)
    assert problem().checksum() == problem(v=v.clone()).checksum()
    half = v.float()
    assert problem(v=half).checksum() == problem(v=half.double()).checksum()


def test_problems_are_compared_by_identity():
    one = problem()
    assert one == one
    assert one != problem()


def test_an_unknown_split_is_explained():
    with pytest.raises(ValueError, match="expected 'train' or 'test', got 'valid'"):
        problem().sample("valid")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"v": torch.ones(63)}, "expected 64 numbers"),
        ({"v": torch.zeros(64)}, "zero vector"),
        ({"v": torch.full((64,), torch.nan)}, "NaN"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": float("nan")}, "sigma"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": float("inf")}, "epsilon"),
        ({"convention": "text"}, "'paper' or 'code'"),
        ({"n_train": 1}, "n_train: expected an integer, at least 2"),
        ({"n_test": 10.5}, "n_test: expected an integer"),
        ({"seed": -1}, "seed: expected an integer, at least 0"),
    ],
)
def test_impossible_problems_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        problem(**options)


# Corrupted labels

LABELS = torch.arange(10).repeat_interleave(torch.tensor([500, 900, 100, 1, 0, 400, 300, 200, 700, 899]))


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.2, 0.4, 0.999, 1.0, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_corruption_keeps_the_class_counts_and_all_but_a_fraction_of_the_labels(fraction, seed):
    before = LABELS.clone()
    corrupted = corrupt_labels(LABELS, fraction, seed=seed)
    assert torch.equal(LABELS, before), "the labels that came in were changed"
    assert corrupted.dtype == LABELS.dtype
    assert torch.equal(corrupted.bincount(minlength=10), LABELS.bincount(minlength=10))
    assert (corrupted != LABELS).sum() <= round(fraction * len(LABELS))
    assert torch.equal(corrupted, corrupt_labels(LABELS, fraction, seed=seed))


@pytest.mark.parametrize("fraction", [0.2, 0.6, 1.0])
def test_exactly_the_chosen_examples_are_permuted(fraction):
    """With a class for each example, an example stays with probability 1 / n: one of the chosen, on average."""
    own = torch.arange(1000)
    corrupted = corrupt_labels(own, fraction, seed=0)
    moved = (corrupted != own).sum().item()
    assert round(fraction * 1000) - 6 <= moved <= round(fraction * 1000)
    assert corrupted.sort().values.equal(own)


def test_as_many_labels_change_as_chance_leaves():
    """A fraction f of n labels in K equal classes: f n (1 - 1 / K) change on average."""
    labels = torch.arange(10).repeat(1000)
    for fraction in (0.2, 0.5, 1.0):
        changed = (corrupt_labels(labels, fraction, seed=0) != labels).double().mean().item()
        assert changed == pytest.approx(0.9 * fraction, abs=5 * (0.09 * fraction / 10_000) ** 0.5)


def test_examples_are_chosen_uniformly_and_labels_independently_of_their_place():
    own = torch.arange(100)
    corrupted = torch.stack([corrupt_labels(own, 0.5, seed=seed) for seed in range(2000)])
    moved = (corrupted != own).double().mean(0)
    assert (moved - 0.49).abs().max() < 5 * 0.5 / 2000**0.5
    places = corrupted[:, 0][corrupted[:, 0] != 0].double()  # the 99 other labels, all alike
    assert places.mean().item() == pytest.approx(50, abs=5 * 29 / len(places) ** 0.5)


def test_the_choices_of_one_seed_are_nested():
    own = torch.arange(1000)
    moved = [set((corrupt_labels(own, f, seed=3) != own).nonzero().flatten().tolist()) for f in (0.2, 0.4, 1.0)]
    for smaller, larger in itertools.pairwise(moved):
        assert len(smaller - larger) <= 5  # of the larger choice, about one happens to keep its label
    assert moved[0] != set((corrupt_labels(own, 0.2, seed=4) != own).nonzero().flatten().tolist())


@pytest.mark.parametrize("labels", [torch.tensor([], dtype=torch.int64), torch.tensor([3]), torch.tensor([1, 1, 1])])
def test_nothing_changes_where_nothing_can(labels):
    assert torch.equal(corrupt_labels(labels, 1.0, seed=0), labels)


def test_corruption_draws_nothing_from_the_global_generator():
    state = torch.get_rng_state()
    corrupt_labels(LABELS, 0.5, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_corruption_is_the_same_on_every_device():
    there = corrupt_labels(LABELS.cuda(), 0.5, seed=0)
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), corrupt_labels(LABELS, 0.5, seed=0))


@pytest.mark.parametrize(
    ("labels", "fraction", "seed", "message"),
    [
        (LABELS, -0.1, 0, "fraction: expected a number from 0 to 1, got -0.1"),
        (LABELS, 1.01, 0, "fraction: expected a number from 0 to 1"),
        (LABELS, float("nan"), 0, "fraction: expected a number from 0 to 1"),
        (LABELS, "0.2", 0, "fraction: expected a number, got '0.2'"),
        (LABELS, 0.5, -1, "seed: expected an integer, at least 0"),
        (LABELS.view(4, 1000), 0.5, 0, r"expected a vector \(N,\), got shape \(4, 1000\)"),
    ],
)
def test_impossible_corruptions_are_explained(labels, fraction, seed, message):
    with pytest.raises(ValueError, match=message):
        corrupt_labels(labels, fraction, seed=seed)
