"""D(v): what its definition says, on both conventions."""

import pytest
import torch

from nadkit import directions
from nadkit.synthetic import SIGMA, Separable, checksum
from nadkit.training import Problem

SHAPE = (1, 8, 8)


def problem(**options):
    return Separable(
        **{"v": directions.fourier_direction(1, 2, shape=SHAPE), "shape": SHAPE, "n_train": 4000, "n_test": 100}
        | options
    )


@pytest.mark.parametrize(("convention", "shift"), [("paper", 1.5), ("code", 0.75)])
@pytest.mark.parametrize("sigma", [*SIGMA.values(), 0.0])
def test_each_class_sits_on_one_point_along_v(convention, shift, sigma):
    x, y = problem(sigma=sigma, epsilon=1.5, convention=convention).sample("train")
    along = x.flatten(1).double() @ problem().v
    torch.testing.assert_close(along, shift * (2.0 * y - 1).double(), atol=1e-5, rtol=0)


def test_the_data_are_linearly_separable_along_v_alone():
    """The sign along v is the label; along any other direction of an orthonormal basis it is a coin."""
    basis = directions.fourier(SHAPE)
    x, y = problem().sample("train")
    right = ((basis.coordinates(x) > 0) == y[:, None].bool()).double().mean(0)
    signal = basis.row(1, 2)
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
    other = directions.fourier_direction(2, 1, shape=SHAPE)
    changes = [{"sigma": 2.0}, {"epsilon": 2.0}, {"convention": "code"}, {"n_train": 9}, {"n_test": 9}, {"seed": 1}]
    distinct = [problem(), problem(v=other), *(problem(**change) for change in changes)]
    assert len({p.checksum() for p in distinct}) == len(distinct)
    assert problem().checksum() == problem(v=v.clone()).checksum()
    half = v.float()
    assert problem(v=half).checksum() == problem(v=half.double()).checksum()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_checksums_of_tensors_see_values_shape_and_type(dtype):
    zeros = torch.zeros(2, 3, dtype=dtype)
    ones = torch.ones(2, 3, dtype=dtype)
    others = [zeros.flatten(), zeros.T, zeros.to(torch.float16), zeros[0, 0]]
    assert len({checksum("a", t) for t in (zeros, ones, *others)} | {checksum("b", zeros)}) == 7
    assert checksum("a", ones.T) == checksum("a", ones.T.contiguous())


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
