"""Where a computation runs."""

import ctypes
import functools
import os
from contextlib import suppress

import torch

# Parameters of glibc's `mallopt`, by its manual page.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE, LARGE_IN_OLD_GLIBC = 2**28, 2**25
"""A freed block of at least so many bytes is given back; some versions of glibc accept at most the second."""


@functools.cache
def keep_freed_memory(device: torch.device) -> None:
    """Let this process, if it computes on the CPU, keep the memory a step frees: the next step needs as much again.

    glibc gives large blocks back to the system, which clears them before it gives them out again. From now on it keeps
    blocks of up to 256 MB, so that the process may stay as large as it was at its peak. Nothing changes if glibc is not
    used, or if the environment has the user's own settings (`MALLOC_...`, `GLIBC_TUNABLES`).
    """
    settings = [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]
    if device.type != "cpu" or settings:
        return
    with suppress(AttributeError, OSError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, LARGE)
        mallopt(M_MMAP_THRESHOLD, LARGE) or mallopt(M_MMAP_THRESHOLD, LARGE_IN_OLD_GLIBC)


def double(t: torch.Tensor) -> torch.Tensor:
    """Return a tensor as float64, on the CPU if it was on MPS, which has no float64."""
    return (t.cpu() if t.device.type == "mps" else t).double()


def pick(device: str | torch.device = "auto") -> torch.device:
    """Return the device of that name; ``"auto"`` is CUDA, else MPS, else the CPU, whichever is there first.

    Raises:
        ValueError: the name is none of auto, cpu, cuda, cuda:0 (or 1, ...) and mps, or this machine lacks the device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {device!r}: expected auto, cpu, cuda, cuda:0 (or 1, ...) or mps")
    absent = (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()) or (
        found.type == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise ValueError(f"device {device!r}: this machine has none; use device='auto' or 'cpu'")
    return found
