"""Where work is done: slots on this machine, a Dask cluster, or SLURM, each as a `concurrent.futures.Executor`."""

import atexit
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from nadkit.book import clusters
from nadkit.book.chapters import BadInput
from nadkit.book.slots import Slots, cores

MOST_SLOTS, MOST_ON_SLURM = 4, 10

# How a chapter's kernel is told which executor it is given.
CLUSTER, WORKERS, GPUS = "NADKIT_CLUSTER", "NADKIT_WORKERS", "NADKIT_GPUS"


@contextmanager
def connect(
    cluster: str | None = None, workers: int | None = None, gpus: Sequence[int] = (), logs: Path | None = None
) -> Iterator[Executor]:
    """Give an executor for the block; an error in the block, or Ctrl-C, ends its tasks.

    Dask's workers are the exception: they finish the tasks that they have begun. If `cluster` is None, the executor is
    `workers` slots on this machine. Otherwise it is the workers of the Dask scheduler at an address, or up to `workers`
    of them in SLURM jobs, which write their logs to the folder `logs` (default: in the user's cache).

    Raises:
        BadInput: the cluster is unknown, cannot be reached or refuses the connection; that takes some 10 s at most.
    """
    require(cluster, workers, gpus)
    if cluster is None:
        with Slots(workers or len(gpus) or min(cores(), MOST_SLOTS), gpus) as slots:
            yield slots
    elif cluster == "slurm":
        logs = logs or user_cache_path("nadkit", appauthor=False) / "slurm"
        with clusters.slurm(workers or MOST_ON_SLURM, logs) as executor:
            yield executor
    else:
        with clusters.dask(cluster) as executor:
            yield executor


def require(cluster: str | None = None, workers: int | None = None, gpus: Sequence[int] = ()) -> None:
    """Raise BadInput if `connect` would, as far as that can be told without connecting.

    Missing GPUs are an error, too: without this check, the work would run on the CPU and nothing would say so.
    """
    if cluster is not None and gpus:
        raise BadInput("--gpus: a cluster's workers get their GPUs where they are started, not here")
    if cluster not in (None, "slurm"):
        clusters.require_address(cluster)
        if workers:
            raise BadInput(f"--workers: the scheduler at {cluster} has the workers that were started for it")
    if gpus and max(gpus) >= (here := _count_gpus()):
        raise BadInput(f"--gpus {max(gpus)}: this machine has {here or 'no'} GPUs{', counted from 0' if here else ''}")


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def in_environment(cluster: str | None, workers: int | None, gpus: Sequence[int]) -> dict[str, str]:
    """Return the environment in which `given` connects to this executor."""
    wanted = {CLUSTER: cluster, WORKERS: workers, GPUS: ",".join(map(str, gpus))}
    return {name: str(value or "") for name, value in wanted.items()}


@functools.cache
def given() -> Executor | None:
    """Return the executor that this run of a chapter was given, by `nadkit run --workers` or `--cluster`, or None.

    Raises:
        BadInput: the cluster can no longer be used.
    """
    asked = {name: os.environ.get(name) or None for name in (CLUSTER, WORKERS, GPUS)}
    if not any(asked.values()):
        return None
    workers = int(asked[WORKERS]) if asked[WORKERS] else None
    gpus = [int(number) for number in asked[GPUS].split(",")] if asked[GPUS] else []
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(connect(asked[CLUSTER], workers, gpus))
