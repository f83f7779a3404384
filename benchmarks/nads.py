"""NADs: time per network against the plain loop, agreement with it, and memory against the number of networks.

python -m benchmarks.nads [--architecture lenet] [--device cpu] [--networks 20] [--rounds 5] [--compile] [--memory]
"""

import argparse
import functools
import subprocess
import sys

import torch

from benchmarks import reference
from benchmarks.timing import in_turns, table
from nadkit import architectures, seeds
from nadkit.anisotropy import BATCH, compute_nads, gradient_covariance

SHAPE = (1, 32, 32)
SCALE = 100.0


def networks(architecture: str, n: int, device: str) -> list[torch.nn.Module]:
    """Build the networks that `gradient_covariance` would, for the plain loop."""
    built = []
    for i in range(n):
        with seeds.seeded(0, "network", i, device=device), torch.device(device):
            built.append(architectures.build(architecture, shape=SHAPE, classes=1))
    return built


def speed(architecture: str, device: str, n: int, rounds: int, compile: bool) -> None:
    """Print the time per network of the plain loop and of the library, at several batch sizes."""
    x = torch.randn(SHAPE, generator=seeds.generator(0, "point")).to(device)

    def plain() -> None:
        reference.nads(networks(architecture, n, device), x, SCALE)

    def ours(batch: int, compile: bool) -> None:
        BATCH[torch.device(device).type] = batch
        gradient_covariance(architecture, networks=range(n), device=device, compile=compile)

    chosen = BATCH[torch.device(device).type]
    batches = sorted({chosen // 4, chosen // 2, chosen, 2 * chosen} & set(range(16, 2049)))
    contenders = {"plain loop": plain}
    contenders |= {f"nadkit, batch {batch}": functools.partial(ours, batch, False) for batch in batches}
    if compile:
        # compiled once per call, so its time is that of a call less that of its first network
        contenders["nadkit, compiled"] = functools.partial(ours, chosen, True)
    seconds = in_turns(contenders, rounds)
    print(table({name: time / n for name, time in seconds.items()}, reference="plain loop", unit="network"))
    BATCH[torch.device(device).type] = chosen


def agreement(architecture: str, device: str, n: int) -> None:
    """Print how far the two implementations' results are apart, on the same networks."""
    x = torch.randn(SHAPE, generator=seeds.generator(0, "point")).to(device)
    vectors, eigenvalues = reference.nads(networks(architecture, n, device), x, SCALE)
    nads = compute_nads(architecture, n_networks=n, device=device)
    relative = abs(nads.eigenvalues[: n - 1].numpy() / eigenvalues[: n - 1] - 1).max()
    k = min(10, n - 1)
    overlap = ((nads.vectors[:k].numpy() @ vectors[:k].T) ** 2).sum() / k
    print(f"largest relative difference of an eigenvalue {relative:.1e}; overlap of the first {k} NADs {overlap:.6f}")


def peak_memory(architecture: str, device: str, n: int) -> int:
    """Return the peak resident memory (bytes) of a fresh process that computes NADs of ``n`` networks."""
    code = (
        "import resource; from nadkit.anisotropy import compute_nads; "
        f"compute_nads({architecture!r}, n_networks={n}, device={device!r}); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    kilobytes = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(kilobytes) * 1024


def main() -> None:
    """Run the benchmark the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="lenet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time the compiled forward pass too")
    parser.add_argument("--memory", action="store_true", help="peak memory at 100 and 2,000 networks")
    options = parser.parse_args()
    print(f"{options.architecture} on {options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    agreement(options.architecture, options.device, options.networks)
    speed(options.architecture, options.device, options.networks, options.rounds, options.compile)
    if options.memory:
        few, many = (peak_memory(options.architecture, options.device, n) for n in (100, 2000))
        print(f"peak memory: {few / 2**20:.0f} MiB at 100 networks, {many / 2**20:.0f} MiB at 2,000")


if __name__ == "__main__":
    main()
