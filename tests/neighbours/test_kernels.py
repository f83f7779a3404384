"""Kernels against the features that they are of, and determinants worked out on paper."""

import math

import pytest
import torch
from sklearn.decomposition import PCA

from nadkit.neighbours import kernels

ROWS = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KERNEL = ROWS @ ROWS.T
ASYMMETRIC = torch.arange(4.0).view(2, 2)


def test_leading_components_are_principal_components():
    components = torch.from_numpy(PCA(3, svd_solver="full").fit_transform(ROWS.numpy()))
    centred = kernels.centred(KERNEL)
    assert torch.allclose(kernels.leading_components(centred, 3), components @ components.T)
    away = ROWS - ROWS.mean(0)
    assert torch.allclose(kernels.leading_components(centred, 40), away @ away.T)
    assert torch.allclose(kernels.leading_components(-KERNEL, 3), torch.zeros(40, 40).double(), atol=1e-9)


def test_kernel_distance_is_that_of_the_features():
    assert torch.allclose(kernels.kernel_distance(KERNEL), torch.cdist(ROWS, ROWS), atol=1e-6)


def test_normalised_inner_products_are_cosines():
    unit = ROWS / ROWS.norm(dim=1, keepdim=True)
    torch.testing.assert_close(kernels.normalised(KERNEL), unit @ unit.T)


def test_symmetrised_is_the_mean_of_both_ways():
    assert kernels.symmetrised(ASYMMETRIC).tolist() == [[0, 1.5], [1.5, 3]]


def test_the_determinant_of_codes_that_are_coins():
    """K = N / 2 (I + 1 1^T) has the eigenvalue N / 2 (B + 1) once, and N / 2 for the rest."""
    kernel = 50 * (torch.eye(6, dtype=torch.float64) + 1)
    assert kernels.log_determinant(kernel) == pytest.approx(6 * math.log(50) + math.log(7))
    expected = math.log(7) - 6 * math.log(2)
    assert kernels.log_determinant(kernels.normalised(kernel)) == pytest.approx(expected)


def test_a_singular_kernel_has_no_determinant():
    assert kernels.log_determinant(KERNEL) == -math.inf  # 40 points of five numbers


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.log_determinant(torch.ones(2, 3)), r"kernel: expected a square \(N, N\), got \(2, 3\)"),
        (lambda: kernels.log_determinant(ASYMMETRIC), "kernel: expected a symmetric one; symmetrised"),
        (lambda: kernels.normalised(-KERNEL), "kernel: expected a positive diagonal"),
        (lambda: kernels.normalised(ASYMMETRIC), "kernel: expected a symmetric one"),
        (lambda: kernels.leading_components(KERNEL, 41), "k: expected an integer from 1 to 40, got 41"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
