"""Selectivity: how much a unit's activity tells the classes apart, by three measures from one pass over the data.

A unit's activity at a sample is its activation, of a feature map the mean over positions. The measures are the class
selectivity index, the mutual information of activity and class, and the area under the ROC curve (AUROC).

Sources: Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of single directions for generalization", ICLR
2018, section 2 (index, mutual information); Gale, Martin, Blything, Nguyen and Bowers, "Are there any 'object
detectors' in the hidden layers of CNNs trained to identify objects or scenes?", Vision Research 2020 (why the index is
not enough); Leavitt and Morcos, "Selectivity considered harmful", ICLR 2021 (training with it).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from nadkit import checks
from nadkit.activations.sites import ACTIVATIONS, BATCH, Site, Sites, capture, evaluating, require_finite, require_sites
from nadkit.data.images import to_float
from nadkit.names import hint

__all__ = [
    "Activity",
    "MutualInformation",
    "SelectivityObjective",
    "activity_of",
    "auroc",
    "class_auroc",
    "class_selectivity",
    "mutual_information",
    "record_activity",
]

Bins = Literal["quantile", "width"]

RESOLUTION = 512
"""Fine bins of the positive activities of a unit, and as many of the negative ones."""

BLOCK = 2**22
"""Counts of the histograms that are looked at at a time (32 MB)."""

NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
"""Activation modules whose output is never negative, as the index needs it."""


@dataclass(eq=False)
class Activity:
    """What is left of the activities of all units after a pass over the data: sums and a fine histogram a class.

    A histogram has a bin for exactly zero and, on either side, H bins [k w, (k + 1) w) of the magnitude. Its width w is
    the smallest power of two for which H w exceeds the largest magnitude seen, so more than half of the bins are in
    use. When the range grows, w doubles and pairs of bins merge exactly: the counts depend neither on the order of the
    samples nor on batches, and take 4 n_units K (H + 1) bytes however many samples there are: with ten classes and the
    default H 5 MB for 256 units, and twice that with negative activities.

    Attributes:
        sites: of the units.
        class_counts: (K,) int64, samples of each class.
        total: (n_units, K) float64, sum of the activities of each class's samples.
        low, high: (n_units,) float64, the smallest and the largest activity.
        resolution: the number H of bins a side, a power of two.
        top: (n_units,) float64, H w, a power of two; 0 where all activities were zero.
        counts: (n_units, K, 1 + H) int32: zero, then the positive bins; (n_units, K, 1 + 2 H), the negative bins, by
            magnitude, behind them, once there was a negative activity.
    """

    sites: Sites
    class_counts: Tensor
    total: Tensor
    low: Tensor
    high: Tensor
    resolution: int
    top: Tensor
    counts: Tensor

    @classmethod
    def empty(
        cls, sites: Sites, classes: int, *, resolution: int = RESOLUTION, device: str | torch.device = "cpu"
    ) -> Self:
        """Return the activity at no samples.

        Raises:
            ValueError: fewer than two classes, or a resolution that is no power of two.
        """
        checks.require_integer("resolution", resolution, 1)
        if resolution & (resolution - 1):
            raise ValueError(f"resolution: expected a power of two, got {resolution}")
        if checks.require_integer("classes", classes, 1) < 2:
            raise ValueError("classes: selectivity compares classes and needs at least 2, got 1")
        units = torch.zeros(sites.n_units, dtype=torch.float64, device=device)
        return cls(
            sites=sites,
            class_counts=torch.zeros(classes, dtype=torch.int64, device=device),
            total=units.new_zeros(sites.n_units, classes),
            low=torch.full_like(units, math.inf),
            high=torch.full_like(units, -math.inf),
            resolution=resolution,
            top=units,
            counts=torch.zeros(sites.n_units, classes, 1 + resolution, dtype=torch.int32, device=device),
        )

    def update(self, values: Tensor, labels: Tensor) -> None:
        """Take in activities (B, n_units) and their labels (B,) int64.

        Raises:
            ValueError: shapes that do not match, a label outside 0 to K - 1, an activity that is NaN or infinite.
        """
        if values.ndim != 2 or values.shape[1] != self.sites.n_units or labels.shape != values.shape[:1]:
            raise ValueError(
                f"expected activities (B, {self.sites.n_units}) and labels (B,), got {tuple(values.shape)} and "
                f"{tuple(labels.shape)}"
            )
        if not len(values):
            return
        _require_labels(labels, self.classes)
        values, labels = values.to(self.total.device).double(), labels.to(self.total.device)
        if not torch.isfinite(values).all():
            for name, part in self.sites.split(values).items():
                require_finite(name, part.abs().amax(0))
        one_hot = F.one_hot(labels, self.classes)
        self.class_counts += one_hot.sum(0)
        self.total += values.T @ one_hot.to(values)
        self.low, self.high = self.low.minimum(values.amin(0)), self.high.maximum(values.amax(0))
        self._widen(values)
        side = self.resolution * (values < 0)
        bins = (values.abs() / self.top.where(self.top > 0, 1) * self.resolution).long()  # exact: powers of two
        bins = torch.where(values == 0, 0, 1 + side + bins)
        units = torch.arange(len(self.top), device=values.device)
        flat = (units * self.classes + labels[:, None]) * self.counts.shape[2] + bins
        self.counts.view(-1).index_add_(0, flat.flatten(), self.counts.new_ones(flat.numel()))

    def _widen(self, values: Tensor) -> None:
        """Make the bins so wide that these activities fit, merging what was counted; add negative bins where needed."""
        h = self.resolution
        if self.counts.shape[2] == 1 + h and (values < 0).any():
            self.counts = F.pad(self.counts, (0, h))
        largest = values.abs().amax(0)
        mantissa = torch.frexp(largest).mantissa  # in [1/2, 1), so that largest / mantissa is a power of two
        top = self.top.maximum(torch.where(largest > 0, largest / mantissa, 0))
        ratio = torch.where(self.top > 0, top / self.top, 1)
        self.top = top
        (grown,) = (ratio > 1).nonzero(as_tuple=True)
        if not len(grown):
            return
        doublings = ratio[grown].log2().round().long().clamp(max=62)
        bins = torch.arange(self.counts.shape[2] - 1, device=top.device)
        target = 1 + bins // h * h + (bins % h >> doublings[:, None])
        target = F.pad(target, (1, 0))[:, None].expand(-1, self.classes, -1)  # zero stays zero
        old = self.counts[grown]
        self.counts[grown] = torch.zeros_like(old).scatter_add(2, target, old)

    def cpu(self) -> "Activity":
        """Return the same activity on the CPU."""
        moved = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return Activity(**moved)

    @property
    def classes(self) -> int:
        """Number K of classes."""
        return len(self.class_counts)

    @property
    def samples(self) -> int:
        """Number N of samples."""
        return int(self.class_counts.sum())

    @property
    def class_means(self) -> Tensor:
        """Mean activity of each unit at each class's samples, (n_units, K) float64.

        Raises:
            ValueError: a class has no samples.
        """
        _require_every_class(self.class_counts)
        return self.total / self.class_counts

    @property
    def mean(self) -> Tensor:
        """Mean activity over all samples, (n_units,) float64."""
        return self.total.sum(1) / self.samples

    @property
    def active(self) -> Tensor:
        """Share of the samples at which a unit's activity is not exactly zero, (n_units,) float64."""
        return 1 - self.counts[:, :, 0].sum(1).double() / self.samples

    @property
    def dead(self) -> Tensor:
        """Say which units are exactly zero at every sample, (n_units,) bool."""
        return self.top == 0

    @property
    def zero(self) -> int:
        """Number of the bin of `histograms` that holds the zeros: H where there are negative activities, else 0."""
        return self.counts.shape[2] - 1 - self.resolution

    def histograms(self, units: slice) -> Tensor:
        """Return some units' counts, (C, K, 1 + 2 H) or (C, K, 1 + H) int64, by ascending activity."""
        counts, h = self.counts[units], self.resolution
        return torch.cat([counts[:, :, 1 + h :].flip(2), counts[:, :, : 1 + h]], dim=2).long()

    def bin_centres(self, units: slice) -> Tensor:
        """Return the middle of each bin of `histograms`, (C, 1 + 2 H) or (C, 1 + H) float64."""
        side = (torch.arange(self.resolution, device=self.top.device, dtype=torch.float64) + 0.5) / self.resolution
        negative = -side.flip(0)[: self.zero]
        return self.top[units, None] * torch.cat([negative, side.new_zeros(1), side])

    def _blocks(self) -> Iterator[slice]:
        """Yield slices of the units, few enough for their histograms to be looked at together."""
        size = max(1, BLOCK // (self.counts.shape[1] * self.counts.shape[2]))
        for start in range(0, len(self.top), size):
            yield slice(start, start + size)


@torch.no_grad()
def record_activity(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    sites: Sites,
    *,
    classes: int | None = None,
    resolution: int = RESOLUTION,
    batch_size: int = BATCH,
    progress: bool = False,
) -> Activity:
    """Return the activity of all units of the sites at all samples, in one pass and in eval mode; it is on the CPU.

    Args:
        model: on any device.
        data: inputs (N, ...), uint8, scaled to [0, 1] batch by batch, or float, and labels (N,) int64.
        sites: of the network (`nadkit.activations.sites.find_sites`).
        classes: number of classes; by default the number of the network's logits.
        resolution: fine bins a side (`Activity`); with 1, only zero and not zero are told apart.
        batch_size: samples per forward pass.
        progress: show a bar that counts batches.

    Raises:
        ValueError: no samples, labels that do not match or are outside, one class only, a class without samples,
            an activity that is NaN or infinite, sites of another network.
    """
    x, y = data
    checks.require_integer("batch_size", batch_size, 1)
    if len(x) != len(y) or len(x) == 0 or y.ndim != 1:
        raise ValueError(f"data: expected one label an input, got {len(x)} inputs and labels of {tuple(y.shape)}")
    device = next((p.device for p in model.parameters()), x.device)
    require_sites(model, sites, to_float(x[:1].to(device)))
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    activity = None
    with evaluating(model), capture(model, sites, _average) as averages:
        for inputs, labels in tqdm(batches, unit="batch", disable=not progress, leave=False):
            logits = model(to_float(inputs.to(device)))
            if activity is None:
                activity = Activity.empty(
                    sites,
                    logits.shape[1] if classes is None else classes,
                    resolution=resolution,
                    device="cpu" if device.type == "mps" else device,  # which has no float64
                )
                _require_labels(y, activity.classes)
                _require_every_class(torch.bincount(y, minlength=activity.classes))
            activity.update(torch.cat([averages[name] for name in sites.names], dim=1), labels)
    return activity.cpu()


def activity_of(
    values: Tensor, labels: Tensor, *, classes: int | None = None, resolution: int = RESOLUTION
) -> Activity:
    """Return the `Activity` of units whose activities (N, C) are given, with labels (N,) int64.

    Raises:
        ValueError: as `record_activity`; by default the classes are 0 to the largest label.
    """
    if values.ndim != 2 or not values.numel():
        raise ValueError(f"expected activities (N, C) of at least one unit and sample, got {tuple(values.shape)}")
    sites = Sites([Site("units", "units", 0, (values.shape[1],))])
    classes = int(labels.max()) + 1 if classes is None else classes
    activity = Activity.empty(sites, classes, resolution=resolution, device=values.device)
    activity.update(values, labels)
    _require_every_class(activity.class_counts)
    return activity


def class_selectivity(activity: Activity | Tensor) -> Tensor:
    """Return each unit's class selectivity index, (n_units,) float64 from 0 to 1.

        index = (mu_max - mu_rest) / (mu_max + mu_rest)

    with mu_max the largest of the unit's K class means and mu_rest the mean of the other K - 1. It is 0 if all are the
    same, 1 if the unit is active at one class only, and NaN, 0/0, for a dead unit. The index is defined for units whose
    class means are not negative.

    Args:
        activity: or class means (n_units, K).

    Raises:
        ValueError: a negative or NaN class mean, which units that may be negative (GELU, tanh) have: compare them by
            `auroc` or `mutual_information`; one class only, or a class without samples.

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
        bins: number of bins that was asked for.
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


def mutual_information(activity: Activity, bins: int = 20, *, kind: Bins = "quantile") -> MutualInformation:
    """Return the mutual information of each unit's binned activity B and the class Y, with its bias.

        I = sum_by p(b, y) log2 [p(b, y) / (p(b) p(y))],   bias = (m_by - m_b - m_y + 1) / (2 N ln 2)

    with p the shares of N samples and m the numbers of cells that hold any. A dead or constant unit has 0 bits.

    The bins are made of whole fine bins of `Activity`, whose edges theirs are rounded to: as many samples in each as
    ties allow (``"quantile"``: bin number floor(bins F), F the share of samples in lower fine bins; zero, if frequent,
    fills several and leaves the others for the rest), or equally wide from the unit's lowest to its highest activity
    (``"width"``). The estimate is that of the raw activities cut at these edges, exactly.

    Args:
        activity: of the units.
        bins: number of bins, from 2 to the activity's resolution.
        kind: ``"quantile"`` or ``"width"``.

    Raises:
        ValueError: a number or kind of bins that is not possible, a class without samples.
    """
    options = get_args(Bins)
    if kind not in options:
        raise ValueError(f"kind: expected {' or '.join(map(repr, options))}, got {kind!r}{hint(str(kind), options)}")
    if not 2 <= checks.require_integer("bins", bins, 1) <= max(2, activity.resolution):
        raise ValueError(f"bins: expected 2 to {activity.resolution}, the activity's resolution, got {bins}")
    _require_every_class(activity.class_counts)
    n, parts = activity.samples, []
    for units in activity._blocks():
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


def class_auroc(activity: Activity) -> tuple[Tensor, Tensor]:
    """Return the AUROC of each unit for each class against the rest, and how far binning may have moved it.

        AUROC = P(a > b) + P(a = b) / 2,   a, b: activities at a sample of the class, and at one of another class

    Pairs within one fine bin count a half, as if equal. Those at zero are equal; the others are half the *margin*,
    which the AUROC of the raw activities is certainly within.

    Returns:
        The AUROCs and their margins, (n_units, K) float64 each; 1/2 and 0 for a dead unit.

    Raises:
        ValueError: a class without samples.
    """
    _require_every_class(activity.class_counts)
    own_total = activity.class_counts[:, None].double()
    pairs = (own_total * (activity.samples - own_total)).squeeze(1)
    values, margins = [], []
    for units in activity._blocks():
        own = activity.histograms(units)
        rest = own.sum(1, keepdim=True) - own
        equal = own * rest
        values.append((own * (2 * rest.cumsum(2) - rest)).sum(2) / (2 * pairs))
        margins.append((equal.sum(2) - equal[:, :, activity.zero]) / (2 * pairs))
    return torch.cat(values), torch.cat(margins)


def auroc(activity: Activity) -> Tensor:
    """Return each unit's best AUROC of one class against the rest, (n_units,) float64 from 1/2 to 1.

    A unit that is active at a single image has selectivity index 1, but AUROC hardly above 1/2. A dead unit has 1/2.

    Raises:
        ValueError: a class without samples.

    Source: Gale et al. 2020.
    """
    return class_auroc(activity)[0].amax(1)


@dataclass(frozen=True)
class SelectivityObjective:
    """A training objective that rewards (alpha > 0) or punishes (alpha < 0) class selectivity.

        loss = cross-entropy - alpha mean_sites mean_units index,
        index = (mu_max - mu_rest) / (mu_max + mu_rest + epsilon)

    as in `class_selectivity`, with means over the samples of a batch and the classes that are in it; a batch of one
    class has index 0. Called as ``objective(model, x, y, epoch)`` it returns the loss and the logits (B, K).

    Attributes:
        alpha: weight of the selectivity.
        sites: whose selectivity counts; by default every use of every activation module of the network, units on
            axis 1.
        epochs: (first, end), the epochs in which it counts, from 0 and without the end; by default all.
        epsilon: keeps units that are silent in a batch at index 0.

    Raises:
        ValueError: alpha or epsilon is not finite, or epsilon not positive; epochs that are no range; when called, a
            network without activation modules, or with some that may be negative (tanh, GELU).

    Source: Leavitt and Morcos 2020 (arXiv 2003.01262); in some epochs only, Ranadive et al. 2023.
    """

    alpha: float
    sites: Sites | None = None
    epochs: tuple[int, int] | None = None
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha: expected a finite number, got {self.alpha}")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"epsilon: expected a positive finite number, got {self.epsilon}")
        if self.epochs is not None and not (len(self.epochs) == 2 and 0 <= self.epochs[0] < self.epochs[1]):
            raise ValueError(f"epochs: expected (first, end) with 0 <= first < end, got {self.epochs}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, inputs (B, ...) and labels (B,), and its logits (B, K)."""
        if self.alpha == 0 or (self.epochs is not None and not self.epochs[0] <= epoch < self.epochs[1]):
            logits = model(x)
            return F.cross_entropy(logits, y), logits
        recording = _every_activation(model) if self.sites is None else capture(model, self.sites, _average)
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


def _average(site: Site, activation: Tensor) -> Tensor:
    """Return the activity (B, C) of an activation of a site."""
    return _over_positions(site.units_first(activation))


def _over_positions(maps: Tensor) -> Tensor:
    """Return the mean (B, C) of (B, C, positions...) over positions, at least in float32, and never the tensor itself.

    The network may change that in place.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32), copy=maps.ndim == 2)
    return maps if maps.ndim == 2 else maps.mean(tuple(range(2, maps.ndim)))


@contextmanager
def _every_activation(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Give the activities (B, C) of every use of every activation module in a forward pass, in order.

    As `capture` with sites that need not be found first, which would take a forward pass of its own.
    """
    found: dict[int, Tensor] = {}
    modules = [module for module in model.modules() if isinstance(module, ACTIVATIONS)]
    if not modules:
        raise ValueError(
            f"no activation module in {type(model).__name__} (functions such as torch.relu leave none); give the sites"
        )
    for module in modules:
        if not isinstance(module, NON_NEGATIVE):
            raise ValueError(
                f"the selectivity index is defined for activations that are not negative, but {type(model).__name__} "
                f"has a {type(module).__name__}; give the sites that count"
            )

    def note(_module: nn.Module, _inputs: tuple, out: Tensor) -> None:
        found[len(found)] = _over_positions(out)

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        yield found
    finally:
        for handle in hooks:
            handle.remove()


def _require_labels(labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64:
        raise ValueError(f"labels: expected torch.int64, got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels: expected 0 to {classes - 1} for {classes} classes, got {low} to {high}")


def _require_every_class(counts: Tensor) -> None:
    if empty := (counts == 0).nonzero().flatten().tolist():
        listed = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise ValueError(
            f"class {listed}: no samples, so no mean activity; use data with samples of each of the {len(counts)} "
            "classes, or number those there are from 0 and say how many with classes=..."
        )
