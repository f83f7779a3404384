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
from pathlib import Path

import psutil

PATIENCE = 60.0


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


class Cluster:
    """What starts processes that log to `folder`, and knows them, and theirs, by a variable of their environment."""

    mark: str

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder, self.settings = folder, dict(settings)
        self.started: list[subprocess.Popen] = []
        folder.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of all its processes."""
        return dict(os.environ) | self.settings

    @property
    def processes(self) -> list[psutil.Process]:
        """All its processes, with the kernels of its workers."""
        return processes_with(self.mark, self.settings[self.mark])

    def run(self, name: str, *command: object) -> subprocess.Popen:
        """Start a process."""
        with open(self.folder / f"{name}.txt", "ab") as log:
            self.started.append(
                subprocess.Popen([str(c) for c in command], env=self.environment, stdout=log, stderr=log)
            )
        return self.started[-1]

    def end(self) -> None:
        """Kill all that is left of it."""
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.started:
            process.wait(PATIENCE)


# ---- Dask ----------------------------------------------------------------------------------------


class Dask(Cluster):
    """A scheduler and workers, all processes of their own, as are the workers' nannies."""

    mark = "NADKIT_TESTS_CLUSTER"

    def __init__(self, folder: Path, **settings: str) -> None:
        usual = {"OMP_NUM_THREADS": "1", "DASK_LOGGING__DISTRIBUTED": "warning", self.mark: str(folder)}
        super().__init__(folder, usual | settings)

    def start(self, workers: int, threads: int) -> None:
        """Start the scheduler, and the workers, which need not be there yet."""
        card, secure = self.folder / "scheduler.json", any("TLS" in name for name in self.settings)
        place = ["--host", "127.0.0.1", "--port", 0, "--protocol", "tls" if secure else "tcp"]
        place += ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", card]
        self.scheduler = self.run("scheduler", sys.executable, "-m", "distributed.cli.dask_scheduler", *place)
        wait_until(lambda: card.exists() and card.read_text().endswith("}"), "the scheduler to start")
        self.address = json.loads(card.read_text())["address"]
        options = ["--nthreads", threads, "--host", "127.0.0.1", "--no-dashboard", "--local-directory", self.folder]
        for i in range(workers):
            self.run(f"worker{i}", sys.executable, "-m", "distributed.cli.dask_worker", self.address, *options)


@contextmanager
def dask_cluster(folder: Path, workers: int = 2, threads: int = 1, **settings: str) -> Iterator[Dask]:
    """Start a Dask cluster for the block, and end all of it after the block."""
    cluster = Dask(folder, **settings)
    try:
        cluster.start(workers, threads)
        yield cluster
    finally:
        # Not asked politely: a worker whose scheduler goes at the same time may hang.
        cluster.end()


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
        settings |= {f"{comm}TLS__{role}__CERT": str(folder / "own.pem")}
        settings |= {f"{comm}TLS__{role}__KEY": str(folder / "own.key")}
    return settings


# ---- SLURM ---------------------------------------------------------------------------------------

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "squeue", "scancel", "sinfo")
SBIN = "/usr/sbin"  # not on everybody's path

# One node, said to be big enough on any machine, and nothing that needs rights of its own, such as cgroups.
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


class Slurm(Cluster):
    """A SLURM of one node; `settings` are the variables that lead to it."""

    mark = "SLURM_CONF"

    def __init__(self, folder: Path) -> None:
        path = f"{os.environ.get('PATH', '')}:{SBIN}"
        super().__init__(folder, {self.mark: str(folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"})

    def ask(self, *command: str) -> str:
        """Return what a command of SLURM's prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """Return the ids of the jobs that wait, run, or are just ending."""
        return self.ask("squeue", "--noheader", "--format=%i").split()

    def start(self) -> None:
        """Start the daemons and wait for the node."""
        host, (controller, node) = socket.gethostname().partition(".")[0], _free_ports(2)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        config = CONFIG.format(host=host, folder=self.folder, controller=controller, node=node)
        (self.folder / "slurm.conf").write_text(config)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        key, door = self.folder / "munge.key", self.folder / "munge.socket"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self.run("munged", "munged", "--foreground", "--force", f"--socket={door}", f"--key-file={key}", *files)
        wait_until(door.exists, f"munged to listen (log: {self.folder}/munged.txt)")
        self.run("slurmctld", "slurmctld", "-D")
        self.run("slurmd", "slurmd", "-D", "-N", host)
        idle = ("sinfo", "--noheader", "--format=%T")
        wait_until(lambda: self.ask(*idle) == "idle", f"the node of SLURM (logs: {self.folder}/*.txt)")

    def stop(self) -> None:
        """End the jobs, then the daemons, the newest first."""
        self.ask("scancel", "--user=root")
        with suppress(TimeoutError):
            wait_until(lambda: not self.jobs(), "the jobs to end")
        for daemon in reversed(self.started):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(PATIENCE)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """Start SLURM for the block, with its state in `folder`, and end all of it after the block."""
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
        slurm.stop()
    finally:
        slurm.end()


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
