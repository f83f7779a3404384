"""Many networks at once: how fast each strategy of `fit_networks` trains populations of several kinds.

    python -m benchmarks.populations [--device cpu] [--kinds mlp64-8 ...] [--networks 16] [--epochs 2] [--rounds 2]
    python -m benchmarks.populations --device cuda --networks 64

Contenders on a CPU are one network after the other, processes of one thread, batches by vmap in this process, and such
batches in processes; away from it, the loop and vmap. Inputs are noise: how long a step takes does not depend on what
they are. Where others use the machine, too, ``--clock cores`` tells the time that cores spend on a contender; processes
divide it among themselves, as far as cores are free.
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.timing import core_seconds, in_turns, table
from nadkit import seeds, training
from nadkit.architectures import Architecture, Shape
from nadkit.architectures.convnet import ConvNet
from nadkit.architectures.mlp import MLP

KINDS: dict[str, tuple[Architecture, Shape, int]] = {
    **{
        f"mlp{width}-{size}": (functools.partial(MLP, width=width), (1, size, size), 1280)
        for width in (64, 128, 512)
        for size in (8, 28, 32)
    },
    "convnet/8-16": (functools.partial(ConvNet, width=1 / 8), (1, 16, 16), 256),
    "convnet/8-nobn-16": (functools.partial(ConvNet, width=1 / 8, batch_norm=False), (1, 16, 16), 256),
}
"""Name, which ends with the size of the images -> architecture, shape of the inputs, number of them."""

DEFAULT = ("mlp64-8", "mlp64-28", "mlp128-28", "mlp512-28", "convnet/8-16")


@dataclass(frozen=True)
class Noise:
    """Inputs of a shape, and labels, at random."""

    shape: Shape
    n_train: int
    n_classes: int = 10

    def sample(self, split: Literal["train", "test"], device: str | torch.device) -> training.Data:
        """Return n_train inputs and labels, or a hundred for the test."""
        generator, n = seeds.generator(0, split), self.n_train if split == "train" else 100
        x = torch.randn(n, *self.shape, generator=generator)
        return x.to(device), torch.randint(self.n_classes, (n,), generator=generator).to(device)

    def checksum(self) -> str:
        """Return what the samples depend on."""
        return repr(self)


def contenders(kind: str, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Return name -> training of a population."""
    architecture, shape, n_train = KINDS[kind]
    recipe = training.Recipe(epochs=options.epochs, learning_rate=0.1, optimizer=options.optimizer)
    problems = [Noise(shape, n_train)] * options.networks
    run = functools.partial(training.fit_networks, architecture, problems, recipe, device=options.device)
    found = {"loop": functools.partial(run, strategy="loop")}
    if options.device == "cpu":
        found["processes"] = functools.partial(run, strategy="processes", workers=options.workers)
    found["vmap"] = functools.partial(run, strategy="vmap")
    if options.device == "cpu":
        found["vmap in processes"] = functools.partial(run, strategy="vmap", workers=options.workers)
    return found


def main() -> None:
    """Run the benchmark the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=DEFAULT, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cores"], default="wall")
    options = parser.parse_args()
    print(f"{options.networks} networks on {options.device}, torch {torch.__version__}, {options.workers} processes")
    torch.set_num_threads(1)
    for kind in options.kinds:
        clock = core_seconds if options.clock == "cores" else time.perf_counter
        seconds = in_turns(contenders(kind, options), options.rounds, clock)
        print(f"\n{kind}")
        each = {name: time / options.networks / options.epochs for name, time in seconds.items()}
        print(table(each, reference="loop", unit="network-epoch"), flush=True)


if __name__ == "__main__":
    main()
