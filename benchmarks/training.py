"""Training on D(v): networks per hour of each strategy against the plain DataLoader loop.

    python -m benchmarks.training [--architecture lenet] [--device cpu] [--networks 4] [--epochs 2] [--rounds 3]
    python -m benchmarks.training --device cuda --architecture resnet18 --strategies loop vmap --epochs 1

The plain loop may use all cores, for itself and its DataLoader workers; so may every strategy. Away from the CPU there
is a row for the loop in bfloat16, too.
"""

import argparse
import functools
import statistics
from dataclasses import replace

import torch

from benchmarks import reference
from benchmarks.timing import in_turns, table
from nadkit import architectures
from nadkit.data.synthetic import Separable
from nadkit.inputs.fourier import fourier_direction
from nadkit.training import Recipe, fit_many


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
    options = parser.parse_args()
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
    contenders = {"plain loop": functools.partial(plain, options.architecture, problems, recipe, options.device)}
    on_cpu = options.device == "cpu"
    for strategy in options.strategies or (("loop", "processes", "vmap") if on_cpu else ("loop", "vmap")):
        contenders[f"nadkit, {strategy}"] = functools.partial(run, recipe=recipe, strategy=strategy)
    if not on_cpu:
        half = replace(recipe, bf16=True)
        contenders["nadkit, loop, bfloat16"] = functools.partial(run, recipe=half, strategy="loop")
    seconds = in_turns(contenders, options.rounds)
    epochs = options.networks * options.epochs
    print(table({name: time / epochs for name, time in seconds.items()}, reference="plain loop", unit="network-epoch"))


if __name__ == "__main__":
    main()
