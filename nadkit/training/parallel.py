"""Tasks on the workers of an executor, their results gathered as they finish."""

import functools
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, as_completed
from typing import TypeVar

import joblib

T = TypeVar("T")

# Torch's global generators, which `seeds.seeded` borrows, are one a process: threads would draw from each other's.
_ONE_AT_A_TIME = threading.Lock()


def gather(executor: Executor, function: Callable[..., T], tasks: Iterable[tuple]) -> Iterator[T]:
    """Call ``function(*task)`` on a worker for each task and yield the results in the order in which they come.

    Functions defined in a notebook travel, too. After an error, Ctrl-C included, tasks that wait are cancelled.
    """
    futures: set[Future[bytes]] = set()
    try:
        for task in tasks:
            call = joblib.wrap_non_picklable_objects(functools.partial(function, *task), keep_wrapper=False)
            futures.add(executor.submit(_run, call))
        for future in as_completed(futures):
            futures.remove(future)
            result = pickle.loads(future.result())
            del future  # Dask computes again what is held here and lost with its worker
            yield result
    finally:
        for future in futures:
            future.cancel()


def _run(call: Callable[[], object]) -> bytes:
    """Return the pickled result: between processes torch would share its tensors, which then die with the worker."""
    with _ONE_AT_A_TIME:
        return pickle.dumps(call())
