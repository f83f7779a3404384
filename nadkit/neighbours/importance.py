"""Importance: what a unit's removal would change in the loss, measured, and estimated from one backward pass.

A *gate* z = 1 multiplies a unit (all positions of a feature map alike). Closing it, z = 0, ablates the unit. The
*oracle* does that, unit by unit; the Taylor scores expand the loss in z around 1 instead. With l_b the loss of sample
b, L = mean l_b that of a mini-batch, h the unit's activation,

    g_b = d l_b / dz = sum over positions of h dl_b/dh,    g = dL/dz = mean of g_b,    H = d^2 L / dz^2,

a first-order guess of the loss change is -g, a second-order one -g + H / 2.

Source: Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019, and
the authors' code; `CRITERIA` gives its numbers of the methods. The formulas are theirs, the code is not.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from nadkit import checks, seeds
from nadkit.activations.ablation import unit_impact
from nadkit.activations.scores import require_logits
from nadkit.activations.sites import Site, Sites, as_inputs, capture, evaluating, replaced, require_sites
from nadkit.names import hint
from nadkit.neighbours.wiring import find_wires
from nadkit.training import Data

__all__ = [
    "CRITERIA",
    "WHILE_TRAINING",
    "Batch",
    "Criterion",
    "Oracle",
    "Weights",
    "criteria_for",
    "oracle",
    "unit_scores",
]

BATCH = 128
"""Samples of a mini-batch: the scores depend on it, as squares are taken of its means."""

EPSILON = 1e-8

TOGETHER = 32
"""Gates whose second derivatives take one batched backward pass: three times as fast on a CPU as one by one."""


# ---- the oracle ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Oracle:
    """By how much the loss grows with each unit ablated alone, in nats; on the CPU, float64.

    Attributes:
        changes: (mini-batches, n_units), of the mean loss of each mini-batch; negative where the ablation helps.
        samples: (mini-batches,), how many each has.
    """

    changes: Tensor
    samples: Tensor

    @property
    def change(self) -> Tensor:
        """(n_units,) of the mean loss of all samples."""
        return _mean(self.changes, self.samples)

    @property
    def absolute(self) -> Tensor:
        """(n_units,) mean over mini-batches of |change|: the oracle of the authors' code."""
        return _mean(self.changes.abs(), self.samples)

    @property
    def squared(self) -> Tensor:
        """(n_units,) square of the change for all samples: the paper's importance, equation (1)."""
        return self.change.square()


@checks.typed
def oracle(model: nn.Module, data: Data, sites: Sites, *, batch_size: int = BATCH, memory: int | None = None) -> Oracle:
    """Return by how much the loss of each mini-batch grows with each unit clamped to zero alone.

    It is `nadkit.activations.ablation.unit_impact`, mini-batch by mini-batch.

    Args:
        model: any network of logits (B, classes), in eval mode while it runs.
        data: inputs (N, ...) as in training, and labels (N,) int64.
        sites: of the gates.
        batch_size: samples of a mini-batch; the last may be smaller.
        memory: as `unit_impact` takes it.

    Raises:
        ValueError: what `unit_impact` raises.
    """
    batch_size = checks.require_integer("batch_size", batch_size, 1)
    x, y = data
    checks.require_samples(x, y)
    changes = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        impact = unit_impact(model, (x[part], y[part]), sites, memory=memory)
        changes.append(impact.loss - impact.baseline.loss)
    samples = torch.tensor([len(part) for part in y.split(batch_size)], dtype=torch.float64)
    return Oracle(torch.stack(changes), samples)


def _mean(values: Tensor, samples: Tensor) -> Tensor:
    """Return the mean over mini-batches, by their samples."""
    return samples @ values / samples.sum()


# ---- what a mini-batch tells -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """The weights that make a site's units, row c for unit c; their gradients are those of the mini-batch's mean loss.

    Attributes:
        weight: (C, ...) of the layer.
        scale: (C,) of the batch normalisation after it, or None.
        weight_gradient, scale_gradient: of the same size, None if no criterion needs them.
    """

    weight: Tensor
    scale: Tensor | None = None
    weight_gradient: Tensor | None = None
    scale_gradient: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """What a mini-batch of B samples tells about all units; scores are computed from it.

    Attributes:
        sites: of the units.
        gates: (B, n_units), g_b.
        outputs: (n_units,), mean over samples and positions of |h dl_b/dh|.
        curvature: (n_units,), H, None if no criterion needs it.
        weights: by site, empty if no criterion needs them.
        generator: of random scores.
    """

    sites: Sites
    gates: Tensor
    outputs: Tensor
    curvature: Tensor | None = None
    weights: Mapping[str, Weights] = field(default_factory=dict)
    generator: torch.Generator | None = None

    def each(self, score: Callable[[Weights], Tensor]) -> Tensor:
        """Return a function's values (C,) of each site's weights, joined for all units, (n_units,)."""
        return torch.cat([score(self.weights[name]) for name in self.sites.names])


@dataclass(frozen=True)
class Criterion:
    """How a unit is scored.

    Attributes:
        score: of a mini-batch, (n_units,); the scores of several mini-batches are averaged.
        method: its number in the authors' code, None for what the code does not have.
        needs: what it looks at, of "weights", "gradients" (of the weights), "norms" and "curvature".
    """

    score: Callable[[Batch], Tensor]
    method: int | None
    needs: frozenset[str] = frozenset()


def _rows(values: Tensor) -> Tensor:
    """Return the sum of each row, (C, ...) -> (C,)."""
    return values.flatten(1).sum(1)


def _normalised(batch: Batch) -> Tensor:
    parts = batch.sites.split(batch.outputs).values()
    return torch.cat([part / (part.norm() + EPSILON) for part in parts])


def _random(batch: Batch) -> Tensor:
    return torch.rand(batch.sites.n_units, generator=batch.generator).to(batch.gates.device)


def _of(*needs: str) -> frozenset[str]:
    return frozenset(needs)


CRITERIA: dict[str, Criterion] = {
    "Taylor": Criterion(lambda b: b.gates.mean(0).square(), 22),
    "Taylor, each sample": Criterion(lambda b: b.gates.square().mean(0), 23),
    "Taylor, 2nd order": Criterion(lambda b: (b.curvature / 2 - b.gates.mean(0)).square(), 11, _of("curvature")),
    "Taylor, output": Criterion(_normalised, 6),
    "Taylor, weights": Criterion(
        lambda b: b.each(lambda w: _rows((w.weight * w.weight_gradient).square())), 0, _of("weights", "gradients")
    ),
    "Taylor, weights, sum first": Criterion(
        lambda b: b.each(lambda w: _rows(w.weight * w.weight_gradient).square()), None, _of("weights", "gradients")
    ),
    "Taylor, BN scale": Criterion(
        lambda b: b.each(lambda w: (w.scale * w.scale_gradient).square()), 31, _of("weights", "norms", "gradients")
    ),
    "OBD": Criterion(lambda b: b.curvature, 10, _of("curvature")),
    "weight norm": Criterion(lambda b: b.each(lambda w: _rows(w.weight.square())), 2, _of("weights")),
    "weight size": Criterion(lambda b: b.each(lambda w: _rows(w.weight.abs())), 3, _of("weights")),
    "BN scale": Criterion(lambda b: b.each(lambda w: w.scale.abs()), 30, _of("weights", "norms")),
    "random": Criterion(_random, 1),
}
"""The criteria of the authors' code, and the paper's other sum over a filter's weights, by name.

With w a unit's incoming weights (a row of the layer that makes it, without bias), gamma its scale in the batch
normalisation after it, primes for derivatives of the mini-batch's mean loss L:

=========================== ====== =====================================================================================
name                        method score, of a mini-batch
=========================== ====== =====================================================================================
Taylor                      22     g^2: the gate's first-order score
Taylor, each sample         23     mean of g_b^2: the same for each sample ("FG", full gradient)
Taylor, 2nd order           11     (H / 2 - g)^2
Taylor, output              6      mean of |h dl_b/dh| over samples and positions, over its norm in the layer
Taylor, weights             0      sum of (w w')^2
Taylor, weights, sum first         (sum of w w')^2
Taylor, BN scale            31     (gamma gamma')^2
OBD                         10     H: optimal brain damage, at a gate of 1, with its sign
weight norm                 2      sum of w^2
weight size                 3      sum of |w|
BN scale                    30     |gamma|
random                      1      uniform
=========================== ====== =====================================================================================
"""

GATES_ALONE = tuple(name for name, criterion in CRITERIA.items() if not criterion.needs)
"""Criteria that look only at gates: any network has them."""

WHILE_TRAINING = tuple(name for name, c in CRITERIA.items() if not c.needs & {"gradients", "curvature"})
"""Criteria that a training step provides, without a backward pass of their own."""

Layers = Mapping[str, tuple[nn.Module, nn.Module | None]]
"""By name of site, the layer that makes its units and the batch normalisation after it."""


# ---- scores ----------------------------------------------------------------------------------------------------------


@checks.typed
def unit_scores(
    model: nn.Module,
    data: Data,
    sites: Sites,
    criteria: Sequence[str] = GATES_ALONE,
    *,
    batch_size: int = BATCH,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Return the scores of all units by name of criterion, (n_units,) float64 on the CPU: high for important units.

    They are means over mini-batches, by their samples. Units are scored in eval mode, with the cross-entropy as the
    loss. With ``batch_size=len(data[0])``, ``"Taylor"`` is the square of the full gradient, which vanishes where
    training has converged: squares should be taken before the mean.

    Args:
        model: any network of logits (B, classes); it stays on its device and in its modes.
        data: inputs (N, ...) as in training, and labels (N,) int64.
        sites: of the gates (`find_sites`).
        criteria: of `CRITERIA`; `criteria_for` says which a network has. By default those that any network has. The two
            that need the curvature take a backward pass for each unit and mini-batch.
        batch_size: samples of a mini-batch; the last may be smaller.
        seed: of random scores.
        progress: show a bar that counts samples.

    Raises:
        ValueError: an unknown criterion; one that needs weights where no single layer makes the units, or batch
            normalisation where there is none; no data, labels without a logit; sites of another network.

    Source: Molchanov et al. 2019, section 3.
    """
    batch_size = checks.require_integer("batch_size", batch_size, 1)
    names = require_criteria("criteria", criteria)
    x, y = data
    checks.require_samples(x, y)
    first = as_inputs(model, x[:1])
    require_sites(model, sites, first)
    with evaluating(model), torch.no_grad():
        checks.require_labels("labels", y, require_logits(model(first)))
    layers, needs = layers_for(model, sites, names), frozenset().union(*(CRITERIA[name].needs for name in names))
    generator = seeds.generator(seed, "scores")
    totals = {name: torch.zeros(sites.n_units, dtype=torch.float64) for name in names}
    with evaluating(model), torch.enable_grad(), tqdm(total=len(x), disable=not progress, leave=False) as bar:
        for inputs, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            inputs = as_inputs(model, inputs)
            batch = _look(model, inputs, labels.to(inputs.device), sites, layers, needs, generator)
            for name, total in totals.items():
                total += len(labels) / len(x) * CRITERIA[name].score(batch).detach().cpu().double()
            bar.update(len(labels))
    return totals


@checks.typed
def criteria_for(model: nn.Module, sites: Sites) -> list[str]:
    """Return the names of the criteria that a network has the layers for, in the order of `CRITERIA`.

    Raises:
        ValueError: sites of another network.
    """
    with capture(model, sites):  # refuses sites that are not there
        pass
    try:
        layers = layers_of(model, sites)
    except ValueError:
        return [name for name, criterion in CRITERIA.items() if "weights" not in criterion.needs]
    normed = all(norm is not None and norm.weight is not None for _, norm in layers.values())
    return [name for name, criterion in CRITERIA.items() if normed or "norms" not in criterion.needs]


def require_criteria(name: str, criteria: Sequence[str], known: Sequence[str] = tuple(CRITERIA)) -> list[str]:
    """Return names of criteria as a list; raise ValueError if one is unknown."""
    names = checks.require_all(name, criteria, str)
    for one in names:
        if one not in known:
            raise ValueError(f"{name}: expected some of {', '.join(known)}, got {one!r}{hint(one, known)}")
    return names


def layers_for(model: nn.Module, sites: Sites, names: Sequence[str]) -> Layers:
    """Return the layers that criteria look at, none if they look at none; raise ValueError if there are none."""
    if not any("weights" in CRITERIA[name].needs for name in names):
        return {}
    layers = layers_of(model, sites)
    for name, (site, (layer, norm)) in itertools.product(names, layers.items()):
        needs = CRITERIA[name].needs
        if "norms" in needs and (norm is None or norm.weight is None):
            raise ValueError(f"criterion {name!r}: there is no batch normalisation with a scale before site {site!r}")
        if "gradients" in needs and not layer.weight.requires_grad:
            raise ValueError(f"criterion {name!r}: the weights before site {site!r} do not require a gradient")
    return layers


def layers_of(model: nn.Module, sites: Sites) -> dict[str, tuple[nn.Module, nn.Module | None]]:
    """Return the layer that makes the units of each site, and the batch normalisation after it."""
    modules = dict(model.named_modules())
    return {
        name: (modules[wires.layer], modules[wires.norms[-1]] if wires.norms else None)
        for name, wires in find_wires(model, sites, readers=False).items()
    }


def tell(
    sites: Sites,
    activations: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    layers: Layers,
    *,
    curvature: Tensor | None = None,
    of_weights: Mapping[nn.Parameter, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Batch:
    """Return what a mini-batch tells about all units.

    Args:
        sites: of the units.
        activations: (B, ...) by site.
        gradients: of the mean loss in them, as large.
        layers: whose weights are looked at, by site.
        curvature: (n_units,) of the mean loss.
        of_weights: gradients of the mean loss, by weight.
        generator: of random scores.
    """
    gates, outputs = [], []
    for site in sites:
        h, slope = activations[site.name], gradients[site.name]
        number = torch.promote_types(h.dtype, torch.float32)  # in bfloat16, the products would have two digits
        product = site.units_first(h.to(number) * slope.to(number))
        # of a sample's own loss, not of its share of the mean; (B, C, positions)
        product = len(product) * product.reshape(len(product), site.units, -1)
        gates.append(product.sum(2))
        outputs.append(product.abs().mean((0, 2)))
    found, weights = of_weights or {}, {}
    for name, (layer, norm) in layers.items():
        scale = None if norm is None else norm.weight
        weights[name] = Weights(layer.weight, scale, found.get(layer.weight), found.get(scale))
    return Batch(sites, torch.cat(gates, 1), torch.cat(outputs), curvature, weights, generator)


def _look(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    sites: Sites,
    layers: Layers,
    needs: frozenset[str],
    generator: torch.Generator,
) -> Batch:
    """Run a network on a mini-batch, forth and back."""
    seen: dict[str, Tensor] = {}

    def keep(site: Site, h: Tensor) -> Tensor:
        seen[site.name] = h if h.requires_grad else h.detach().requires_grad_()
        return seen[site.name].clone()  # later layers may work in place

    with replaced(model, {site: functools.partial(keep, site) for site in sites}):
        loss = F.cross_entropy(model(x.clone()), y)
    weights = []
    if "gradients" in needs:
        parts = (part.weight for pair in layers.values() for part in pair if part is not None)
        weights = [weight for weight in parts if weight is not None and weight.requires_grad]
    found = _slopes(loss, [*seen.values(), *weights])
    gradients = dict(zip(seen, found, strict=False))
    return tell(
        sites,
        seen,
        gradients,
        layers,
        curvature=_curvature(model, x, y, sites) if "curvature" in needs else None,
        of_weights=dict(zip(weights, found[len(seen) :], strict=True)),
        generator=generator,
    )


def _curvature(model: nn.Module, x: Tensor, y: Tensor, sites: Sites) -> Tensor:
    """Return d^2 L / dz^2 of each unit's gate, (n_units,): the diagonal of the Hessian, a backward pass for each."""
    like = next(model.parameters(), x)
    gates = {site: torch.ones(site.units, device=x.device, dtype=like.dtype, requires_grad=True) for site in sites}
    with replaced(model, {site: functools.partial(_gated, site, z) for site, z in gates.items()}):
        loss = F.cross_entropy(model(x.clone()), y)
    slopes = _slopes(loss, list(gates.values()), create_graph=True)
    return torch.cat([_diagonal(slope, z) for slope, z in zip(slopes, gates.values(), strict=True)]).detach()


def _slopes(loss: Tensor, inputs: list[Tensor], *, create_graph: bool = False) -> list[Tensor]:
    """Return the gradients of a loss; zeros where nothing leads from an input to the loss."""
    found = torch.autograd.grad(loss, inputs, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _diagonal(slope: Tensor, z: Tensor) -> Tensor:
    """Return d slope_i / dz_i, (C,), of slopes (C,) in gates (C,)."""
    if not slope.requires_grad:  # the loss is linear in the gates
        return torch.zeros_like(z)
    rows = torch.eye(len(z), dtype=z.dtype, device=z.device).split(TOGETHER)
    differentiate = functools.partial(torch.autograd.grad, slope, z, retain_graph=True)
    try:
        found = [differentiate(part, is_grads_batched=True)[0] for part in rows]
    except RuntimeError:  # a step of the network that torch cannot batch
        found = [differentiate(row)[0][None] for part in rows for row in part]
    return torch.cat(found).diagonal()


def _gated(site: Site, z: Tensor, h: Tensor) -> Tensor:
    return h * site.spread(z)
