"""Pruning: units removed step by step while a network trains, then taken out of its weights for real.

While it trains, a pruned unit is clamped to zero: the network is neither smaller nor faster. `remove_units` then drops
the rows and columns of weights that only served such units. What is left computes the same logits.

Source: Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019. The
authors' code zeroes units and goes no further.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nadkit import checks, seeds
from nadkit.activations.sites import Site, Sites, as_inputs, evaluating, replaced, require_sites
from nadkit.architectures.chain import Chain, scaled
from nadkit.neighbours.importance import CRITERIA, WHILE_TRAINING, layers_for, require_criteria, tell
from nadkit.neighbours.wiring import Wires, find_wires
from nadkit.training import Data, History, Recipe, cross_entropy, fit

__all__ = ["Cost", "LeNet252", "Pruned", "Schedule", "cost", "prune_while_training", "remove_units", "seconds"]


# ---- the network of the authors' experiment --------------------------------------------------------------------------


@checks.typed
class LeNet252(Chain):
    """The LeNet of the pruning experiments: 16 + 32 feature maps and 120 + 84 hidden units make 252 gates.

    A chain of two 5x5 convolutions without padding, each with ReLU and 2x2 max pooling, two hidden linear layers with
    ReLU, and the logits: the modules ``conv1``, ``conv2``, ``fc3``, ``fc4``, each with ``norm{i}`` (with batch norm),
    ``relu{i}`` and, for the convolutions, ``pool{i}`` after it; then ``out``. The gates stand after the sites `GATES`.
    With 1 x 28 x 28 inputs and ten classes it has 85,822 weights.

    Args:
        width: factor on the numbers of units; they are rounded, to one at least.
        batch_norm: whether batch normalisation stands before each ReLU; our option, the authors' LeNet has none.

    Raises:
        ValueError: the image is smaller than 16x16.

    Source: the authors' code, which has it for MNIST and CIFAR-10.
    """

    GATES = ("pool1", "pool2", "relu3", "relu4")

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: checks.Count,
        *,
        width: float = 1.0,
        batch_norm: bool = False,
    ) -> None:
        channels, *size = shape
        if min(size) < 16:
            raise ValueError(f"LeNet252: expected images of at least 16x16, got {size[0]}x{size[1]}")
        *maps, first, second = scaled((16, 32, 120, 84), width)
        layers: dict[str, nn.Module] = {}
        for i, units in enumerate(maps, start=1):
            layers[f"conv{i}"] = nn.Conv2d(channels, units, 5)
            if batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm2d(units)
            layers |= {f"relu{i}": nn.ReLU(), f"pool{i}": nn.MaxPool2d(2)}
            channels, size = units, [(n - 4) // 2 for n in size]
        layers["flatten"] = nn.Flatten()
        features = channels * size[0] * size[1]
        for i, units in enumerate((first, second), start=3):
            layers[f"fc{i}"] = nn.Linear(features, units)
            if batch_norm:
                layers[f"norm{i}"] = nn.BatchNorm1d(units)
            layers[f"relu{i}"] = nn.ReLU()
            features = units
        layers["out"] = nn.Linear(features, classes)
        super().__init__(layers)


# ---- while training --------------------------------------------------------------------------------------------------


@checks.typed
@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which units to prune when, while a network trains.

    Scores are averaged over ``every`` mini-batches, then the lowest ``units`` of all sites together are pruned, and so
    on until ``total`` are. The authors' schedule for ResNet-50, which has about 11,000 gates: 100 units every 30
    mini-batches, 3,200 in all, with momentum 0.9.

    Attributes:
        total: units to prune.
        units: to prune at a time.
        every: mini-batches between two times.
        momentum: weight of the earlier scores in a running average, 0 for none.

    Raises:
        ValueError: a number is out of range.
    """

    total: int
    units: int
    every: int = 30
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("total", "units", "every"):
            checks.require_integer(name, getattr(self, name), 1)
        checks.require_between("momentum", self.momentum, 0, 1)

    @property
    def counts(self) -> list[int]:
        """Units pruned after each time."""
        return [*range(self.units, self.total, self.units), self.total]


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning while training did.

    Attributes:
        masks: (S, n_units) bool, the units pruned so far at each stage, from none to all that the schedule prunes.
        found: what ``look`` returned at each stage, just before more units were pruned; at the last, after training.
        history: of the training. Its test results are those of the network with its units clamped.
    """

    masks: Tensor
    found: list
    history: History


@checks.typed
def prune_while_training(
    model: nn.Module,
    train: Data,
    test: Data,
    sites: Sites,
    schedule: Schedule,
    recipe: Recipe,
    *,
    criterion: str = "Taylor",
    look: Callable | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: bool = False,
) -> Pruned:
    """Train a network in place and prune its units by a schedule: they are clamped to zero and never come back.

    The scores are those of `importance.unit_scores`, but on the mini-batches that the network trains on and in training
    mode. One unit of each site always stays, so that `remove_units` can take out the others; the authors' code has no
    such rule.

    Args:
        model: any network of logits (B, classes).
        train, test, recipe, device, progress: as `nadkit.training.fit` takes them.
        sites: of the gates.
        schedule: has to fit into the steps of the recipe.
        criterion: one that a training step provides, `importance.WHILE_TRAINING`.
        look: called with the network, in eval mode and with its pruned units clamped, before each time of pruning and
            after training.
        seed: of the order of the samples, and of random scores.

    Raises:
        ValueError: another criterion, more units than may be pruned, a schedule longer than the training, and what
            `fit` and `importance.unit_scores` raise.
        Diverged: the loss became NaN or infinite.

    Source: Molchanov et al. 2019, section 4.1 and the authors' code.
    """
    require_criteria("criterion", [criterion], WHILE_TRAINING)
    checks.require_samples(*train, "train data", "train labels")
    if look is not None:
        checks.require_takes("look", look, "network")
    most = sites.n_units - len(sites)
    if schedule.total > most:
        raise ValueError(
            f"schedule: expected at most {most} units, so that each of {len(sites)} sites keeps one, got "
            f"{schedule.total}"
        )
    steps = recipe.epochs * -(-len(train[0]) // recipe.batch_size)
    times = len(schedule.counts)
    if (needed := schedule.every * times) >= steps:
        raise ValueError(
            f"schedule: expected a recipe of more than {needed} mini-batches, {times} times {schedule.every}, got one "
            f"of {steps}; train for more epochs, or prune more units at a time"
        )
    require_sites(model, sites, as_inputs(model, train[0][:1]))
    pruning = _Pruning(model, sites, schedule, criterion, look, seeds.generator(seed, "scores"))
    with replaced(model, {site: pruning.gate(site) for site in sites}):
        history = fit(
            model,
            train,
            test,
            recipe,
            objective=pruning.objective,
            seed=seed,
            device=device,
            evaluate_every=recipe.epochs,
            progress=progress,
        )
        pruning.note()
    return Pruned(torch.stack(pruning.masks), pruning.found, history)


@dataclass(eq=False)
class _Pruning:
    """The state of a pruning: it stands between a network and its training, as gates and as the objective."""

    model: nn.Module
    sites: Sites
    schedule: Schedule
    criterion: str
    look: Callable | None
    generator: torch.Generator
    masks: list[Tensor] = field(default_factory=list)
    found: list = field(default_factory=list)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = layers_for(self.model, self.sites, [self.criterion])
        self.pruned = torch.zeros(self.sites.n_units, dtype=torch.bool)
        self.sums, self.average, self.steps = torch.zeros(self.sites.n_units, dtype=torch.float64), None, 0

    def gate(self, site: Site) -> Callable[[Tensor], Tensor]:
        """Return what clamps a site's pruned units, and keeps its activation in training."""

        def gated(h: Tensor) -> Tensor:
            keep = ~self.sites.split(self.pruned)[site.name]
            h = h * site.spread(keep.to(h.device, h.dtype))
            if not (self.model.training and h.requires_grad):
                return h
            h.retain_grad()
            self.seen[site.name] = h
            return h.clone()  # later layers may work in place

        return gated

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits, having taken in the gradients of the step before."""
        self.take_in()
        self.seen.clear()
        return cross_entropy(model, x, y, epoch)

    @torch.no_grad()
    def take_in(self) -> None:
        """Score the last mini-batch, and prune if it is time to."""
        counts = self.schedule.counts
        if not self.seen or len(self.masks) == len(counts):
            return
        gradients = {name: h.grad for name, h in self.seen.items()}
        batch = tell(self.sites, self.seen, gradients, self.layers, generator=self.generator)
        self.sums += CRITERIA[self.criterion].score(batch).cpu().double()
        self.steps += 1
        if self.steps % self.schedule.every:
            return
        scores, self.sums = self.sums / self.schedule.every, torch.zeros_like(self.sums)
        old = scores if self.average is None else self.average
        self.average = self.schedule.momentum * old + (1 - self.schedule.momentum) * scores
        self.note()
        self.pruned = lowest(self.sites, self.average, self.pruned, counts[len(self.masks) - 1])

    def note(self) -> None:
        """Keep the units pruned so far, and what there is to see."""
        self.masks.append(self.pruned)
        with evaluating(self.model):
            self.found.append(None if self.look is None else self.look(self.model))


def lowest(sites: Sites, scores: Tensor, pruned: Tensor, count: int) -> Tensor:
    """Return the mask (n_units,) of ``count`` units: those pruned already and then the lowest, one a site excepted."""
    best = [
        start + part.masked_fill(gone, -torch.inf).argmax() for start, part, gone in _by_site(sites, scores, pruned)
    ]
    order = scores.masked_fill(pruned, -torch.inf)
    order[torch.stack(best)] = torch.inf
    mask = torch.zeros_like(pruned)
    mask[order.argsort(stable=True)[:count]] = True
    return mask


def _by_site(sites: Sites, scores: Tensor, pruned: Tensor) -> zip:
    return zip(sites.offsets, sites.split(scores).values(), sites.split(pruned).values(), strict=False)


# ---- for real --------------------------------------------------------------------------------------------------------


@checks.typed
@torch.no_grad()
def remove_units(model: nn.Module, sites: Sites, mask: Tensor, x: Tensor) -> nn.Module:
    """Return a copy of a network without these units: smaller, and with the logits of the one that clamps them to zero.

    A unit's row goes out of the weights of the layer that makes it, its entries out of batch normalisations, and its
    columns out of the layers that read it. That is exact if those layers read zero there; this is checked on x, and so
    are the logits.

    Args:
        model: any network that `torch.fx` can trace.
        sites: of the units. Each has to lie between layers with weights, with nothing between them but operations that
            treat each unit alone, and flattening: units of a residual stream cannot be removed, those inside its blocks
            can.
        mask: (n_units,) bool, true where a unit goes.
        x: (B, ...) some inputs.

    Raises:
        ValueError: a mask of another length, or one that leaves a site no unit; units that cannot be removed, and why.
    """
    if mask.shape != (sites.n_units,) or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected ({sites.n_units},) bool, a unit each, got {tuple(mask.shape)} {mask.dtype}")
    checks.require_inputs("x", x)
    x = as_inputs(model, x)
    require_sites(model, sites, x)
    keep = {name: ~part.cpu() for name, part in sites.split(mask).items()}
    if empty := [name for name, part in keep.items() if not part.any()]:
        raise ValueError(f"mask: expected to leave a unit at each site, site {empty[0]!r} would have none")
    wires = find_wires(model, sites)
    rows, columns = _kept(dict(model.named_modules()), [(wires[name], part) for name, part in keep.items()])
    clamped = _clamped(model, sites, keep, x, columns)
    smaller = copy.deepcopy(model)
    modules = dict(smaller.named_modules())
    for path, part in rows.items():
        _cut(modules[path], 0, part)
    for path, part in columns.items():
        _cut(modules[path], 1, part)
    if any(map(_is_channels_last, model.parameters())):
        smaller.to(memory_format=torch.channels_last)  # otherwise it may be the slower one of the two
    try:
        with evaluating(smaller):
            logits = smaller(x.clone())
    except Exception as error:
        raise ValueError(
            f"units cannot be removed, as the network's own code counts on their number: {error}"
        ) from error
    off, scale = (logits - clamped).abs().max().item(), clamped.abs().max().item()
    if not off <= 1e4 * torch.finfo(logits.dtype).eps * max(scale, 1):
        raise ValueError(f"units cannot be removed: the logits change by {off:.2g}")
    return smaller


def _kept(
    modules: Mapping[str, nn.Module], keep: list[tuple[Wires, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return which rows and columns stay in the weights of which modules, from what stays at the ends of the wires."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for wires, part in keep:
        for path in (wires.layer, *wires.norms):
            module = modules[path]
            of_module = part.repeat_interleave(getattr(module, "num_features", len(part)) // len(part))
            rows[path] = rows.get(path, True) & of_module
        for path in wires.readers:
            features = modules[path].weight.shape[1]
            part_in = part.repeat_interleave(features // len(part))  # a flattened map lies in one run
            columns[path] = columns.get(path, True) & part_in
    return rows, columns


def _clamped(
    model: nn.Module, sites: Sites, keep: Mapping[str, Tensor], x: Tensor, columns: Mapping[str, Tensor]
) -> Tensor:
    """Return the logits with units clamped to zero, having checked that their readers see zeros."""
    modules = dict(model.named_modules())

    def see(path: str, inputs: tuple) -> None:
        read = inputs[0].transpose(0, 1)[~columns[path].to(x.device)]
        if read.numel() and read.abs().max() > 0:
            raise ValueError(
                f"units cannot be removed: clamped to zero, they are not zero where {path!r} reads them (is there a "
                "batch normalisation or a sigmoid between?)"
            )

    def gated(site: Site) -> Callable[[Tensor], Tensor]:
        return lambda h: h * site.spread(keep[site.name].to(h.device, h.dtype))

    hooks = [
        modules[path].register_forward_pre_hook(lambda _, inputs, path=path: see(path, inputs)) for path in columns
    ]
    try:
        with evaluating(model), replaced(model, {site: gated(site) for site in sites}):
            return model(x.clone())
    finally:
        for hook in hooks:
            hook.remove()


def _cut(module: nn.Module, axis: int, keep: Tensor) -> None:
    """Keep these rows (axis 0) or columns (axis 1) of a module's weights, and what counts or goes with them."""
    for name in ("weight",) if axis else ("weight", "bias"):
        if (values := getattr(module, name)) is not None:
            part = values.detach().index_select(axis, keep.nonzero().flatten().to(values.device))
            setattr(module, name, nn.Parameter(part, requires_grad=values.requires_grad))
    for name in ("running_mean", "running_var"):
        if (values := getattr(module, name, None)) is not None:
            setattr(module, name, values[keep.to(values.device)])
    sizes = {0: ("num_features", "out_features", "out_channels"), 1: ("in_features", "in_channels")}
    for name in sizes[axis]:
        if hasattr(module, name):
            setattr(module, name, int(keep.sum()))


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: how many numbers are trained.
        bytes: of parameters and buffers.
        flops: floating-point operations for one sample, a multiplication and an addition being two. Convolutions and
            matrix products are counted, elementwise operations are not.
    """

    parameters: int
    bytes: int
    flops: int


@checks.typed
@torch.no_grad()
def cost(model: nn.Module, x: Tensor) -> Cost:
    """Return what a network costs for one of the inputs (B, ...), counted by `torch.utils.flop_counter`.

    Raises:
        ValueError: no inputs, or not those of the network.
    """
    checks.require_inputs("x", x)
    counter = FlopCounterMode(display=False)
    with evaluating(model), counter:
        try:
            model(as_inputs(model, x[:1]))
        except Exception as error:
            raise ValueError(f"the network does not take inputs x of shape {tuple(x[:1].shape)}: {error}") from error
    tensors = [*model.parameters(), *model.buffers()]
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
        flops=counter.get_total_flops(),
    )


@checks.typed
@torch.no_grad()
def seconds(models: Mapping[str, nn.Module], x: Tensor, *, repeats: int = 10) -> dict[str, float]:
    """Return the seconds that each network takes for all of the inputs (B, ...): the fastest of some passes, in turns.

    Raises:
        ValueError: no networks, no inputs, or fewer than one pass.
    """
    checks.require_integer("repeats", repeats, 1)
    checks.require_inputs("x", x)
    checks.require_all("models", models.values(), nn.Module)
    best = dict.fromkeys(models, float("inf"))
    for turn in range(repeats + 1):  # the first is to warm up
        for name, model in models.items():
            inputs = as_inputs(model, x)
            with evaluating(model):
                start = _now(inputs.device)
                model(inputs)
                taken = _now(inputs.device) - start
            best[name] = min(best[name], taken) if turn else best[name]
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
