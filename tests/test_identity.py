"""What results are known by: functions by what they do, networks by what they answer."""

import functools
import math
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from nadkit import identity
from nadkit.identity import TOLERANCE, code, differences, outputs

SHAPE = (1, 4, 4)


def defined(source: str, name: str = "f") -> types.FunctionType:
    """A function as a module of its own defines it."""
    names = {"__name__": "mine"}
    exec(source, names)
    return names[name]


BASE = """
WEIGHT, KINDS = 2, {"a": 1}
def helper(x): return x + 1
def f(x, y=3):
    def inner(z): return helper(z) * WEIGHT
    return inner(x) if x in {"a", "b", "c"} else f(y)
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("def f(x, y=3)", "def f(x, y=4)", False),
        ("x + 1", "x + 2", False),
        ("WEIGHT, KINDS = 2", "WEIGHT, KINDS = 2.5", False),
        ("helper(z) * WEIGHT", "helper(z) + WEIGHT", False),
        ('"b", "c"}', '"b", "d"}', False),
        ("f(y)", "helper(y)", False),
        ("def helper(x)", "# words\ndef helper(x)", True),
        ("return inner(x)", "\n    return inner(x)", True),
        ("KINDS", "OTHERS", True),  # which nothing uses
    ],
)
def test_a_function_is_known_by_what_it_does(old, new, same):
    assert old in BASE
    assert (code(defined(BASE)) == code(defined(BASE.replace(old, new)))) is same


class Scaled:
    def __init__(self, scale, inside=None):
        self.scale, self.inside = scale, inside

    def __call__(self, x):
        return self.scale * x

    def other(self, x):
        return x


class Shifted(Scaled):
    def __call__(self, x):
        return self.scale + x


def closure(value):
    return lambda x: x * value


def test_options_closures_and_attributes_count():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(2, 2) for _ in range(2)]
    big = torch.zeros(5000)
    different = [
        closure(1),
        closure(2),
        closure(big),
        closure(big.index_fill(0, torch.tensor([2500]), 1)),
        functools.partial(closure, 1),
        functools.partial(closure, 2),
        functools.partial(closure, value=2),
        Scaled(1),
        Scaled(2),
        Shifted(1),
        Scaled(1, inside=closure(1)),
        Scaled(1, inside=closure(2)),
        Scaled(1).other,
        Scaled(2).other,
        *layers,
        torch.relu,
        torch.tanh,
        nn.functional.relu,
    ]
    assert len({code(f) for f in different}) == len(different)
    assert code(closure(big)) == code(closure(big.clone()))
    assert code(Scaled(1, closure(1))) == code(Scaled(1, closure(1)))
    assert code(functools.partial(closure, a=1, b=2)) == code(functools.partial(closure, b=2, a=1))
    endless = Scaled(1)
    endless.inside = [endless]
    assert code(endless) != code(Scaled(1))


def test_code_is_the_same_in_every_process():
    """Which the order of a set and the address of an object are not."""
    script = "from test_identity import *; print(code(defined(BASE)), code(Scaled(1, closure(1))))"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=__file__.rpartition("/")[0],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {f"{code(defined(BASE))} {code(Scaled(1, closure(1)))}"}


def network(activation):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), activation, nn.Dropout(), nn.Linear(8, 3))


def test_networks_are_known_by_their_outputs():
    state = torch.get_rng_state()
    relu = outputs(network(nn.ReLU()), SHAPE)
    assert torch.equal(state, torch.get_rng_state())
    assert relu == outputs(network(nn.ReLU()), SHAPE)
    assert [len(row) for row in relu] == [identity.INPUTS] * 3
    for other in (nn.ReLU6(), nn.LeakyReLU(), nn.LeakyReLU(0.001), nn.GELU(), nn.Identity()):
        assert "outputs differ by" in differences({"outputs": relu}, {"outputs": outputs(network(other), SHAPE)})
    in_double = outputs(nn.Sequential(Double(), network(nn.ReLU()).double()), SHAPE)
    assert differences({"outputs": relu}, {"outputs": in_double}) == ""


class Double(nn.Module):
    def forward(self, x):
        return x.double()


@pytest.mark.parametrize("name", ["densenet121", "vit", "resnet18-blur"])
def test_outputs_are_the_same_with_other_threads(name):
    from nadkit.inputs.population import Population

    threads, population = torch.get_num_threads(), Population(name)
    try:
        found = []
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(population.settings())
    finally:
        torch.set_num_threads(threads)
    assert differences(*found) == ""


NAN = math.nan


@pytest.mark.parametrize(
    ("saved", "now", "told"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": 1}, {"a": 2}, "a was 1, now 2"),
        ({"a": 1}, {}, "a was 1, now None"),
        ({"r": [[1.0, 100.0]]}, {"r": [[1.0 + 90 * TOLERANCE, 100.0]]}, ""),
        ({"r": [[1.0, 100.0]]}, {"r": [[1.0 + 110 * TOLERANCE, 100.0]]}, "r differ by 0.00011 of the largest"),
        ({"r": [[1.0], [100.0]]}, {"r": [[1.5], [100.0]]}, "r differ by 0.33 of the largest"),
        ({"r": [[0.0]]}, {"r": [[0.0]]}, ""),
        ({"r": [[NAN, 1.0]]}, {"r": [[NAN, 1.0]]}, ""),
        ({"r": [[NAN, 1.0]]}, {"r": [[1.0, 1.0]]}, "r differ"),
        ({"r": [[1.0]]}, {"r": [[1.0, 2.0]]}, "r differ"),
        ({}, {"r": [[1.0]]}, "r were not noted by the older version that wrote it"),
        (dict.fromkeys("abcde", 1), {}, "a was 1, now None, b was 1, now None, c was 1, now None and 2 more"),
    ],
)
def test_differences_are_told(saved, now, told):
    assert differences(saved, now) == told
