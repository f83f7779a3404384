"""Architectures by name: the NAD paper's five networks, torchvision's models, or a user's own factory.

An *architecture* is one of

- a name in `NAMES`, for instance ``"lenet"``;
- ``"torchvision:NAME"``, any torchvision model that accepts the image shape;
- ``"MODULE:FUNCTION"``, an importable factory of your own;
- a factory itself, any callable ``factory(shape=(C, H, W), classes=K)`` that returns a fresh `torch.nn.Module`.
"""

import functools
import importlib
from collections.abc import Callable

import torch
from torch import nn

from nadkit.architectures.densenet import DenseNet121
from nadkit.architectures.lenet import LeNet, LogReg
from nadkit.architectures.resnet import ResNet18
from nadkit.architectures.vgg import VGG11
from nadkit.names import hint

__all__ = ["NAMES", "Architecture", "Shape", "build", "check", "factory", "name_of"]

Shape = tuple[int, int, int]
Architecture = str | Callable[..., nn.Module]

_REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "logreg": LogReg,
    "lenet": LeNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "densenet121": DenseNet121,
}
NAMES = tuple(_REGISTRY)
"""The registered names, in the order of the paper's figures."""

_WITHOUT_POOLING = ("lenet", "vgg11", "resnet18")


def build(architecture: Architecture, *, shape: Shape, classes: int, pooling: bool = True) -> nn.Module:
    """Return a freshly initialised network: (B, C, H, W) float -> (B, classes) logits.

    Weights come from torch's global generator, on torch's default device; wrap the call in `nadkit.seeds.seeded` (and
    ``with torch.device(...)``) to choose them. ``pooling=False`` leaves out every layer that subsamples or averages
    over positions (LeNet, VGG11 and ResNet18).

    Raises:
        ValueError: an unknown name, a shape the network cannot take, or no variant without pooling.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape: expected (channels, height, width), all positive, got {shape}")
    if classes < 1:
        raise ValueError(f"classes: expected at least 1, got {classes}")
    options = {}
    if not pooling:
        if isinstance(architecture, str) and architecture not in _WITHOUT_POOLING:
            known = ", ".join(_WITHOUT_POOLING)
            raise ValueError(f"architecture {architecture!r} has no variant without pooling; those that do: {known}")
        options["pooling"] = False
    return factory(architecture)(shape=tuple(shape), classes=classes, **options)


def factory(architecture: Architecture) -> Callable[..., nn.Module]:
    """Return the factory behind an architecture: ``factory(shape=(C, H, W), classes=K)`` -> module.

    Raises:
        ValueError: the name is unknown or cannot be imported; near misses are suggested.
    """
    if callable(architecture):
        return architecture
    if architecture in _REGISTRY:
        return _REGISTRY[architecture]
    module, _, function = architecture.partition(":")
    if module == "torchvision":
        return functools.partial(_torchvision, _torchvision_name(function))
    if function:
        return _imported(module, function)
    raise ValueError(f"unknown architecture {architecture!r}{hint(architecture, NAMES)}; known: {_known()}")


def check(name: str) -> None:
    """Raise ValueError, saying what is wrong, unless ``name`` names an architecture."""
    factory(name)


def name_of(architecture: Architecture) -> str:
    """Return a name for records and plots: the string itself, or the factory's own name."""
    return architecture if isinstance(architecture, str) else getattr(architecture, "__name__", "custom")


def _known() -> str:
    return ", ".join(NAMES) + ", torchvision:NAME, MODULE:FUNCTION"


def _imported(module: str, function: str) -> Callable[..., nn.Module]:
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"architecture '{module}:{function}': {error}; expected MODULE:FUNCTION with an importable module"
        ) from error
    if not callable(found):
        raise ValueError(f"architecture '{module}:{function}': expected a callable, got {type(found).__name__}")
    return found


def _torchvision_name(name: str) -> str:
    from torchvision import models  # takes a second to import, and few runs need it

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"torchvision has no classification model {name!r}{hint(name, names)}")
    return name


def _torchvision(name: str, shape: Shape, classes: int) -> nn.Module:
    _require_accepts(name, shape)
    return _torchvision_model(name, shape, classes)


def _torchvision_model(name: str, shape: Shape, classes: int) -> nn.Module:
    from torchvision import models

    model = models.get_model(name, weights=None, num_classes=classes)
    if shape[0] != 3:
        _set_input_channels(model, shape[0])
    return model


def _set_input_channels(model: nn.Module, channels: int) -> None:
    """Replace the first convolution, which expects colour, by one for ``channels``."""
    path, conv = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, leaf = path.rpartition(".")
    fresh = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        bias=conv.bias is not None,
    )
    setattr(model.get_submodule(parent), leaf, fresh)


@functools.cache
def _require_accepts(name: str, shape: Shape) -> None:
    """Try the model once on zeros: torchvision does not say which image sizes a model takes."""
    with torch.random.fork_rng([]), torch.device("cpu"):
        model = _torchvision_model(name, shape, 1).eval()
    try:
        with torch.no_grad():
            out = model(torch.zeros(1, *shape, device="cpu"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"torchvision:{name} does not accept images of shape {shape}: {error}") from error
    if not isinstance(out, torch.Tensor):
        raise ValueError(f"torchvision:{name} returns a {type(out).__name__}, expected a tensor of logits")
