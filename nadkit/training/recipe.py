"""Recipes: how to train, and the two of the NAD paper."""

from dataclasses import dataclass
from typing import Literal

from nadkit import checks

Optimizer = Literal["sgd", "adam"]
Schedule = Literal["linear", "constant"]

STOP_WINDOW = 10
"""Consecutive batches whose mean loss decides when a loss is reached; a single batch's is too noisy."""


@checks.typed
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: by default stochastic gradient descent, learning rate falling linearly to zero with every step.

    Attributes:
        epochs: passes over the training data, at most.
        batch_size: samples per step; the last, smaller batch is used too.
        optimizer: ``"sgd"`` or ``"adam"``, as in `torch.optim`.
        learning_rate: of the first step.
        schedule: of the learning rate, step by step: ``"linear"`` to zero, or ``"constant"``.
        momentum: of ``"sgd"``.
        weight_decay: added to the gradient, times the weight.
        clip: largest norm of a network's whole gradient, or None.
        bf16: compute forward and backward in bfloat16 (weights stay float32).
        stop_at_loss: stop after the epoch in which the mean loss of `STOP_WINDOW` consecutive batches was first at most
            this (`History.steps_to_loss` says when); or None.

    Raises:
        ValueError: a value is out of range, or a name unknown.
    """

    epochs: int = 20
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.5
    schedule: Schedule = "linear"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = 0.5
    bf16: bool = False
    stop_at_loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, checks.require_integer(name, getattr(self, name), 1))
        for name in ("learning_rate", "clip", "stop_at_loss"):
            if (value := getattr(self, name)) is not None:
                checks.require_positive(name, value)
        for name in ("momentum", "weight_decay"):
            checks.require_between(name, getattr(self, name), 0)
        if self.optimizer == "adam" and self.momentum:
            raise ValueError(f"momentum: expected 0 with 'adam', which has moments of its own, got {self.momentum}")

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of ``step`` out of ``total``."""
        return self.learning_rate * (1 - step / total) if self.schedule == "linear" else self.learning_rate


SEPARABLE = Recipe()
"""The recipe of the NAD paper for D(v)."""

CIFAR = Recipe(epochs=50, learning_rate=0.21, momentum=0.9, weight_decay=5e-4, clip=None)
"""The recipe of the NAD paper's poisoning experiment on CIFAR-10."""
