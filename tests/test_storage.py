"""Digests of tensors; what the files hold is tested with the classes that are saved."""

import hashlib

import pytest
import torch

from nadkit.storage import described, digest


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_digests_of_described_tensors_see_values_shape_and_type(dtype):
    zeros = torch.zeros(2, 3, dtype=dtype)
    ones = torch.ones(2, 3, dtype=dtype)
    others = [zeros.flatten(), zeros.T, zeros.to(torch.float16), zeros[0, 0]]
    assert len({digest("a", *described([t])) for t in (zeros, ones, *others)} | {digest("b", *described([zeros]))}) == 7
    assert digest(ones.T) == digest(ones.T.contiguous())


def test_a_digest_is_the_sha256_of_the_bytes_in_order():
    values = torch.arange(6.0).view(2, 3)
    expected = hashlib.sha256(b"facts" + values.numpy().tobytes()).hexdigest()
    assert digest("facts", values) == expected[:12]
    assert digest("facts", values, digits=16) == expected[:16]
    assert digest(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)) == digest(torch.zeros(120))


def test_a_digest_of_images_with_a_blank_is_that_of_the_records():
    values = torch.arange(4, dtype=torch.uint8)
    expected = hashlib.sha256(b"torch.uint8 (4,)" + values.numpy().tobytes()).hexdigest()[:16]
    assert digest(*described([values], " "), digits=16) == expected
