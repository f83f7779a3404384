"""Moments: the mean and the standard deviation of each unit, which clamping to means and relative noise need."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nadkit import checks
from nadkit.activations.sites import Site, Sites, as_inputs, capture, evaluating, require_sites
from nadkit.devices import double

__all__ = ["Moments", "require_finite", "unit_moments"]

BATCH = 500
"""Samples per forward pass."""

BLOCK = 2**21
"""Numbers of an activation that are converted to float64 at a time (16 MB)."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of each unit over samples and positions, site by site in ``moments["relu1"]``.

    Attributes:
        sites: of the units.
        mean: (n_units,) float64.
        std: (n_units,) float64, of the population: the root of the mean squared deviation.
    """

    sites: Sites
    mean: Tensor
    std: Tensor

    def __getitem__(self, name: str) -> "Moments":
        return Moments(self.sites[[name]], self.sites.split(self.mean)[name], self.sites.split(self.std)[name])


@checks.typed
@torch.no_grad()
def unit_moments(model: nn.Module, x: Tensor, sites: Sites, *, batch_size: int = BATCH) -> Moments:
    """Return each unit's mean and standard deviation over samples and positions, in one pass and in eval mode.

    The moments of two parts, n and m numbers, are merged as (Chan, Golub and LeVeque 1983)

        mean = mean_n + d m / (n + m),   M2 = M2_n + M2_m + d^2 n m / (n + m),   d = mean_m - mean_n,

    in float64, so that the answer does not depend on the batch size beyond rounding.

    Args:
        model: on any device; the moments stay on the same one.
        x: (N, ...) uint8, scaled to [0, 1] batch by batch, or float.
        sites: of the network (`find_sites`).
        batch_size: samples per forward pass.

    Raises:
        ValueError: no samples, inputs that are not finite, a unit that is NaN or infinite at some sample, sites of
            another network.
    """
    batch_size = checks.require_integer("batch_size", batch_size, 1)
    checks.require_inputs("x", x)
    require_sites(model, sites, as_inputs(model, x[:1]))
    parts: dict[str, tuple[int, Tensor, Tensor]] = {}

    def take_in(site: Site, out: Tensor) -> None:
        rows = site.units_first(out).transpose(0, 1)  # (C, B, positions...)
        for part in rows.split(max(1, BLOCK * out.shape[0] // max(1, out.numel())), dim=1):
            part = double(part).flatten(1)
            mean = part.mean(1)
            new = part.shape[1], mean, (part - mean[:, None]).square().sum(1)
            parts[site.name] = _merged(parts[site.name], new) if site.name in parts else new

    with evaluating(model), capture(model, sites, take_in):
        for batch in x.split(batch_size):
            model(as_inputs(model, batch))
    for name, (_, mean, m2) in parts.items():
        require_finite(name, mean + m2)
    mean = torch.cat([parts[name][1] for name in sites.names])
    std = torch.cat([(parts[name][2] / parts[name][0]).sqrt() for name in sites.names])
    return Moments(sites, mean, std)


def _merged(old: tuple[int, Tensor, Tensor], new: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
    (n, mean, m2), (m, new_mean, new_m2) = old, new
    d = new_mean - mean
    return n + m, mean + d * (m / (n + m)), m2 + new_m2 + d.square() * (n * m / (n + m))


def require_finite(name: str, values: Tensor) -> None:
    """Raise ValueError if any of a site's numbers, one a unit, is NaN or infinite; it says which units."""
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"site {name!r}: the activation of {len(bad)} of its {len(values)} units (the first is number {bad[0]}) is "
            "NaN or infinite; was the training stable, are the inputs finite?"
        )
