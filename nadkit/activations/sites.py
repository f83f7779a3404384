"""Sites: the places in a network whose activations can be read, recorded and replaced.

A *site* is one use of a module or a function whose output is post-activation, (B, C, ...): its C *units* are the single
directions of Morcos, Barrett, Rabinowitz and Botvinick, "On the importance of single directions for generalization",
ICLR 2018, section 2: hidden units of an MLP, whole feature maps of a ConvNet.
"""

import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from numbers import Integral
from typing import overload

import torch
from torch import Tensor, nn

from nadkit import checks
from nadkit.activations.axes import Reading, read_axes
from nadkit.activations.calls import ACTIVATIONS, Place, require_reachable, watched
from nadkit.data.images import to_float
from nadkit.names import did_you_mean

__all__ = [
    "Site",
    "Sites",
    "as_inputs",
    "capture",
    "evaluating",
    "find_sites",
    "replaced",
]


@dataclass(frozen=True)
class Site:
    """One use of a module or a function whose output is an activation, and what that output looks like.

    Attributes:
        name: the module's path, or that of the caller and the function's name, ``"layer1.0.relu"``; with the number of
            the use, ``"layer1.0.relu[1]"``, where it is used several times.
        path: of the module or caller, as in `torch.nn.Module.named_modules`.
        call: which of the uses within one forward pass, from 0.
        shape: of one sample's activation, units first: (C,), or (C, H, W) for feature maps.
        axis: of the units in the activation of a batch: 1 in (B, C, H, W), 2 in tokens (B, T, C).
        kind: the module's class, or ``"relu()"`` for a function.
        function: name of the function, ``""`` for a module.
    """

    name: str
    path: str
    call: int
    shape: tuple[int, ...]
    axis: int = 1
    kind: str = ""
    function: str = ""

    @property
    def place(self) -> Place:
        """Where the activation comes from."""
        return Place(self.path, self.function)

    @property
    def units(self) -> int:
        """Number C of units or feature maps."""
        return self.shape[0]

    def units_first(self, activation: Tensor) -> Tensor:
        """Return an activation of this site as (B, C, positions...), a view."""
        return activation.movedim(self.axis, 1)

    def spread(self, values: Tensor) -> Tensor:
        """Return one number for each unit, (C,), in a shape that broadcasts with this site's activations."""
        return values.reshape(*[1] * self.axis, self.units, *[1] * (len(self.shape) - self.axis))


@checks.typed
class Sites(Sequence[Site]):
    """Sites in the order in which a network runs through them, with units numbered consecutively across sites.

    ``sites[0]`` and ``sites["relu1"]`` are one site, ``sites[1:]`` and ``sites[["relu1", "relu3"]]`` several of them.

    Raises:
        ValueError: no sites at all, or two of one name; a name that is not there.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = tuple(checks.require_all("sites", sites, Site))
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

    @property
    def layers(self) -> Tensor:
        """The number of the site that each unit belongs to, counted from 1: (n_units,) int64."""
        return torch.arange(1, len(self) + 1).repeat_interleave(torch.tensor([site.units for site in self]))

    @checks.typed
    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Split numbers that come one per unit, (..., n_units), by site: a view (..., C) under each site's name.

        Raises:
            ValueError: there are not as many numbers as units.
        """
        if values.ndim == 0 or values.shape[-1] != self.n_units:
            raise ValueError(
                f"values: expected (..., {self.n_units}), a number for each unit, got {tuple(values.shape)}"
            )
        return dict(zip(self.names, values.split([site.units for site in self], dim=-1), strict=True))

    @checks.typed
    def last(self, k: int) -> "Sites":
        """Return the last k sites.

        Raises:
            ValueError: there are fewer.
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

    def _repr_html_(self) -> str:  # not by `nadkit.book.pages`, which the science never imports
        head, *rows = ([html.escape(cell) for cell in row] for row in self._rows())
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        columns = "".join(f"<th>{cell}</th>" for cell in head)
        caption = f"<caption>{self._total()}</caption>"
        return f"<table>{caption}<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


@checks.typed
@torch.no_grad()
def find_sites(
    model: nn.Module,
    shape: Sequence[int],
    *,
    names: Iterable[str] | None = None,
    axis: int | Mapping[str, int] | None = None,
) -> Sites:
    """Return the activations of a network in order of execution, found by running zeros through it.

    They are the outputs of activation modules, and of functions such as `torch.relu` and `torch.nn.functional.gelu`
    (in-place ones, too) that modules call. ``"layer1.0.relu"`` is the output of ``relu`` in the module ``layer1.0``; if
    a module of that name runs, too, the function's has brackets, ``"layer1.0.relu()"``. An activation used k times in a
    forward pass is k sites, ``"layer1.0.relu[0]"``, ``"layer1.0.relu[1]"``. Activations that do not depend on the
    inputs, such as those of a position bias, are left out. The network runs in eval mode and then gets its modes back.

    The axis of the units comes from the layer before: the last after linear layers and layer normalisation, axis 1
    after convolutions and batch normalisation. If permutations have moved it since, it is followed (`axes`).

    Args:
        model: any network of one input (B, *shape).
        shape: of one input, for instance (C, H, W).
        names: take the outputs of these modules instead, whatever they are: all uses of one, ``"layer1.0.relu"``, or
            a single one, ``"layer1.0.relu[1]"``.
        axis: the axis of the units in an activation, -1 for the last, if the one found is wrong: one for all sites, or
            by name of site.

    Raises:
        ValueError: the network has no activations, or does not take such inputs; a name that is not there; an output
            that is not a tensor, or has no such axis; units that cannot be told from positions; a scripted, compiled or
            wrapped network.
    """
    require_reachable(model)
    uses = _uses(model, shape)
    if names is None:
        chosen = [use for use in uses if use.is_activation]
    else:
        chosen = _named(model, uses, checks.require_all("names", [names] if isinstance(names, str) else names, str))
    given = _axes(axis, [use.name for use in chosen])
    readings = {}
    if any(use.is_unclear(given) for use in chosen):
        readings = _readings(model, shape, chosen)
        chosen = [use for use in chosen if names is not None or not use.is_constant(readings)]
    if not chosen and names is None:
        raise ValueError(
            f"no activation in {type(model).__name__}, neither a module nor a function such as torch.relu; name "
            f"modules whose outputs are activations, names=[...], of {_some(use.name for use in uses)}"
        )
    return Sites(use.site(given.get(use.name), readings) for use in chosen)


def _axes(axis: int | Mapping[str, int] | None, names: list[str]) -> dict[str, int]:
    """Return the axes that are given, by name of site."""
    if axis is None:
        return {}
    given = dict(axis) if isinstance(axis, Mapping) else dict.fromkeys(names, axis)
    for name, value in given.items():
        if name not in names:
            raise ValueError(f"axis: no site {name!r}; {did_you_mean(name, names)}")
        if not isinstance(value, Integral):
            raise ValueError(f"axis: expected an integer, or integers by name of site, got {value!r}")
    return given


@dataclass(frozen=True, eq=False)
class _Use:
    """One use of a place in a forward pass of a batch of two: its output on the meta device, if it is a tensor.

    The name is that of the place, its title, with the number of the use where there are several.
    """

    name: str
    title: str
    place: Place
    call: int
    kind: str
    is_activation: bool
    output: object

    @property
    def shape(self) -> tuple[int, ...]:
        if not isinstance(self.output, Tensor):
            raise ValueError(f"site {self.name!r}: expected a tensor, its output is a {type(self.output).__name__}")
        return tuple(self.output.shape)

    def is_unclear(self, given: Mapping[str, int]) -> bool:
        """Say whether the shape alone tells neither units nor samples."""
        return (len(self.shape) > 2 and self.name not in given) or self.shape[:1] != (2,)

    def is_constant(self, readings: Mapping[tuple[Place, int], Reading]) -> bool:
        """Say whether the output is as large for three samples as for two: it is none of samples."""
        reading = readings.get((self.place, self.call))
        return reading is not None and reading.shape == self.shape

    def site(self, axis: int | None, readings: Mapping[tuple[Place, int], Reading]) -> Site:
        shape, reading = self.shape, readings.get((self.place, self.call))
        named = axis if axis is not None else 1
        expected = f"site {self.name!r}: expected an activation (samples, ...) with units on axis {named}"
        seen = f"{expected}, the output for 2 samples has shape {shape}"
        if shape[:1] != (2,) or (reading is not None and reading.shape[:1] != (3,)):
            raise ValueError(
                f"{seen}; samples have to lie on the first axis, batch_first=True in some layers of PyTorch's; or "
                "choose other modules with names=[...]"
            )
        if not (-len(shape) <= named < len(shape) and named % len(shape)):
            raise ValueError(f"{seen}; choose another axis, or other modules with names=[...]")
        axis = named % len(shape) if axis is not None or len(shape) == 2 else self._axis(reading)
        units_first = (shape[axis], *shape[1:axis], *shape[axis + 1 :])
        return Site(self.name, self.place.path, self.call, units_first, axis, self.kind, self.place.function)

    def _axis(self, reading: Reading | None) -> int:
        """Return the axis that the units were read from."""
        if reading is not None and len(reading.axes) == 1:
            return reading.axes[0]
        if reading is not None and not reading.axes and 1 in self.shape:  # a single unit
            return self.shape.index(1)
        shape = ", ".join(map(str, self.shape[1:]))
        read = [
            f"axis={axis} has {self.shape[axis]} units at {' x '.join(map(str, positions))} positions"
            for axis, positions in ((1, self.shape[2:]), (-1, self.shape[1:-1]))
        ]
        raise ValueError(
            f"site {self.name!r}: cannot tell units from positions in activations (samples, {shape}): {read[0]}, "
            f"{read[1]}; say which, axis={{{self.name!r}: 1}} or -1 (axis=1 or axis=-1 for all sites)"
        )


def _uses(model: nn.Module, shape: Sequence[int]) -> list[_Use]:
    """Return what ran in a forward pass, in order."""
    ran: list[tuple[Place, int, object]] = []

    def note(place: Place, use: int, _inputs: tuple, output: object) -> None:
        # the shape is enough, and the numbers may be overwritten in place
        ran.append((place, use, output.to("meta") if isinstance(output, Tensor) else output))

    try:
        with evaluating(model), watched(model, note):
            model(_zeros(model, 2, shape))
    except Exception as error:
        raise ValueError(f"the network does not take inputs of shape (2, {_some(map(str, shape))}): {error}") from error
    modules, counts = dict(model.named_modules()), Counter(place for place, _, _ in ran)
    uses = []
    for place, use, output in ran:
        title = f"{place.path}.{place.function}".strip(".")
        if place.function and Place(title) in counts:  # a module of that name runs, too
            title += "()"
        name = f"{title}[{use}]" if counts[place] > 1 else title
        kind = f"{place.function}()" if place.function else type(modules[place.path]).__name__
        is_activation = bool(place.function) or isinstance(modules[place.path], ACTIVATIONS)
        uses.append(_Use(name, title, place, use, kind, is_activation, output))
    return uses


def _readings(model: nn.Module, shape: Sequence[int], uses: Iterable[_Use]) -> dict[tuple[Place, int], Reading]:
    """Return what is known of the axes; nothing, if the network does not run on numbers made up to learn that."""
    try:
        with evaluating(model):
            return read_axes(model, _zeros(model, 3, shape), {use.place for use in uses})
    except Exception:
        return {}


def _zeros(model: nn.Module, count: int, shape: Sequence[int]) -> Tensor:
    like = _like(model)
    like = torch.empty(0) if like is None else like
    return torch.zeros(count, *shape, device=like.device, dtype=like.dtype)


def _named(model: nn.Module, uses: list[_Use], names: list[str]) -> list[_Use]:
    """Return the uses that were asked for, in order of execution."""
    first = {id(module): path for path, module in model.named_modules()}
    modules = {path: first[id(module)] for path, module in model.named_modules(remove_duplicate=False) if path}
    known = list(dict.fromkeys([*modules, *(use.title for use in uses), *(use.name for use in uses)]))
    chosen = set()
    for name in names:
        if name not in known:
            raise ValueError(f"no module {name!r} in {type(model).__name__}; {did_you_mean(name, known)}")
        asked = {use for use in uses if modules.get(name, name) in (use.name, use.title)}
        if not asked:
            raise ValueError(f"module {name!r} of {type(model).__name__} is there but does not run: it has no output")
        chosen |= asked
    return [use for use in uses if use in chosen]


def as_inputs(model: nn.Module, x: Tensor) -> Tensor:
    """Return inputs (B, ...) as a network takes them: on its device, in its type, uint8 scaled to [0, 1].

    They are a copy, because a network may begin with an operation in place.

    Raises:
        ValueError: the inputs are neither uint8 nor float.
    """
    like = _like(model)
    taken = to_float(x) if like is None or not x.is_floating_point() else x
    taken = taken if like is None else taken.to(like.device, like.dtype)
    return taken.clone() if taken is x else taken


def _like(model: nn.Module) -> Tensor | None:
    """Return the first tensor of numbers that a network holds."""
    return next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), None)


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


@checks.typed
@contextmanager
def capture(
    model: nn.Module, sites: Iterable[Site], reduce: Callable[[Site, Tensor], Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Give a dict that holds, after each forward pass in the block, the activations of that pass by name of site.

    They are copies that carry gradients and that later operations in place do not change; with ``reduce``, they are the
    values of ``reduce(site, activation)``. This works in training, too, and under `torch.func.functional_call` and
    `torch.vmap`.

    Raises:
        ValueError: a site is none of this network.
    """
    kept: dict[str, Tensor] = {}

    def keep(site: Site, out: Tensor) -> None:
        kept[site.name] = out.clone() if reduce is None else reduce(site, out)

    with _hooked(model, {site: keep for site in sites}, kept.clear):
        yield kept


@checks.typed
@contextmanager
def replaced(model: nn.Module, functions: Mapping[Site, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Run a block in which the output of each of these sites is ``function(activation)``.

    A `capture` opened before sees the original activation, one opened inside sees its replacement. The function must
    not change its argument in place.

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
    """Call a function at each site, which replaces the output by what it returns unless that is None."""
    at = {(site.place, site.call): site for site in functions}
    modules = dict(model.named_modules())
    for site in functions:
        if site.path not in modules:
            found = did_you_mean(site.path, modules)
            raise ValueError(f"site {site.name!r}: no such module in {type(model).__name__}; {found}")

    def see(place: Place, use: int, _inputs: tuple, output: Tensor) -> Tensor | None:
        site = at.get((place, use))
        return None if site is None else functions[site](site, output)

    with watched(model, see, {place for place, _ in at}, begin=begin):
        yield


def require_sites(model: nn.Module, sites: Sites, x: Tensor) -> None:
    """Raise ValueError unless the network, run on inputs (B, ...), has these sites, as large as they say."""
    require_reachable(model)
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
