"""Slots: processes on this machine that each take one task at a time, as a `concurrent.futures.Executor`."""

import multiprocessing
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import ParamSpec, TypeVar

import psutil

P, T = ParamSpec("P"), TypeVar("T")

TRIES = 3
"""How often a task is tried if its process dies."""

GRACE = 10.0
"""Seconds in which an interrupted task may clean up before its process is killed."""

# In the environment of every process that a slot starts.
SLOT = "NADKIT_SLOT"


class WorkerDied(RuntimeError):
    """A task's process died on every attempt."""


class Slots(Executor):
    """An executor of `workers` processes on this machine, each a slot of its own that takes one task at a time.

    A process that dies takes with it only what its own task started; the task is tried again in a fresh process,
    `TRIES` times in all. If `gpus` are given, each slot sees one of them, in turn. The processes exit when the parent
    exits, even if killed.
    """

    def __init__(self, workers: int, gpus: Sequence[int] = ()) -> None:
        threads = max(1, cores() // workers)
        name = secrets.token_hex(8)
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._slots = []
        for i in range(workers):
            # More threads than cores is slower than one thread each.
            environment = {SLOT: f"{name}-{i}"}
            if "OMP_NUM_THREADS" not in os.environ:
                environment["OMP_NUM_THREADS"] = str(threads)
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = _visible(gpus[i % len(gpus)])
            self._slots.append(_Slot(environment))
            self._free.put(self._slots[-1])
        self._threads = ThreadPoolExecutor(workers)
        self._closed = False

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Return the future of `task(*args, **kwargs)`, which must be picklable.

        The future's exception is WorkerDied if the process died at every try.
        """
        return self._threads.submit(self._call, task, args, kwargs)

    def _call(self, task: Callable[..., T], args: tuple, kwargs: dict) -> T:
        slot = self._free.get()
        try:
            for _ in range(TRIES):
                if self._closed:
                    raise CancelledError
                with suppress(BrokenProcessPool, psutil.NoSuchProcess):
                    return slot.run(task, args, kwargs)
            raise WorkerDied(f"its process died, {TRIES} times in a row (out of memory?)")
        finally:
            self._free.put(slot)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: where `cancel_futures`, at once, interrupting their tasks; else after the last task."""
        if cancel_futures:
            self._closed = True
            self._threads.shutdown(wait=False, cancel_futures=True)
            for slot in self._slots:
                slot.interrupt()
        self._threads.shutdown(wait=wait)
        for slot in self._slots:
            slot.close()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After an error nobody waits for the tasks that are left.
        self.shutdown(cancel_futures=kind is not None)


def cores() -> int:
    """Return how many cores this process may use, which a batch system may have limited."""
    import joblib

    return joblib.cpu_count()


def _visible(gpu: int) -> str:
    """Return the name of the GPU with a number among those that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[gpu] if given else str(gpu)


class _Slot:
    """A process pool of one, made anew when its process has died."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._pool: ProcessPoolExecutor | None = None
        self._process: psutil.Process | None = None
        self._interrupted = False

    def run(self, task: Callable[..., T], args: tuple, kwargs: dict) -> T:
        try:
            if self._pool is None:
                # Forking a process that has threads may hang.
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, context, _settle, [self._environment])
                self._process = psutil.Process(self._pool.submit(os.getpid).result())
            if self._interrupted:  # before there was a process to interrupt
                raise CancelledError
            return self._pool.submit(_work, task, args, kwargs).result()
        except (BrokenProcessPool, psutil.NoSuchProcess):
            self.close()
            raise

    def interrupt(self) -> None:
        """End what the slot is doing as Ctrl-C would, and kill it where that takes too long."""
        self._interrupted = True
        if process := self._process:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
            killer = threading.Timer(GRACE, _kill, [process])
            killer.daemon = True
            killer.start()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = self._process = None
            # A killed process leaves behind what it had started, which has another parent then.
            kill_marked(SLOT, self._environment[SLOT])


def kill_marked(name: str, value: str) -> None:
    """Kill all processes that were started with this value of an environment variable."""
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get(name) == value:
            _kill(process)


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


# ---- in the process of a slot --------------------------------------------------------------------

_busy = threading.Event()


def _settle(environment: dict[str, str]) -> None:
    """Begin a slot's process: set its environment, leave Ctrl-C to the parent, and end with it."""
    os.environ.update(environment)
    # Not SIG_IGN, which kernels would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _work(task: Callable[..., T], args: tuple, kwargs: dict) -> T:
    """Run a task that SIGTERM interrupts, as Ctrl-C would; an idle process it just ends."""
    _busy.set()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return task(*args, **kwargs)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _busy.clear()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while _busy.is_set() and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in psutil.Process().children(recursive=True):
        _kill(process)
    os._exit(1)
