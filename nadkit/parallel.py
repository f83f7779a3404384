"""Tasks on the workers of an executor, their results gathered as they finish."""

import functools
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, as_completed
from contextlib import suppress
from typing import TypeVar

import joblib

T = TypeVar("T")

WAKING = 1.0
"""Seconds after which a thread that waits for others wakes, to notice Ctrl-C, which may have reached another thread."""

# A process has one set of torch's global generators, which `seeds.seeded` borrows: threads would share their draws.
_ONE_AT_A_TIME = threading.Lock()


def gather(executor: Executor, function: Callable[..., T], tasks: Iterable[tuple]) -> Iterator[T]:
    """Call ``function(*task)`` on a worker for each task and yield the results in the order in which they come.

    Functions defined in a notebook work, too. After an error or Ctrl-C, waiting tasks are cancelled.
    """
    futures: set[Future[bytes]] = set()
    try:
        for task in tasks:
            call = joblib.wrap_non_picklable_objects(functools.partial(function, *task), keep_wrapper=False)
            futures.add(executor.submit(_run, call))
        for future in as_they_end(futures):
            futures.remove(future)
            result = pickle.loads(future.result())
            del future  # Dask recomputes a result that is held here and lost with its worker
            yield result
    finally:
        for future in futures:
            future.cancel()


def as_they_end(futures: Iterable[Future]) -> Iterator[Future]:
    """Yield futures as they finish, keeping none of them; Ctrl-C is noticed meanwhile."""
    left = set(futures)

    def let_go(future: Future) -> Future:
        left.remove(future)
        return future

    while left:
        with suppress(TimeoutError):
            yield from map(let_go, as_completed(left, timeout=WAKING))


def _run(call: Callable[[], object]) -> bytes:
    """Return the pickled result: between processes torch would share its tensors, which then die with the worker."""
    with _ONE_AT_A_TIME:
        return pickle.dumps(call())
