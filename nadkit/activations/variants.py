"""Variants: many versions of one network, with activations changed here or there, in batched forward passes.

Ablation is built on them. K variants and a batch of B samples are one forward pass of K B rows. It starts at the first
site that is changed, because everything before is the same in all variants.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from nadkit import checks
from nadkit.activations.scores import Answers, require_logits
from nadkit.activations.sites import Site, Sites, as_inputs, replaced, require_sites

Edit = Callable[[Tensor, Tensor], Tensor]
"""What variants do at a site: (activations (..., B, C, positions...), parameters (..., P)) -> other activations.

The dots stand for nothing, or for K variants; activations without K are shared by them.
"""

MEMORY = {"cpu": 2**22, "cuda": 2**28, "mps": 2**27}
"""Bytes of the widest activation of a chunk of variants; on a CPU what fits the caches is fastest."""

BATCH = 128
"""Most samples in a batch; all variants see a batch before the next one."""

CHANNELWISE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.ReLU,
    nn.Flatten,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
"""Modules that, in eval mode, compute each number from one unit or feature map alone."""


@checks.typed
class Variants:
    """A network on its device, in eval mode, with the data that its variants are run on.

    `clamped`, `clamped_singly` and `noisy` each run one kind of variants and yield their answers batch by batch.

    Raises:
        ValueError: no data, labels without a logit, a network with one logit, or one whose answer for a sample depends
            on the others; sites of another network.
    """

    def __init__(
        self,
        model: nn.Module,
        data: tuple[Tensor, Tensor],
        sites: Sites,
        *,
        batch_size: int | None = None,
        memory: int | None = None,
    ) -> None:
        self.model, self.sites, (self.x, self.y) = model, sites, data
        parameter = next(model.parameters(), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device
        checks.require_samples(self.x, self.y)
        self.memory = MEMORY.get(self.device.type, MEMORY["cpu"]) if memory is None else memory
        checks.require_integer("memory", self.memory, 1)
        first = as_inputs(model, self.x[:1])
        # clamp values and noise are rounded to the network's type when they are applied to its activations
        self.dtype = torch.promote_types(first.dtype, torch.float32)
        _require_independent_samples(model)
        require_sites(model, sites, first)
        self.parts, self.place = _chain(model, sites)
        sizes, out = _sizes(self.parts, first.clone())
        self.sizes = [max(sizes[i:]) for i in range(len(sizes))]
        self.classes = require_logits(out)
        checks.require_labels("labels", self.y, self.classes)
        if batch_size is None:
            batch_size = max(1, min(BATCH, self.memory // max(sizes)))
        self.batch_size = checks.require_integer("batch_size", batch_size, 1)
        self.can_vmap = self.place is None and _can_vmap(model, sites, first)

    def clamped(
        self,
        masks: Tensor,
        values: Mapping[Site, Tensor],
        bases: Mapping[Site, Tensor] | None = None,
        progress: bool = False,
    ) -> Iterator[Answers]:
        """Clamp the units of each mask.

        Args:
            masks: (K, n_units) bool, true where variant k clamps a unit.
            values: by site, (C,) to clamp its units to.
            bases: by site, orthonormal rows (C, C), whose coordinates are clamped instead of units.
            progress: show a bar that counts samples.
        """
        values = self._on_device(values)
        edits = {
            site: clamp(site, v) if bases is None else clamp_in(site, v, bases[site].to(v))
            for site, v in values.items()
        }
        masks = dict(zip(self.sites, self.sites.split(masks.cpu()).values(), strict=True))
        groups = _by_first(self._order, masks)
        unchanged = groups.pop(None, None)
        for x, y in self._batches(progress):
            if unchanged is not None:
                yield unchanged, self._plain(x)[None], y
            for first, known in self._starts(x, groups):
                for chunk in self._split(groups[first], first, len(x)):
                    used = {site: m[chunk].to(self.device) for site, m in masks.items() if m[chunk].any()}
                    yield chunk, self._logits(known, first, edits, used), y

    def clamped_singly(self, values: Mapping[Site, Tensor], progress: bool = False) -> Iterator[Answers]:
        """Clamp each unit alone to its value, by site (C,); variant number n_units is the network as it is."""
        values = self._on_device(values)
        offsets = dict(zip(self.sites.names, self.sites.offsets, strict=False))
        for x, y in self._batches(progress):
            plain = self._plain(x)
            yield torch.tensor([self.sites.n_units]), plain[None], y
            for site, known in self._starts(x, self.sites):
                for units, logits in self._one_by_one(site, known, values[site], plain):
                    yield offsets[site.name] + units, logits, y

    def noisy(
        self, scales: Tensor, repeats: int, noise: Callable[[Site, int, range], Tensor], progress: bool = False
    ) -> Iterator[Answers]:
        """Add noise to all units: variant r S + s has draw r of R, times scale s of S.

        Args:
            scales: (S,).
            repeats: number R of draws.
            noise: function of a site, a draw and samples of the data, -> (B, C, positions...) on the network's device.
            progress: show a bar that counts samples.
        """
        first, numbers, start = self._order[0], torch.arange(len(scales)), 0
        for x, y in self._batches(progress):
            samples, start = range(start, start + len(x)), start + len(x)
            ((_, known),) = self._starts(x, [first])
            for r in range(repeats):
                edits = {site: add(site, noise(site, r, samples)) for site in self.sites}
                for chunk in self._split(numbers, first, len(x)):
                    scale = scales[chunk, None].to(self.dtype).to(self.device)
                    logits = self._logits(known, first, edits, dict.fromkeys(self.sites, scale))
                    yield r * len(scales) + chunk, logits, y

    @property
    def _order(self) -> list[Site]:
        """The sites, in the order of execution where that matters."""
        return list(self.sites) if self.place is None else sorted(self.sites, key=lambda s: self.place[s.name])

    def _on_device(self, values: Mapping[Site, Tensor]) -> dict[Site, Tensor]:
        return {site: v.to(self.dtype).to(self.device) for site, v in values.items()}

    def _batches(self, progress: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Run through the data: inputs as the network takes them, and labels on the device."""
        with tqdm(total=len(self.x), unit="sample", disable=not progress, leave=False) as bar:
            for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
                yield as_inputs(self.model, x), y.to(self.device)
                bar.update(len(x))

    def _split(self, variants: Tensor, first: Site, batch: int) -> Iterator[Tensor]:
        """Cut the numbers of variants that are first changed at a site into chunks that fit the memory."""
        size = self.sizes[0 if self.place is None else self.place[first.name]]
        return iter(variants.split(max(1, self.memory // (size * batch))))

    def _plain(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) of the network as it is."""
        return self.model(x.clone())  # it may begin with an operation in place

    def _starts(self, x: Tensor, first: Iterable[Site]) -> Iterator[tuple[Site, Tensor]]:
        """Go through the sites at which some variants are first changed, each with what is known up to there.

        In a chain that is the site's activation, elsewhere the input.
        """
        if self.place is None:
            yield from ((site, x) for site in first)
            return
        at, h = {self.place[site.name]: site for site in first}, x.clone()
        for i, part in enumerate(self.parts[: max(at, default=-1) + 1]):
            h = part(h)
            if i in at:
                yield at[i], h

    def _logits(
        self, known: Tensor, first: Site, edits: Mapping[Site, Edit], parameters: Mapping[Site, Tensor]
    ) -> Tensor:
        """Return the logits (K, B, classes) of K variants.

        Args:
            known: what `_starts` gave with the site ``first``.
            first: the site that comes first of those changed.
            edits: by site, what to do there.
            parameters: by site that is changed, the variants' parameters (K, ...).
        """
        if self.place is None:
            run = _vmapped if self.can_vmap else _expanded
            return run(self.model, known, edits, parameters)
        h = _edited(edits[first], first, known, parameters[first])
        at, shape = {self.place[site.name]: site for site in parameters}, h.shape[:2]
        h = h.flatten(0, 1)
        for i in range(self.place[first.name] + 1, len(self.parts)):
            h = self._run(i, i + 1, h)
            if i in at:
                h = _edited(edits[at[i]], at[i], h.unflatten(0, shape), parameters[at[i]]).flatten(0, 1)
        return h.unflatten(0, shape)

    def _one_by_one(self, site: Site, known: Tensor, values: Tensor, plain: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Clamp each unit of a site alone: give the numbers (K,) of some of them, and the logits (K, B, classes).

        Where a linear map W follows, with only channelwise modules P in between, its output is that of the network as
        it is and a change by one unit's weights,

            W P(h with h_c = v_c) = W P(h) + W_c (P(v) - P(h))_c,

        and where a unit has its value already, the logits are those of the network as it is.

        Args:
            site: where.
            known: what `_starts` gave with it.
            values: (C,) to clamp the units to.
            plain: (B, classes), the logits of the network as it is.
        """
        every = torch.arange(site.units, device=self.device)
        change = None if self.place is None else _change(self.parts, self.place[site.name], site, known, values)
        if change is None:
            masks = torch.eye(site.units, dtype=torch.bool, device=self.device)
            for units in self._split(every, site, len(known)):
                edits = {site: clamp(site, values)}
                yield units, self._logits(known, site, edits, {site: masks[units]})
            return
        size = max(self.sizes[change.end], change.size)
        for units in every.split(max(1, self.memory // (size * len(known)))):
            logits = plain.repeat(len(units), 1, 1)
            changed, samples, z = change.of(units)
            if len(z):
                logits[changed, samples] = self._run(change.end + 1, len(self.parts), z)
            yield units, logits

    def _run(self, begin: int, end: int, h: Tensor) -> Tensor:
        """Run activations that nobody needs any more through some parts of the chain."""
        for part in self.parts[begin:end]:
            # in place, because fresh memory costs a CPU more than the ReLU itself
            plain = type(part) is nn.ReLU and not _hooked(part)
            h = h.relu_() if plain else part(h)
        return h


def clamp(site: Site, values: Tensor) -> Edit:
    """Return the edit that sets the units of a mask (..., C) to their values (C,)."""
    shape = (1, site.units, *[1] * (len(site.shape) - 1))

    def edit(a: Tensor, mask: Tensor) -> Tensor:
        # arithmetic is four times as fast on a CPU as `torch.where`, and as exact: 0 h + v and 1 h + 0 do not round
        mask = mask.to(a.dtype)
        return torch.addcmul((mask * values.to(a.dtype)).unflatten(-1, shape), a, (1 - mask).unflatten(-1, shape))

    return edit


def clamp_in(site: Site, values: Tensor, basis: Tensor) -> Edit:
    """Return the edit that sets masked (..., C) coordinates in a basis (C, C) of rows to those of the values (C,)."""
    axis, values = -len(site.shape), basis @ values

    def edit(a: Tensor, mask: Tensor) -> Tensor:
        rows = a.movedim(axis, -1).to(basis.dtype)
        mask = mask.to(basis.dtype).unflatten(-1, (*[1] * len(site.shape), site.units))
        return (rows + (values - rows @ basis.T) * mask @ basis).movedim(-1, axis).to(a.dtype)

    return edit


def add(site: Site, noise: Tensor) -> Edit:
    """Return the edit that adds noise (B, C, positions...) times a scale (..., 1)."""
    shape = [1] * (1 + len(site.shape))
    return lambda a, scale: torch.addcmul(a, scale.to(a.dtype).unflatten(-1, shape), noise.to(a.dtype))


def _by_first(order: Sequence[Site], masks: Mapping[Site, Tensor]) -> dict[Site | None, Tensor]:
    """Return the numbers of the masks by the first site at which they ablate anything, None for those that do not."""
    some = torch.stack([masks[site].any(1) for site in order], 1)
    first = torch.where(some.any(1), some.int().argmax(1), len(order))
    groups = {site: (first == i).nonzero().flatten() for i, site in enumerate([*order, None])}
    return {site: group for site, group in groups.items() if len(group)}


def _edited(edit: Edit, site: Site, a: Tensor, parameters: Tensor) -> Tensor:
    """Edit activations (..., B, ...) of a site whose units are on any axis."""
    units, first = site.axis - len(site.shape) - 1, -len(site.shape)
    return edit(a.movedim(units, first), parameters).movedim(first, units)


def _vmapped(model: nn.Module, x: Tensor, edits: Mapping[Site, Edit], parameters: Mapping[Site, Tensor]) -> Tensor:
    """Run variants by `torch.vmap`, which batches only what depends on the variant: not what lies before the sites."""

    def one(parameters: Mapping[Site, Tensor]) -> Tensor:
        functions = {s: lambda a, s=s, p=p: _edited(edits[s], s, a, p) for s, p in parameters.items()}
        with replaced(model, functions):
            return model(x.clone())

    with warnings.catch_warnings():
        # it is about pooling channels-last maps of a few numbers each
        warnings.filterwarnings("ignore", "There is a performance drop")
        return torch.vmap(one)(dict(parameters))


def _expanded(model: nn.Module, x: Tensor, edits: Mapping[Site, Edit], parameters: Mapping[Site, Tensor]) -> Tensor:
    """Run variants as one batch of K B samples, all of the network for each."""
    shape = (len(next(iter(parameters.values()))), len(x))

    def at(site: Site, p: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda a: _edited(edits[site], site, a.unflatten(0, shape), p).flatten(0, 1)

    with replaced(model, {site: at(site, p) for site, p in parameters.items()}):
        return model(x.repeat(shape[0], *[1] * (x.ndim - 1))).unflatten(0, shape)


@dataclass(frozen=True, eq=False)
class _Change:
    """What clamping each unit alone does to the output of the linear map that follows, the chain's part ``end``.

    Attributes:
        difference: (B, C, positions...), what clamping adds to the map's input, from each unit or feature map.
        weight: (C, O, k), what each unit has to do with each output, at each of a kernel's k places.
        z: (B, O, positions...), the map's output as it is.
        columns: gives for differences (P, positions...) what the kernel meets at the places it stops at, (P, k, stops).
    """

    end: int
    difference: Tensor
    weight: Tensor
    z: Tensor
    columns: Callable[[Tensor], Tensor]

    @property
    def size(self) -> int:
        """Bytes that `of` needs for a unit and a sample, at most."""
        stops = self.z.shape[2:].numel()
        (_, out, k), bytes_each = self.weight.shape, self.weight.element_size()
        return bytes_each * max(out * k, out * stops, k * stops)

    def of(self, units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which of these units (P,) make a difference to which samples (P,), and z there (P, O, ...)."""
        d = self.difference[:, units].transpose(0, 1)  # (K, B, ...)
        changed, samples = d.flatten(2).any(2).nonzero(as_tuple=True)
        if not len(changed):  # `unfold`, for example, rejects an empty batch
            return changed, samples, self.z[:0]
        # rows by `index_select`: several times as fast as [...] on a CPU
        z = self.z.index_select(0, samples)
        weight, columns = self.weight.index_select(0, units[changed]), self.columns(d[changed, samples])
        flat = z.view(*z.shape[:2], z.shape[2:].numel())
        if weight.shape[2] == 1:
            flat.addcmul_(weight, columns)
        else:
            flat.baddbmm_(weight, columns)
        return changed, samples, z


def _hooked(part: nn.Module) -> bool:
    """Say whether a user's hook may do anything to what goes into a module, or comes out of it."""
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _change(parts: list[nn.Module], place: int, site: Site, h: Tensor, values: Tensor) -> _Change | None:
    """Return how z depends on a site's single units, or None where no linear map follows that we know of."""
    end = next((i for i in range(place + 1, len(parts)) if type(parts[i]) not in CHANNELWISE), len(parts))
    if end == len(parts) or site.axis != 1 or h.ndim not in (2, 4):
        return None
    m, between = parts[end], nn.Sequential(*parts[place + 1 : end])
    if any(isinstance(part, nn.Flatten) and (part.start_dim, part.end_dim) != (1, -1) for part in between):
        return None
    if any(map(_hooked, (*between, m))):
        return None
    before = between(h.clone())
    after = between(values.to(h.dtype).view(1, -1, *[1] * (h.ndim - 2)).expand(1, *h.shape[1:]).contiguous())
    difference = after - before
    if type(m) is nn.Linear and before.ndim == 2:
        difference = difference.unflatten(1, (site.units, -1))
        weight = m.weight.unflatten(1, difference.shape[1:]).transpose(0, 1).contiguous()
        return _Change(end, difference, weight, m(before), lambda d: d[:, :, None])
    if type(m) is nn.Conv2d and (m.groups, m.padding_mode) == (1, "zeros") and not isinstance(m.padding, str):
        weight = m.weight.flatten(2).transpose(0, 1).contiguous()
        columns = functools.partial(F.unfold, **{name: getattr(m, name) for name in _UNFOLD})
        return _Change(end, difference, weight, m(before).contiguous(), lambda d: columns(d[:, None]))
    return None


_UNFOLD = ("kernel_size", "dilation", "padding", "stride")


def _chain(model: nn.Module, sites: Sites) -> tuple[list[nn.Module], dict[str, int] | None]:
    """Return the modules that a network runs one after the other, and after which of them each site comes.

    The second is None where there is a site inside such a module.
    """
    parts = _flat(model)
    inside = {id(m) for part in parts for m in part.modules() if m is not part}
    if any(id(part) in inside for part in parts):  # used in several places, not in the chain's order
        return [model], None
    paths = {id(module): path for path, module in model.named_modules()}
    calls: Counter[str] = Counter()
    places = {}
    for i, part in enumerate(parts):
        path = paths[id(part)]
        places[path, calls[path]] = i
        calls[path] += 1
    if any(site.function or (site.path, site.call) not in places for site in sites):
        return [model], None
    return parts, {site.name: places[site.path, site.call] for site in sites}


def _flat(module: nn.Module) -> list[nn.Module]:
    hooked = module._forward_hooks or module._forward_pre_hooks
    if type(module).forward is not nn.Sequential.forward or hooked:
        return [module]
    return [part for child in module for part in _flat(child)]


def _sizes(parts: list[nn.Module], h: Tensor) -> tuple[list[int], Tensor]:
    """Return for each part the bytes of its widest inner activation for one sample, and the chain's output."""
    sizes = []
    for part in parts:
        widest = [1]

        def see(_m: nn.Module, _i: tuple, out: object, widest: list[int] = widest) -> None:
            if isinstance(out, Tensor):
                widest.append(out.numel() * out.element_size())

        hooks = [module.register_forward_hook(see) for module in part.modules()]
        try:
            h = part(h)
        finally:
            for hook in hooks:
                hook.remove()
        sizes.append(max(widest))
    return sizes, h


def _can_vmap(model: nn.Module, sites: Sites, x: Tensor) -> bool:
    """Try two variants: some operations in place, and decisions that depend on numbers, do not work under vmap."""
    masks = {site: torch.zeros(2, site.units, dtype=torch.bool, device=x.device) for site in sites}
    edits = {site: clamp(site, torch.zeros(site.units, device=x.device)) for site in sites}
    try:
        _vmapped(model, x, edits, masks)
    except RuntimeError:
        return False
    return True


def _require_independent_samples(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"module {path!r} normalises by the statistics of the batch at hand, so that answers depend on the "
                "batch; use track_running_stats=True"
            )
