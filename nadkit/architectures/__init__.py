"""Architectures by name: those of the papers and small later ones, torchvision's models, or a user's own.

An *architecture* is one of

- a name in `NAMES`, for instance ``"lenet"``; with ``-nopool`` (LeNet, VGG11 and ResNet18) no layer subsamples or
  averages over positions, with ``-blur`` (LeNet and ResNet18) they alias less; ``mlp512`` has 512
  units in each hidden layer, ``convnet11-nobn`` no batch norm;
- ``"torchvision:NAME"``, any torchvision model that accepts the image shape;
- ``"MODULE:FUNCTION"``, an importable factory of your own;
- a factory itself, any callable ``factory(shape=(C, H, W), classes=K)`` that returns a fresh `torch.nn.Module`, for
  instance a network here with other options: ``functools.partial(LeNet, width=2)``.
"""

import functools
import importlib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from nadkit import checks
from nadkit.architectures.convnet import ConvNet
from nadkit.architectures.convnext import ConvNeXt
from nadkit.architectures.densenet import DenseNet121
from nadkit.architectures.lenet import LeNet, LogReg
from nadkit.architectures.mixer import Mixer
from nadkit.architectures.mlp import MLP
from nadkit.architectures.pretrained import IMAGENET_STATISTICS, pretrained
from nadkit.architectures.resnet import ResNet18
from nadkit.architectures.vgg import VGG11
from nadkit.architectures.vit import ViT
from nadkit.devices import pick
from nadkit.names import did_you_mean, hint

__all__ = [
    "IMAGENET_STATISTICS",
    "MLP",
    "NAMES",
    "VGG11",
    "Architecture",
    "ConvNeXt",
    "ConvNet",
    "DenseNet121",
    "LeNet",
    "LogReg",
    "Mixer",
    "ResNet18",
    "Shape",
    "ViT",
    "build",
    "check",
    "factory",
    "n_logits",
    "name_of",
    "pretrained",
]

Shape = tuple[int, int, int]
Architecture = str | Callable[..., nn.Module]

_REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "logreg": LogReg,
    "lenet": LeNet,
    "vgg11": VGG11,
    "resnet18": ResNet18,
    "densenet121": DenseNet121,
    "lenet-nopool": functools.partial(LeNet, pooling=False),
    "vgg11-nopool": functools.partial(VGG11, pooling=False),
    "resnet18-nopool": functools.partial(ResNet18, pooling=False),
    "lenet-average": functools.partial(LeNet, pooling="average"),
    "lenet-stride": functools.partial(LeNet, pooling="stride"),
    "lenet-blur": functools.partial(LeNet, pooling="blur"),
    "resnet18-blur": functools.partial(ResNet18, pooling="blur"),
    "vit": ViT,
    "convnext": ConvNeXt,
    "mixer": Mixer,
    "mlp128": functools.partial(MLP, width=128),
    "mlp512": functools.partial(MLP, width=512),
    "mlp2048": functools.partial(MLP, width=2048),
    "convnet11": ConvNet,
    "convnet11-nobn": functools.partial(ConvNet, batch_norm=False),
}
NAMES = tuple(_REGISTRY)
"""The registered names: the networks of the NAD paper's figures in their order, without pooling, with other pooling,
later families; those of the work on single directions."""


@checks.typed
def build(architecture: Architecture, *, shape: Shape, classes: int) -> nn.Module:
    """Return a freshly initialised network: (B, C, H, W) float -> (B, classes) logits.

    Weights come from torch's global generator, on torch's default device; wrap the call in `nadkit.seeds.seeded` (and
    ``with torch.device(...)``) to choose them.

    Raises:
        ValueError: an unknown name, a shape the network cannot take, or a factory that does not take ``shape`` and
            ``classes`` or does not return a module.
    """
    checks.require_integer("classes", classes, 1)
    make = factory(architecture)
    try:
        model = make(shape=tuple(shape), classes=classes)
    except TypeError as error:
        raise ValueError(
            f"architecture {name_of(architecture)!r}: expected a factory(shape=(C, H, W), classes=K), but: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"architecture {name_of(architecture)!r}: expected a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type of a network's weights; float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@checks.typed
@torch.no_grad()
def n_logits(model: nn.Module, shape: Sequence[int], device: str | torch.device = "cpu") -> int:
    """Return the number K of logits of a network, found by running it on zeros; it is left in eval mode.

    Raises:
        ValueError: it does not map (2, C, H, W) to (2, K).
    """
    inputs, device = (2, *shape), pick(device)
    try:
        out = model.eval()(torch.zeros(inputs, dtype=dtype_of(model), device=device))
    except Exception as error:
        raise ValueError(f"the network does not accept inputs of shape {inputs}: {error}{_place(error)}") from error
    if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != 2:
        found = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        remedy = "; let forward return the logits alone" if isinstance(out, tuple | list | dict) else ""
        raise ValueError(f"expected a network that maps {inputs} to logits (2, classes), got {found}{remedy}")
    return out.shape[1]


def _place(error: Exception) -> str:
    """Return where an error arose in the user's own code: " (own.py, line 18, in forward)"; "" if nowhere."""
    ours = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*ours, "<"))]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else ""


@checks.typed
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
    known = ", ".join([*NAMES, "torchvision:NAME", "MODULE:FUNCTION"])
    raise ValueError(f"unknown architecture {architecture!r}{hint(architecture, NAMES)}; known: {known}")


@checks.typed
def check(name: str) -> None:
    """Raise ValueError, saying what is wrong, unless ``name`` names an architecture."""
    factory(name)


@checks.typed
def name_of(architecture: Architecture) -> str:
    """Return a name for records and plots: the string itself, or the factory's own name, with a partial's options."""
    if isinstance(architecture, str):
        return architecture
    if isinstance(architecture, functools.partial):
        options = [*map(_option, architecture.args), *(f"{k}={_option(v)}" for k, v in architecture.keywords.items())]
        return f"{name_of(architecture.func)}({', '.join(options)})"
    return getattr(architecture, "__name__", "custom")


def _option(value: object) -> str:
    """Return an option as text that is the same in every run, which the address in a function's repr is not."""
    return getattr(value, "__name__", None) or repr(value)


def _imported(module: str, function: str) -> Callable[..., nn.Module]:
    try:
        own = importlib.import_module(module)
    except Exception as error:  # importing runs the module, which may fail in any way
        raise ValueError(
            f"architecture '{module}:{function}': importing {module!r} failed with {type(error).__name__}: {error}; "
            "expected MODULE:FUNCTION with an importable module"
        ) from error
    if not hasattr(own, function):
        known = [name for name, value in vars(own).items() if callable(value) and not name.startswith("_")]
        raise ValueError(
            f"architecture '{module}:{function}': {module!r} has no {function!r}; {did_you_mean(function, known)}"
        )
    found = getattr(own, function)
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
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    fresh = nn.Conv2d(channels, conv.out_channels, *geometry, bias=conv.bias is not None)
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
