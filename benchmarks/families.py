"""Sites of torchvision's classification networks, against a slow oracle of hooks on one network after the other.

    python -m benchmarks.families            # a small member of each family, cut in depth and width where it can be
    python -m benchmarks.families --whole    # the members as they are
    python -m benchmarks.families --overhead # what it costs that GoogLeNet's ReLUs are functions and not modules

For each network: how many activations the oracle meets and how many of them `find_sites` has with the right units; how
far clamping each of six units moves the loss at most; by how much loss and accuracy then differ from the oracle's at
most; and likewise the mean activity at a class and its AUROC, of the same six. The oracle takes as units what the layer
before an activation makes, and runs in float64 with one unit clamped at a time by a hook.
"""

import argparse
import copy
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import convnext, densenet, efficientnet, maxvit, regnet, resnet, swin_transformer
from torchvision.models import vision_transformer as vit
from torchvision.models.googlenet import BasicConv2d

from benchmarks.timing import core_seconds, in_turns, table
from nadkit import seeds
from nadkit.activations.ablation import evaluate_masks
from nadkit.activations.activity import record_activity
from nadkit.activations.selectivity import class_auroc
from nadkit.activations.sites import Sites, find_sites

SAMPLES, UNITS = 8, 6

MAPS = (nn.Conv2d, nn.BatchNorm2d)
LINEAR = (nn.Linear, nn.LayerNorm)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Tanh)
FUNCTIONAL = ("BasicConv2d",)
"""Modules of torchvision's that end in a function, `torch.nn.functional.relu`."""
APPENDED = "features.final"
"""A ReLU module that a DenseNet's twin has before the function that it ends in, and which makes that change nothing."""


# --- the networks -----------------------------------------------------------------------------------------------------


def _narrow(name: str) -> nn.Module:
    """Return a network of convolutions and a classifier of 4,096 hidden units, which become 32."""
    with torch.device("meta"):
        model = models.get_model(name, num_classes=2)
    linear = [i for i, layer in enumerate(model.classifier) if isinstance(layer, nn.Linear)]
    sizes = [model.classifier[linear[0]].in_features, 32, 32, 2]
    for i, n, m in zip(linear, sizes, sizes[1:], strict=False):
        model.classifier[i] = nn.Linear(n, m)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def _convnext() -> nn.Module:
    sizes = (96, 192, 384, 768, None)
    blocks = [convnext.CNBlockConfig(n, m, 1) for n, m in itertools.pairwise(sizes)]
    return convnext.ConvNeXt(blocks, num_classes=2, layer_scale=0.5)


def _efficientnet_v2() -> nn.Module:
    fused, plain = efficientnet.FusedMBConvConfig, efficientnet.MBConvConfig
    blocks = [fused(1, 3, 1, 8, 8, 1), fused(4, 3, 2, 8, 16, 1), plain(4, 3, 2, 16, 24, 2)]
    return efficientnet.EfficientNet(blocks, dropout=0.2, num_classes=2, last_channel=64)


def _regnet(squeeze: float | None) -> nn.Module:
    blocks = regnet.BlockParams.from_init_params(depth=6, w_0=24, w_a=24.48, w_m=2.54, group_width=8, se_ratio=squeeze)
    return regnet.RegNet(blocks, num_classes=2)


def _resnet(**options: int) -> nn.Module:
    return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=2, **options)


def _swin(block: Callable | None, merging: Callable) -> nn.Module:
    blocks = {} if block is None else {"block": block}
    return swin_transformer.SwinTransformer(
        [4, 4], 96, [1, 1, 1, 1], [3, 6, 12, 24], [7, 7], num_classes=2, downsample_layer=merging, **blocks
    )


SMALL: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: _narrow("alexnet"),
    "convnext_tiny": _convnext,
    "densenet121": lambda: densenet.DenseNet(8, (2, 2, 2, 2), 16, num_classes=2),
    "efficientnet_b0": lambda: models.efficientnet_b0(num_classes=2),
    "efficientnet_v2_s": _efficientnet_v2,
    "googlenet": lambda: models.googlenet(num_classes=2, aux_logits=False, init_weights=False),
    "inception_v3": lambda: models.inception_v3(num_classes=2, aux_logits=False, init_weights=False),
    "maxvit_t": lambda: maxvit.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=2),
    "mnasnet0_5": lambda: models.mnasnet0_5(num_classes=2),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=2, width_mult=0.25),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=2),
    "regnet_x_400mf": lambda: _regnet(None),
    "regnet_y_400mf": lambda: _regnet(0.25),
    "resnet18": lambda: models.resnet18(num_classes=2),
    "resnext50_32x4d": lambda: _resnet(groups=32, width_per_group=4),
    "shufflenet_v2_x0_5": lambda: models.shufflenet_v2_x0_5(num_classes=2),
    "squeezenet1_1": lambda: models.squeezenet1_1(num_classes=2),
    "swin_t": lambda: _swin(None, swin_transformer.PatchMerging),
    "swin_v2_t": lambda: _swin(swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2),
    "vgg11": lambda: _narrow("vgg11"),
    "vgg11_bn": lambda: _narrow("vgg11_bn"),
    "vit_b_16": lambda: vit.VisionTransformer(32, 16, 1, 12, 768, 3072, num_classes=2),
    "wide_resnet50_2": lambda: _resnet(width_per_group=128),
}
SIDE = {"alexnet": 64, "inception_v3": 75, "maxvit_t": 64}
WHOLE_SIDE = SIDE | {"maxvit_t": 224, "vit_b_16": 224}


def network(name: str, whole: bool = False) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a random network in eval mode and some data; no unit, layer or logit of it counts for nothing."""
    side = (WHOLE_SIDE if whole else SIDE).get(name, 32)
    with seeds.seeded(0, "family", name):
        model = models.get_model(name, num_classes=2) if whole else SMALL[name]()
        x, y = torch.randn(SAMPLES, 3, side, side), torch.arange(SAMPLES) % 2
        with torch.no_grad():
            for p in model.parameters():
                if p.min() == p.max():  # zero at first, or a scale
                    p.uniform_(0.1, 0.6)
            norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = 1.0
            model.train()(x)
    return model.eval(), (x, y)


# --- the oracle -------------------------------------------------------------------------------------------------------


def twin_of(model: nn.Module) -> nn.Module:
    """Return a copy in float64 all of whose activations are outputs of modules."""
    twin = copy.deepcopy(model).double()
    if isinstance(twin, densenet.DenseNet):
        twin.features.add_module("final", nn.ReLU())
    return twin


@dataclass(frozen=True, eq=False)
class Met:
    """An activation that the oracle met: the module it is the output of, its use, and where its units are."""

    module: nn.Module
    path: str
    use: int
    axis: int
    units: int


def meet(model: nn.Module, x: Tensor) -> list[Met]:
    """Return all activations of inputs, in order, with the units that the layer before made."""
    met, last, uses = [], [], {}

    def see(path: str) -> Callable:
        def hook(module: nn.Module, _inputs: tuple, out: Tensor) -> None:
            if isinstance(module, MAPS + LINEAR):
                last[:] = [module]
            if isinstance(module, ACTIVATIONS) or type(module).__name__ in FUNCTIONAL:
                use = uses[path] = uses.get(path, -1) + 1
                before = last[0]
                axis = 1 if isinstance(before, MAPS) else out.ndim - 1
                widths = [getattr(before, n, None) for n in ("out_channels", "num_features", "out_features")]
                (units,) = [n for n in widths if n is not None] or before.normalized_shape
                assert out.shape[axis] == units
                if len(out) == len(x):  # and not a bias of positions
                    met.append(Met(module, "" if path == APPENDED else path, use, axis, units))

        return hook

    hooks = [module.register_forward_hook(see(path)) for path, module in model.named_modules()]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return met


def run(model: nn.Module, x: Tensor, site: Met, unit: int | None) -> tuple[Tensor, Tensor]:
    """Return the logits with a unit of an activation clamped to zero, and what it was: (B, classes), (B,)."""
    uses, kept = [], []

    def hook(_module: nn.Module, _inputs: tuple, out: Tensor) -> Tensor | None:
        uses.append(None)
        if len(uses) - 1 != site.use:
            return None
        out = out.movedim(site.axis, 1).clone()
        kept.append(out[:, unit].flatten(1).mean(1) if out.ndim > 2 else out[:, unit].clone())
        out[:, unit] = 0
        return out.movedim(1, site.axis)

    handle = site.module.register_forward_hook(hook)
    with torch.no_grad():
        logits = model(x)
    handle.remove()
    return logits, kept[0]


def selectivity(activity: Tensor, y: Tensor) -> tuple[float, float]:
    """Return a unit's mean activity at class 1, and the AUROC of class 1 against class 0, by all pairs."""
    a, b = activity[y == 1][:, None], activity[y == 0][None]
    return a.mean().item(), ((a > b).double() + (a == b).double() / 2).mean().item()


# --- side by side -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """How a network's sites compare: activations met, sites found and right ones, differences, or what went wrong.

    Losses are in parts of the loss as it is.
    """

    met: int
    found: int = 0
    right: int = 0
    effect: float = float("nan")
    loss: float = float("nan")
    accuracy: float = float("nan")
    mean: float = float("nan")
    auroc: float = float("nan")
    seconds: float = 0.0
    error: str = ""


def compare(name: str, whole: bool = False) -> Row:
    """Return how the sites of a family's member compare with the oracle."""
    model, (x, y) = network(name, whole)
    twin, exact = twin_of(model), x.double()
    met = meet(twin, exact)
    start = time.perf_counter()
    try:
        sites = find_sites(model, x.shape[1:])
    except ValueError as error:
        return Row(len(met), error=str(error))
    names = {}
    for site in sites:
        names[site.path, site.call] = site
    right = [(m, names[m.path, m.use]) for m in met if (m.path, m.use) in names]
    right = [(m, site) for m, site in right if (site.units, site.axis) == (m.units, m.axis)]
    if not right:
        return Row(len(met), len(sites))
    chosen = [right[i * (len(right) - 1) // (UNITS - 1)] for i in range(UNITS)]
    units = [(7 * i + 3) % m.units for i, (m, _) in enumerate(chosen)]
    few = Sites(dict.fromkeys(site for _, site in chosen))
    offsets = dict(zip(few.names, few.offsets, strict=False))
    columns = torch.tensor([offsets[site.name] + unit for (_, site), unit in zip(chosen, units, strict=True)])
    masks = torch.zeros(UNITS, few.n_units, dtype=torch.bool)
    masks[range(UNITS), columns] = True
    scores = evaluate_masks(model, (x, y), few, masks)
    activity = record_activity(model, (x, y), few)
    values, margins = class_auroc(activity)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        plain = F.cross_entropy(twin(exact), y).item()
    worst = dict.fromkeys(("effect", "loss", "accuracy", "mean", "auroc"), 0.0)
    for i, ((m, _), unit, column) in enumerate(zip(chosen, units, columns.tolist(), strict=True)):
        logits, activations = run(twin, exact, m, unit)
        loss, (mean, auroc) = F.cross_entropy(logits, y).item(), selectivity(activations, y)
        differences = {
            "effect": abs(loss - plain) / plain,
            "loss": abs(scores.loss[i].item() - loss) / plain,
            "accuracy": abs(scores.accuracy[i].item() - (logits.argmax(1) == y).double().mean().item()),
            "mean": abs(activity.class_means[column, 1].item() - mean),
            "auroc": max(0.0, abs(values[column, 1].item() - auroc) - margins[column, 1].item()),
        }
        worst = {key: max(worst[key], difference) for key, difference in differences.items()}
    return Row(len(met), len(sites), len(right), **worst, seconds=seconds)


class Modular(BasicConv2d):
    """A layer of GoogLeNet's whose ReLU is a module."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


def overhead(rounds: int = 5) -> None:
    """Time GoogLeNet, whose activations are functions, against a twin with modules, in turns."""
    model, data = network("googlenet")
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, BasicConv2d):
            module.__class__, module.relu = Modular, nn.ReLU(inplace=True)
    runs = {}
    for kind, subject in (("modules", twin), ("functions", model)):
        sites = find_sites(subject, data[0].shape[1:])
        masks = torch.rand(32, sites.n_units, generator=seeds.generator(0, "masks")) < 0.1
        runs[f"masks, {kind}"] = functools.partial(evaluate_masks, subject, data, sites, masks)
        runs[f"activity, {kind}"] = functools.partial(record_activity, subject, data, sites)
    seconds = in_turns(runs, rounds, core_seconds)
    for what in ("masks", "activity"):
        pair = {name: seconds[name] for name in runs if name.startswith(what)}
        print(table(pair, reference=f"{what}, modules", unit="run"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true", help="the members as they are")
    parser.add_argument("--overhead", action="store_true", help="time functions against modules")
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of the families only")
    options = parser.parse_args()
    if options.overhead:
        overhead()
        return
    heads = ("met", "found", "right", "effect", "loss", "accuracy", "mean", "AUROC", "s")
    print(f"{'network':20}" + "".join(f"{head:>9}" for head in heads))
    for name in options.names or SMALL:
        row = compare(name, options.whole)
        numbers = (row.met, row.found, row.right, row.effect, row.loss, row.accuracy, row.mean, row.auroc, row.seconds)
        cells = "".join(f"{n:9}" if isinstance(n, int) else f"{n:9.1e}" for n in numbers)
        print(f"{name:20}{cells}  {row.error[:120]}", flush=True)


if __name__ == "__main__":
    main()
