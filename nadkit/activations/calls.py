"""Calls: which modules and activation functions a network runs in a forward pass, each with its place in the network.

A hook on a module sees its output. A `torch.overrides.TorchFunctionMode` sees every call of a PyTorch function, such as
`torch.relu` or `torch.nn.functional.gelu`; hooks keep track of which module is running and so made the call. Nothing is
traced or rewritten, so networks whose control flow depends on their input work, too.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import activation
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["ACTIVATIONS", "FUNCTIONS", "OnFunctions", "Place", "named_functions", "require_reachable", "watched"]

_NO_UNITS = {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
ACTIVATIONS = tuple(getattr(activation, name) for name in activation.__all__ if name not in _NO_UNITS)
"""The modules that count as activations: all of torch's except attention and softmaxes, which give probabilities."""

SPACES = (F, torch, torch.Tensor, torch._C._nn)
_NAMES = [
    *("celu", "elu", "gelu", "glu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid"),
    *("mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign"),
    *("tanh", "tanhshrink", "threshold"),
]


def named_functions(names: Iterable[str]) -> dict[Callable, str]:
    """Return PyTorch's functions and methods of these names: each with its name."""
    return {getattr(space, name): name for name in names for space in SPACES if hasattr(space, name)}


FUNCTIONS = named_functions(_NAMES)
FUNCTIONS |= {function: name[:-1] for function, name in named_functions(f"{name}_" for name in _NAMES).items()}
"""The functions that count as activations, also in place, each with its name: those that `ACTIVATIONS` call."""


class Place(NamedTuple):
    """Where an output comes from: a module, or a function that the module at this path calls.

    Attributes:
        path: of the module, as in `torch.nn.Module.named_modules`.
        function: name of the function, ``""`` for the module's own output.
    """

    path: str
    function: str = ""


See = Callable[[Place, int, tuple, object], Tensor | None]
"""Called as see(place, use, inputs, output), uses of a place counted from 0; a tensor returned replaces the output."""


@contextmanager
def watched(
    model: nn.Module,
    see: See,
    places: Collection[Place] | None = None,
    *,
    functions: Mapping[Callable, str] = FUNCTIONS,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Run a block in which ``see`` is called at each output of these places, in order of execution.

    Uses are counted from the start of each forward pass of the network, even if the last one failed. Blocks may be
    nested: an outer one sees outputs first. Functions that an activation module calls are part of it, and not seen.

    Args:
        model: any network.
        see: what to call.
        places: all by default: the outputs of all modules inside the network, and all calls of the functions.
        functions: to look out for, with their names.
        begin: called at the start of each forward pass.

    Raises:
        ValueError: a network that cannot be watched (`require_reachable`).
    """
    require_reachable(model)
    modules = dict(model.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    if places is None:
        outputs, entered, calls = [path for path in modules if path], set(modules), True
    else:
        outputs = list(dict.fromkeys(place.path for place in places if not place.function))
        callers = {place.path for place in places if place.function}
        # a call belongs to its caller and not to a module that the caller runs: both have to be known
        entered = callers | {paths[id(child)] for path in callers for child in modules[path].children()}
        calls = bool(callers)
    uses: Counter[Place] = Counter()
    running: list[str] = []

    def start(*_: object) -> None:
        uses.clear()
        running.clear()
        begin()

    def use(place: Place, inputs: tuple, output: object) -> Tensor | None:
        uses[place] += 1
        with torch._C.DisableTorchFunction():  # calls that `see` makes are not the network's
            return see(place, uses[place] - 1, inputs, output)

    def leave(*_: object) -> None:
        running.pop()

    def on_call(function: str, inputs: tuple, output: object) -> Tensor | None:
        if not running or isinstance(modules[running[-1]], ACTIVATIONS):
            return None
        place = Place(running[-1], function)
        return use(place, inputs, output) if places is None or place in places else None

    hooks = [model.register_forward_pre_hook(start)]
    with ExitStack() as stack:
        stack.callback(lambda: [hook.remove() for hook in hooks])
        for path in entered if calls else ():
            hooks.append(modules[path].register_forward_pre_hook(lambda *_, path=path: running.append(path)))
            hooks.append(modules[path].register_forward_hook(leave, always_call=True))
        for path in outputs:
            place = Place(path)
            hooks.append(
                modules[path].register_forward_hook(lambda _, inputs, output, place=place: use(place, inputs, output))
            )
        if calls:
            mode = stack.enter_context(OnFunctions(functions, on_call))
            hooks.append(model.register_forward_hook(lambda _module, _inputs, output: mode.current(output)))
        yield


class OnFunctions(TorchFunctionMode):
    """Calls ``see(label, inputs, output)`` after each call of a function that has a label; what it returns replaces it.

    After a function that works in place, later calls on its argument get the replacement of its output.
    """

    def __init__(
        self, labels: Mapping[Callable, object], see: Callable[[object, tuple, object], object | None]
    ) -> None:
        super().__init__()
        self._labels, self._see = labels, see
        self._instead: Mapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Run a function of PyTorch's."""
        kwargs = kwargs or {}
        if self._instead:
            args, kwargs = self.current(args), {key: self.current(value) for key, value in kwargs.items()}
        output = function(*args, **kwargs)
        label = self._labels.get(function)
        if label is None:
            return output
        inputs = (*args, *kwargs.values())
        new = self._see(label, inputs, output)
        if new is None:
            return output
        if any(output is value for value in inputs):
            if output._is_view():  # a view of a tensor that the network may use later
                output.copy_(new)
            self._instead[output] = new
        return new

    def current(self, value: object) -> object:
        """Return what took a value's place: of a tensor, and of those in a tuple or list."""
        if isinstance(value, Tensor):
            return self._instead.get(value, value)
        return type(value)(map(self.current, value)) if type(value) in (tuple, list) else value


def require_reachable(model: nn.Module) -> None:
    """Raise ValueError if a network, or a part of it, runs where neither hooks nor modes see it; say what to pass."""
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            reason = "is scripted or traced, so that its activations cannot be reached; pass the module it was made of"
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            reason = f"is wrapped in {type(module).__name__}; pass the network inside it, its attribute .module"
        elif "_orig_mod" in module._modules:
            reason = "is compiled; pass the network it was made of, its attribute ._orig_mod, with the same weights"
        elif module._compiled_call_impl is not None:
            reason = "is compiled in place; pass a copy, copy.deepcopy(model), which is not"
        else:
            continue
        raise ValueError(f"{f'module {path!r}' if path else 'the network'} {reason}")
