"""The checks of arguments that modules share."""

import numpy as np
import pytest
import torch

from nadkit import checks


def test_what_is_right_passes():
    assert type(checks.require_integer("n", np.int64(3), 3)) is int
    checks.require_positive("scale", 1e-9)
    checks.require_finite("x", torch.zeros(2, 2, dtype=torch.int64))
    checks.require_one_of("split", "test", ("train", "test"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: checks.require_integer("n", 2, 3), "n: expected an integer, at least 3, got 2"),
        (lambda: checks.require_integer("n", 3.0, 3), "n: expected an integer, at least 3, got 3.0"),
        (lambda: checks.require_positive("scale", 0), "scale: expected a positive finite number, got 0"),
        (lambda: checks.require_positive("scale", float("nan")), "scale: expected a positive finite number, got nan"),
        (lambda: checks.require_finite("x", torch.tensor([1, torch.inf])), "x: expected finite numbers, got NaN"),
        (lambda: checks.require_one_of("split", "tests", ("train", "test")), "split: expected 'train' or 'test', got"),
        (lambda: checks.require_one_of("m", "d", ("a", "b", "c")), "m: expected one of a, b, c, got 'd'"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
