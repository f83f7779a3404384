"""Scores: how well variants of a network do, counted from their answers batch by batch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

Answers = tuple[Tensor, Tensor, Tensor]
"""The indices (K,) of some variants, their logits (K, B, classes) for a batch of samples, and the labels (B,).

Logits (1, B, classes) count for all K."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How well a network does, clamped in one way or in several; on the CPU, float64.

    Attributes:
        accuracy: (...), from 0 to 1.
        loss: (...), mean cross-entropy in nats.
        class_accuracy: (..., classes), on the samples of each class alone; NaN for a class without samples.
    """

    accuracy: Tensor
    loss: Tensor
    class_accuracy: Tensor

    def each(self, function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return a function's values for accuracy, loss and class accuracy, by name."""
        return {field.name: function(getattr(self, field.name)) for field in fields(Scores)}


def require_logits(output: object) -> int:
    """Return the number of logits of a network, at least two.

    Raises:
        ValueError: the output is not (B, classes); the message says how to make a network return its logits alone.
    """
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:
        return output.shape[1]
    expected = "expected a network with logits (B, classes) of at least two classes"
    if isinstance(output, Tensor):
        raise ValueError(f"{expected}, got shape {tuple(output.shape)}")
    raise ValueError(
        f"{expected}, got {type(output).__name__}; let it return its logits alone, for instance by a hook: "
        f"model.register_forward_hook(lambda module, inputs, output: output{_where_logits(output)})"
    )


def _where_logits(output: object) -> str:
    """Return how to get at the first (B, classes) in an output of several parts."""
    if isinstance(output, Mapping):
        parts = {f"[{key!r}]": part for key, part in output.items()}
    elif isinstance(output, list | tuple) and not hasattr(output, "_fields"):
        parts = {f"[{i}]": part for i, part in enumerate(output)}
    else:
        names = getattr(output, "_fields", None) or getattr(output, "__dict__", {})
        parts = {f".{name}": getattr(output, name) for name in names}
    return next((where for where, part in parts.items() if isinstance(part, Tensor) and part.ndim == 2), ".logits")


def joined(parts: Iterable[Scores]) -> Scores:
    """Return scores (K,), (L,), ... one after the other, (K + L + ...,)."""
    parts = list(parts)
    return Scores(**{field.name: torch.cat([getattr(p, field.name) for p in parts]) for field in fields(Scores)})


def tally(answers: Iterable[Answers], count: int, labels: Tensor, classes: int, device: torch.device) -> Scores:
    """Return the scores (K,) of ``count`` variants from their answers to all samples, whose labels are (N,).

    Losses are summed in float64 and right answers are whole numbers: the order of adding up does not matter.
    """
    sums = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    loss = torch.zeros(count, dtype=torch.float64, device=sums)
    right = torch.zeros(count, classes, dtype=torch.int64, device=device)
    for which, logits, y in answers:
        hits = (logits.argmax(-1) == y).float() @ F.one_hot(y, classes).float()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # with samples innermost, several times as fast on a CPU
        logits, y = logits.transpose(1, 2).contiguous(), y.expand(len(logits), -1)
        loss[which.to(sums)] += F.cross_entropy(logits, y, reduction="none").to(sums).double().sum(1)
        right[which.to(device)] += hits.long()
    loss, right = loss.cpu() / len(labels), right.cpu().double()
    samples = torch.bincount(labels, minlength=classes).cpu()
    return Scores(accuracy=right.sum(1) / len(labels), loss=loss, class_accuracy=right / samples)
