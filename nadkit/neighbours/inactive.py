"""Any network without its activation functions: the same layers and weights, each activation the identity."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nadkit import architectures, checks
from nadkit.activations.calls import FUNCTIONS
from nadkit.architectures import Architecture, Shape


@checks.typed
def without_activations(architecture: Architecture) -> Callable[..., nn.Module]:
    """Return a factory of the same networks with every activation function left out: each returns its input.

    Activation functions are what `find_sites` counts, modules and functions alike. The weights are those that
    ``architecture`` alone gives for the same seed. Max pooling, attention and normalisation stay. A GLU halves its
    input, so a network with a GLU cannot run without it.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).

    Raises:
        ValueError: an unknown architecture.
    """
    architectures.factory(architecture)
    return _Without(architecture)


@dataclass(frozen=True)
class _Without:
    """What `without_activations` returns: of a class, unlike a function within one, so that it can be pickled."""

    architecture: Architecture

    @property
    def __name__(self) -> str:
        return f"{architectures.name_of(self.architecture)} without activations"

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        return _Inactive(architectures.build(self.architecture, shape=shape, classes=classes))


class _Inactive(nn.Module):
    """A network that runs with activation functions replaced by the identity."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with _Identities():
            return self.network(x)


class _Identities(TorchFunctionMode):
    """Calls of activation functions, also those by modules and in place, return their first argument untouched."""

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function in FUNCTIONS:
            return args[0] if args else kwargs["input"]
        return function(*args, **kwargs)
