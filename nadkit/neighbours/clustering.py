"""Clusters from similarities: kernel k-means with two means, and images of two classes hidden behind one label.

Axis letters: N points.

Source: He and Su, "The local elasticity of neural networks", ICLR 2020, section on clustering, and their code.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nadkit import checks, seeds
from nadkit.data.images import ImageSet
from nadkit.neighbours.kernels import as_kernel, centred

__all__ = ["agreement", "primary_and_auxiliary", "two_means"]

ROUNDING = 1e-13
"""Squared distances below this share of a kernel's largest entry, before it is centred, are zero."""


@checks.typed
def primary_and_auxiliary(
    images: ImageSet, primary: Sequence[int], auxiliary: Sequence[int], n: int, *, seed: int = 0
) -> tuple[ImageSet, Tensor]:
    """Return images of a two-class problem that hides two classes behind one label, and what it hides.

    n images of each of the two primary classes are labelled 1, and 2 n of the auxiliary ones 0. Only training images
    are used, so that the set is trained and tested on the same ones.

    Args:
        images: any set.
        primary: the two classes that are to be told apart.
        auxiliary: one class or more that they are trained against, in equal parts.
        n: images of each primary class.
        seed: of the choice of images.

    Returns:
        The set, primary images first, and their classes (2 n,) int64, 0 or 1.

    Raises:
        ValueError: one primary class only, or a class on both sides, unknown, or with too few images.

    Source: He and Su 2020, section on clustering (n = 500; for example, 5 and 8 against 3 and 9).
    """
    checks.require_integer("n", n, 1)
    primary, auxiliary = (
        [checks.require_integer(name, label, 0, images.n_classes - 1) for label in labels]
        for name, labels in {"primary": primary, "auxiliary": auxiliary}.items()
    )
    if len(primary) != 2 or primary[0] == primary[1]:
        raise ValueError(f"primary: expected two classes, of one there are no two clusters, got {primary}")
    if not auxiliary or {*auxiliary} & {*primary} or len({*auxiliary}) < len(auxiliary):
        raise ValueError(f"auxiliary: expected other classes than {primary}, each once, got {auxiliary}")
    shares = [2 * n // len(auxiliary) + (place < 2 * n % len(auxiliary)) for place in range(len(auxiliary))]
    chosen = []
    for label, wanted in zip([*primary, *auxiliary], [n, n, *shares], strict=True):
        found = (images.train_labels == label).nonzero().flatten()
        if len(found) < wanted:
            raise ValueError(
                f"n: {wanted} images of class {images.classes[label]!r} are needed, there are {len(found)}; take "
                "fewer, or more auxiliary classes"
            )
        order = torch.randperm(len(found), generator=seeds.generator(seed, "elasticity", label))
        chosen.append(found[order[:wanted].to(found.device)])
    index = torch.cat(chosen)
    labels = (torch.arange(len(index), device=index.device) < 2 * n).long()
    told = f"{images.source}; {primary[0]} and {primary[1]} against {', '.join(map(str, auxiliary))} (seed {seed})"
    split = {"train": images.train[index], "train_labels": labels, "test": images.train[index], "test_labels": labels}
    hidden = torch.arange(2).repeat_interleave(n)
    return replace(images, **split, classes=("auxiliary", "primary"), source=told), hidden


@checks.typed
def two_means(kernel: Tensor, *, seed: int = 0, restarts: int = 10, steps: int = 100) -> Tensor:
    """Return two clusters of N points by kernel k-means: (N,) int64, 0 or 1.

    Points go to the nearer of two means in the feature space of the kernel, and the means to their points, until
    nothing moves:

        |phi(x_i) - mean_c|^2 = K_ii - 2 mean_{j in c} K_ij + mean_{j, l in c} K_jl

    Of several starts (two points, the second drawn with probability proportional to its squared distance from the
    first) the one with the smallest sum of squares is kept. With ``rows @ rows.T`` this is k-means on rows.

    Args:
        kernel: (N, N), symmetric.
        seed: of the starts.
        restarts: number of starts.
        steps: moves of the means, at most; with a kernel with negative eigenvalues they may never come to rest.

    Raises:
        ValueError: the kernel is not symmetric, all points are the same, a number is out of range.
    """
    largest = max(as_kernel(kernel).abs().max(), torch.finfo(torch.float64).tiny)
    kernel = centred(kernel)  # this changes no distance, and keeps the digits of a kernel far from the origin
    checks.require_integer("restarts", restarts, 1)
    checks.require_integer("steps", steps, 1)
    square = (kernel.diagonal()[:, None] + kernel.diagonal() - 2 * kernel).clamp(min=0)
    if not square.max() > ROUNDING * largest:
        raise ValueError("kernel: expected points that differ, all of these are the same: there are no two clusters")
    best, least = None, math.inf
    for start in range(restarts):
        labels = _moved_until_rest(kernel, square, seeds.generator(seed, "two means", start), steps)
        member = _members(labels)
        error = (kernel.diagonal().sum() - (member.T @ kernel @ member / member.sum(0)).diagonal().sum()).item()
        if error < least:
            best, least = labels, error
    return best


def _moved_until_rest(kernel: Tensor, square: Tensor, generator: torch.Generator, steps: int) -> Tensor:
    first = torch.multinomial((square.sum(1) > 0).double(), 1, generator=generator).item()
    second = torch.multinomial(square[first], 1, generator=generator).item()
    labels = (square[:, second] < square[:, first]).long()
    for _ in range(steps):
        means = _members(labels) / _members(labels).sum(0)
        own = (means.T @ kernel @ means).diagonal()
        moved = (own - 2 * kernel @ means).argmin(1)
        if moved.equal(labels) or len(moved.unique()) < 2:
            break
        labels = moved
    return labels


def _members(labels: Tensor) -> Tensor:
    return nn.functional.one_hot(labels, 2).double()


@checks.typed
def agreement(found: Tensor, classes: Tensor) -> float:
    """Return the share of N points whose cluster is their class, under the better of the two ways to match them.

    Clusters have no names, so 0.5 is chance and also the minimum.

    Args:
        found: (N,) int64, clusters 0 and 1.
        classes: (N,) int64, the classes, 0 and 1.

    Raises:
        ValueError: other labels than 0 and 1, or points of one class only.
    """
    checks.require_label_each(found, classes, "found and classes", "classes")
    checks.require_label_each(classes, found, "found and classes", "found")
    for name, labels in {"found": found, "classes": classes}.items():
        checks.require_labels(name, labels, 2, "clusters")
    if len(classes.unique()) < 2:
        raise ValueError("classes: expected points of two classes, all of these are of one: nothing to find again")
    same = (found.cpu() == classes.cpu()).double().mean().item()
    return max(same, 1 - same)
