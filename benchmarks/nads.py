"""NADs: time per network against the plain loop, agreement with it, and memory against the number of networks.

python -m benchmarks.nads [--architecture lenet] [--device cpu] [--networks 20] [--rounds 5] [--clock wall] [--memory]
python -m benchmarks.nads --architecture densenet121 --networks 2 --rounds 1 --batches
python -m benchmarks.nads --device cuda --architecture resnet18
python -m benchmarks.nads --device cuda --architecture torchvision:resnet18 --large [--networks 500]

The last row of the first has as many processes of one thread as torch has threads, as have the workers of a chapter.
The second leaves out the batch sizes, as a pass over a large network takes a minute.

The third, on a GPU, takes the secants of ResNet18 (2,048 forward passes a network) at several batch sizes; the plain
loop's two batches of 1,024 need some 2 GiB of its memory, the largest batch twice that. The fourth measures the leading
NADs of 3 x 224 x 224 inputs by the Gram matrix: time per network and peak memory beside the N x D numbers it must hold.
"""

import argparse
import functools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks import reference
from benchmarks.timing import core_seconds, in_turns, table, untouched
from nadkit import architectures, seeds
from nadkit.inputs.covariance import compute_nads, gradient_covariance, merged
from nadkit.inputs.derivatives import BATCH
from nadkit.inputs.gram import leading_nads
from nadkit.inputs.local import reach

SHAPE = (1, 32, 32)
LARGE = (3, 224, 224)
SCALE = 100.0
CLOCKS = {"wall": time.perf_counter, "cores": core_seconds}


def networks(architecture: str, n: int, device: str) -> list[torch.nn.Module]:
    """Build the networks that `gradient_covariance` would, for the plain loop."""
    built = []
    for i in range(n):
        with seeds.seeded(0, "network", i, device=device), torch.device(device):
            built.append(architectures.build(architecture, shape=SHAPE, classes=1))
    return built


def plain(architecture: str, n: int, device: str) -> None:
    """Take the derivatives of n networks by the plain loop."""
    x = _point(device)
    for model in networks(architecture, n, device):
        reference.input_derivative(model.eval(), x, SCALE).double().cpu().numpy()


def _point(device: str) -> torch.Tensor:
    return torch.randn(SHAPE, generator=seeds.generator(0, "point")).to(device)


def speed(
    architecture: str,
    device: str,
    n: int,
    rounds: int,
    clock: Callable[[], float],
    batches: Sequence[int] | None,
) -> None:
    """Print the time per network of the plain loop and of the library, at several batch sizes and through windows."""
    print("in windows:", *reach(networks(architecture, 1, device)[0].eval(), _point(device)), sep="\n  ")
    covariance = functools.partial(gradient_covariance, architecture, device=device)

    def ours(batch: int) -> None:
        BATCH[torch.device(device).type] = batch
        covariance(networks=range(n), local=False)

    def on_processes(pool: Executor, processes: int) -> None:
        shares = [range(i * n // processes, (i + 1) * n // processes) for i in range(processes)]
        merged(share.result() for share in [pool.submit(covariance, networks=share, local=True) for share in shares])

    chosen = BATCH[torch.device(device).type]
    if batches is None:
        batches = sorted({chosen // 4, chosen // 2, chosen, 2 * chosen} & set(range(16, 2049)))
    contenders = {f"nadkit, batch {batch}": functools.partial(ours, batch) for batch in batches}
    contenders["nadkit, local"] = functools.partial(covariance, networks=range(n), local=True)
    processes = torch.get_num_threads() if device == "cpu" else 1
    with untouched() as call, ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        if processes > 1:
            contenders[f"nadkit, local, {processes} processes"] = functools.partial(on_processes, pool, processes)
        contenders = {"plain loop": functools.partial(call, plain, architecture, n, device), **contenders}
        seconds = in_turns(contenders, rounds, clock)
    print(table({name: time / n for name, time in seconds.items()}, reference="plain loop", unit="network"))
    BATCH[torch.device(device).type] = chosen


def agreement(architecture: str, device: str, n: int) -> None:
    """Print how far the two implementations' results are apart, on the same networks."""
    vectors, eigenvalues = reference.nads(networks(architecture, n, device), _point(device), SCALE)
    nads = compute_nads(architecture, n_networks=n, device=device)
    relative = abs(nads.eigenvalues[: n - 1].numpy() / eigenvalues[: n - 1] - 1).max()
    k = min(10, n - 1)
    overlap = ((nads.vectors[:k].numpy() @ vectors[:k].T) ** 2).sum() / k
    print(f"largest relative difference of an eigenvalue {relative:.1e}; overlap of the first {k} NADs {overlap:.6f}")


def peak_memory(architecture: str, device: str, n: int) -> int:
    """Return the peak memory (bytes) of a fresh process that takes ``n`` derivatives: of the GPU, or resident."""
    return _peak(
        "from nadkit.inputs.covariance import gradient_covariance; "
        f"gradient_covariance({architecture!r}, networks=range({n}), device={device!r}).nads()",
        device,
    )


def _peak(code: str, device: str) -> int:
    """Return the peak memory (bytes) of a fresh process that runs some code."""
    measure = {
        "cuda": "import torch; print(torch.cuda.max_memory_allocated())",
        "cpu": "import resource; print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)",
    }[torch.device(device).type]
    run = subprocess.run([sys.executable, "-c", f"{code}; {measure}"], check=True, capture_output=True, text=True)
    return int(run.stdout)


def large(architecture: str, device: str, n: int) -> None:
    """Print the time and the peak memory that the leading NADs of large inputs take."""

    def code(count: int) -> str:
        options = f"shape={LARGE}, n_networks={count}, device={device!r}"
        return f"from nadkit.inputs.gram import leading_nads; leading_nads({architecture!r}, 1, {options})"

    few, many = _peak(code(2), device), _peak(code(n), device)
    start = time.perf_counter()
    leading_nads(architecture, min(10, n - 1), shape=LARGE, n_networks=n, device=device)
    seconds = time.perf_counter() - start
    print(f"inputs of {LARGE}: {1000 * seconds / n:.1f} ms / network")
    held = 4 * n * math.prod(LARGE)
    print(
        f"peak memory: {few / 2**20:.0f} MiB at 2 networks, {many / 2**20:.0f} MiB at {n}, of which the derivatives "
        f"{held / 2**20:.0f} MiB"
    )


def main() -> None:
    """Run the benchmark the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="lenet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="time, or what cores spend (a busy machine)")
    parser.add_argument(
        "--batches", type=int, nargs="*", metavar="N", help="batch sizes; around the usual one if left out"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory at 100 and 2,000 networks")
    parser.add_argument("--large", action="store_true", help="only the leading NADs of 3 x 224 x 224 inputs")
    options = parser.parse_args()
    print(f"{options.architecture} on {options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if options.large:
        large(options.architecture, options.device, options.networks)
        return
    agreement(options.architecture, options.device, options.networks)
    speed(
        options.architecture, options.device, options.networks, options.rounds, CLOCKS[options.clock], options.batches
    )
    if options.memory:
        few, many = (peak_memory(options.architecture, options.device, n) for n in (100, 2000))
        print(f"peak memory: {few / 2**20:.0f} MiB at 100 networks, {many / 2**20:.0f} MiB at 2,000")


if __name__ == "__main__":
    main()
