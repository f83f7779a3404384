"""Sites: the places in a network whose activations can be looked at, recorded and replaced.

A *site* is one use of a module whose output is post-activation, (B, C, ...): its C *units* are the single directions
of Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of single directions for generalization", ICLR 2018,
section 2: hidden units of an MLP, whole feature maps of a ConvNet.
"""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from nadkit import checks
from nadkit.names import did_you_mean

__all__ = [
    "ACTIVATIONS",
    "Site",
    "Sites",
    "capture",
    "evaluating",
    "find_sites",
    "replaced",
]

_NO_UNITS = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name not in _NO_UNITS)
"""The modules that count as activations: all of torch's but the softmaxes, which are probabilities, and attention."""


@dataclass(frozen=True)
class Site:
    """One use of a module whose output is an activation, and what that output looks like.

    Attributes:
        name: the module's path, with the number of the use, ``"layer1.0.relu[1]"``, where it is used several times.
        path: of the module, as in `torch.nn.Module.named_modules`.
        call: which of its uses within one forward pass, from 0.
        shape: of one sample's activation, units first: (C,), or (C, H, W) for feature maps.
        axis: of the units in the activation of a batch: 1 in (B, C, H, W), 2 in tokens (B, T, C).
        kind: the module's class.
    """

    name: str
    path: str
    call: int
    shape: tuple[int, ...]
    axis: int = 1
    kind: str = ""

    @property
    def units(self) -> int:
        """Number C of units or feature maps."""
        return self.shape[0]

    def units_first(self, activation: Tensor) -> Tensor:
        """Return an activation of this site as (B, C, positions...), a view."""
        return activation.movedim(self.axis, 1)

    def spread(self, values: Tensor) -> Tensor:
        """Return a number a unit, (C,), in a shape that broadcasts with this site's activations."""
        return values.reshape(*[1] * self.axis, self.units, *[1] * (len(self.shape) - self.axis))


class Sites(Sequence[Site]):
    """Sites in the order in which a network runs through them, their units numbered through.

    ``sites[0]`` and ``sites["relu1"]`` are a site, ``sites[1:]`` and ``sites[["relu1", "relu3"]]`` fewer sites.

    Raises:
        ValueError: no sites at all, or two of one name; a name that is not there.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = tuple(sites)
        if not self._sites:
            raise ValueError("sites: expected at least one, got none")
        if len(set(self.names)) < len(self):
            raise ValueError(f"sites: expected each once, got {', '.join(self.names)}")

    @property
    def names(self) -> list[str]:
        """The sites' names."""
        return [site.name for site in self]

    @property
    def n_units(self) -> int:
        """Number of units of all sites together."""
        return sum(site.units for site in self)

    @property
    def offsets(self) -> list[int]:
        """Number of each site's first unit, and at the end the number of all units."""
        return list(accumulate((site.units for site in self), initial=0))

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Return what there is of each unit, (..., n_units), site by site: a view (..., C) under each site's name.

        Raises:
            ValueError: there are not as many numbers as units.
        """
        if values.ndim == 0 or values.shape[-1] != self.n_units:
            raise ValueError(f"expected (..., {self.n_units}), a number for each unit, got {tuple(values.shape)}")
        return dict(zip(self.names, values.split([site.units for site in self], dim=-1), strict=True))

    def last(self, k: int) -> "Sites":
        """Return the last k sites.

        Raises:
            ValueError: there are not so many.
        """
        if checks.require_integer("k", k, 1) > len(self):
            raise ValueError(f"k: expected 1 to {len(self)}, the number of sites, got {k}")
        return self[-k:]

    @overload
    def __getitem__(self, key: int | str) -> Site: ...
    @overload
    def __getitem__(self, key: slice | list[str]) -> "Sites": ...
    def __getitem__(self, key: int | str | slice | list[str]) -> "Site | Sites":
        if isinstance(key, slice):
            return Sites(self._sites[key])
        if isinstance(key, list):
            return Sites(self[name] for name in key)
        if not isinstance(key, str):
            return self._sites[key]
        if key not in self.names:
            raise ValueError(f"no site {key!r}; {did_you_mean(key, self.names)}")
        return self._sites[self.names.index(key)]

    def __len__(self) -> int:
        return len(self._sites)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sites) and self._sites == other._sites

    def __hash__(self) -> int:
        return hash(self._sites)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Return the table that people see, its head first."""
        size = {site: " x ".join(map(str, site.shape[1:])) or "1" for site in self}
        rows = [(site.name, site.kind, str(site.units), size[site]) for site in self]
        return [("site", "module", "units", "positions"), *rows]

    def _total(self) -> str:
        return f"{len(self)} site{'s' * (len(self) > 1)}, {self.n_units} unit{'s' * (self.n_units > 1)}"

    def __repr__(self) -> str:
        rows = self._rows()
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        line = "  {:<{}}  {:<{}}  {:>{}}  {:>{}}"
        return "\n".join([self._total(), *(line.format(*sum(zip(r, wide, strict=True), ())) for r in rows)])

    def _repr_html_(self) -> str:
        head, *rows = ([html.escape(cell) for cell in row] for row in self._rows())
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        columns = "".join(f"<th>{cell}</th>" for cell in head)
        caption = f"<caption>{self._total()}</caption>"
        return f"<table>{caption}<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


@torch.no_grad()
def find_sites(model: nn.Module, shape: Sequence[int], *, names: Iterable[str] | None = None, axis: int = 1) -> Sites:
    """Return the activation modules of a network in order of execution, found by running zeros through it.

    A module that a forward pass uses k times, as torchvision's ResNets do, gives k sites: ``"layer1.0.relu[0]"``,
    ``"layer1.0.relu[1]"``. The network runs in eval mode and comes back in the modes it was in.

    Args:
        model: any network of one input (B, *shape).
        shape: of one input, for instance (C, H, W).
        names: take the outputs of these modules instead, whatever they are: all uses of one, ``"layer1.0.relu"``, or
            a single one, ``"layer1.0.relu[1]"``.
        axis: of the units in an activation; -1 for tokens (B, T, C).

    Raises:
        ValueError: the network has no activation module (functions such as `torch.relu` leave none) or does not take
            such inputs; a name that is not there; an output that is no tensor, or has no such axis.
    """
    uses = _uses(model, shape)
    if names is None:
        chosen = [use for use in uses if isinstance(use.module, ACTIVATIONS)]
        if not chosen:
            raise ValueError(
                f"no activation module in {type(model).__name__}: functions such as torch.relu leave none; name "
                f"modules whose outputs are activations, names=[...], of {_some(use.name for use in uses)}"
            )
    else:
        chosen = _named(model, uses, [names] if isinstance(names, str) else list(names))
    return Sites(use.site(axis) for use in chosen)


@dataclass(frozen=True, eq=False)
class _Use:
    """One use of a module in a forward pass of a batch of two."""

    name: str
    path: str
    call: int
    module: nn.Module
    output: object

    def site(self, axis: int) -> Site:
        if not isinstance(self.output, Tensor):
            raise ValueError(f"site {self.name!r}: expected a tensor, its output is a {type(self.output).__name__}")
        shape, kind = tuple(self.output.shape), type(self.module).__name__
        if not (-len(shape) <= axis < len(shape) and axis % len(shape)) or shape[0] != 2:
            raise ValueError(
                f"site {self.name!r}: expected an activation (samples, ...) with units on axis {axis}, the output for "
                f"2 samples has shape {shape}; choose another axis, or other modules with names=[...]"
            )
        axis %= len(shape)
        units_first = (shape[axis], *shape[1:axis], *shape[axis + 1 :])
        return Site(self.name, self.path, self.call, units_first, axis, kind)


def _uses(model: nn.Module, shape: Sequence[int]) -> list[_Use]:
    """Return what ran in a forward pass, in order."""
    ran: list[tuple[str, nn.Module, object]] = []
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))

    def note(path: str) -> Callable:
        # the shape is enough, and the numbers may be overwritten in place
        return lambda module, _, out: ran.append((path, module, out.to("meta") if isinstance(out, Tensor) else out))

    hooks = [module.register_forward_hook(note(path)) for path, module in model.named_modules() if path]
    try:
        with evaluating(model):
            model(torch.zeros(2, *shape, device=like.device, dtype=like.dtype))
    except Exception as error:
        raise ValueError(f"the network does not take inputs of shape (2, {_some(map(str, shape))}): {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    paths = [path for path, _, _ in ran]
    uses = []
    for i, (path, module, output) in enumerate(ran):
        call = paths[:i].count(path)
        uses.append(_Use(f"{path}[{call}]" if paths.count(path) > 1 else path, path, call, module, output))
    return uses


def _named(model: nn.Module, uses: list[_Use], names: list[str]) -> list[_Use]:
    """Return the uses that were asked for, in order of execution."""
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    known = [*modules, *(use.name for use in uses if use.name not in modules)]
    for name in names:
        if name not in known:
            raise ValueError(f"no module {name!r} in {type(model).__name__}; {did_you_mean(name, known)}")
        if name in modules and all(modules[name] is not use.module for use in uses):
            raise ValueError(f"module {name!r} of {type(model).__name__} is there but does not run: it has no output")
    asked = [modules.get(name) for name in names]
    return [use for use in uses if use.name in names or any(use.module is module for module in asked)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with a network in eval mode, and give each module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def capture(
    model: nn.Module, sites: Iterable[Site], reduce: Callable[[Site, Tensor], Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Give a dict that holds, after each forward pass in the block, the activations of that pass by name of site.

    They are copies, which operations in place later in the network do not change, and carry gradients; or they are
    what ``reduce(site, activation)`` made of them as they came. Works in training, too, and under
    `torch.func.functional_call` and `torch.vmap`.

    Raises:
        ValueError: a site is none of this network.
    """
    kept: dict[str, Tensor] = {}

    def keep(site: Site, out: Tensor) -> None:
        kept[site.name] = out.clone() if reduce is None else reduce(site, out)

    with _hooked(model, {site: keep for site in sites}, kept.clear):
        yield kept


@contextmanager
def replaced(model: nn.Module, functions: Mapping[Site, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Run a block in which the output of each of these sites is ``function(activation)``.

    A `capture` opened before sees the activation as it was, one opened inside sees what it was replaced by. The
    function must not change its argument in place.

    Raises:
        ValueError: a site is none of this network.
    """
    with _hooked(model, {site: lambda site, out: functions[site](out) for site in functions}):
        yield


@contextmanager
def _hooked(
    model: nn.Module,
    functions: Mapping[Site, Callable[[Site, Tensor], Tensor | None]],
    begin: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Call a function at each site, which replaces the output by what it returns unless that is None.

    The uses of a module are counted from the start of the network's forward pass, whatever became of the last one.
    """
    calls: dict[str, int] = {}
    at = {(site.path, site.call): site for site in functions}

    def start(*_: object) -> None:
        calls.clear()
        begin()

    def hook(path: str) -> Callable:
        def run(_module: nn.Module, _inputs: tuple, out: Tensor) -> Tensor | None:
            call = calls.get(path, 0)
            calls[path] = call + 1
            site = at.get((path, call))
            return None if site is None else functions[site](site, out)

        return run

    modules = dict(model.named_modules())
    for site in functions:
        if site.path not in modules:
            found = did_you_mean(site.path, modules)
            raise ValueError(f"site {site.name!r}: no such module in {type(model).__name__}; {found}")
    hooks = [model.register_forward_pre_hook(start)]
    try:
        hooks += [modules[path].register_forward_hook(hook(path)) for path in {site.path: None for site in functions}]
        yield
    finally:
        for handle in hooks:
            handle.remove()


def require_sites(model: nn.Module, sites: Sites, x: Tensor) -> None:
    """Raise ValueError unless the network, run on inputs (B, ...) float32, has these sites, as large as they say."""
    with evaluating(model), capture(model, sites, lambda _, out: out) as seen:
        try:
            model(x.clone())
        except Exception as error:
            raise ValueError(f"the network does not take inputs of shape {tuple(x.shape)}: {error}") from error
    for site in sites:
        if site.name not in seen:
            raise ValueError(f"site {site.name!r}: {type(model).__name__} does not run it")
        shape = tuple(site.units_first(seen[site.name]).shape[1:])
        if shape != site.shape:
            raise ValueError(
                f"site {site.name!r}: expected activations of shape {site.shape}, here they are {shape}; find the "
                "sites of this network, find_sites(model, shape)"
            )


def _some(words: Iterable[str], most: int = 12) -> str:
    words = list(words)
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")
