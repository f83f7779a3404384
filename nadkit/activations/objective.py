"""The class selectivity index as a term of the training loss, to be rewarded or punished."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nadkit import checks
from nadkit.activations.activity import activity_at, over_positions
from nadkit.activations.axes import LAST
from nadkit.activations.calls import ACTIVATIONS, FUNCTIONS, Place, watched
from nadkit.activations.sites import Sites, capture

__all__ = ["SelectivityObjective"]

NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
"""Activation modules whose output is never negative, as the index needs it."""

NON_NEGATIVE_FUNCTIONS = ("relu", "relu6", "sigmoid", "hardsigmoid", "softplus")
"""The functions that do the same."""

TOKENS = set(LAST.values())
"""The names of functions whose outputs have their units on the last axis, as tokens do."""


@checks.typed
@dataclass(frozen=True)
class SelectivityObjective:
    """A training objective that rewards (alpha > 0) or punishes (alpha < 0) class selectivity.

        loss = cross-entropy - alpha mean_sites mean_units index,
        index = (mu_max - mu_rest) / (mu_max + mu_rest + epsilon)

    as in `class_selectivity`, with means over the samples of a batch and the classes that are in it; a batch of one
    class has index 0. Called as ``objective(model, x, y, epoch)`` it returns the loss and the logits (B, K).

    Attributes:
        alpha: weight of the selectivity.
        sites: whose selectivity counts; by default every use of every activation of the network, module or function,
            units on axis 1.
        epochs: (first, end), the epochs in which it counts, from 0 and without the end; by default all.
        epsilon: keeps units that are silent in a batch at index 0.

    Raises:
        ValueError: alpha or epsilon is not finite, or epsilon not positive; epochs that are not a range; when called
            without sites, a network without activations, with some that may be negative (tanh, GELU), or of tokens.

    Source: Leavitt and Morcos 2020 (arXiv 2003.01262); in some epochs only, Ranadive et al. 2023.
    """

    alpha: float
    sites: Sites | None = None
    epochs: tuple[int, int] | None = None
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        checks.require_finite_number("alpha", self.alpha)
        checks.require_positive("epsilon", self.epsilon)
        if self.epochs is not None and not (len(self.epochs) == 2 and 0 <= self.epochs[0] < self.epochs[1]):
            raise ValueError(f"epochs: expected (first, end) with 0 <= first < end, got {self.epochs}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, inputs (B, ...) and labels (B,), and its logits (B, K)."""
        if self.alpha == 0 or (self.epochs is not None and not self.epochs[0] <= epoch < self.epochs[1]):
            logits = model(x)
            return F.cross_entropy(logits, y), logits
        recording = _every_activation(model) if self.sites is None else capture(model, self.sites, activity_at)
        with recording as averages:
            logits = model(x)
        with torch.autocast(x.device.type, enabled=False):
            found = [self._index(activity, y, logits.shape[1]).mean() for activity in averages.values()]
        return F.cross_entropy(logits, y) - self.alpha * torch.stack(found).mean(), logits

    def _index(self, activity: Tensor, y: Tensor, classes: int) -> Tensor:
        """Return the index of units with activities (B, C), masks in place of branches so that `torch.vmap` works."""
        member = (y[:, None] == torch.arange(classes, device=y.device)).to(activity)
        counts = member.sum(0)
        here = counts > 0
        means = member.T @ activity / counts.clamp(min=1)[:, None]  # (K, C)
        highest = means.masked_fill(~here[:, None], -math.inf).amax(0)
        rest = (means.sum(0) - highest) / (here.sum() - 1).clamp(min=1)
        return (highest - rest) / (highest + rest + self.epsilon) * (here.sum() > 1)


@contextmanager
def _every_activation(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Give the activities (B, C) of every use of every activation in a forward pass, in order.

    As `capture` with sites that need not be found first, which would take forward passes of its own.
    """
    found: dict[int, Tensor] = {}
    modules = dict(model.named_modules())
    tokens = False

    def note(place: Place, _use: int, _inputs: tuple, output: Tensor) -> None:
        nonlocal tokens
        kind = place.function or modules[place.path]
        if place.function in TOKENS:
            tokens = tokens or output.ndim > 2
            return
        if not place.function and not isinstance(kind, ACTIVATIONS):
            return
        if not isinstance(kind, NON_NEGATIVE) and kind not in NON_NEGATIVE_FUNCTIONS:
            name = place.function or type(kind).__name__
            raise ValueError(
                f"the selectivity index is defined for activations that are not negative, but {type(model).__name__} "
                f"has a {name}; give the sites that count"
            )
        if output.ndim > 2 and tokens:
            raise ValueError(
                f"cannot tell units from positions in {type(model).__name__}, whose linear layers work on tokens; give "
                "the sites, find_sites(model, shape)"
            )
        found[len(found)] = over_positions(output)

    with watched(model, note, functions=FUNCTIONS | LAST):
        yield found
    if not found:
        raise ValueError(
            f"no activation in {type(model).__name__}, neither a module nor a function such as torch.relu; give the "
            "sites"
        )
