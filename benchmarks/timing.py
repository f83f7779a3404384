"""Timing fairly on a noisy machine: the contenders take turns, and each is judged by its median."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import psutil
import torch


def core_seconds() -> float:
    """Return the seconds that cores have spent on this process and its children: a clock for a busy machine."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


@contextmanager
def untouched() -> Iterator[Callable[..., object]]:
    """Give a function ``call(f, *args)`` that runs f in a process of its own, which lives as long as the block.

    A plain loop belongs there: `devices.keep_freed_memory` changes a process for all that runs in it.
    """
    settings = torch.get_num_threads(), multiprocessing.get_start_method()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _settle, settings) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def _settle(threads: int, start_method: str) -> None:
    """Set up a process as its parent is; the workers of a DataLoader, too, start as they would there."""
    torch.set_num_threads(threads)
    multiprocessing.set_start_method(start_method, force=True)


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each contender over ``rounds`` rounds, after one warm-up of each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            start = clock()
            contender()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def table(seconds: Mapping[str, float], *, reference: str, unit: str) -> str:
    """Return lines of name, time per unit in milliseconds, and speed relative to the reference."""
    return "\n".join(
        f"{name:<34} {1000 * time:9.1f} ms / {unit}   {seconds[reference] / time:5.2f} x {reference}"
        for name, time in seconds.items()
    )
