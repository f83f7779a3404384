"""Fixtures shared by the tests of input directions."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from nadkit.inputs.covariance import PART


@pytest.fixture(scope="module")
def two_processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@pytest.fixture
def small_parts(monkeypatch):
    for method in PART:
        monkeypatch.setitem(PART, method, 2)
