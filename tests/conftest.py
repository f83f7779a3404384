"""What every test gets."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_draws():
    """A test that draws without a seed draws the same numbers every time, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
