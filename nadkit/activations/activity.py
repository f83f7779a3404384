"""Activity: how strongly units respond to the samples of each class, recorded in one pass over the data.

A unit's activity at a sample is its activation; for a feature map, it is the mean over positions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from nadkit import checks
from nadkit.activations.moments import BATCH, require_finite
from nadkit.activations.scores import require_logits
from nadkit.activations.sites import Site, Sites, as_inputs, capture, evaluating, require_sites

__all__ = ["Activity", "activity_at", "activity_of", "over_positions", "record_activity", "require_every_class"]

RESOLUTION = 512
"""Fine bins of the positive activities of a unit, and as many of the negative ones."""

BLOCK = 2**22
"""Histogram counts that are processed at a time (32 MB)."""


@dataclass(eq=False)
class Activity:
    """A summary of the activities of all units over the data: their sums and a fine histogram for each class.

    A histogram has a bin for exactly zero and, on either side, H bins [k w, (k + 1) w) of the magnitude. Its width w is
    the smallest power of two for which H w exceeds the largest magnitude seen, so more than half of the bins are in
    use. When the range grows, w doubles and pairs of bins merge exactly: the counts depend neither on the order of the
    samples nor on batches, and take 4 n_units K (H + 1) bytes, however many samples there are. With ten classes and the
    default H, that is 5 MB for 256 units, and twice as much with negative activities.

    Attributes:
        sites: of the units.
        class_counts: (K,) int64, samples of each class.
        total: (n_units, K) float64, sum of the activities of each class's samples.
        low, high: (n_units,) float64, the smallest and the largest activity.
        resolution: the number H of bins on each side of zero, a power of two.
        top: (n_units,) float64, H w, a power of two; 0 where all activities were zero.
        counts: (n_units, K, 1 + H) int32: zero, then the positive bins. After the first negative activity, (n_units, K,
            1 + 2 H): the negative bins, by magnitude, follow the positive ones.
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
    @checks.typed
    def empty(
        cls, sites: Sites, classes: int, *, resolution: int = RESOLUTION, device: str | torch.device = "cpu"
    ) -> Self:
        """Return the activity at no samples.

        Raises:
            ValueError: fewer than two classes, or a resolution that is not a power of two.
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

    @checks.typed
    def update(self, values: Tensor, labels: Tensor) -> None:
        """Add activities (B, n_units) with their labels (B,) int64.

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
        require_every_class(self.class_counts)
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

    def blocks(self) -> Iterator[slice]:
        """Yield slices of the units, small enough for their histograms to be processed together."""
        size = max(1, BLOCK // (self.counts.shape[1] * self.counts.shape[2]))
        for start in range(0, len(self.top), size):
            yield slice(start, start + size)


@checks.typed
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
    """Return the activity of all units of the sites at all samples, on the CPU, from one pass in eval mode.

    Args:
        model: on any device.
        data: inputs (N, ...), uint8, scaled to [0, 1] batch by batch, or float, and labels (N,) int64.
        sites: of the network (`find_sites`).
        classes: number of classes; by default the number of the network's logits.
        resolution: fine bins on each side of zero (`Activity`); with 1, only zero and nonzero are told apart.
        batch_size: samples per forward pass.
        progress: show a bar that counts batches.

    Raises:
        ValueError: no samples, inputs that are not finite, labels that do not match or are outside, one class only, a
            class without samples, an activity that is NaN or infinite, sites of another network.
    """
    x, y = data
    batch_size = checks.require_integer("batch_size", batch_size, 1)
    checks.require_samples(x, y)
    first = as_inputs(model, x[:1])
    device = first.device
    require_sites(model, sites, first)
    batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
    activity = None
    with evaluating(model), capture(model, sites, activity_at) as averages:
        for inputs, labels in tqdm(batches, unit="batch", disable=not progress, leave=False):
            logits = model(as_inputs(model, inputs))
            if activity is None:
                activity = Activity.empty(
                    sites,
                    require_logits(logits) if classes is None else classes,
                    resolution=resolution,
                    device="cpu" if device.type == "mps" else device,  # MPS has no float64
                )
                _require_labels(y, activity.classes)
                require_every_class(torch.bincount(y, minlength=activity.classes))
            activity.update(torch.cat([averages[name] for name in sites.names], dim=1), labels)
    return activity.cpu()


@checks.typed
def activity_of(
    values: Tensor, labels: Tensor, *, classes: int | None = None, resolution: int = RESOLUTION
) -> Activity:
    """Return the `Activity` of units whose activities (N, C) are given, with labels (N,) int64.

    Raises:
        ValueError: as `record_activity`; by default the classes are 0 to the largest label.
    """
    checks.require_axes("values", values, "(N, C)")
    checks.require_label_each(values, labels, "values")
    sites = Sites([Site("units", "units", 0, (values.shape[1],))])
    classes = int(labels.max()) + 1 if classes is None else classes
    activity = Activity.empty(sites, classes, resolution=resolution, device=values.device)
    activity.update(values, labels)
    require_every_class(activity.class_counts)
    return activity


def activity_at(site: Site, activation: Tensor) -> Tensor:
    """Return the activity (B, C) of an activation of a site."""
    return over_positions(site.units_first(activation))


def over_positions(maps: Tensor) -> Tensor:
    """Return the mean (B, C) of (B, C, positions...) over positions, at least in float32, always as a new tensor.

    The network may change the given tensor in place.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32), copy=maps.ndim == 2)
    return maps if maps.ndim == 2 else maps.mean(tuple(range(2, maps.ndim)))


def require_every_class(counts: Tensor) -> None:
    """Raise ValueError if a class has no samples; ``counts`` (K,) says how many each has."""
    if empty := (counts == 0).nonzero().flatten().tolist():
        listed = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        raise ValueError(
            f"class {listed}: no samples, so no mean activity; use data with samples of each of the {len(counts)} "
            "classes, or number those there are from 0 and say how many with classes=..."
        )


def _require_labels(labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64:
        raise ValueError(f"labels: expected torch.int64, got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels: expected 0 to {classes - 1} for {classes} classes, got {low} to {high}")
