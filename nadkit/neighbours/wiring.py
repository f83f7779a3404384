"""Wiring: which layer makes the units of a site, and which layers read them.

A layer *makes* units if nothing but what treats each unit alone (batch normalisation, activations, pooling, dropout)
lies between it and the site; a layer *reads* them if nothing but that, and flattening, lies between the site and it.
Then a unit is a row of weights in the first and a column in the others, and nowhere else. The network is traced by
`torch.fx` to find out; where units are added to others, as in a residual stream, no single layer makes or reads them.
"""

import operator
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from nadkit import checks
from nadkit.activations.calls import ACTIVATIONS, FUNCTIONS, named_functions, require_reachable
from nadkit.activations.sites import Site, Sites
from nadkit.activations.variants import CHANNELWISE
from nadkit.names import did_you_mean

__all__ = ["LAYERS", "NORMS", "Wires", "find_wires"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)]
_KEEPING_UNITS = {*FUNCTIONS, *named_functions([*_POOLS, "dropout", "feature_dropout", "contiguous"])}
_FLATTENING = {*named_functions(["flatten", "view", "reshape"])}
_ABOUT_SHAPES = {"size", "dim", getattr, len}


@dataclass(frozen=True)
class Wires:
    """How the units of a site are connected to a network's weights, by paths of modules.

    Attributes:
        layer: makes the units: unit c is row c of its weight.
        norms: batch normalisations on the way from there to the readers: unit c is entry c of their weights.
        readers: read the units: unit c is one of their inputs, or after flattening one run of them. Empty if the
            readers were not asked for.
    """

    layer: str
    norms: tuple[str, ...]
    readers: tuple[str, ...] = ()


@checks.typed
def find_wires(model: nn.Module, sites: Sites, *, readers: bool = True) -> dict[str, Wires]:
    """Return the wires of each site, by its name.

    Args:
        model: any network that `torch.fx` can trace, with functional activations, too.
        sites: outputs of modules that hold no others (a ReLU, a pooling, a batch normalisation), or of activation
            functions.
        readers: also find what reads the units, and be sure that nothing else does.

    Raises:
        ValueError: the network cannot be traced, or has no such site; units that no single layer makes, or that
            anything but layers with weights reads.
    """
    graph = _Graph(model)
    found = {}
    for site in sites:
        node = graph.node_of(site)
        layer, norms = graph.maker(site, node, alone=readers)
        read_by, later = graph.readers(site, node) if readers else ((), ())
        found[site.name] = Wires(layer, (*norms, *later), read_by)
    return found


def _width(layer: nn.Module) -> int:
    """Return how many units a layer makes."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, (*LAYERS, *NORMS, *CHANNELWISE, *ACTIVATIONS))
        return known or super().is_leaf_module(m, module_qualified_name)


class _Graph:
    """What a network computes, step by step."""

    def __init__(self, model: nn.Module) -> None:
        require_reachable(model)
        self.name, self.modules = type(model).__name__, dict(model.named_modules())
        try:
            self.nodes = list(_Tracer().trace(model).nodes)
        except Exception as error:  # tracing a network may raise any error
            raise ValueError(
                f"cannot tell which layers make and read the units of {self.name}: torch.fx does not trace it "
                f"({type(error).__name__}: {error})"
            ) from error
        self.uses = Counter(node.target for node in self.nodes if node.op == "call_module")

    def node_of(self, site: Site) -> fx.Node:
        """Return the step whose output a site is."""
        steps = [node for node in self.nodes if self._place(node) == (site.path, site.function)]
        if site.call < len(steps):
            return steps[site.call]
        if any(path.startswith(f"{site.path}.") for path in self.modules if site.path and not site.function):
            raise ValueError(
                f"site {site.name!r}: expected a module that holds no others, name the last one in it, "
                f"{site.path + '.' + [*self.modules[site.path]._modules][-1]!r}"
            )
        near = did_you_mean(site.path, self.modules)
        raise ValueError(f"site {site.name!r}: the network, {self.name}, has no such step; {near}")

    def _place(self, node: fx.Node) -> tuple[str, str] | None:
        if node.op == "call_module":
            return node.target, ""
        if name := FUNCTIONS.get(_function(node)):
            callers = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
            return (callers[-1] if callers else ""), name
        return None

    def maker(self, site: Site, node: fx.Node, *, alone: bool) -> tuple[str, tuple[str, ...]]:
        """Go back from a site to the layer that makes its units; ``alone``, only the site's side may read them."""
        norms: list[str] = []
        while not isinstance(self._module(node), LAYERS):
            if isinstance(self._module(node), NORMS):
                norms.insert(0, node.target)
            elif not self._keeps_units(node):
                raise ValueError(
                    f"site {site.name!r}: its units are no single layer's, they come from {self._words(node)}"
                )
            node = self._only_input(site, node)
            users = _users(node)
            if alone and len(users) > 1:
                raise ValueError(
                    f"site {site.name!r}: its units cannot be removed, as {self._words(node)} before it is read in "
                    f"several places, by {' and '.join(map(self._words, users))}"
                )
        layer = self._module(node)
        if _width(layer) != site.units:
            raise ValueError(
                f"site {site.name!r}: expected its {site.units} units to be those of the layer before, "
                f"{node.target!r}, which has {_width(layer)}"
            )
        self._require_once(site, [node.target, *norms])
        self._require_ungrouped(site, node.target)
        return node.target, tuple(norms)

    def readers(self, site: Site, node: fx.Node) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Go on from a site to the layers that read its units, and note the batch normalisations on the way."""
        if site.axis != 1:
            raise ValueError(f"site {site.name!r}: expected units on axis 1, they are on axis {site.axis}")
        found: dict[str, list[str]] = defaultdict(list)
        for user in self._beyond(node):
            module = self._module(user)
            if isinstance(module, LAYERS):
                found["readers"].append(user.target)
            elif isinstance(module, NORMS):
                found["norms"].append(user.target)
            elif not (self._keeps_units(user) or _function(user) in _FLATTENING):
                raise ValueError(
                    f"site {site.name!r}: its units cannot be removed, as {self._words(user)} reads them and not only "
                    "layers with weights"
                )
        if not found["readers"]:
            raise ValueError(f"site {site.name!r}: its units cannot be removed, as no layer reads them")
        self._require_once(site, found["readers"] + found["norms"])
        for path in found["readers"]:
            self._require_ungrouped(site, path)
        return tuple(found["readers"]), tuple(found["norms"])

    def _beyond(self, node: fx.Node) -> Iterator[fx.Node]:
        """Go through all steps that read a step's output, and on behind those that are no layers."""
        for user in _users(node):
            yield user
            if not isinstance(self._module(user), LAYERS):
                yield from self._beyond(user)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[node.target] if node.op == "call_module" else None

    def _keeps_units(self, node: fx.Node) -> bool:
        """Say whether a step treats each unit alone."""
        return isinstance(self._module(node), (*CHANNELWISE, *ACTIVATIONS)) or _function(node) in _KEEPING_UNITS

    def _only_input(self, site: Site, node: fx.Node) -> fx.Node:
        if len(node.all_input_nodes) != 1:
            raise ValueError(f"site {site.name!r}: its units are no single layer's, {self._words(node)} has two inputs")
        return node.all_input_nodes[0]

    def _words(self, node: fx.Node) -> str:
        match node.op:
            case "call_module":
                return f"{type(self._module(node)).__name__} {node.target!r}"
            case "placeholder":
                return "the network's input"
            case "output":
                return "the network's output"
        named = {operator.add: "an addition", operator.iadd: "an addition", operator.mul: "a multiplication"}
        return named.get(node.target, f"{getattr(node.target, '__name__', node.target)}()")

    def _require_once(self, site: Site, paths: list[str]) -> None:
        for path in paths:
            if self.uses[path] > 1:
                raise ValueError(
                    f"site {site.name!r}: {path!r} is used {self.uses[path]} times, and its weights shared"
                )

    def _require_ungrouped(self, site: Site, path: str) -> None:
        if getattr(self.modules[path], "groups", 1) > 1:
            raise ValueError(f"site {site.name!r}: {path!r} is a grouped convolution, whose channels belong together")


def _users(node: fx.Node) -> list[fx.Node]:
    """Return the steps that read a step's output, but for those that only ask for its shape."""
    return [user for user in node.users if user.target not in _ABOUT_SHAPES]


def _function(node: fx.Node) -> object:
    """Return the function that a step calls, None if it calls a module."""
    if node.op == "call_method":
        return getattr(Tensor, node.target, None)
    return node.target if node.op == "call_function" else None
