"""Clusters: kernel k-means against all partitions and scikit-learn, and images of classes hidden behind one label."""

import itertools

import pytest
import torch
from sklearn.cluster import KMeans

from nadkit.architectures import LogReg
from nadkit.data.images import ImageSet
from nadkit.neighbours.clustering import agreement, primary_and_auxiliary, two_means
from nadkit.neighbours.elasticity import single_steps
from nadkit.neighbours.kernels import symmetrised

DRAW = torch.Generator().manual_seed(0)
ROWS = torch.randn(40, 5, generator=DRAW, dtype=torch.float64)
KERNEL = ROWS @ ROWS.T
LABELS = torch.arange(60) % 3
PIXELS = (20 * LABELS[:, None, None, None] + torch.randint(5, (60, 1, 2, 2), generator=DRAW)).byte()
IMAGES = ImageSet(PIXELS, LABELS, PIXELS, LABELS, ("a", "b", "c"), "toy", "random")


def error(rows, labels):
    """The sum of squares that k-means makes small."""
    return sum((rows[labels == c] - rows[labels == c].mean(0)).square().sum().item() for c in (0, 1))


def test_two_means_find_the_best_of_all_partitions():
    rows = ROWS[:9]
    splits = (torch.tensor([0, *rest]) for rest in itertools.product((0, 1), repeat=8) if any(rest))
    assert error(rows, two_means(rows @ rows.T)) == pytest.approx(min(error(rows, split) for split in splits))


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_on_an_inner_product_they_are_the_two_means_of_scikit_learn(far):
    rows = ROWS + far  # where the origin is does not matter
    theirs = KMeans(2, n_init=50, random_state=0).fit(ROWS)
    found = two_means(rows @ rows.T, restarts=50)
    assert error(ROWS, found) == pytest.approx(theirs.inertia_, rel=1e-6)
    assert agreement(found, torch.from_numpy(theirs.labels_).long()) == 1


def test_two_means_depend_on_the_seed_alone_and_not_on_the_order():
    order, apart = torch.randperm(40, generator=DRAW), 5.0 * (torch.arange(40) < 15)
    rows = ROWS + apart[:, None]
    found = two_means(rows @ rows.T)
    assert torch.equal(found, two_means(rows @ rows.T))
    assert agreement(found, (apart > 0).long()) == 1
    assert agreement(two_means(rows[order] @ rows[order].T), found[order]) == 1


def test_a_kernel_may_have_negative_eigenvalues():
    similarity = symmetrised(torch.rand(20, 20, generator=DRAW, dtype=torch.float64))
    assert torch.linalg.eigvalsh(similarity)[0] < 0
    assert two_means(similarity).unique().tolist() == [0, 1]


def test_two_means_of_a_linear_network_are_those_of_its_inputs():
    torch.manual_seed(0)
    x, y = ROWS.view(40, 1, 1, 5), torch.arange(40) % 2
    kernel = symmetrised(single_steps(LogReg((1, 1, 5), 2).double(), x, y).kernel)
    assert agreement(two_means(kernel), two_means(KERNEL)) == 1


def test_points_that_differ_by_rounding_are_the_same():
    noise = symmetrised(torch.randn(40, 40, generator=DRAW, dtype=torch.float64))
    with pytest.raises(ValueError, match="all of these are the same"):
        two_means(7 * (1 + 1e-15 * noise))


def test_agreement_is_that_of_the_better_match():
    classes = torch.tensor([0, 0, 0, 1, 1])
    assert agreement(classes, classes) == agreement(1 - classes, classes) == 1
    assert agreement(torch.tensor([0, 0, 1, 1, 1]), classes) == pytest.approx(0.8)
    assert agreement(torch.tensor([0, 0, 0, 0, 0]), classes) == pytest.approx(0.6)


def test_primary_classes_are_hidden_behind_one_label():
    found, hidden = primary_and_auxiliary(IMAGES, (0, 2), (1,), 7)
    assert found.train_labels.tolist() == [1] * 14 + [0] * 14
    assert hidden.tolist() == [0] * 7 + [1] * 7
    assert (found.train // 20).amax((1, 2, 3)).tolist() == [0] * 7 + [2] * 7 + [1] * 14
    assert len({tuple(image.flatten().tolist()) for image in found.train}) > 20
    assert torch.equal(found.train, found.test)
    assert found.classes == ("auxiliary", "primary")
    again, other = (primary_and_auxiliary(IMAGES, (0, 2), (1,), 7, seed=s)[0] for s in (0, 1))
    assert torch.equal(found.train, again.train)
    assert not torch.equal(found.train, other.train)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: primary_and_auxiliary(IMAGES, (1, 1), (0,), 5), "primary: expected two classes, of one there are no"),
        (lambda: primary_and_auxiliary(IMAGES, (1,), (0,), 5), "primary: expected two classes"),
        (lambda: primary_and_auxiliary(IMAGES, (1, 2), (2, 0), 5), r"auxiliary: expected other classes than \[1, 2\]"),
        (lambda: primary_and_auxiliary(IMAGES, (1, 2), (), 5), "auxiliary: expected other classes"),
        (lambda: primary_and_auxiliary(IMAGES, (1, 7), (0,), 5), "primary: expected an integer from 0 to 2, got 7"),
        (lambda: primary_and_auxiliary(IMAGES, (1, 2), (0,), 15), "n: 30 images of class 'a' are needed, there are 20"),
        (lambda: agreement(LABELS % 2, torch.zeros(60).long()), "classes: expected points of two classes, all of"),
        (lambda: agreement(LABELS, LABELS % 2), "found: expected 0 to 1 for 2 clusters, got 0 to 2"),
        (lambda: two_means(torch.ones(4, 4)), "kernel: expected points that differ, all of these are the same"),
        (lambda: two_means(torch.zeros(4, 4)), "kernel: expected points that differ"),
        (lambda: two_means(ROWS[:5]), r"kernel: expected .*"),
        (lambda: two_means(torch.rand(4, 4)), "kernel: expected a symmetric one"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
