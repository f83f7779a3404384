"""Slots on this machine: processes that die, are interrupted, or lose their parent."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import psutil
import pytest

from nadkit.book import executors
from nadkit.book.chapters import BadInput
from nadkit.book.slots import SLOT, TRIES, Slots, WorkerDied, cores


def environment(name: str) -> tuple[int, str | None]:
    """Run in a slot: the process, and a variable of its environment."""
    time.sleep(0.2)
    return os.getpid(), os.environ.get(name)


def die(tries: Path) -> None:
    """Run in a slot: end its process as the kernel of an operating system does that is out of memory."""
    with open(tries, "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(tries: Path) -> str:
    if not tries.exists():
        die(tries)
    return "alive"


def leave_a_child(pids: Path, then: str) -> None:
    """Run in a slot: start a process of another session, as a kernel is, and say which."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    pids.write_text(f"{os.getpid()} {child.pid}")
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        time.sleep(600)
    finally:
        child.kill()
        child.wait()


def wait_for(path: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(word) for word in path.read_text().split()]


def all_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_each_slot_is_one_process_with_one_gpu_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("nadkit.book.slots.cores", lambda: 9)
    with Slots(3, gpus=[4, 7]) as slots:
        seen = [f.result() for f in [slots.submit(environment, "CUDA_VISIBLE_DEVICES") for _ in range(6)]]
        threads = slots.submit(environment, "OMP_NUM_THREADS").result()[1]
    assert len(set(seen)) == len({pid for pid, _ in seen}) == 3
    assert sorted(gpu for _, gpu in set(seen)) == ["4", "4", "7"]
    assert threads == "3"
    assert all_gone([pid for pid, _ in seen])
    assert SLOT not in os.environ


def test_gpus_are_counted_among_those_that_a_batch_system_gave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with Slots(1, gpus=[1]) as slots:
        assert slots.submit(environment, "CUDA_VISIBLE_DEVICES").result()[1] == "5"


def test_gpus_that_are_not_here_are_refused(monkeypatch):
    for count, message in [(0, "--gpus 1: this machine has no GPUs"), (1, "this machine has 1 GPUs, counted from 0")]:
        monkeypatch.setattr(executors, "_count_gpus", lambda count=count: count)
        with pytest.raises(BadInput, match=message), executors.connect(gpus=[1]):
            pass


def gpus_seen() -> int:
    import torch

    return torch.cuda.device_count()


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no CUDA device")
def test_a_slot_sees_its_own_gpu_alone():
    with Slots(2, gpus=[0]) as slots:
        assert [slots.submit(gpus_seen).result() for _ in range(2)] == [1, 1]


def test_an_own_number_of_threads_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with Slots(1) as slots:
        assert slots.submit(environment, "OMP_NUM_THREADS").result()[1] == "5"


def test_an_error_of_a_task_is_the_futures(tmp_path):
    with Slots(1) as slots:
        with pytest.raises(FileNotFoundError, match="missing"):
            slots.submit(os.stat, tmp_path / "missing").result()
        assert slots.submit(max, 1, 2).result() == 2


def test_a_process_that_dies_is_replaced_and_its_task_tried_again(tmp_path):
    with Slots(1) as slots:
        assert slots.submit(die_once, tmp_path / "tries").result() == "alive"
    assert (tmp_path / "tries").read_text() == "x"


def test_a_task_that_always_kills_its_process_harms_no_other(tmp_path):
    with Slots(2) as slots:
        poison = slots.submit(die, tmp_path / "tries")
        others = [slots.submit(environment, "HOME") for _ in range(8)]
        assert all(pid for pid, _ in (future.result() for future in others))
        with pytest.raises(WorkerDied, match=f"died, {TRIES} times"):
            poison.result()
    assert (tmp_path / "tries").read_text() == "x" * TRIES


def test_what_a_killed_process_had_started_ends(tmp_path):
    with Slots(1) as slots:
        future = slots.submit(leave_a_child, tmp_path / "pids", "die")
        with pytest.raises(WorkerDied):
            future.result()
        assert all_gone(wait_for(tmp_path / "pids"))


def test_an_error_in_the_block_interrupts_the_tasks(tmp_path):
    futures = []

    def interrupted() -> None:
        with Slots(1) as slots:
            futures.extend(slots.submit(leave_a_child, tmp_path / str(i), "wait") for i in range(3))
            wait_for(tmp_path / "0")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all_gone(wait_for(tmp_path / "0"))
    assert not (tmp_path / "1").exists()
    assert [future.cancelled() for future in futures[1:]] == [True, True]
    assert isinstance(futures[0].exception(), KeyboardInterrupt | CancelledError)


def test_an_interrupt_before_a_process_is_there(tmp_path):
    slots = Slots(1)
    future = slots.submit(die, tmp_path / "tries")
    slots.shutdown(cancel_futures=True)
    assert future.cancelled() or isinstance(future.exception(), CancelledError)
    assert not (tmp_path / "tries").exists()


def test_a_task_that_ignores_the_interrupt_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("nadkit.book.slots.GRACE", 0.5)
    slots = Slots(1)
    future = slots.submit(ignore_interrupts, tmp_path / "pids")
    pids = wait_for(tmp_path / "pids")
    slots.shutdown(cancel_futures=True)
    assert all_gone(pids)
    assert isinstance(future.exception(), CancelledError)


def ignore_interrupts(pids: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pids.write_text(str(os.getpid()))
    time.sleep(600)


PARENT = """\
import sys, test_executors
from pathlib import Path
from nadkit.book.slots import Slots
if __name__ == "__main__":
    slots = Slots(2)
    slots.submit(test_executors.leave_a_child, Path(sys.argv[1]), "wait")
    slots.submit(test_executors.environment, "HOME").result()
    slots.submit(test_executors.environment, "HOME").result()
    print("ready", flush=True)
    __import__("time").sleep(600)
"""


def test_slots_end_with_their_parent_however_it_ends(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", tmp_path / "pids"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        family = [p.pid for p in psutil.Process(parent.pid).children(recursive=True)]
        pids = wait_for(tmp_path / "pids")
        assert set(pids) < set(family)
        parent.kill()
    assert all_gone(family)


# ---- any of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "workers", "gpus", "message"),
    [
        ("tcp://localhost", None, (), "expected tcp://HOST:PORT, tls://HOST:PORT or slurm, got 'tcp://localhost'"),
        ("slrum", None, (), "got 'slrum'"),
        ("http://localhost:80", None, (), "got 'http://localhost:80'"),
        ("slurm", None, (0,), "--gpus: a cluster's workers get their GPUs where they are started"),
        ("tcp://localhost:1", 2, (), "--workers: the scheduler at tcp://localhost:1 has the workers"),
    ],
)
def test_what_is_no_cluster_is_refused(cluster, workers, gpus, message):
    with pytest.raises(BadInput, match=re.escape(message)), executors.connect(cluster, workers, gpus):
        pass


def test_clusters_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BadInput, match=r"pip install -e '.\[cluster\]'"), executors.connect("tcp://localhost:1"):
        pass


@pytest.mark.parametrize(
    ("workers", "gpus", "slots"),
    [(3, (), 3), (None, (0, 1), 2), (1, (0, 1), 1), (None, (), min(cores(), 4))],
)
def test_there_are_as_many_slots_as_asked_for(monkeypatch, workers, gpus, slots):
    monkeypatch.setattr(executors, "_count_gpus", lambda: 2)
    with executors.connect(None, workers, gpus) as executor:
        assert len(executor._slots) == slots


def test_a_chapter_gets_the_executor_that_its_run_was_given(monkeypatch):
    code = (
        "from nadkit.book import executors; executors._count_gpus = lambda: 7; e = executors.given(); "
        "print(e and (len(e._slots), e is executors.given()))"
    )

    def told(*asked: object) -> str:
        environment = os.environ | executors.in_environment(*asked)
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.strip()

    monkeypatch.setenv(executors.WORKERS, "7")
    assert told(None, 2, ()) == "(2, True)"
    assert told(None, None, (4, 5, 6)) == "(3, True)"
    assert told(None, None, ()) == "None"
