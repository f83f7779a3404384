"""Every random draw has an address: a seed and a path of names and numbers below it.

The same address gives the same numbers whatever was drawn before it, so a run can be split over workers, stopped
and continued, or done in another order, without a change in any result.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """Return the 63-bit seed that belongs to ``path`` below ``seed`` (a hash: neighbouring seeds are unrelated)."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    # as a spawn key, not as entropy: there, trailing zeros would not count
    sequence = np.random.SeedSequence(seed, spawn_key=words)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *path: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh generator on ``device`` for the draws at ``path`` below ``seed``."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))


@contextmanager
def seeded(seed: int, *path: int | str, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block under torch's global generators seeded for ``path``, and give them back as they were.

    Layers draw their initial weights and dropout masks from the global generators only.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, *path))
        yield
