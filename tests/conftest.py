"""What every test gets."""

import gc
import signal

import pytest
import torch

from nadkit.book import kernel

# As in every run: see there.
gc.set_threshold(*kernel.SELDOM)
# A shell that starts the tests in the background lets them ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Let no search for garbage look again at what the tests imported."""
    gc.freeze()


@pytest.fixture(autouse=True)
def same_draws():
    """A test that draws without a seed draws the same numbers every time, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
