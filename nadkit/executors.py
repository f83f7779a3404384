"""Where work is done: slots on this machine, a Dask cluster, or SLURM, each as a `concurrent.futures.Executor`."""

import atexit
import functools
import importlib
import importlib.metadata
import logging
import multiprocessing
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import urlsplit

import psutil
from platformdirs import user_cache_path

from nadkit.chapters import BadInput

if TYPE_CHECKING:
    import distributed

P, T = ParamSpec("P"), TypeVar("T")

TRIES = 3
"""How often a task is tried whose process died under it."""

GRACE = 10.0
"""Seconds in which an interrupted task may clean up before its process is killed."""

PATIENCE = 5.0
"""Seconds in which a Dask scheduler has to answer, and again to show a worker."""

SLURM_JOB = {"cores": 1, "processes": 1, "memory": "4GB", "walltime": "24:00:00"}
"""What a SLURM job asks for where Dask's configuration does not say."""

MOST_SLOTS, MOST_ON_SLURM = 4, 10

NEWS_AFTER = 60.0
"""Seconds without a SLURM job at work after which a line says where to look."""

# How a chapter's kernel hears of the executor that it is given.
CLUSTER, WORKERS, GPUS = "NADKIT_CLUSTER", "NADKIT_WORKERS", "NADKIT_GPUS"

# In the environment of all that a slot starts.
SLOT = "NADKIT_SLOT"


class WorkerDied(RuntimeError):
    """A task's process ended before its time, whenever it was tried."""


# ---- this machine --------------------------------------------------------------------------------


class Slots(Executor):
    """An executor of `workers` processes on this machine, each a slot of its own that takes one task at a time.

    A process that dies takes nothing with it but what its own task started; the task is tried again in a fresh
    process, `TRIES` times in all. Where `gpus` are given, slots see one of them each, in turn. The processes
    end with this one, however that ends.
    """

    def __init__(self, workers: int, gpus: Sequence[int] = ()) -> None:
        threads = max(1, _cores() // workers)
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

        Its exception is WorkerDied if its process died at every try.
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


def _cores() -> int:
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
            # A killed process leaves behind what it had started, which has other parents by now.
            kill_marked(SLOT, self._environment[SLOT])


def kill_marked(name: str, value: str) -> None:
    """Kill all processes that were started with this value of an environment variable."""
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get(name) == value:
            _kill(process)


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


# ---- a cluster -----------------------------------------------------------------------------------


def is_killed_worker(error: BaseException | None) -> bool:
    """Return whether Dask gave a task up because workers died with it, which another task may have caused."""
    return type(error).__name__ == "KilledWorker"


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    """Give the executor of a running Dask cluster; certificates for tls:// come from Dask's own configuration."""
    distributed = _require_dask("distributed")
    if not re.fullmatch(r"(tcp|tls)://([^/\s:]+|\[[\w:]+\]):\d+", address):
        raise BadInput(f"--cluster: expected tcp://HOST:PORT, tls://HOST:PORT or slurm, got {address!r}")
    try:
        _greet(address, distributed.Security())
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadInput(f"--cluster {address}: no scheduler can be used there: {reason}") from error
    # What it would say of a scheduler that is gone, we say in a line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with client:
        if problem := _unfit(client, address):
            raise BadInput(f"--cluster {address}: {problem}")
        yield client.get_executor(pure=False)  # equal calls are not one call


def _greet(address: str, security: "distributed.Security") -> None:
    """Raise an error unless a Dask scheduler answers: of one that does not, Dask's client may wait for ever."""
    parts = urlsplit(address)
    if parts.scheme == "tcp" and security.require_encryption:
        raise ValueError("Dask's configuration requires encryption; expected a scheduler at tls://HOST:PORT")
    context = security.get_connection_args("client")["ssl_context"]
    if parts.scheme == "tls" and context is None:
        raise ValueError("no certificates: expected them in Dask's configuration, under distributed.comm.tls")
    try:
        with ExitStack() as stack:
            line = stack.enter_context(socket.create_connection((parts.hostname, parts.port), PATIENCE))
            if parts.scheme == "tls":
                line = stack.enter_context(context.wrap_socket(line))
            # A Dask server speaks first: the length of what it says, and that.
            length = int.from_bytes(line.recv(8), "little")
    except TimeoutError:
        raise ValueError("nobody answers; a scheduler that speaks TLS has an address tls://HOST:PORT") from None
    if not 0 < length < 2**16:
        raise ValueError("what answers there is no Dask scheduler")


def _unfit(client: "distributed.Client", address: str) -> str | None:
    """Return what is wrong with the workers of a Dask cluster, if anything."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
        client.run(importlib.metadata.version, "nadkit")
    except TimeoutError:
        return f"it has no workers; start some with 'dask worker {address} --nthreads 1'"
    except importlib.metadata.PackageNotFoundError:
        return "its workers have no nadkit; start them in an environment like this one"
    if max(client.nthreads().values(), default=1) > 1:
        return "its workers have several threads, and a run needs a process of its own; start them with --nthreads 1"
    return None


@contextmanager
def _slurm(workers: int, logs: Path) -> Iterator[Executor]:
    """Give an executor of up to `workers` workers in SLURM jobs, which come and go with the work.

    What a job gets, and in which queue, is said by Dask's configuration, under jobqueue.slurm.
    """
    distributed, jobqueue = _require_dask("distributed"), _require_dask("dask_jobqueue")
    import dask

    # Without the defaults that come with the package, half an hour of walltime among them.
    own = dask.config.collect()

    def configured(name: str, usual: T) -> T:
        return dask.config.get(f"jobqueue.slurm.{name}", None, config=own) or usual

    options = {name: configured(name, usual) for name, usual in SLURM_JOB.items()}
    options["worker_extra_args"] = [*configured("worker-extra-args", []), "--nthreads", "1"]
    no_dashboard = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    options["scheduler_options"] = no_dashboard | configured("scheduler-options", {})
    if (security := distributed.Security()).require_encryption:
        options |= {"security": security, "protocol": "tls://"}
    try:
        cluster = jobqueue.SLURMCluster(**options, log_directory=logs)
    except OSError:  # no folder for the logs
        raise
    except Exception as error:  # an interface that is not there, an unknown setting, ...
        raise BadInput(f"--cluster slurm: what Dask's configuration says of jobqueue.slurm fails: {error}") from error
    with cluster, _warning_of_no_worker(cluster, logs):
        _require_accepted(cluster.job_script(), logs)
        cluster.adapt(minimum=0, maximum=workers, target_duration="0.1s")  # a run is worth a job
        with distributed.Client(cluster, set_as_default=False) as client:
            yield client.get_executor(pure=False)


@contextmanager
def _warning_of_no_worker(cluster: "distributed.deploy.Cluster", logs: Path) -> Iterator[None]:
    """Say once where to look if no job has begun to work after a minute: queues are long, and settings may be wrong."""

    def warn() -> None:
        if not cluster.scheduler_info.get("workers"):
            sys.stderr.write(f"nadkit: no job has begun to work yet; 'squeue' says why, or the logs in {logs}\n")

    timer = threading.Timer(NEWS_AFTER, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _require_accepted(script: str, logs: Path) -> None:
    """Raise BadInput, with SLURM's own reason, unless it would take a job; Dask would wait for one for ever."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        try:
            asked = subprocess.run(["sbatch", "--test-only", file.name], capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            raise BadInput("--cluster slurm: there is no 'sbatch' here; run this where jobs are submitted") from None
        except subprocess.TimeoutExpired:
            raise BadInput("--cluster slurm: 'sbatch' does not answer") from None
    if asked.returncode:
        with suppress(OSError):  # empty folders of a sweep that is none
            logs.rmdir()
            logs.parent.rmdir()
        raise BadInput(f"--cluster slurm: sbatch refuses the job: {asked.stderr.strip()}")


def _require_dask(module: str) -> ModuleType:
    handler = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadInput("clusters need Dask, which is not installed: pip install -e '.[cluster]'") from None
    finally:
        # Importing dask_jobqueue makes Ctrl-C end the program in silence.
        signal.signal(signal.SIGINT, handler)


# ---- any of them ---------------------------------------------------------------------------------


@contextmanager
def connect(
    cluster: str | None = None, workers: int | None = None, gpus: Sequence[int] = (), logs: Path | None = None
) -> Iterator[Executor]:
    """Give an executor for the block; an error in the block, Ctrl-C included, ends its tasks.

    Only Dask's workers go on to the end of what they have begun. Where `cluster` is None it is `workers` slots on this
    machine; else the workers of the Dask scheduler at an address, or up to `workers` of them in SLURM jobs, which write
    their logs to the folder `logs` (default: in the user's cache).

    Raises:
        BadInput: the cluster is unknown, cannot be reached or does not let us in, which takes some 10 s at most.
    """
    if cluster is not None and gpus:
        raise BadInput("--gpus: a cluster's workers get their GPUs where they are started, not here")
    if cluster is None:
        _require_gpus(gpus)
        with Slots(workers or len(gpus) or min(_cores(), MOST_SLOTS), gpus) as slots:
            yield slots
    elif cluster == "slurm":
        logs = logs or user_cache_path("nadkit", appauthor=False) / "slurm"
        with _slurm(workers or MOST_ON_SLURM, logs) as executor:
            yield executor
    else:
        if workers:
            raise BadInput(f"--workers: the scheduler at {cluster} has the workers that were started for it")
        with _dask(cluster) as executor:
            yield executor


def _require_gpus(gpus: Sequence[int]) -> None:
    """Raise BadInput unless these GPUs are here; without them, work would go on the CPU and say nothing."""
    if gpus and max(gpus) >= (here := _count_gpus()):
        raise BadInput(f"--gpus {max(gpus)}: this machine has {here or 'no'} GPUs{', counted from 0' if here else ''}")


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def in_environment(cluster: str | None, workers: int | None, gpus: Sequence[int]) -> dict[str, str]:
    """Return the environment in which `given` connects to just this."""
    wanted = {CLUSTER: cluster, WORKERS: workers, GPUS: ",".join(map(str, gpus))}
    return {name: str(value or "") for name, value in wanted.items()}


@functools.cache
def given() -> Executor | None:
    """Return the executor that this run of a chapter was given, by `nadkit run --workers` or `--cluster`, or None.

    Raises:
        BadInput: the cluster cannot be used any more.
    """
    asked = {name: os.environ.get(name) or None for name in (CLUSTER, WORKERS, GPUS)}
    if not any(asked.values()):
        return None
    workers = int(asked[WORKERS]) if asked[WORKERS] else None
    gpus = [int(number) for number in asked[GPUS].split(",")] if asked[GPUS] else []
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(connect(asked[CLUSTER], workers, gpus))


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
