"""Selectivity: how much a unit's activity tells the classes apart, by three measures of an `Activity`.

They are the class selectivity index, the mutual information of activity and class, and the area under the ROC curve.

Sources: Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of single directions for generalization", ICLR
2018, section 2 (index, mutual information); Gale, Martin, Blything, Nguyen and Bowers, "Are there any 'object
detectors' in the hidden layers of CNNs trained to identify objects or scenes?", Vision Research 2020 (why the index is
not enough).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nadkit import checks
from nadkit.activations.activity import Activity, require_every_class

__all__ = ["MutualInformation", "auroc", "class_auroc", "class_selectivity", "mutual_information"]

Bins = Literal["quantile", "width"]


@checks.typed
def class_selectivity(activity: Activity | Tensor) -> Tensor:
    """Return each unit's class selectivity index, (n_units,) float64 from 0 to 1.

        index = (mu_max - mu_rest) / (mu_max + mu_rest)

    with mu_max the largest of the unit's K class means and mu_rest the mean of the other K - 1. It is 0 if all are the
    same, 1 if the unit is active at one class only, and NaN, 0/0, for a dead unit. The index is defined for units whose
    class means are not negative.

    Args:
        activity: or class means (n_units, K).

    Raises:
        ValueError: a negative or NaN class mean; units that may be negative (GELU, tanh) have negative ones, so compare
            them by `auroc` or `mutual_information`. One class only, or a class without samples.

    Source: Morcos et al. 2018, section 2.
    """
    means = activity.class_means if isinstance(activity, Activity) else activity.double()
    if means.ndim != 2 or means.shape[1] < 2:
        raise ValueError(f"expected class means (n_units, K) of at least two classes, got {tuple(means.shape)}")
    if bad := (~(means >= 0)).any(1).sum().item():
        raise ValueError(
            f"the selectivity index is defined for class means that are not negative; {bad} of {len(means)} units have "
            "one that is, or is NaN; use auroc or mutual_information for units that may be negative"
        )
    highest, best = means.max(1)
    rest = means.scatter(1, best[:, None], 0).sum(1) / (means.shape[1] - 1)
    return (highest - rest) / (highest + rest)


@dataclass(frozen=True, eq=False)
class MutualInformation:
    """Mutual information of each unit's binned activity and the class, from N samples; (n_units,) float64, in bits.

    Attributes:
        bits: the plug-in estimate, from 0 to log2 K.
        bias: by how much that is too high on average, to first order in 1 / N (Miller and Madow 1955).
        bins: number of bins requested.
        used: (n_units,) int64, number of bins that hold a sample.
    """

    bits: Tensor
    bias: Tensor
    bins: int
    used: Tensor

    @property
    def corrected(self) -> Tensor:
        """The estimate less its bias; may be negative where there is no information."""
        return self.bits - self.bias


@checks.typed
def mutual_information(activity: Activity, bins: int = 20, *, kind: Bins = "quantile") -> MutualInformation:
    """Return the mutual information of each unit's binned activity B and the class Y, with its bias.

        I = sum_by p(b, y) log2 [p(b, y) / (p(b) p(y))],   bias = (m_by - m_b - m_y + 1) / (2 N ln 2)

    with p the shares of N samples and m the numbers of nonempty cells. A dead or constant unit has 0 bits.

    Each bin is a union of fine bins of `Activity`, so its edges are rounded to theirs. Bins hold equally many samples,
    as far as ties allow (``"quantile"``: bin number floor(bins F), F the share of samples in lower fine bins; a
    frequent zero takes the share of several bins, and the others are left for the rest), or are equally wide from the
    unit's lowest to its highest activity (``"width"``). The estimate is that of the raw activities cut at these edges,
    exactly.

    Args:
        activity: of the units.
        bins: number of bins, from 2 to the activity's resolution.
        kind: ``"quantile"`` or ``"width"``.

    Raises:
        ValueError: a number or kind of bins that is not possible, a class without samples.
    """
    if not 2 <= checks.require_integer("bins", bins, 1) <= max(2, activity.resolution):
        raise ValueError(f"bins: expected 2 to {activity.resolution}, the activity's resolution, got {bins}")
    require_every_class(activity.class_counts)
    n, parts = activity.samples, []
    for units in activity.blocks():
        fine = activity.histograms(units)
        number = _quantiles(fine, bins) if kind == "quantile" else _widths(activity, units, bins)
        coarse = fine.new_zeros(*fine.shape[:2], bins).scatter_add(2, number[:, None].expand_as(fine), fine)
        marginal, classes = coarse.sum(1, keepdim=True), coarse.sum(2, keepdim=True)
        expected = marginal.double() * classes / n
        bits = (coarse * torch.where(coarse > 0, coarse / expected, 1).log2()).sum((1, 2)) / n
        used = (marginal > 0).sum((1, 2))
        cells = (coarse > 0).sum((1, 2)) - used - activity.classes + 1
        parts.append((bits.clamp(min=0), cells.double() / (2 * n * math.log(2)), used))
    bits, bias, used = (torch.cat(part) for part in zip(*parts, strict=True))
    return MutualInformation(bits, bias, bins, used)


def _quantiles(fine: Tensor, bins: int) -> Tensor:
    """Return the number of the bin that each fine bin belongs to, (C, W), in whole numbers."""
    all_classes = fine.sum(1)
    below = all_classes.cumsum(1) - all_classes
    return (bins * below // all_classes.sum(1, keepdim=True)).clamp(max=bins - 1)


def _widths(activity: Activity, units: slice, bins: int) -> Tensor:
    low, high = activity.low[units, None], activity.high[units, None]
    place = (activity.bin_centres(units) - low) / (high - low).where(high > low, 1)
    return (bins * place).floor().long().clamp(0, bins - 1)


@checks.typed
def class_auroc(activity: Activity) -> tuple[Tensor, Tensor]:
    """Return the AUROC of each unit for each class against the rest, and how far binning may have moved it.

        AUROC = P(a > b) + P(a = b) / 2,   a, b: activities at a sample of the class, and at one of another class

    Pairs within one fine bin count a half, as if equal. Pairs at zero are equal. Half the share of the other such pairs
    is the *margin*: the AUROC of the raw activities certainly lies within it.

    Returns:
        The AUROCs and their margins, (n_units, K) float64 each; 1/2 and 0 for a dead unit.

    Raises:
        ValueError: a class without samples.
    """
    require_every_class(activity.class_counts)
    own_total = activity.class_counts[:, None].double()
    pairs = (own_total * (activity.samples - own_total)).squeeze(1)
    values, margins = [], []
    for units in activity.blocks():
        own = activity.histograms(units)
        rest = own.sum(1, keepdim=True) - own
        equal = own * rest
        values.append((own * (2 * rest.cumsum(2) - rest)).sum(2) / (2 * pairs))
        margins.append((equal.sum(2) - equal[:, :, activity.zero]) / (2 * pairs))
    return torch.cat(values), torch.cat(margins)


@checks.typed
def auroc(activity: Activity) -> Tensor:
    """Return each unit's best AUROC of one class against the rest, (n_units,) float64 from 1/2 to 1.

    A unit that is active at a single image has selectivity index 1, but AUROC hardly above 1/2. A dead unit has 1/2.

    Raises:
        ValueError: a class without samples.

    Source: Gale et al. 2020.
    """
    return class_auroc(activity)[0].amax(1)
