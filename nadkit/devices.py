"""Where a computation runs."""

import torch


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
