"""Neural anisotropy directions: eigenvectors of the covariance, over random networks, of the input derivative.

    C = E[(g - E g) (g - E g)^T] = sum_k lambda_k u_k u_k^T,   g = d f_theta / d x,   theta as initialised

Source: Ortiz-Jimenez, Modas, Moosavi-Dezfooli and Frossard, "Neural Anisotropy Directions", NeurIPS 2020, section 3.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from tqdm import tqdm

from nadkit import checks, identity, storage
from nadkit.architectures import Architecture, Shape
from nadkit.devices import keep_freed_memory, pick
from nadkit.inputs.basis import NADs
from nadkit.inputs.derivatives import exact
from nadkit.inputs.population import Method, Population, Settings
from nadkit.inputs.reproducibility import leading_eigenvectors, overlaps
from nadkit.parallel import gather

BLOCK = {"secant": 64, "gradient": 256, "mixed": 1}
"""Networks per update of the covariance: enough that the update costs little beside the derivatives."""

LOCAL_FROM = 100
"""Number of networks from which secants are local on a CPU by default; for fewer, the plain loop is quick enough."""

PART = {"secant": 128, "gradient": 256, "mixed": 16}
"""Networks per task of a worker and between saves: whole blocks, enough of them to be worth sending their moments.

Moments are summed up part by part wherever they are computed, so that the sums are the same to the last bit.
"""

ROUNDING = 1e-12
"""Shares of a second moment below this are the rounding of float32 derivatives, squared."""

MOMENTS = ("total", "second", "even_total", "even_second")
"""The tensors of a `GradientCovariance`."""

Ranges = list[tuple[int, int]]
"""Numbers of networks, as half-open ranges (first, last)."""


@dataclass(kw_only=True, eq=False)
class GradientCovariance:
    """The first two moments of input derivatives, summed network by network in memory that does not grow.

    Those of the even-numbered networks are kept, too: they and the rest are two independent `halves`.

    Attributes:
        shape: (C, H, W) of the inputs, C H W = D.
        settings: what the derivatives are of; only equal settings can be merged.
        networks: the numbers of the networks seen, as half-open ranges (first, last).
        total: (D,) float64, sum of g.
        second: (D, D) float64, sum of g g^T.
        even_total: (D,) float64, the part of ``total`` from even-numbered networks; None if it is not known.
        even_second: (D, D) float64, the same of ``second``.
    """

    shape: Shape
    settings: Settings
    networks: Ranges
    total: Tensor
    second: Tensor
    even_total: Tensor | None = None
    even_second: Tensor | None = None

    @classmethod
    @checks.typed
    def empty(cls, shape: Shape, settings: Settings, device: str | torch.device = "cpu") -> Self:
        """Return the moments of no networks (on the CPU for MPS, which has no float64)."""
        size = math.prod(shape)
        device = "cpu" if torch.device(device).type == "mps" else device
        sizes = dict(zip(MOMENTS, 2 * [(size,), (size, size)], strict=True))
        moments = {name: torch.zeros(s, dtype=torch.float64, device=device) for name, s in sizes.items()}
        return cls(shape=tuple(shape), settings=settings, networks=[], **moments)

    @property
    def count(self) -> int:
        """Number N of networks seen."""
        return sum(last - first for first, last in self.networks)

    def has(self, network: int) -> bool:
        """Say whether a network has been seen."""
        return any(first <= network < last for first, last in self.networks)

    @checks.typed
    def update(self, derivatives: Tensor, networks: tuple[int, int]) -> None:
        """Add the derivatives of the networks (first, last): (N, D), or (N, D, D) if each is J J^T already.

        Raises:
            ValueError: a derivative is not finite or of another size, there is not one for each network, or a network
                was seen before.
        """
        size, n = len(self.total), networks[1] - networks[0]
        if tuple(derivatives.shape) not in ((n, size), (n, size, size)):
            raise ValueError(
                f"derivatives: expected {n} of {size} numbers, or as many matrices, for the networks {networks}, got "
                f"shape {tuple(derivatives.shape)}"
            )
        g = derivatives.to(self.total.device).double()
        even = g[networks[0] % 2 :: 2]
        self._add([networks], dict(zip(MOMENTS, [*self._sums(g), *self._sums(even)], strict=True)))

    def _sums(self, g: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.zeros_like(self.total), g.sum(0)) if g.ndim == 3 else (g.sum(0), g.T @ g)

    @checks.typed
    def merge(self, other: "GradientCovariance") -> None:
        """Add the moments of another run with the same settings.

        Raises:
            ValueError: the settings differ, or some networks are in both.
        """
        if words := self._differences(other):
            raise ValueError(f"merge: expected covariances of equal settings, but {words}")
        self._add(other.networks, other._moments())

    def _differences(self, saved: "GradientCovariance") -> str:
        """Return in words in what other moments are not of these derivatives, or nothing."""
        one, other = ({"shape": list(c.shape), **c.settings} for c in (saved, self))
        return identity.differences(one, other)

    def _moments(self) -> dict[str, Tensor]:
        return {name: moment for name in MOMENTS if (moment := getattr(self, name)) is not None}

    def _add(self, networks: Ranges, moments: dict[str, Tensor]) -> None:
        if not torch.isfinite(moments["second"].diagonal()).all():  # the squares of all that came in
            raise ValueError(f"networks {_text(networks)}: an input derivative is NaN or infinite")
        ranges, mine = union(self.networks, networks), self._moments()
        # new tensors, set at once, so that an interrupt leaves the old moments whole
        sums = {name: mine[name] + moments[name].to(mine[name]) for name in mine if name in moments}
        vars(self).update(networks=ranges, **dict.fromkeys(MOMENTS) | sums)

    @checks.typed
    def covariance(self, *, centred: bool = True) -> Tensor:
        """Return the sample covariance, or with ``centred=False`` the second moment sum g g^T / N: (D, D) float64."""
        return _covariance(self.total, self.second, self.count, centred)

    def halves(self, *, centred: bool = True) -> tuple[Tensor, Tensor] | None:
        """Return `covariance` of the networks of even and of odd number, (D, D) float64 each.

        None if there are too few of a kind, or the moments were saved by a version that did not keep these.
        """
        n_even = sum((last + 1) // 2 - (first + 1) // 2 for first, last in self.networks)
        n_odd = self.count - n_even
        if self.even_second is None or min(n_even, n_odd) < (2 if centred else 1):
            return None
        odd = self.total - self.even_total, self.second - self.even_second
        return _covariance(self.even_total, self.even_second, n_even, centred), _covariance(*odd, n_odd, centred)

    @checks.typed
    def nads(self, *, centred: bool = True) -> NADs:
        """Return the NADs: all D eigenvectors, by descending eigenvalue, on the CPU.

        Raises:
            ValueError: too few networks, or derivatives that are all zero or all the same.
        """
        least = 2 if centred else 1
        if self.count < least:
            raise ValueError(f"n_networks: NADs need at least {least}, got {self.count}")
        covariance = self.covariance(centred=centred).cpu()
        require_directions(covariance.trace(), self.second.cpu().trace() / self.count, self.count)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        halves = self.halves(centred=centred)
        return NADs(
            vectors=eigenvectors.T.flip(0).contiguous(),
            eigenvalues=eigenvalues.flip(0).clamp(min=0),
            shape=self.shape,
            name=f"NADs of {self.settings['architecture']}",
            n_networks=self.count,
            centred=centred,
            settings=self.settings,
            overlap_of_halves=overlaps(*map(leading_eigenvectors, halves)) if halves else None,
        )

    @checks.typed
    def save(self, path: str | Path) -> None:
        """Write the moments to a safetensors file, whole or not at all."""
        facts = {"shape": self.shape, "settings": self.settings, "networks": self.networks}
        storage.write(path, type(self).__name__, self._moments(), facts)

    @classmethod
    @checks.typed
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


def require_directions(variance: Tensor, square: Tensor, n_networks: int) -> None:
    """Raise ValueError where derivatives are all zero or all the same, from E |g - E g|^2 and E |g|^2."""
    if not square > 0:
        raise ValueError("all input derivatives are zero at this point: there are no directions; choose another x")
    if not variance > ROUNDING * square:
        raise ValueError(
            f"the {n_networks} networks are all the same: their input derivatives are identical, so there are no "
            "directions; expected a factory that draws new weights at every call, and neither sets a seed nor loads "
            "weights"
        )


@checks.typed
def compute_nads(
    architecture: Architecture,
    *,
    n_networks: int = 10_000,
    shape: Shape = (1, 32, 32),
    method: Method = "secant",
    scale: float = 100.0,
    seed: int = 0,
    x: Tensor | None = None,
    **run: Any,  # noqa: ANN401
) -> NADs:
    """Return the NADs of an architecture: the `gradient_covariance` of ``n_networks`` networks, diagonalised.

    Secants and gradients are centred, as in the authors' code; the mixed derivative is not. Networks whose derivatives
    are all the same are refused, except with the mixed derivative, which is the same for all linear networks, whatever
    their weights.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        n_networks: number N of random networks.
        shape, method, scale, seed, x: what the derivatives are of, see `Population`.
        run: how to compute: ``device``, ``checkpoint``, ``local``, ``executor``, ``progress``, see
            `gradient_covariance`.

    Raises:
        ValueError: as `gradient_covariance`; too few networks (two, for ``"mixed"`` one); derivatives that are all
            zero or all the same.
    """
    n_networks = checks.require_integer("n_networks", n_networks, 1 if method == "mixed" else 2)
    population = Population(architecture, shape, method, scale, seed, x)
    return gradient_covariance(population, networks=range(n_networks), **run).nads(centred=method != "mixed")


@checks.typed
def gradient_covariance(
    architecture: Architecture | Population,
    *,
    networks: range = range(10_000),
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    local: bool | None = None,
    executor: Executor | None = None,
    progress: bool = False,
    **population: Any,  # noqa: ANN401
) -> GradientCovariance:
    """Return the moments of the input derivatives of fresh networks.

    Ranges of networks that are computed separately can be merged, with the same result as one run.

    Args:
        architecture: a `Population`, or a name or factory for one.
        networks: numbers of the networks, in ascending order.
        device: where to compute; the derivatives are float32, their moments float64. With an executor, ``"auto"`` is
            the device of its first worker to answer.
        checkpoint: a file to save to after each `PART` of the networks and on an interrupt, and to continue from.
        local: compute secants only in the windows that a pixel reaches, which gives the same up to rounding and is
            several times as fast, for networks that begin with convolutions (`nadkit.inputs.local`, whose `reach` says
            how far); by default on a CPU, from 100 networks on. Other networks use the plain loop.
        executor: compute on its workers instead, one `PART` of the networks a task; the moments come back to the CPU.
        progress: show a bar with an estimate.
        population: with a name or factory, the rest of its `Population`: ``shape``, ``method``, ``scale``, ``seed``,
            ``x``.

    Raises:
        ValueError: as `Population`; a network that does not have exactly one logit; a checkpoint of another run.
        DataError: the checkpoint cannot be written.
    """
    if not isinstance(architecture, Population):
        architecture = Population(architecture, **population)
    elif population:
        raise TypeError(f"gradient_covariance: a Population has its own {', '.join(population)}")
    if networks.step < 1 or networks.start < 0:
        raise ValueError(f"networks: expected a range of numbers from 0, in ascending order, got {networks}")
    if executor is not None:
        return _on_workers(executor, architecture, networks, device, checkpoint, progress, local)
    return _here(architecture, networks, pick(device), checkpoint, progress, local)


def _here(
    population: Population,
    networks: range,
    device: torch.device,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    local: bool | None = None,
) -> GradientCovariance:
    """Return `gradient_covariance` computed in this process, part by part."""
    keep_freed_memory(device)
    covariance = _start(checkpoint, population.shape, population.settings(device), networks, device)
    left = [i for i in networks if not covariance.has(i)]
    local = _wants_local(local, networks, device) and population.is_local(device)
    with _bar(networks, left, progress) as bar, exact():
        for part in _blocks(left, PART[population.method]):
            moments = GradientCovariance.empty(covariance.shape, covariance.settings, device)
            try:
                for block in _blocks(range(*part), BLOCK[population.method]):
                    rows = []
                    for i in range(*block):
                        rows.append(population.derivative(population.network(i, device), device, local=local))
                        bar.update()
                    moments.update(torch.stack(rows), block)
            finally:  # by an interrupt, too
                _take_in([moments], covariance, checkpoint)
    return covariance


def _on_workers(
    executor: Executor,
    population: Population,
    networks: range,
    device: str | torch.device,
    checkpoint: str | Path | None,
    progress: bool,
    local: bool | None,
) -> GradientCovariance:
    """Return `gradient_covariance` computed in parts, which are summed up in order, whichever comes first."""
    device = next(gather(executor, pick, [(device,)]))
    task = functools.partial(_part, population, device, _wants_local(local, networks, device))
    none = next(gather(executor, task, [(range(0),)]))  # ask a worker for the settings: only it has the device
    covariance = _start(checkpoint, none.shape, none.settings, networks, torch.device("cpu"))
    left = [i for i in networks if not covariance.has(i)]
    awaited = list(_blocks(left, PART[population.method]))
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


def _wants_local(local: bool | None, networks: range, device: torch.device) -> bool:
    return device.type == "cpu" and len(networks) >= LOCAL_FROM if local is None else local


def _part(population: Population, device: torch.device, local: bool, networks: range) -> GradientCovariance:
    part = _here(population, networks, pick(device), local=local)
    return replace(part, **{name: moment.cpu() for name, moment in part._moments().items()})


@checks.typed
def merged(parts: Iterable[GradientCovariance]) -> GradientCovariance:
    """Return one covariance of the networks of all parts, which are not changed.

    Raises:
        ValueError: no parts, settings that differ, or a network that is in two parts.
    """
    parts = checks.require_all("parts", parts, GradientCovariance)
    whole = GradientCovariance.empty(parts[0].shape, parts[0].settings, parts[0].total.device)
    for part in parts:
        whole.merge(part)
    return whole


def _covariance(total: Tensor, second: Tensor, n: int, centred: bool) -> Tensor:
    if not centred:
        return second / n
    return (second - torch.outer(total, total) / n) / (n - 1)


def _take_in(parts: list[GradientCovariance], whole: GradientCovariance, checkpoint: str | Path | None) -> None:
    for part in parts:
        whole.merge(part)
    if checkpoint is not None:
        whole.save(checkpoint)


def _bar(networks: range, left: list[int], progress: bool) -> tqdm:
    return tqdm(total=len(networks), initial=len(networks) - len(left), unit="network", disable=not progress)


def _start(
    checkpoint: str | Path | None,
    shape: Shape,
    settings: Settings,
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
    if words := fresh._differences(saved):
        raise ValueError(f"checkpoint {checkpoint} is of another run, name another file ({words})")
    fresh.merge(saved)
    fresh.save(checkpoint)
    return fresh


def _blocks(numbers: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Cut ascending numbers into half-open ranges of at most ``size``."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1 or i - start == size:
            yield numbers[start], numbers[i - 1] + 1
            start = i


def union(a: Ranges, b: Ranges) -> Ranges:
    """Return the union of two lists of half-open ranges of networks.

    Raises:
        ValueError: a network is in both.
    """
    joined: Ranges = []
    for first, last in sorted([*a, *b]):
        if joined and first < joined[-1][1]:
            raise ValueError(f"networks {_text(b)}: some were seen before ({_text(a)})")
        if joined and first == joined[-1][1]:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def _text(networks: Ranges) -> str:
    return ", ".join(f"{first} to {last - 1}" for first, last in networks)
