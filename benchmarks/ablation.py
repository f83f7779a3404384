"""Ablation: every unit alone against Captum's `LayerFeatureAblation`, and curves against one pass for each mask.

    python -m benchmarks.ablation [--network mlp512] [--samples 1000] [--rounds 3] [--threads 2]
    python -m benchmarks.ablation --network convnet11 --width 0.5 --samples 16 --rounds 1
    python -m benchmarks.ablation --device cuda --samples 10000 --memory 268435456
    python -m benchmarks.ablation --network nadkit.neighbours.pruning:LeNet252 --loop --no-captum

Networks are as initialised, so that about half of the units are silent on a sample, and what they would do there need
not be computed; in trained networks more are. Captum measures the loss alone, which costs it less than accuracies, too.
It tries as many units in a pass as is fastest of those asked for (``--together``). The loop is what one writes first, a
pass through all of the network for each unit; with it, this measures the oracle of pruning.
"""

import argparse
import functools
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import in_turns, table
from nadkit import architectures, seeds
from nadkit.activations.ablation import Impact, cumulative_curve, noise_curve, unit_impact
from nadkit.activations.moments import unit_moments
from nadkit.activations.sites import Sites, evaluating, find_sites, replaced
from nadkit.devices import pick
from nadkit.training import Data, evaluate


@torch.no_grad()
def captum(model: nn.Module, data: Data, sites: Sites, together: int) -> Tensor:
    """Return by how much the mean loss grows with each unit ablated, (n_units,), by Captum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import LayerFeatureAblation
    x, y = data

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y.repeat(len(x) // len(y)), reduction="none")

    growth = []
    for site in sites:
        units = torch.arange(site.units, device=x.device).view(1, -1, *[1] * (len(site.shape) - 1))
        method = LayerFeatureAblation(loss, model.get_submodule(site.path))
        drop = method.attribute(x, layer_baselines=0, layer_mask=units, perturbations_per_eval=together)
        growth.append(-drop.reshape(len(x), site.units, -1)[:, :, 0].double().mean(0))
    return torch.cat(growth).cpu()


def one_by_one(model: nn.Module, data: Data, sites: Sites, masks: Tensor) -> Tensor:
    """Return the loss with each mask, (K,), by a pass through all of the network for each."""
    losses = []
    for mask in masks:
        keep = sites.split(~mask)
        with replaced(model, {s: lambda a, s=s, keep=keep: a * s.spread(keep[s.name]) for s in sites}):
            losses.append(evaluate(model, data)[0])
    return torch.tensor(losses, dtype=torch.float64)


def unit_by_unit(model: nn.Module, data: Data, sites: Sites) -> Tensor:
    """Return by how much the mean loss grows with each unit ablated, (n_units,), by a pass for each."""
    masks = torch.eye(sites.n_units, device=data[0].device) > 0
    return one_by_one(model, data, sites, masks) - evaluate(model, data)[0]


def main() -> None:
    """Run the benchmark the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mlp512", help="mlp512, convnet11 or another of the chains")
    parser.add_argument("--width", type=float, help="of convnet11: factor of its numbers of feature maps")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", type=int, nargs="+", default=[1], help="units in a pass of Captum's")
    parser.add_argument("--memory", type=int, nargs="+", help="bytes of a chunk, several to compare")
    parser.add_argument("--batch-size", type=int, nargs="+", help="samples of a chunk, several to compare")
    parser.add_argument("--curves", action="store_true", help="time curves, too")
    parser.add_argument("--loop", action="store_true", help="time a pass for each unit, too")
    parser.add_argument("--no-captum", action="store_true", help="leave Captum out; the loop is compared with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = pick(options.device)
    shape = (1, 28, 28) if options.network.startswith("mlp") else (3, 32, 32)
    sizes = {} if options.width is None else {"width": options.width}
    with seeds.seeded(0, "network"):
        model = architectures.factory(options.network)(shape=shape, classes=10, **sizes).to(device).eval()
    x = torch.randn(options.samples, *shape, generator=seeds.generator(0, "x")).to(device)
    data = x, (torch.arange(len(x)) % 10).to(device)
    sites = find_sites(model, shape)
    print(f"{options.network} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{sites.n_units} units of {len(sites)} sites, {len(x)} samples")

    contenders = {
        f"Captum, {together} together": functools.partial(captum, model, data, sites, together)
        for together in ([] if options.no_captum else options.together)
    }
    if options.loop or options.no_captum:
        contenders["a pass for each unit"] = functools.partial(unit_by_unit, model, data, sites)
    for memory in options.memory or [None]:
        for batch_size in options.batch_size or [None]:
            chunk = {"memory": memory, "batch_size": batch_size}
            name = ", ".join(["nadkit", *(f"{key} {value}" for key, value in chunk.items() if value)])
            contenders[name] = functools.partial(unit_impact, model, data, sites, **chunk)
    growth = {}

    def keep(name: str, result: Impact | Tensor) -> None:
        growth[name] = result if isinstance(result, Tensor) else result.loss - result.baseline.loss

    runs = {name: lambda name=name, run=run: keep(name, run()) for name, run in contenders.items()}
    seconds = in_turns(runs, options.rounds)
    first, *others = growth.values()
    print(f"largest difference of losses {max((other - first).abs().max() for other in others):.1e}")
    best = min((name for name in seconds if not name.startswith("nadkit")), key=seconds.get)
    print(table({name: time / sites.n_units for name, time in seconds.items()}, reference=best, unit="unit"))
    if options.curves:
        curves(model, data, sites, options.rounds)


def curves(model: nn.Module, data: Data, sites: Sites, rounds: int, orderings: int = 2, steps: int = 20) -> None:
    """Time a cumulative curve and a noise curve against a pass for each mask."""
    shares = torch.linspace(0, 1, steps + 1)[:, None]
    masks = [torch.rand(sites.n_units, generator=seeds.generator(0, "masks", r)) < shares for r in range(orderings)]
    masks = torch.cat(masks).to(data[0].device)
    options = {"relative": True, "moments": unit_moments(model, data[0], sites), "repeats": orderings}
    scales = torch.logspace(-1.5, 1, steps + 1)
    contenders = {
        "a pass for each mask": lambda: one_by_one(model, data, sites, masks),
        "nadkit, cumulative": lambda: cumulative_curve(model, data, sites, orderings=orderings, steps=steps),
        "nadkit, noise": lambda: noise_curve(model, data, sites, scales, **options),
    }
    with evaluating(model):
        seconds = in_turns(contenders, rounds)
    print(table({k: t / len(masks) for k, t in seconds.items()}, reference="a pass for each mask", unit="mask"))


if __name__ == "__main__":
    main()
