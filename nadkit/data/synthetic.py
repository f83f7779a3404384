"""Synthetic data whose only signal lies along one direction, and labels that are partly noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from nadkit import checks, seeds
from nadkit.architectures import Shape
from nadkit.devices import pick
from nadkit.storage import described, digest

SIGMA = {"map": 3.0, "index": 1.0}
"""Noise levels of the paper's experiments: the Fourier map (figure 1) and the accuracy by NAD index."""


@checks.typed
@dataclass(frozen=True, kw_only=True, eq=False)
class Separable:
    """D(v): linearly separable data, x = shift y v + w with y = +-1 and w ~ N(0, sigma^2 (I - v v^T)).

    The text of the paper places the classes at +-epsilon (``convention="paper"``), its code at +-epsilon / 2
    (``convention="code"``); the published accuracies need +-1. The noise has no component along v, so the sign of
    <v, x> is the label.

    Attributes:
        v: (D,) or (C, H, W), the direction, a tensor, array or list; a copy on the CPU is kept, and normalised when
            samples are drawn.
        shape: (C, H, W) of the inputs.
        sigma: standard deviation of the noise in every direction but v.
        epsilon: size of the signal.
        convention: ``"paper"`` (shift = epsilon) or ``"code"`` (shift = epsilon / 2).
        n_train, n_test: numbers of samples.
        seed: of the labels and the noise.

    Source: Ortiz-Jimenez et al. 2020, section 2.

    Raises:
        ValueError: v does not fit the shape, is zero or not finite; sigma, epsilon, a count or the seed is out of
            range.
    """

    v: Tensor | Sequence
    shape: Shape = (1, 32, 32)
    sigma: float = SIGMA["map"]
    epsilon: float = 1.0
    convention: Literal["paper", "code"] = "paper"
    n_train: int = 10_000
    n_test: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        # A copy: pickled on its way to a worker, a row of a basis would take the whole basis along.
        object.__setattr__(self, "v", checks.require_numbers("v", self.v).detach().cpu().clone())
        if self.v.numel() != math.prod(self.shape):
            raise ValueError(
                f"v: expected {math.prod(self.shape)} numbers for inputs of shape {tuple(self.shape)}, "
                f"got shape {tuple(self.v.shape)}"
            )
        if not self.v.double().norm() > 0:
            raise ValueError("v: expected a direction, got the zero vector")
        checks.require_one_of("convention", self.convention, ("paper", "code"))
        checks.require_between("sigma", self.sigma, 0)
        checks.require_positive("epsilon", self.epsilon)
        for name, least in (("n_train", 2), ("n_test", 2), ("seed", 0)):
            object.__setattr__(self, name, checks.require_integer(name, getattr(self, name), least))

    @property
    def shift(self) -> float:
        """Distance of each class from the origin along v."""
        return self.epsilon if self.convention == "paper" else self.epsilon / 2

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return 2

    def checksum(self) -> str:
        """Return 12 hexadecimal digits that differ between problems with another v, size or seed, ..."""
        facts = [(f.name, getattr(self, f.name)) for f in fields(self) if f.name != "v"]
        return digest(repr(facts), *described([self.v.double()]))

    @checks.typed
    def sample(self, split: Literal["train", "test"], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Return inputs (n, C, H, W) float32 and labels (n,) int64, where 1 stands for y = +1 and 0 for y = -1.

        Raises:
            ValueError: an unknown split or device.
        """
        checks.require_one_of("split", split, ("train", "test"))
        device = pick(device)
        n = {"train": self.n_train, "test": self.n_test}[split]
        generator = seeds.generator(self.seed, "separable", split, device=device)
        v = self.v.flatten().double()
        v = (v / v.norm()).float().to(device)
        labels = torch.randint(2, (n,), generator=generator, device=device)
        noise = torch.randn(n, v.numel(), generator=generator, device=device)
        along = self.shift * (2 * labels - 1) - self.sigma * (noise @ v)
        x = noise.mul_(self.sigma).addmm_(along[:, None], v[None, :])
        return x.unflatten(1, self.shape), labels


@checks.typed
def corrupt_labels(labels: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Return labels (N,), same type and device, in which those of a random fraction of the examples are permuted.

    round(fraction N) examples are chosen uniformly, and their labels are permuted uniformly among them. So every class
    keeps its count exactly, and an example may get its own label back: with ten classes of one size, a fraction of 0.2
    changes about 0.18 of the labels. With the same seed, the chosen examples of a smaller fraction are among those of a
    larger one; the labels that they get are drawn anew.

    Raises:
        ValueError: the labels are not a vector of integers, the fraction is outside [0, 1], or the seed is out of
            range.

    Source: Morcos et al. 2018 (partially corrupted labels).
    """
    if labels.ndim != 1:
        raise ValueError(f"labels: expected a vector (N,), got shape {tuple(labels.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels: expected integers, got {labels.dtype}")
    checks.require_between("fraction", fraction, 0, 1)
    n = round(fraction * len(labels))
    examples = torch.randperm(len(labels), generator=seeds.generator(seed, "corruption", "examples"))[:n]
    order = torch.randperm(n, generator=seeds.generator(seed, "corruption", "labels"))
    corrupted = labels.clone()
    corrupted[examples.to(labels.device)] = labels[examples[order].to(labels.device)]
    return corrupted
