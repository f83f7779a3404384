"""Random networks, each identified by its seed and its number, and their input derivatives at one point."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nadkit import architectures, checks, identity, seeds
from nadkit.architectures import Architecture, Shape
from nadkit.devices import pick
from nadkit.inputs.derivatives import Network, exact, gradient, mixed_moment, secant
from nadkit.inputs.local import is_local, local_secant
from nadkit.storage import digest

Method = Literal["secant", "gradient", "mixed"]
Settings = dict[str, str | int | float | identity.Rows]


@checks.typed
@dataclass(frozen=True, eq=False)
class Population:
    """The fresh one-logit networks of an architecture, in eval mode, and their input derivatives at one point x.

    Network i depends on ``seed``, i and the kind of device alone. Methods:

    - ``"secant"``: g_i = [f(x + scale e_i) - f(x - scale e_i)] / (2 scale), with scale 100 the authors' protocol;
    - ``"gradient"``: g = grad_x f(x);
    - ``"mixed"``: a network adds J J^T, J = d^2 f / dx dtheta, so that even one network gives NADs (Ortiz-Jimenez,
      Moosavi-Dezfooli and Frossard 2021, arXiv 2106.06770).

    Attributes:
        architecture: a name or a factory (`nadkit.architectures`).
        shape: (C, H, W) of the inputs, C H W = D.
        method: of the derivative.
        scale: the secant's half step, in the units of x.
        seed: of the networks and of x.
        x: (C, H, W) float32 on the CPU, the point; by default one draw from N(0, I), and zero for ``"mixed"``.

    Raises:
        ValueError: an unknown method or architecture, a scale, seed or x that does not fit.
    """

    architecture: Architecture
    shape: Shape = (1, 32, 32)
    method: Method = "secant"
    scale: float = 100.0
    seed: int = 0
    x: Tensor | None = None

    def __post_init__(self) -> None:
        seed = checks.require_integer("seed", self.seed, 0)
        checks.require_one_of("method", self.method, get_args(Method))
        checks.require_positive("scale", self.scale)
        architectures.factory(self.architecture)
        for name, value in {"seed": seed, "shape": tuple(self.shape), "x": self._point(seed)}.items():
            object.__setattr__(self, name, value)

    def _point(self, seed: int) -> Tensor:
        """Return the point of evaluation, on the CPU so that it is the same for every device."""
        if self.x is None:
            if self.method == "mixed":
                return torch.zeros(self.shape)
            return torch.randn(self.shape, generator=seeds.generator(seed, "point"))
        if tuple(self.x.shape) != tuple(self.shape):
            raise ValueError(f"x: expected shape {tuple(self.shape)}, got {tuple(self.x.shape)}")
        checks.require_finite("x", self.x)
        return self.x.detach().float().cpu()

    @property
    def name(self) -> str:
        """The architecture's name."""
        return architectures.name_of(self.architecture)

    @checks.typed
    def network(self, i: int, device: str | torch.device = "cpu") -> nn.Module:
        """Return network i on a device, in eval mode."""
        checks.require_integer("i", i, 0)
        return self._built(self.architecture, i, pick(device))

    @checks.typed
    def derivative(self, f: Network, device: str | torch.device = "cpu", *, local: bool = False) -> Tensor:
        """Return the derivative of a network on a device at the point: (D,), or J J^T (D, D) for ``"mixed"``.

        ``local`` takes a secant through the windows that a pixel reaches (`nadkit.inputs.local`).
        """
        x = self.x.to(pick(device))
        match self.method:
            case "secant":
                return (local_secant if local else secant)(f, x, self.scale)
            case "gradient":
                return gradient(f, x)
            case "mixed":
                return mixed_moment(f, x)

    @checks.typed
    def is_local(self, device: str | torch.device = "cpu") -> bool:
        """Say whether a pixel's step changes only a window of the first layers' maps, so that local secants pay."""
        device = pick(device)
        return self.method == "secant" and is_local(self.network(0, device), self.x.to(device), self.scale)

    @checks.typed
    def settings(self, device: str | torch.device = "cpu") -> Settings:
        """Return the settings that identify the derivatives, network 0 and its outputs included.

        Only derivatives whose settings have no `identity.differences` belong together.

        Raises:
            ValueError: the networks do not have exactly one logit, or their weights are of another type than the point.
        """
        device = pick(device)
        first = self.network(0, device)
        if (logits := architectures.n_logits(first, self.shape, device)) != 1:
            raise ValueError(f"architecture {self.name!r}: expected 1 logit, got {logits}")
        if (dtype := architectures.dtype_of(first)) != self.x.dtype:
            raise ValueError(
                f"architecture {self.name!r}: expected weights in {self.x.dtype}, as the point x, got {dtype}; "
                "return network.float()"
            )
        with exact():
            answers = identity.outputs(first, self.shape, device)
        if isinstance(self.architecture, _BatchStatistics):  # whose last digits depend on the number of threads
            first = self._built(self.architecture.architecture, 0, device)
        return {
            "architecture": self.name,
            "method": self.method,
            "scale": float(self.scale) if self.method == "secant" else 0.0,
            "seed": self.seed,
            "x": digest(self.x),
            "networks": _fingerprint(first),
            "outputs": answers,
        }

    def _built(self, architecture: Architecture, i: int, device: torch.device) -> nn.Module:
        with seeds.seeded(self.seed, "network", i, device=device), device:
            model = architectures.build(architecture, shape=self.shape, classes=1)
        return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _fingerprint(model: nn.Module) -> str:
    """Return a short hash of a network: its layers with their options, its weights with their names and shapes."""
    layers = [(type(layer).__qualname__, _options(layer)) for layer in model.modules()]
    weights = [(f"{name} {tuple(w.shape)}", w.cpu().double()) for name, w in model.state_dict().items()]
    return digest(repr(layers), *(part for pair in weights for part in pair))


def _options(layer: nn.Module) -> dict[str, object]:
    """Return the public attributes that are plain values, or functions, of which the name counts."""
    public = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "training"}
    named = {name: getattr(value, "__qualname__", value) for name, value in public.items()}
    return {name: value for name, value in named.items() if isinstance(value, str | int | float | tuple | None)}


@checks.typed
def with_batch_statistics(architecture: Architecture, *, batch: int = 128, seed: int = 0) -> Callable[..., nn.Module]:
    """Return a factory of the same networks whose batch norms normalise in eval mode, too.

    As initialised, a batch norm in eval mode is the identity: its running mean is 0 and its variance 1. The factory
    shows every fresh network one batch of N(0, I) inputs, and its batch norms keep the means and variances they saw. So
    eval mode does what training mode would on such data, but one input's output does not depend on the others'.

    The weights are those that ``architecture`` alone gives for the same seed; dropout stays off.

    Args:
        architecture: a name or a factory (`nadkit.architectures`); it must have batch norms.
        batch: number of inputs in the batch.
        seed: of the batch, which is the same for every network.

    Raises:
        ValueError: an unknown architecture, a batch of fewer than two; when called, a network without batch norms.
    """
    architectures.factory(architecture)
    batch, seed = checks.require_integer("batch", batch, 2), checks.require_integer("seed", seed, 0)
    return _BatchStatistics(architecture, batch, seed)


@dataclass(frozen=True)
class _BatchStatistics:
    """What `with_batch_statistics` returns: of a class, unlike a function within one, so that it can be pickled."""

    architecture: Architecture
    batch: int
    seed: int

    @property
    def __name__(self) -> str:
        seed = f", seed {self.seed}" if self.seed else ""
        return f"{architectures.name_of(self.architecture)} (norms of a batch of {self.batch}{seed})"

    @torch.no_grad()
    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        model = architectures.build(self.architecture, shape=shape, classes=classes)
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            name = architectures.name_of(self.architecture)
            raise ValueError(f"architecture {name!r}: it has no batch norm that keeps statistics; use it as it is")
        x = torch.randn(self.batch, *shape, generator=seeds.generator(self.seed, "batch statistics"), device="cpu")
        training, momenta = model.training, [norm.momentum for norm in norms]
        model.eval()  # without dropout, which would blur the statistics
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches, of which there is one
        with exact():
            model(x.to(norms[0].running_mean.device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return model.train(training)
