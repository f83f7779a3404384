"""Every random draw has an address: a seed and a path of names and numbers below it.

The same address gives the same numbers whatever was drawn before it, so a run can be split over workers, stopped
and continued, or done in another order, without a change in any result.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from nadkit.checks import require_integer


def derive(seed: int, *path: int | str) -> int:
    """Return the 63-bit seed that belongs to ``path`` below ``seed`` (a hash: neighbouring seeds are unrelated).

    Torch's generator on a CPU takes only the lower 32 bits: among 10,000 networks, two are the same in about one run of
    a hundred.

    Raises:
        ValueError: the seed is negative or not an integer.
    """
    seed = require_integer("seed", seed, 0)
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    # as a spawn key, not as entropy: there, trailing zeros would not count
    sequence = np.random.SeedSequence(seed, spawn_key=words)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *path: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh generator on ``device`` for the draws at ``path`` below ``seed``."""
    return torch.Generator(device=device).manual_seed(derive(seed, *path))


@contextmanager
def seeded(seed: int, *path: int | str, device: str | torch.device = "cpu") -> Iterator[None]:
    """Run a block under torch's global generators seeded for ``path``, and restore them afterwards.

    These are the CPU's and that of ``device``; those of other devices stay untouched. Layers draw their
    initial weights and dropout masks from the global generators only.
    """
    generators = [torch.default_generator, *_default_generators(torch.device(device))]
    states = [g.get_state() for g in generators]
    try:
        for g in generators:
            g.manual_seed(derive(seed, *path))
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)


def _default_generators(device: torch.device) -> list[torch.Generator]:
    """Return the global generator of a CUDA or MPS device; the CPU's is `torch.default_generator`."""
    if device.type == "mps":
        return [torch.mps._get_default_mps_generator()]
    if device.type != "cuda":
        return []
    torch.cuda.init()
    return [torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]]
