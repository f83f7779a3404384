"""Training on D(v): networks per hour of each strategy against the plain DataLoader loop.

    python -m benchmarks.training [--architecture lenet] [--device cpu] [--networks 4] [--epochs 2] [--rounds 3]
    python -m benchmarks.training --device cuda --architecture resnet18 --strategies loop vmap --epochs 1
    python -m benchmarks.training --tricks [--rounds 5] [--clock cores]

The plain loop may use all cores, for itself and its DataLoader workers; so may every strategy. It has a process of its
own, which nadkit has not told to keep freed memory. Away from the CPU there is a row for the loop in bfloat16, too.
With --tricks: what each trick gains for one step of LeNet, on one CPU thread.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.timing import core_seconds, in_turns, table, untouched
from nadkit import architectures
from nadkit.data.synthetic import Separable
from nadkit.inputs.fourier import fourier_direction
from nadkit.training import Recipe, fit_many

STEPS = 50


def plain(architecture: str, problems: list[Separable], recipe: Recipe, device: str) -> list[float]:
    """Train one network on each problem by the plain loop and return the test accuracies."""
    torch.manual_seed(0)
    return [
        reference.train(
            architectures.build(architecture, shape=problem.shape, classes=2),
            problem.sample("train"),
            problem.sample("test"),
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            clip=recipe.clip,
            device=device,
        )
        for problem in problems
    ]


class Windows(nn.Module):
    """A convolution of one channel, without padding, as a product of the image's windows with the kernels."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        (height, width), maps = self.conv.kernel_size, self.conv.out_channels
        windows = x.squeeze(1).unfold(1, height, 1).unfold(2, width, 1)
        z = torch.addmm(self.conv.bias, windows.reshape(-1, height * width), self.conv.weight.view(maps, -1).t())
        return z.view(*windows.shape[:3], maps).permute(0, 3, 1, 2)


def steps(count: int = STEPS) -> dict[str, Callable[[], None]]:
    """Return, for each trick, a function that takes ``count`` steps of LeNet on a batch of 128 of D(v) with it."""
    x, y = Separable(v=fourier_direction(0, 2), n_train=128).sample("train")

    def stepper(
        layout: torch.memory_format, fused: bool = False, windows: bool = False, compiled: bool = False
    ) -> Callable[[], None]:
        model = architectures.build("lenet", shape=tuple(x.shape[1:]), classes=2).to(memory_format=layout)
        if windows:
            model.conv1 = Windows(model.conv1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused or None)
        forward = torch.compile(model) if compiled else model

        def run() -> None:
            for _ in range(count):
                optimizer.zero_grad()
                nn.functional.cross_entropy(forward(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()

        return run

    ours = torch.channels_last
    return {
        "plain step": stepper(torch.contiguous_format),
        "channels_last (ours)": stepper(ours),
        "ours, fused SGD": stepper(ours, fused=True),
        "ours, first convolution by windows": stepper(ours, windows=True),
        "ours, compiled": stepper(ours, compiled=True),
    }


def main() -> None:
    """Run the benchmark the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="lenet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", choices=["loop", "processes", "vmap"], help="by default all fit")
    parser.add_argument("--accuracy", action="store_true", help="compare accuracies at the paper's settings (minutes)")
    parser.add_argument("--tricks", action="store_true", help="one step of LeNet, with each trick")
    parser.add_argument(
        "--clock", choices=["wall", "cores"], default="wall", help="of --tricks: cores on a busy machine"
    )
    options = parser.parse_args()
    if options.tricks:
        torch.set_num_threads(1)
        clock = core_seconds if options.clock == "cores" else time.perf_counter
        seconds = in_turns(steps(), options.rounds, clock)
        print(table({name: took / STEPS for name, took in seconds.items()}, reference="plain step", unit="step"))
        return
    print(f"{options.architecture} on {options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads")

    v = fourier_direction(0, 2)
    problems = [Separable(v=v, seed=seed) for seed in range(options.networks)]
    if options.accuracy:
        recipe = Recipe()
        ours = [h.test_accuracy[-1] for h in fit_many(options.architecture, problems, recipe, device=options.device)]
        theirs = plain(options.architecture, problems, recipe, options.device)
        for name, accuracies in (("plain loop", theirs), ("nadkit", ours)):
            print(
                f"{name:<12} test accuracy {statistics.mean(accuracies):.4f}, each {[round(a, 3) for a in accuracies]}"
            )
        return
    recipe = Recipe(epochs=options.epochs)
    run = functools.partial(fit_many, options.architecture, problems, device=options.device)
    contenders = {}
    on_cpu = options.device == "cpu"
    for strategy in options.strategies or (("loop", "processes", "vmap") if on_cpu else ("loop", "vmap")):
        contenders[f"nadkit, {strategy}"] = functools.partial(run, recipe=recipe, strategy=strategy)
    if not on_cpu:
        half = replace(recipe, bf16=True)
        contenders["nadkit, loop, bfloat16"] = functools.partial(run, recipe=half, strategy="loop")
    with untouched() as call:
        loop = functools.partial(call, plain, options.architecture, problems, recipe, options.device)
        seconds = in_turns({"plain loop": loop, **contenders}, options.rounds)
    epochs = options.networks * options.epochs
    print(table({name: time / epochs for name, time in seconds.items()}, reference="plain loop", unit="network-epoch"))


if __name__ == "__main__":
    main()
