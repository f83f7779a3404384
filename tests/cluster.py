"""Clusters for the tests, on this machine only: Dask, with or without TLS, and a real SLURM."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PATIENCE = 60.0
MARK = "NADKIT_TESTS_CLUSTER"


def wait_until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Return as soon as the condition holds."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {patience:.0f} s for {what}")
        time.sleep(0.05)


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """Return the other processes that have this variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def kernels(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those of the processes that are Jupyter kernels."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if "ipykernel_launcher" in process.cmdline():
                found.append(process)
    return found


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, PATIENCE)


# ---- Dask ----------------------------------------------------------------------------------------


@dataclass
class Dask:
    """A scheduler and its workers, each a process of its own, as are the workers' nannies."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    protocol: str = "tcp"
    address: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all its processes."""
        usual = {"OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "warning", MARK: str(self.folder)}
        return dict(os.environ) | usual | dict(self.settings)

    @property
    def processes(self) -> list[psutil.Process]:
        """All its processes, with the kernels of the workers."""
        return processes_with(MARK, str(self.folder))

    def start(self, workers: int) -> None:
        """Start a scheduler and workers of one thread each."""
        card = self.folder / "scheduler.json"
        place = ["--host", "127.0.0.1", "--port", "0", "--protocol", self.protocol]
        self.scheduler = self._run("scheduler", *place, "--dashboard-address", "127.0.0.1:0", "--scheduler-file", card)
        wait_until(lambda: card.exists() and card.read_text().endswith("}"), "the scheduler to start")
        self.address = json.loads(card.read_text())["address"]
        options = ["--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard", "--death-timeout", "20"]
        for _ in range(workers):
            self._run("worker", self.address, *options, "--local-directory", self.folder)

    def _run(self, what: str, *options: object) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, options)]
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)


@contextmanager
def dask_cluster(folder: Path, workers: int = 2, **settings: str) -> Iterator[Dask]:
    """Start a Dask cluster for the block, and end all of it after the block."""
    folder.mkdir()
    tls = any("TLS" in name for name in settings)
    cluster = Dask(folder, settings, "tls" if tls else "tcp")
    try:
        cluster.start(workers)
        yield cluster
    finally:
        # Asked politely, a worker whose scheduler goes at the same time may hang.
        _end(cluster.processes)


def make_certificate(folder: Path) -> dict[str, str]:
    """Make an authority with one certificate in `folder` and return the settings by which Dask uses, and wants, it."""
    folder.mkdir()
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"],
        ["req", *key, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=cluster"],
        ["x509", "-req", "-in", "own.csr", *authority, "-out", "own.pem"],
    ):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    comm = "DASK_DISTRIBUTED__COMM__"
    settings = {f"{comm}REQUIRE_ENCRYPTION": "true", f"{comm}TLS__CA_FILE": str(folder / "ca.pem")}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings |= {f"{comm}TLS__{role}__{what}": str(folder / f"own.{end}") for what, end in CERTIFICATE}
    return settings


CERTIFICATE = (("CERT", "pem"), ("KEY", "key"))


# ---- SLURM ---------------------------------------------------------------------------------------

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "squeue", "scancel", "sinfo")
SBIN = "/usr/sbin"  # not on everybody's path

# One node, said to be big enough whatever this machine is, and nothing that asks for rights of its own, such as cgroups.
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=65536
PartitionName=tests Nodes={host} Default=YES
"""


def why_no_slurm() -> str | None:
    """Return why there can be no SLURM here, or None."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    if missing := [name for name in (*DAEMONS, *CLIENTS) if shutil.which(name, path=path) is None]:
        return f"no {', '.join(missing)}: install slurmctld, slurmd, slurm-client and munge"
    return None if os.geteuid() == 0 else "only root may start the daemons of SLURM"


@dataclass
class Slurm:
    """A SLURM of one node, with daemons of its own on free ports; `environment` is how to reach it."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead to it."""
        path = f"{os.environ.get('PATH', '')}:{SBIN}"
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}

    @property
    def processes(self) -> list[psutil.Process]:
        """All that runs with its environment: daemons, jobs, kernels."""
        return processes_with("SLURM_CONF", self.environment["SLURM_CONF"])

    def ask(self, *command: str) -> str:
        """Return what a command of SLURM's prints."""
        environment = dict(os.environ) | self.environment
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()

    def jobs(self, *states: str) -> list[str]:
        """Return the ids of the jobs that wait, run or are just ending; or of those in the given states."""
        only = [f"--states={','.join(states)}"] if states else []
        return self.ask("squeue", "--noheader", "--format=%i", *only).split()

    def start(self) -> None:
        """Start the daemons and wait for the node."""
        host, (controller, node) = socket.gethostname().partition(".")[0], _free_ports(2)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(host=host, folder=self.folder, controller=controller, node=node)
        )
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        socket_, files = self.folder / "munge.socket", ("pid", "log", "seed")
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in files]
        self._run("munged", "--foreground", "--force", f"--socket={socket_}", f"--key-file={key}", *files)
        wait_until(socket_.exists, f"munged to listen (log: {self.folder}/munged.txt)")
        self._run("slurmctld", "-D")
        self._run("slurmd", "-D", "-N", host)
        idle = ("sinfo", "--noheader", "--format=%T")
        wait_until(lambda: self.ask(*idle) == "idle", f"the node of SLURM (logs: {self.folder}/*.txt)")

    def _run(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.txt", "wb") as log:
            environment = dict(os.environ) | self.environment
            self._daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def __post_init__(self) -> None:
        self._daemons: list[subprocess.Popen] = []

    def stop(self) -> None:
        """End the jobs, the daemons, and what is left of either."""
        self.ask("scancel", "--user=root")
        with suppress(TimeoutError):
            wait_until(lambda: not self.jobs(), "the jobs to end")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(PATIENCE)
        _end(self.processes)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """Start SLURM for the block, with its state in `folder`, and end all of it after the block."""
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
