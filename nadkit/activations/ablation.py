"""Ablation: what becomes of a network's accuracy when activations are clamped, or drowned in noise.

Units are clamped after their activation function, never by zeroing weights: the layers after a site see, instead of h,

    h + m (v - h),   m in {0, 1}^C the mask of ablated units, v their values: zero, or each unit's mean.

Source: Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of single directions for generalization", ICLR
2018.

How it is fast (`variants`; ``python -m benchmarks.ablation`` measures it beside Captum and plain loops):

- many masks share one pass, in chunks that fit the caches, which starts at the first site that is ablated;
- a single unit changes the next pre-activation by its own weights alone, z + w_c (v_c - h_c), a rank-1 update, or for
  feature maps the convolution of one channel; after the last hidden layer that is the logits already;
- samples on which a unit already has that value (often 0, after a ReLU) are not computed again.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nadkit import checks, seeds
from nadkit.activations.moments import Moments, unit_moments
from nadkit.activations.scores import Answers, Scores, joined, tally
from nadkit.activations.sites import Site, Sites, evaluating
from nadkit.activations.variants import BATCH, Variants
from nadkit.inputs.basis import random_basis
from nadkit.training import Data

__all__ = [
    "ClassImpact",
    "Curve",
    "Impact",
    "NoiseCurve",
    "Scores",
    "area_under_curve",
    "class_impact",
    "cumulative_curve",
    "evaluate_masks",
    "layer_curves",
    "noise_curve",
    "unit_impact",
]

Value = Literal["zero", "mean"]
Basis = Literal["units", "random"]

NOISE = 2**16
"""Random numbers drawn at a time, for one site and a block of samples; the blocks do not depend on the batches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve(Scores):
    """Scores (R, S) of R orderings of the units, with more and more units ablated in S steps.

    Attributes:
        counts: (S,) int64, units ablated, from none to all.
        fraction: (S,) float64, the same from 0 to 1.
    """

    counts: Tensor
    fraction: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Impact(Scores):
    """Scores (n_units,) with each unit ablated alone, the units numbered as in the sites.

    Attributes:
        baseline: the scores with none ablated.
    """

    baseline: Scores


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassImpact:
    """The cost to each class of ablating each unit alone, summed over the images of the class.

    Attributes:
        loss: (n_units, classes) float64, increase of the loss (nats).
        lost: (n_units, classes) float64, right answers lost.
        images: (classes,) int64, how many images there are.
    """

    loss: Tensor
    lost: Tensor
    images: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseCurve(Scores):
    """Scores (R, S) of R draws of noise, each at S scales.

    Attributes:
        scale: (S,) float64.
    """

    scale: Tensor


@checks.typed
def cumulative_curve(
    model: nn.Module,
    data: Data,
    sites: Sites,
    *,
    orderings: int = 10,
    steps: int | Sequence[int] = 20,
    value: Value = "zero",
    moments: Moments | None = None,
    basis: Basis = "units",
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> Curve:
    """Return the scores as units are ablated in random order, cumulatively: at each step, for each of R orderings.

    Args:
        model: any network of logits (B, classes); it stays on its device and in its modes.
        data: what the scores are taken on, (N, ...) inputs as in training and (N,) labels.
        sites: those of the units; ``sites.last(k)`` for the last k layers.
        orderings: random orders R of the units.
        steps: number of equal steps from none to all, or the numbers of units to ablate; none and all are added.
        value: what units are clamped to: ``"zero"``, or ``"mean"``, each unit's own.
        moments: of the training data (`unit_moments`), for ``"mean"``.
        basis: ``"units"``, or ``"random"``: directions q of a random orthonormal basis of each site (a fresh one for
            each ordering), whose coordinates q h are clamped; of feature maps, at each position.
        seed: of the orderings and bases.
        batch_size: samples at a time; by default what the memory allows, at most `BATCH`.
        memory: bytes of the widest activation of a chunk; by default `MEMORY` of the device.
        progress: show a bar that counts samples.

    Raises:
        ValueError: a number is out of range, ``"mean"`` without moments or with those of other sites, and what
            `evaluate_masks` raises.

    Source: Morcos et al. 2018, figure 1 (zero, 10 orderings), figure A1 (mean).
    """
    orderings = checks.require_integer("orderings", orderings, 1)
    evaluate = functools.partial(
        evaluate_masks, model, data, sites, value=value, moments=moments, batch_size=batch_size, memory=memory
    )
    counts = _counts(steps, sites.n_units)
    masks = torch.stack([_cumulative_masks(sites.n_units, counts, seed, r) for r in range(orderings)])
    if basis == "units":
        scores = evaluate(masks.flatten(0, 1), progress=progress)
    else:
        bars = tqdm(range(orderings), unit="ordering", disable=not progress, leave=False)
        scores = joined(evaluate(masks[r], bases=_random_bases(sites, seed, r)) for r in bars)
    curves = scores.each(lambda part: part.unflatten(0, (orderings, len(counts))))
    return Curve(counts=counts, fraction=counts.double() / sites.n_units, **curves)


@checks.typed
def layer_curves(model: nn.Module, data: Data, sites: Sites, **options: object) -> dict[str, Curve]:
    """Return the `cumulative_curve` of each site alone, by the name of the site; the options are the same.

    Raises:
        ValueError: what `cumulative_curve` raises.
    """
    return {site.name: cumulative_curve(model, data, sites[[site.name]], **options) for site in sites}


def _cumulative_masks(n: int, counts: Tensor, seed: int, ordering: int) -> Tensor:
    """Return the masks (S, n) of the first units in a random order of all n: as many as counts (S,) says."""
    order = torch.randperm(n, generator=seeds.generator(seed, "ordering", ordering))
    return order.argsort() < counts[:, None]


@checks.typed
def area_under_curve(
    fraction: Tensor | Sequence[float], accuracy: Tensor | Sequence[float], *, normalised: bool = False
) -> Tensor:
    """Return the area under accuracy (..., S) over the fraction (S,) ablated, by trapezoids: (...) float64.

    ``normalised`` divides by the accuracy with none ablated, the first.

    Raises:
        ValueError: sizes do not match, numbers are not finite, or the fraction does not rise from 0 to 1.
    """
    fraction = checks.require_numbers("fraction", fraction).double()
    accuracy = checks.require_numbers("accuracy", accuracy).double()
    if fraction.ndim != 1 or accuracy.ndim < 1 or accuracy.shape[-1] != len(fraction):
        raise ValueError(
            f"expected fraction (S,) and accuracy (..., S), got {tuple(fraction.shape)} and {tuple(accuracy.shape)}"
        )
    if len(fraction) < 2 or fraction[0] != 0 or fraction[-1] != 1 or (fraction.diff() <= 0).any():
        raise ValueError(f"fraction: expected rising numbers from 0 to 1, got {fraction.tolist()}")
    area = torch.trapezoid(accuracy, fraction)
    return area / accuracy[..., 0] if normalised else area


@checks.typed
@torch.no_grad()
def evaluate_masks(
    model: nn.Module,
    data: Data,
    sites: Sites,
    masks: Tensor,
    *,
    value: Value = "zero",
    moments: Moments | None = None,
    bases: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> Scores:
    """Return the scores (K,) of a network with the units of each mask clamped.

    Args:
        model: any network of logits (B, classes); it stays on its device and in its modes.
        data: what the scores are taken on, inputs (N, ...) as in training and labels (N,).
        sites: of the units.
        masks: (K, n_units) bool, true where a unit is ablated.
        value: what units are clamped to: ``"zero"``, or ``"mean"``, each unit's own.
        moments: of the training data (`unit_moments`), for ``"mean"``.
        bases: by name of site, orthonormal rows (C, C), whose coordinates are clamped instead of units.
        batch_size: samples at a time; by default what the memory allows, at most `BATCH`.
        memory: bytes of the widest activation of a chunk of masks; by default `MEMORY` of the device.
        progress: show a bar that counts samples.

    Raises:
        ValueError: masks of another length, no data, labels without a logit, a network with one logit, NaN
            activations, sites of another network, ``"mean"`` without moments or with those of other sites.
    """
    if masks.dtype != torch.bool or masks.ndim != 2 or masks.shape[1] != sites.n_units or len(masks) == 0:
        raise ValueError(
            f"masks: expected (K, {sites.n_units}) bool, a column for each unit of the sites, got "
            f"{tuple(masks.shape)} {masks.dtype}"
        )
    values = _values(sites, value, moments)
    bases = None if bases is None else {site: _basis(bases, site) for site in sites}
    with evaluating(model):
        variants = Variants(model, data, sites, batch_size=batch_size, memory=memory)
        return _scores(variants, variants.clamped(masks, values, bases, progress), len(masks))


@checks.typed
@torch.no_grad()
def unit_impact(
    model: nn.Module,
    data: Data,
    sites: Sites,
    *,
    value: Value = "zero",
    moments: Moments | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> Impact:
    """Return the scores (n_units,) with each unit of the sites ablated alone, and those of the intact network.

    The arguments, and what is raised, are those of `evaluate_masks`.

    Source: Morcos et al. 2018, figure 7.
    """
    values, n = _values(sites, value, moments), sites.n_units
    with evaluating(model):
        variants = Variants(model, data, sites, batch_size=batch_size, memory=memory)
        scores = _scores(variants, variants.clamped_singly(values, progress), n + 1)
    baseline = Scores(**scores.each(lambda part: part[n]))
    return Impact(baseline=baseline, **scores.each(lambda part: part[:n]))


@checks.typed
def class_impact(model: nn.Module, data: Data, sites: Sites, classes: int, **options: object) -> ClassImpact:
    """Return what ablating each unit alone costs each class; for a class without images the sums are zero.

    The arguments are those of `unit_impact`, with the number of classes.

    Raises:
        ValueError: there are no images, or labels beyond the classes; otherwise as `unit_impact`.

    Source: Zhou, Sun, Bau and Torralba 2018, "Revisiting the importance of individual units in CNNs via ablation".
    """
    x, y = data
    checks.require_samples(x, y)
    checks.require_labels("labels", y, checks.require_integer("classes", classes, 1), "classes")
    images = y.bincount(minlength=classes).cpu()
    loss, lost = torch.zeros(2, sites.n_units, classes, dtype=torch.float64)
    for label in images.nonzero().flatten().tolist():
        of_class = (y == label).nonzero().flatten()
        ablated = unit_impact(model, (x[of_class.to(x.device)], y[of_class]), sites, **options)
        loss[:, label] = images[label] * (ablated.loss - ablated.baseline.loss)
        lost[:, label] = (images[label] * (ablated.baseline.accuracy - ablated.accuracy)).round()
    return ClassImpact(loss=loss, lost=lost, images=images)


@checks.typed
@torch.no_grad()
def noise_curve(
    model: nn.Module,
    data: Data,
    sites: Sites,
    scales: Sequence[float],
    *,
    repeats: int = 10,
    moments: Moments | None = None,
    relative: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> NoiseCurve:
    """Return the scores with Gaussian noise added to every unit of the sites, h + scale std e, e ~ N(0, 1).

    Within a repeat, e is the same at all scales and does not depend on the batches. It is drawn on the network's
    device: another kind of device draws other numbers. In feature maps, each position gets its own noise.

    Args:
        model, data, sites: as in `evaluate_masks`.
        scales: S numbers, at least 0; the paper's run from 10^-1.5 to 10.
        repeats: draws R.
        moments: of the training data (`unit_moments`), to whose standard deviations the noise is relative.
        relative: whether the noise is relative; otherwise std = 1, and moments are not needed.
        seed: of the noise.
        batch_size, memory, progress: as in `evaluate_masks`.

    Raises:
        ValueError: a number is out of range, relative noise without moments or with those of other sites, and what
            `evaluate_masks` raises.

    Source: Morcos et al. 2018, figure 2.
    """
    scale, repeats = _scales(scales), checks.require_integer("repeats", repeats, 1)
    std = {site: torch.ones(site.units) for site in sites}
    if relative:
        std = _per_site(sites, moments, "std", "relative noise")
    with evaluating(model):
        variants = Variants(model, data, sites, batch_size=batch_size, memory=memory)

        def noise(site: Site, r: int, samples: range) -> Tensor:
            return _noise(site, std[site].to(variants.dtype), samples, (seed, "noise", r), variants.device)

        scores = _scores(variants, variants.noisy(scale, repeats, noise, progress), repeats * len(scale))
    return NoiseCurve(scale=scale, **scores.each(lambda part: part.unflatten(0, (repeats, len(scale)))))


def _noise(site: Site, std: Tensor, samples: range, address: tuple[int | str, ...], device: torch.device) -> Tensor:
    """Return noise for these samples of the whole data, (B, C, positions...), drawn block by block."""
    block, draws = max(1, min(BATCH, NOISE // math.prod(site.shape))), []
    for b in range(samples.start // block, -(-samples.stop // block)):
        generator = seeds.generator(*address, site.name, b, device=device)
        draws.append(torch.randn(block, *site.shape, generator=generator, device=device))
    first = samples.start % block
    return torch.cat(draws)[first : first + len(samples)] * std.to(device).view(-1, *[1] * (len(site.shape) - 1))


def _basis(bases: Mapping[str, Tensor], site: Site) -> Tensor:
    """Return a site's basis, having checked that it is one."""
    if site.name not in bases:
        raise ValueError(f"bases: expected one for each site, there is none for {site.name!r}")
    basis, eye = bases[site.name].double(), torch.eye(site.units, dtype=torch.float64)
    if basis.shape != eye.shape or (basis @ basis.T - eye.to(basis.device)).abs().max() > 1e-4:
        raise ValueError(f"bases: expected ({site.units}, {site.units}) orthonormal rows for site {site.name!r}")
    return basis


def _random_bases(sites: Sites, seed: int, ordering: int) -> dict[str, Tensor]:
    address = {site: seeds.derive(seed, "basis", ordering, site.name) for site in sites}
    return {site.name: random_basis((site.units, 1, 1), seed=address[site]).vectors for site in sites}


def _values(sites: Sites, value: Value, moments: Moments | None) -> dict[Site, Tensor]:
    if value == "zero":
        return {site: torch.zeros(site.units) for site in sites}
    return _per_site(sites, moments, "mean", "value='mean'")


def _per_site(sites: Sites, moments: Moments | None, name: str, purpose: str) -> dict[Site, Tensor]:
    """Return a moment of each site's units, float64."""
    if moments is None:
        raise ValueError(
            f"{purpose} needs moments of the training inputs: nadkit.activations.moments.unit_moments(model, x, sites)"
        )
    missing = [site.name for site in sites if site not in moments.sites]
    if missing:
        raise ValueError(f"moments: expected those of {sites.names}, these are of {moments.sites.names}")
    return {site: getattr(moments[site.name], name) for site in sites}


def _counts(steps: int | Sequence[int], n: int) -> Tensor:
    """Return how many of n units to ablate, (S,) int64, from none to all."""
    if not isinstance(steps, Sequence):
        steps = checks.require_integer("steps", steps, 1)
        return torch.linspace(0, n, steps + 1, dtype=torch.float64).round().long().unique()
    counts = [checks.require_integer("steps", count, 0) for count in steps]
    if not counts or max(counts) > n:
        raise ValueError(f"steps: expected numbers of units from 0 to {n}, got {list(steps)}")
    return torch.tensor([0, *counts, n]).unique()


def _scales(scales: Sequence[float]) -> Tensor:
    scales = list(scales.tolist() if isinstance(scales, Tensor) else scales)
    if not scales or not all(isinstance(s, Real) and math.isfinite(s) and s >= 0 for s in scales):
        raise ValueError(f"scales: expected finite numbers, at least 0, got {scales}")
    return torch.tensor(scales, dtype=torch.float64)


def _scores(variants: Variants, answers: Iterator[Answers], count: int) -> Scores:
    """Return the scores (K,) of variants, having checked that they are numbers."""
    scores = tally(answers, count, variants.y, variants.classes, variants.device)
    if nan := int(torch.isnan(scores.loss).sum()):
        unit_moments(variants.model, variants.x, variants.sites)  # names the site, if the network is the cause
        raise ValueError(f"the loss of {nan} of {count} variants is NaN")
    return scores
