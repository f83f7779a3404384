"""Neural anisotropy directions: eigenvectors of the covariance, over random networks, of the input derivative.

    C = E[(g - E g) (g - E g)^T] = sum_k lambda_k u_k u_k^T,   g = d f_theta / d x,   theta as initialised

Source: Ortiz-Jimenez, Modas, Moosavi-Dezfooli and Frossard, "Neural Anisotropy Directions", NeurIPS 2020, section 3.
"""

import contextlib
import functools
import hashlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from nadkit import architectures, seeds, storage
from nadkit.architectures import Architecture, Shape
from nadkit.data.published import published_nads
from nadkit.devices import pick
from nadkit.inputs.directions import NADs
from nadkit.training.parallel import gather

__all__ = [
    "GradientCovariance",
    "compute_nads",
    "effective_dimension",
    "gradient",
    "gradient_covariance",
    "leading_nads",
    "marchenko_pastur_cdf",
    "marchenko_pastur_edges",
    "merged",
    "mixed_moment",
    "population_effective_dimension",
    "published_nads",
    "secant",
    "with_batch_statistics",
]

Method = Literal["secant", "gradient", "mixed"]
Network = Callable[[Tensor], Tensor]

BATCH = {"cpu": 512, "cuda": 2048, "mps": 2048}
"""Inputs per forward pass of a secant; on a CPU a larger batch falls out of the caches (``benchmarks/nads.py``)."""

BLOCK = {"secant": 64, "gradient": 256, "mixed": 1}
"""Networks per update of the covariance: enough that the update costs little beside the derivatives."""

COMPILED_FROM = 2000
"""Networks for which compiling, some 20 s on a CPU, is soon earned back (``benchmarks/nads.py``)."""

PART = {"secant": 128, "gradient": 256, "mixed": 16}
"""Networks per task of a worker and between saves: whole blocks, enough of them to be worth sending their moments.

Moments are summed up part by part wherever they are computed, so that the sums are the same to the last bit.
"""

MIXED_ROWS = 16

GRAM_CHUNK = 2**22
"""Numbers of the derivatives (32 MB in float64) that `leading_nads` looks at at a time."""

RANK_TOLERANCE = 1e-12
"""Eigenvalues below this share of the first are the rounding of float32 derivatives, squared."""


NOTHING = "all input derivatives are zero at this point: there are no directions; choose another x"


@dataclass(kw_only=True, eq=False)
class GradientCovariance:
    """The first two moments of input derivatives, which grow network by network in memory that does not.

    Attributes:
        shape: (C, H, W) of the inputs, C H W = D.
        settings: what the derivatives are of; only equal settings can be merged.
        networks: the numbers of the networks seen, as half-open ranges (first, last).
        total: (D,) float64, sum of g.
        second: (D, D) float64, sum of g g^T.
    """

    shape: Shape
    settings: dict[str, str | int | float]
    networks: list[tuple[int, int]]
    total: Tensor
    second: Tensor

    @classmethod
    def empty(cls, shape: Shape, settings: dict[str, str | int | float], device: str | torch.device = "cpu") -> Self:
        """Return the moments of no networks (on the CPU for MPS, which has no float64)."""
        size = math.prod(shape)
        device = "cpu" if torch.device(device).type == "mps" else device
        total = torch.zeros(size, dtype=torch.float64, device=device)
        return cls(shape=tuple(shape), settings=settings, networks=[], total=total, second=total.new_zeros(size, size))

    @property
    def count(self) -> int:
        """Number N of networks seen."""
        return sum(last - first for first, last in self.networks)

    def has(self, network: int) -> bool:
        """Say whether a network has been seen."""
        return any(first <= network < last for first, last in self.networks)

    def update(self, derivatives: Tensor, networks: tuple[int, int]) -> None:
        """Take in the derivatives (N, D) of the networks (first, last).

        Raises:
            ValueError: a derivative is not finite, or a network was seen before.
        """
        g = derivatives.to(self.total.device).double()
        self._add(g.sum(0), g.T @ g, [networks])

    def merge(self, other: "GradientCovariance") -> None:
        """Take in what another run of the same settings saw.

        Raises:
            ValueError: the settings differ, or some networks are in both.
        """
        if (self.shape, self.settings) != (other.shape, other.settings):
            raise ValueError(f"merge: expected covariances of equal settings, got {self.settings} and {other.settings}")
        self._add(other.total.to(self.total), other.second.to(self.second), other.networks)

    def _add(self, total: Tensor, second: Tensor, networks: list[tuple[int, int]]) -> None:
        if not torch.isfinite(second.diagonal()).all():  # the squares of all that came in
            raise ValueError(f"networks {_text(networks)}: an input derivative is NaN or infinite")
        ranges = _join(self.networks, networks)
        # new tensors, so that an interrupt leaves the old moments whole
        total, second = self.total + total, self.second + second
        self.networks, self.total, self.second = ranges, total, second

    def covariance(self, *, centred: bool = True) -> Tensor:
        """Return the sample covariance, or with ``centred=False`` the second moment sum g g^T / N: (D, D) float64."""
        n = self.count
        if not centred:
            return self.second / n
        return (self.second - torch.outer(self.total, self.total) / n) / (n - 1)

    def nads(self, *, centred: bool = True) -> NADs:
        """Return the NADs: all D eigenvectors, by descending eigenvalue, on the CPU.

        Raises:
            ValueError: too few networks, or derivatives that are all zero.
        """
        least = 2 if centred else 1
        if self.count < least:
            raise ValueError(f"n_networks: NADs need at least {least}, got {self.count}")
        eigenvalues, eigenvectors = torch.linalg.eigh(self.covariance(centred=centred).cpu())
        if not eigenvalues[-1] > 0:
            raise ValueError(NOTHING)
        return NADs(
            vectors=eigenvectors.T.flip(0).contiguous(),
            eigenvalues=eigenvalues.flip(0).clamp(min=0),
            shape=self.shape,
            name=_name(self.settings),
            n_networks=self.count,
            centred=centred,
            settings=self.settings,
        )

    def save(self, path: str | Path) -> None:
        """Write the moments to a safetensors file, whole or not at all."""
        facts = {"shape": self.shape, "settings": self.settings, "networks": self.networks}
        storage.write(path, type(self).__name__, {"total": self.total, "second": self.second}, facts)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, holds something else, or is a folder.
        """
        tensors, facts = storage.read(path, cls.__name__)
        try:
            shape, networks = tuple(facts["shape"]), [tuple(pair) for pair in facts["networks"]]
            return cls(shape=shape, settings=facts["settings"], networks=networks, **tensors)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: a damaged covariance; delete it to start afresh ({error})") from error


def compute_nads(
    architecture: Architecture,
    *,
    shape: Shape = (1, 32, 32),
    n_networks: int = 10_000,
    method: Method = "secant",
    scale: float = 100.0,
    seed: int = 0,
    device: str | torch.device = "auto",
    x: Tensor | None = None,
    checkpoint: str | Path | None = None,
    compile: bool | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> NADs:
    """Return the NADs of an architecture: the `gradient_covariance` of ``n_networks`` networks, diagonalised.

    Secants and gradients are centred, as in the authors' code; the mixed derivative is not.

    Raises:
        ValueError: as `gradient_covariance`; too few networks (two, for ``"mixed"`` one); derivatives that are all
            zero.
    """
    n_networks = seeds.require_integer("n_networks", n_networks, 1 if method == "mixed" else 2)
    covariance = gradient_covariance(
        architecture,
        shape=shape,
        networks=range(n_networks),
        method=method,
        scale=scale,
        seed=seed,
        device=device,
        x=x,
        checkpoint=checkpoint,
        compile=compile,
        executor=executor,
        progress=progress,
    )
    return covariance.nads(centred=method != "mixed")


def gradient_covariance(
    architecture: Architecture,
    *,
    shape: Shape = (1, 32, 32),
    networks: range = range(10_000),
    method: Method = "secant",
    scale: float = 100.0,
    seed: int = 0,
    device: str | torch.device = "auto",
    x: Tensor | None = None,
    checkpoint: str | Path | None = None,
    compile: bool | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> GradientCovariance:
    """Return the moments of the input derivatives of fresh one-logit networks in eval mode, at one point x.

    Network i depends on ``seed``, i and the kind of device alone, so ranges computed apart merge to what one run gives.
    Methods:

    - ``"secant"``: g_i = [f(x + scale e_i) - f(x - scale e_i)] / (2 scale), with scale 100 the authors' protocol;
    - ``"gradient"``: g = grad_x f(x);
    - ``"mixed"``: a network adds J J^T, J = d^2 f / dx dtheta, so that already one gives NADs (Ortiz-Jimenez,
      Moosavi-Dezfooli and Frossard 2021, arXiv 2106.06770).

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        shape: (C, H, W) of the inputs.
        networks: numbers of the networks, in ascending order.
        method: of the derivative.
        scale: the secant's half step, in the units of x.
        seed: of the networks and of x.
        device: where to compute; the derivatives are float32, their moments float64. With an executor, ``"auto"`` is
            what its first worker to answer has.
        x: (C, H, W), the point; by default one draw from N(0, I), and zero for ``"mixed"``.
        checkpoint: a file to save to after each `PART` of the networks and on an interrupt, and to continue from.
        compile: compile the secant's forward pass; by default on a CPU with a C++ compiler, from 2,000 networks on,
            but not with an executor, each of whose tasks would compile anew.
        executor: compute on its workers instead, one `PART` of the networks a task; the moments come back to the CPU.
        progress: show a bar with an estimate.

    Raises:
        ValueError: an unknown method or architecture, a network without just one logit, a scale or x that does not
            fit, a checkpoint of another run.
        DataError: the checkpoint cannot be written.
    """
    seed, point = _checked(shape, method, scale, seed, x)
    if executor is not None:
        architectures.factory(architecture)  # a wrong name should fail here, not in a worker
        options = {"shape": shape, "method": method, "scale": scale, "seed": seed, "x": point, "compile": compile}
        return _on_workers(executor, architecture, networks, device, checkpoint, progress, options)
    drawn = _Networks(architecture, shape, method, scale, seed, pick(device), point)
    device, settings = drawn.device, drawn.settings
    covariance = _start(checkpoint, shape, settings, networks, device)
    left = [i for i in networks if not covariance.has(i)]
    if compile is None:
        compile = device.type == "cpu" and len(left) >= COMPILED_FROM and shutil.which("c++") is not None
    fast = _compiled(drawn.template) if compile and method == "secant" else lambda model: model
    with _bar(networks, left, progress) as bar, _exact():
        for part in _blocks(left, PART[method]):
            moments = GradientCovariance.empty(shape, settings, device)
            try:
                for block in _blocks(range(*part), BLOCK[method]):
                    if method == "mixed":
                        moment = mixed_moment(drawn.network(block[0]), drawn.point).to(moments.second)
                        moments._add(torch.zeros_like(moments.total), moment, [block])
                        bar.update()
                    else:
                        rows = []
                        for i in range(*block):
                            rows.append(drawn.derivative(fast(drawn.network(i))))
                            bar.update()
                        moments.update(torch.stack(rows), block)
            finally:  # by an interrupt, too
                _take_in([moments], covariance, checkpoint)
    return covariance


def leading_nads(
    architecture: Architecture,
    k: int,
    *,
    shape: Shape,
    n_networks: int,
    method: Method = "gradient",
    scale: float = 100.0,
    seed: int = 0,
    device: str | torch.device = "auto",
    x: Tensor | None = None,
    progress: bool = False,
) -> NADs:
    """Return the first k NADs without the D x D covariance, for inputs far larger than the number N of networks.

    With the centred derivatives as the rows of G (N, D), and the eigenvectors of their Gram matrix,

        G G^T w_k = s_k^2 w_k,   u_k = G^T w_k / s_k,   lambda_k = s_k^2 / (N - 1).

    The networks and the derivatives are those of `gradient_covariance`, so that
    ``compute_nads(..., n_networks=N).leading(k)`` is the same where D is small enough for it. Held in memory are N x D
    float32 numbers on the device and k x D float64 ones: 1,000 networks of 3 x 224 x 224 inputs take 600 MB.

    A *secant* needs 2 D forward passes a network, which at that size are 300,000: expect to wait.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        k: number of directions.
        shape: (C, H, W) of the inputs.
        n_networks: number N of random networks.
        method: of the derivative, ``"gradient"`` or ``"secant"``.
        scale, seed, device, x, progress: as in `gradient_covariance`.

    Raises:
        ValueError: k is larger than the rank of the covariance, at most N - 1 and D; the method is ``"mixed"``, of
            which one network has D derivatives; as `gradient_covariance`.
    """
    n_networks = seeds.require_integer("n_networks", n_networks, 2)
    if method == "mixed":
        raise ValueError("leading_nads: expected method 'gradient' or 'secant', got 'mixed'; compute_nads takes it")
    seed, point = _checked(shape, method, scale, seed, x)
    rank = min(n_networks - 1, math.prod(shape))
    if not (isinstance(k, Integral) and 1 <= k <= rank):
        raise ValueError(
            f"k: expected 1 to {rank}, the rank that {n_networks} centred derivatives of {math.prod(shape)} numbers "
            f"can have, got {k}; take more networks"
        )
    drawn = _Networks(architecture, shape, method, scale, seed, pick(device), point)
    g = torch.empty(n_networks, math.prod(shape), device=drawn.device)
    with _bar(range(n_networks), list(range(n_networks)), progress) as bar, _exact():
        for i in range(n_networks):
            g[i] = drawn.derivative(drawn.network(i))
            bar.update()
    if len(bad := (~torch.isfinite(g).all(1)).nonzero()):
        raise ValueError(f"network {bad[0].item()}: an input derivative is NaN or infinite")
    squares, w = torch.linalg.eigh(sum(chunk @ chunk.T for chunk in _centred_columns(g)))
    squares, w = squares.flip(0)[:k].clamp(min=0), w.flip(1)[:, :k]
    if not squares[0] > 0:
        raise ValueError(NOTHING)
    if len(none := (squares <= RANK_TOLERANCE * squares[0]).nonzero()):
        raise ValueError(f"k: the derivatives span {none[0].item()} directions only, got {k}")
    vectors = torch.cat([w.T @ chunk for chunk in _centred_columns(g)], dim=1) / squares.sqrt()[:, None]
    return NADs(
        vectors=vectors.cpu(),
        eigenvalues=squares.cpu() / (n_networks - 1),
        shape=tuple(shape),
        name=_name(drawn.settings),
        n_networks=n_networks,
        settings=drawn.settings,
    )


def _centred_columns(g: Tensor) -> Iterator[Tensor]:
    """Yield G less its mean row, some columns at a time, in float64 (on the CPU for MPS, which has none)."""
    for chunk in g.split(max(1, GRAM_CHUNK // len(g)), dim=1):
        chunk = (chunk.cpu() if g.device.type == "mps" else chunk).double()
        yield chunk - chunk.mean(0)


def _checked(shape: Shape, method: Method, scale: float, seed: int, x: Tensor | None) -> tuple[int, Tensor]:
    """Return the seed and the point of evaluation, on the CPU, or say what is wrong with what was asked for."""
    seed = seeds.require_integer("seed", seed, 0)
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: expected a positive finite number, got {scale}")
    return seed, _point(x, shape, method, seed)


@dataclass(eq=False)
class _Networks:
    """The random networks of a seed, each built when it is asked for, and their derivatives at one point.

    Raises:
        ValueError: the networks have not just one logit.
    """

    architecture: Architecture
    shape: Shape
    method: Method
    scale: float
    seed: int
    device: torch.device
    point: Tensor
    template: nn.Module = field(init=False)
    settings: dict[str, str | int | float] = field(init=False)

    def __post_init__(self) -> None:
        name = architectures.name_of(self.architecture)
        self.template = self.network(0)
        if (logits := architectures.n_logits(self.template, self.shape, self.device)) != 1:
            raise ValueError(f"architecture {name!r}: expected 1 logit, got {logits}")
        self.settings = {
            "architecture": name,
            "method": self.method,
            "scale": float(self.scale) if self.method == "secant" else 0.0,
            "seed": self.seed,
            "x": hashlib.sha256(self.point.numpy().tobytes()).hexdigest()[:12],
            "networks": _fingerprint(self._initialised()),
        }
        self.point = self.point.to(self.device)

    def network(self, i: int) -> nn.Module:
        """Return network i, in eval mode."""
        return self._build(self.architecture, i)

    def derivative(self, f: Network) -> Tensor:
        """Return the derivative of a network at the point: (D,)."""
        return secant(f, self.point, self.scale) if self.method == "secant" else gradient(f, self.point)

    def _build(self, architecture: Architecture, i: int) -> nn.Module:
        with seeds.seeded(self.seed, "network", i, device=self.device), self.device:
            model = architectures.build(architecture, shape=self.shape, classes=1)
        return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def _initialised(self) -> nn.Module:
        """Return network 0 without batch statistics, whose last digits depend on the number of threads."""
        if isinstance(self.architecture, _BatchStatistics):
            return self._build(self.architecture.architecture, 0)
        return self.template


def _exact() -> contextlib.AbstractContextManager:
    """Return a context in which a GPU's convolutions have all digits, and the same ones in every run.

    TensorFloat-32 keeps 10 of a float's 23 bits, too few for a difference; and an algorithm chosen by a race would
    not be the same every time. Matrix products have all digits unless torch has been told otherwise.
    """
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


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
    return _BatchStatistics(
        architecture, seeds.require_integer("batch", batch, 2), seeds.require_integer("seed", seed, 0)
    )


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
        with _exact():
            model(x.to(norms[0].running_mean.device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return model.train(training)


def _on_workers(
    executor: Executor,
    architecture: Architecture,
    networks: range,
    device: str | torch.device,
    checkpoint: str | Path | None,
    progress: bool,
    options: dict[str, Any],
) -> GradientCovariance:
    """Return `gradient_covariance` computed in parts, which are summed up in order, whichever comes first."""
    device = next(gather(executor, pick, [(device,)]))
    task = functools.partial(_part, architecture, options | {"device": device})
    none = next(gather(executor, task, [(range(0),)]))  # what the settings are, workers know: they have the device
    covariance = _start(checkpoint, none.shape, none.settings, networks, torch.device("cpu"))
    left = [i for i in networks if not covariance.has(i)]
    awaited = list(_blocks(left, PART[options["method"]]))
    arrived: dict[tuple[int, int], GradientCovariance] = {}
    try:
        with _bar(networks, left, progress) as bar:
            for part in gather(executor, task, [(range(*part),) for part in awaited]):
                arrived[part.networks[0]] = part
                bar.update(part.count)
                ready = []
                while awaited and awaited[0] in arrived:
                    ready.append(arrived.pop(awaited.pop(0)))
                if ready:
                    _take_in(ready, covariance, checkpoint)
    finally:
        if arrived:  # after an interrupt, what had to wait for another part is kept, too
            _take_in([arrived[part] for part in sorted(arrived)], covariance, checkpoint)
    return covariance


def _part(architecture: Architecture, options: dict[str, Any], networks: range) -> GradientCovariance:
    part = gradient_covariance(architecture, networks=networks, **options)
    part.total, part.second = part.total.cpu(), part.second.cpu()
    return part


def _take_in(parts: list[GradientCovariance], whole: GradientCovariance, checkpoint: str | Path | None) -> None:
    for part in parts:
        whole.merge(part)
    if checkpoint is not None:
        whole.save(checkpoint)


def _bar(networks: range, left: list[int], progress: bool) -> tqdm:
    return tqdm(total=len(networks), initial=len(networks) - len(left), unit="network", disable=not progress)


def merged(parts: Iterable[GradientCovariance]) -> GradientCovariance:
    """Return one covariance of all networks of several, which stay as they are.

    Raises:
        ValueError: no parts, settings that differ, or a network that is in two parts.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("merged: expected at least one covariance")
    whole = GradientCovariance.empty(parts[0].shape, parts[0].settings, parts[0].total.device)
    for part in parts:
        whole.merge(part)
    return whole


@torch.no_grad()
def secant(f: Network, x: Tensor, scale: float) -> Tensor:
    """Return g_i = [f(x + scale e_i) - f(x - scale e_i)] / (2 scale) at x: (C, H, W) -> (D,).

    Args:
        f: (B, C, H, W) -> (B, 1).
        x: the point.
        scale: half the step, in the units of x.
    """
    size = x.numel()
    pieces = []
    for rows in torch.arange(size, device=x.device).split(BATCH[x.device.type] // 2):
        steps = x.new_zeros(len(rows), size)
        steps[torch.arange(len(rows)), rows] = scale
        steps = steps.view(-1, *x.shape)
        up, down = f(torch.cat([x + steps, x - steps])).squeeze(1).chunk(2)
        pieces.append((up - down) / (2 * scale))
    return torch.cat(pieces)


def gradient(f: Network, x: Tensor) -> Tensor:
    """Return g = grad_x f(x) at x: (C, H, W) -> (D,), for f: (B, C, H, W) -> (B, 1)."""
    return grad(lambda z: f(z[None]).squeeze())(x).flatten()


def mixed_moment(model: nn.Module, x: Tensor) -> Tensor:
    """Return J J^T, J = d^2 f(x) / dx dtheta: (C, H, W) -> (D, D), for a model of one logit.

    J itself (D rows of one number a weight) need not fit in memory: J J^T u is a vector-Jacobian product of the map
    u -> J^T u, taken for a few unit vectors u at a time.

    Source: Ortiz-Jimenez, Moosavi-Dezfooli and Frossard 2021 (arXiv 2106.06770).
    """
    weights = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def input_gradient(weights: dict[str, Tensor]) -> Tensor:
        return gradient(lambda z: functional_call(model, (weights, buffers), (z,)), x)

    def transposed(u: Tensor) -> dict[str, Tensor]:
        return vjp(input_gradient, weights)[1](u)[0]

    def row(u: Tensor) -> Tensor:
        value, pullback = vjp(transposed, u)
        return pullback(value)[0]

    identity = torch.eye(x.numel(), device=x.device, dtype=x.dtype)
    return torch.cat([vmap(row)(us) for us in identity.split(MIXED_ROWS)])


def marchenko_pastur_edges(dimensions: int, n: int) -> tuple[float, float]:
    """Return (1 -+ sqrt(D / N))^2, between which the non-zero eigenvalues of an isotropic sample covariance lie.

    In units of the true eigenvalue, which is the mean of all D sample eigenvalues.

    Source: Marchenko and Pastur 1967.
    """
    root = math.sqrt(dimensions / n)
    return (1 - root) ** 2, (1 + root) ** 2


def marchenko_pastur_cdf(x: Tensor, dimensions: int, n: int) -> Tensor:
    """Return the share of an isotropic sample covariance's non-zero eigenvalues up to x: (K,) -> (K,) float64.

    The density is sqrt((x_+ - x) (x - x_-)) / x up to a factor, integrated on a fine grid; x is in units of the true
    eigenvalue.

    Source: Marchenko and Pastur 1967.
    """
    low, high = marchenko_pastur_edges(dimensions, n)
    # denser towards the edges, where the density has its square roots
    grid = low + (high - low) * (0.5 - 0.5 * torch.linspace(0, math.pi, 20_001, dtype=torch.float64).cos())
    density = ((high - grid) * (grid - low)).clamp(min=0).sqrt() / grid.clamp(min=1e-12)
    mass = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, grid)])
    index = torch.searchsorted(grid, x.double().clamp(low, high).contiguous()).clamp(max=len(grid) - 1)
    return mass[index] / mass[-1]


def effective_dimension(eigenvalues: Tensor) -> float:
    """Return the participation ratio (sum_k lambda_k)^2 / sum_k lambda_k^2: how many directions share the variance.

    From 1, where one direction has it all, to K, where all have the same. A *sample* covariance of N networks gives
    less than the truth, at most N - 1; `population_effective_dimension` estimates the truth.

    Args:
        eigenvalues: (K,), all of them that are not zero.

    Raises:
        ValueError: they are not finite, or negative, or all zero.
    """
    spectrum = torch.as_tensor(eigenvalues).double()
    if not torch.isfinite(spectrum).all() or (spectrum < 0).any() or not spectrum.sum() > 0:
        raise ValueError("eigenvalues: expected finite numbers, not negative, not all zero")
    return (spectrum.sum().square() / spectrum.square().sum()).item()


def population_effective_dimension(one: GradientCovariance, other: GradientCovariance) -> float:
    """Return the effective dimension of the true covariance C, estimated from two independent sets of networks.

        tr S_1 tr S_2 / tr(S_1 S_2),   E[S_1 S_2] = C^2,   E[tr S_1 tr S_2] = (tr C)^2

    Numerator and denominator are without bias, however few the networks and whatever the distribution of their
    derivatives; so the estimate, unlike `effective_dimension`, is not drawn towards the number of networks.

    Raises:
        ValueError: the inputs differ in shape, or the settings in more than seed and point; the two share a
            network of the same seed; a set is too small.
    """
    if tuple(one.shape) != tuple(other.shape):
        raise ValueError(f"effective dimension: expected covariances of one shape, got {one.shape} and {other.shape}")
    differing = sorted(k for k in one.settings | other.settings if one.settings.get(k) != other.settings.get(k))
    if other_experiment := [name for name in differing if name not in ("seed", "x", "networks")]:
        told = ", ".join(f"{n} {one.settings.get(n)!r} and {other.settings.get(n)!r}" for n in other_experiment)
        raise ValueError(f"effective dimension: expected two samples of one experiment, got {told}")
    if "seed" not in differing:
        _join(one.networks, other.networks)
    if min(one.count, other.count) < 2:
        raise ValueError(f"effective dimension: expected two networks in each, got {one.count} and {other.count}")
    s, t = one.covariance(), other.covariance().to(one.second)
    return (s.trace() * t.trace() / (s * t).sum()).item()


def _compiled(template: nn.Module) -> Callable[[nn.Module], Network]:
    """Compile one network; every other of its kind then runs as that one with its weights copied in."""
    forward = torch.compile(template)

    def fast(model: nn.Module) -> Network:
        template.load_state_dict(model.state_dict())
        return forward

    return fast


def _fingerprint(model: nn.Module) -> str:
    """Return a short hash of a network: its layers with their options, its weights with their names and shapes."""
    layers = [(type(layer).__qualname__, _options(layer)) for layer in model.modules()]
    digest = hashlib.sha256(repr(layers).encode())
    for name, values in model.state_dict().items():
        digest.update(f"{name} {tuple(values.shape)}".encode() + values.cpu().double().numpy().tobytes())
    return digest.hexdigest()[:12]


def _options(layer: nn.Module) -> dict[str, object]:
    """Return the public attributes that are plain values, or functions, of which the name counts."""
    public = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "training"}
    named = {name: getattr(value, "__qualname__", value) for name, value in public.items()}
    return {name: value for name, value in named.items() if isinstance(value, str | int | float | tuple | None)}


def _point(x: Tensor | None, shape: Shape, method: Method, seed: int) -> Tensor:
    """Return the point of evaluation, on the CPU so that it is the same for every device."""
    if x is None:
        if method == "mixed":
            return torch.zeros(shape)
        return torch.randn(shape, generator=seeds.generator(seed, "point"))
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"x: expected shape {tuple(shape)}, got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError("x: expected finite numbers, got NaN or infinity")
    return x.detach().float().cpu()


def _start(
    checkpoint: str | Path | None,
    shape: Shape,
    settings: dict[str, str | int | float],
    networks: range,
    device: torch.device,
) -> GradientCovariance:
    """Return the checkpoint's moments if there are any and they are of this run, else empty ones.

    Empty ones are saved: a file that cannot be written should fail now, and not after an hour of work.
    """
    fresh = GradientCovariance.empty(shape, settings, device)
    if checkpoint is None:
        return fresh
    if not Path(checkpoint).exists():
        fresh.save(checkpoint)
        return fresh
    saved = GradientCovariance.load(checkpoint)
    if saved.networks and not all(first in networks and last - 1 in networks for first, last in saved.networks):
        raise ValueError(
            f"checkpoint {checkpoint}: holds networks {_text(saved.networks)}, expected only some of "
            f"{networks.start} to {networks.stop - 1}; name another file"
        )
    try:
        fresh.merge(saved)
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint} is of another run, name another file ({error})") from error
    fresh.save(checkpoint)
    return fresh


def _blocks(numbers: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Cut ascending numbers into half-open ranges of at most ``size``."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1 or i - start == size:
            yield numbers[start], numbers[i - 1] + 1
            start = i


def _join(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of two lists of disjoint half-open ranges."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted([*a, *b]):
        if joined and first < joined[-1][1]:
            raise ValueError(f"networks {_text(b)}: some were seen before ({_text(a)})")
        if joined and first == joined[-1][1]:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def _name(settings: dict[str, str | int | float]) -> str:
    return f"NADs of {settings['architecture']}"


def _text(networks: list[tuple[int, int]]) -> str:
    return ", ".join(f"{first} to {last - 1}" for first, last in networks)
