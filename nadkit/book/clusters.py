"""Clusters: the workers of a Dask scheduler, or SLURM jobs, as a `concurrent.futures.Executor`."""

import importlib
import importlib.metadata
import logging
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from nadkit.book.chapters import BadInput

if TYPE_CHECKING:
    import distributed

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds to wait for a Dask scheduler to answer, and again for it to show a worker."""

SLURM_JOB = {"cores": 1, "processes": 1, "memory": "4GB", "walltime": "24:00:00"}
"""What a SLURM job asks for where Dask's configuration does not say."""

NEWS_AFTER = 60.0
"""If no SLURM job has started to work after so many seconds, a message says where to look."""


def is_killed_worker(error: BaseException | None) -> bool:
    """Return whether Dask gave a task up because workers died while running it; another task may have killed them."""
    return type(error).__name__ == "KilledWorker"


@contextmanager
def dask(address: str) -> Iterator[Executor]:
    """Give the executor of a running Dask cluster; certificates for tls:// come from Dask's own configuration."""
    distributed = _require_dask("distributed")
    try:
        _greet(address, distributed.Security())
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadInput(f"--cluster {address}: no scheduler can be used there: {reason}") from error
    # If the scheduler is gone, we say so in one line, instead of Dask's own messages.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with client:
        if problem := _unfit(client, address):
            raise BadInput(f"--cluster {address}: {problem}")
        yield client.get_executor(pure=False)  # equal calls must not be merged into one


def require_address(address: str) -> None:
    """Raise BadInput unless this may be the address of a Dask scheduler."""
    if not re.fullmatch(r"(tcp|tls)://([^/\s:]+|\[[\w:]+\]):\d+", address):
        raise BadInput(f"--cluster: expected tcp://HOST:PORT, tls://HOST:PORT or slurm, got {address!r}")


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
            # A Dask server speaks first: the length of its message, then the message.
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
def slurm(workers: int, logs: Path) -> Iterator[Executor]:
    """Give an executor of up to `workers` workers in SLURM jobs, which come and go with the work.

    Dask's configuration, under jobqueue.slurm, says what a job gets, and in which queue.
    """
    distributed, jobqueue = _require_dask("distributed"), _require_dask("dask_jobqueue")
    import dask as dask_package

    # Leave out the package's own defaults, such as half an hour of walltime.
    own = dask_package.config.collect()

    def configured(name: str, usual: T) -> T:
        return dask_package.config.get(f"jobqueue.slurm.{name}", None, config=own) or usual

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
        with suppress(OSError):  # empty folders of a sweep that did not start
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
