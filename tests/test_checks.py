"""The checks of arguments that modules share."""

import re
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from nadkit import checks
from nadkit.architectures import MLP


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
        (lambda: checks.require_integer("k", 4, 1, 3), "k: expected an integer from 1 to 3, got 4"),
        (lambda: checks.require_between("p", 1.5, 0, 1), "p: expected a number from 0 to 1, got 1.5"),
        (lambda: checks.require_finite("x", torch.tensor([1, torch.nan])), "x: expected finite numbers, got NaN"),
        (
            lambda: checks.require_takes("f", len, "a", "b"),
            r"f: expected a function of \(a, b\), got",
        ),
        (lambda: checks.require_numbers("v", ["a"]), r"v: expected numbers, got \('a'\)"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@checks.typed
def drawn(
    n: int, scale: float = 1.0, *, kind: Literal["new", "old"] | None = None, make: Callable[..., nn.Module] = MLP
):
    return n


@pytest.mark.parametrize("arguments", [{"n": np.int64(1)}, {"n": 1, "scale": np.float32(2)}, {"n": 1, "scale": 2}])
def test_numbers_of_other_libraries_are_numbers(arguments):
    assert drawn(**arguments) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": True}, "n: expected an integer, got True"),
        ({"n": 1.0}, "n: expected an integer, got 1.0"),
        ({"n": 1, "scale": "2"}, "scale: expected a number, got '2'"),
        ({"n": 1, "kind": "odl"}, "kind: expected 'new' or 'old' or None, got 'odl'; did you mean 'old'?"),
        ({"n": 1, "make": nn.ReLU()}, "make: expected a factory that makes networks, got a ReLU"),
        ({"n": 1, "make": int}, "make: expected a factory that makes networks, got the class int"),
    ],
)
def test_arguments_are_what_annotations_say(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        drawn(**arguments)


def test_calls_that_python_refuses_are_left_to_it():
    with pytest.raises(TypeError, match=r"drawn\(\) got an unexpected keyword argument 'm'"):
        drawn(1, m=2)
