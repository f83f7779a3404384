"""What `devices` does to the memory of a process."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from nadkit.architectures import build
from nadkit.data.synthetic import Separable
from nadkit.inputs.covariance import gradient_covariance
from nadkit.training import Recipe, fit, fit_many

ONE = Recipe(epochs=1)
FAULTS = """
import resource, torch
from nadkit.devices import keep_freed_memory
keep_freed_memory(torch.device("cpu"))
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(30):
    if i == 10:
        before = pages()
    blocks = [torch.empty(size, dtype=torch.uint8).fill_(1) for size in (4_000_000, 16_000_000)]
    del blocks
print(pages() - before)
"""


def faults(**settings: str) -> int:
    """How many pages a process asks the system for in twenty steps that each use 20 MB anew."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    return int(subprocess.run(command, env=usual | settings, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_kept_unless_the_user_has_settings():
    pages = 20 * 20e6 / os.sysconf("SC_PAGESIZE")
    assert faults() < 0.01 * pages
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") > 0.1 * pages


@pytest.mark.parametrize(
    "work",
    [
        lambda problem: fit(
            build("logreg", shape=problem.shape, classes=2), *map(problem.sample, ("train", "test")), ONE
        ),
        lambda problem: fit_many("logreg", [problem] * 2, ONE, strategy="vmap", device="cpu"),
        lambda problem: gradient_covariance("logreg", shape=problem.shape, networks=range(2), device="cpu"),
    ],
    ids=["fit", "fit_stack", "gradient_covariance"],
)
def test_what_takes_long_keeps_its_memory(work, monkeypatch):
    told = []
    for module in ("training.fitting", "training.stack", "inputs.covariance"):
        monkeypatch.setattr(f"nadkit.{module}.keep_freed_memory", told.append)
    work(Separable(v=torch.eye(64)[0], shape=(1, 8, 8), n_train=8, n_test=8))
    assert set(told) == {torch.device("cpu")}
