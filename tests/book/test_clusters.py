"""Sweeps on clusters: Dask with and without TLS, a real SLURM, and all that can be lost on the way."""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import cluster
import dask
import distributed
import psutil
import pytest
from cluster import kernels, wait_until
from toy import make_notebook

from nadkit.book import executors, slots, sweep
from nadkit.book.chapters import BadInput, Chapter, load
from nadkit.book.runner import FAILED, FINISHED, UNCHANGED
from nadkit.book.sweep import SweepStopped

pytestmark = [pytest.mark.slow, pytest.mark.alone]
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")

LOOPBACK = {"DASK_JOBQUEUE__SLURM__INTERFACE": "lo"}
STARTS = "open(r'{folder}/starts', 'a').write(f'{{n}} ')"
WAITS = """\
import pathlib, time
deadline = time.monotonic() + 120
while n > 1 and not pathlib.Path(r'{folder}/go').exists() and time.monotonic() < deadline:
    time.sleep(0.02)
"""


@pytest.fixture
def dask_cluster(tmp_path: Path) -> Iterator[cluster.Dask]:
    with cluster.dask_cluster(tmp_path / "dask") as running:
        yield running


@pytest.fixture(scope="module")
def slurm_here(tmp_path_factory) -> Iterator[cluster.Slurm]:
    if reason := cluster.why_no_slurm():
        pytest.skip(reason)
    with cluster.slurm_cluster(tmp_path_factory.mktemp("cluster") / "slurm") as running:
        yield running


@pytest.fixture
def slurm(slurm_here) -> Iterator[cluster.Slurm]:
    quick = {"DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s"}
    with configured(slurm_here.settings | LOOPBACK | quick):
        yield slurm_here


@contextmanager
def configured(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for the block, and let Dask read its configuration from them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        dask.config.refresh()
        try:
            yield
        finally:
            patch.undo()
            dask.config.refresh()


@pytest.fixture
def make_chapter(make_book, tmp_path, monkeypatch) -> Callable[..., Chapter]:
    """A function that makes a chapter which notes its starts, does as told, and but for n=1 waits for a file `go`."""
    monkeypatch.chdir(tmp_path)

    def make(*code: str) -> Chapter:
        cells = [text.format(folder=tmp_path) for text in (STARTS, *code, WAITS)]
        return load(make_book(one=make_notebook(code=tuple(cells))), "one")

    return make


def starts(folder: Path) -> Counter:
    """Return how often which point was started."""
    path = folder / "starts"
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def run(plan: sweep.Plan, where: str, workers: int | None = None) -> sweep.Plan:
    with executors.connect(where, workers, logs=plan.folder / ".logs") as executor:
        return sweep.run(plan, executor)


def meanwhile(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def again(plan: sweep.Plan, n: list[int]) -> sweep.Plan:
    return sweep.make_plan(plan.chapter, {"n": n})


# ---- a Dask cluster ------------------------------------------------------------------------------


def test_a_sweep_outlives_a_worker(dask_cluster, make_chapter, tmp_path):
    points = [2, 3, 4, 5]
    plan = sweep.make_plan(make_chapter(), {"n": points})

    def kill_a_worker() -> None:
        wait_until(lambda: starts(tmp_path).total() == 2, "two runs to start")
        kernel = kernels(dask_cluster.processes)[0]
        kernel.parent().kill()
        wait_until(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, "its kernel to end")
        (tmp_path / "go").touch()

    killer = meanwhile(kill_a_worker)
    done = run(plan, dask_cluster.address)
    killer.join()
    assert done.counts == {FINISHED: 4}
    assert sorted(starts(tmp_path).values()) == [1, 1, 1, 2]
    assert again(plan, points).counts == {UNCHANGED: 4}
    wait_until(lambda: not kernels(dask_cluster.processes), "the kernels to end")


def test_a_point_that_kills_its_worker_fails_alone(tmp_path, make_chapter):
    deadly = "import os, signal\nif n == 3:\n    os.kill(os.getppid(), signal.SIGKILL)\n    import time; time.sleep(60)"
    plan = sweep.make_plan(make_chapter(deadly), {"n": [2, 3, 4, 5]})
    (tmp_path / "go").touch()
    # Twice are enough for this cluster to give a task up; the sweep tries it again.
    with cluster.dask_cluster(tmp_path / "dask", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1") as running:
        done = run(plan, running.address)
        wait_until(lambda: not kernels(running.processes), "the kernels to end")
    assert [point.status for point in done.points] == [FINISHED, FAILED, FINISHED, FINISHED]
    assert "worker" in done.points[1].error
    assert starts(tmp_path)[3] == 2 * slots.TRIES


def test_a_lost_scheduler_stops_the_sweep_and_it_can_be_resumed(dask_cluster, make_chapter, tmp_path, capfd):
    points = [1, 2, 3, 4]
    plan = sweep.make_plan(make_chapter(), {"n": points})

    def kill_the_scheduler() -> None:
        wait_until(lambda: again(plan, points).counts[UNCHANGED] == 1, "the first run to finish")
        dask_cluster.scheduler.kill()

    killer = meanwhile(kill_the_scheduler)
    with pytest.raises(SweepStopped, match="the cluster is gone"):
        run(plan, dask_cluster.address)
    killer.join()
    (tmp_path / "go").touch()
    dask_cluster.end()
    with slots.Slots(2) as executor:
        done = sweep.run(again(plan, points), executor)
    assert done.counts[FINISHED] + done.counts[UNCHANGED] == 4
    assert done.points[0].status == UNCHANGED
    assert "Traceback" not in capfd.readouterr().err


def test_what_a_chapter_splits_runs_on_the_cluster(dask_cluster, make_chapter, tmp_path):
    split = "import os\nfrom nadkit.book.executors import given\n"
    split += "print('at', *given().map(lambda _: os.getpid(), range(6)))"
    chapter = make_chapter(split)
    out = tmp_path / "one.ipynb"
    command = [sys.executable, "-m", "nadkit", "run", "one", "--root", chapter.root, "-p", "n=1", "--out", out]
    done = subprocess.run([*command, "--cluster", dask_cluster.address], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pids = set(printed(out).partition("at ")[2].split("\n")[0].split())
    assert pids <= {str(process.pid) for process in dask_cluster.processes}


def printed(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


# ---- no way in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:9", "refused"),
        ("tcp://nowhere.invalid:8786", "(?i)name|timed out"),
        ("tcp://127.0.0.1", "expected tcp://HOST:PORT"),
        ("127.0.0.1:8786", "expected tcp://HOST:PORT"),
        ("tcp://127.0.0.1:99999", "(?i)port"),
        ("tls://127.0.0.1:9", "no certificates"),
    ],
)
def test_a_scheduler_that_cannot_be_reached_is_reported(address, reason, capfd):
    clock = time.monotonic()
    with pytest.raises(BadInput, match=reason) as caught, executors.connect(address):
        pass
    assert address in str(caught.value)
    assert time.monotonic() - clock < 15
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "web"])
def test_something_else_at_the_address_is_reported(greeting, dask_cluster):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        over = threading.Event()
        server.settimeout(20)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                over.wait(30)

        thread, clock = meanwhile(answer), time.monotonic()
        try:
            with pytest.raises(BadInput), executors.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}"):
                pass
            assert time.monotonic() - clock < 15
        finally:
            over.set()
            thread.join()
    # A client that failed half-way would be in the way of the next one.
    gc.collect()
    with executors.connect(dask_cluster.address) as executor:
        assert executor.submit(divmod, 7, 2).result() == (3, 1)


def test_a_cluster_without_workers_is_reported(tmp_path):
    alone = cluster.dask_cluster(tmp_path / "dask", workers=0)
    with alone as running, pytest.raises(BadInput, match="no workers"), executors.connect(running.address):
        pass


def test_workers_of_several_threads_are_reported(tmp_path):
    wide = cluster.dask_cluster(tmp_path / "dask", workers=1, threads=2)
    with wide as running, pytest.raises(BadInput, match="--nthreads 1"), executors.connect(running.address):
        pass


# ---- TLS -----------------------------------------------------------------------------------------


@needs_openssl
def test_tls_lets_in_only_whom_it_knows(tmp_path, make_chapter, capfd):
    plan = sweep.make_plan(make_chapter(), {"n": [2, 3]})
    (tmp_path / "go").touch()
    ours, others = (cluster.make_certificate(tmp_path / name) for name in ("ours", "others"))
    with cluster.dask_cluster(tmp_path / "dask", workers=1, **ours) as running:
        assert running.address.startswith("tls://")
        clock = time.monotonic()
        with pytest.raises(BadInput, match="TLS"), executors.connect(running.address.replace("tls", "tcp")):
            pass
        with configured(others), pytest.raises(BadInput, match=r"(?i)certificate"), executors.connect(running.address):
            pass
        assert time.monotonic() - clock < 15
        with configured(ours):
            assert run(plan, running.address).counts == {FINISHED: 2}
    assert capfd.readouterr().err == ""


# ---- SLURM ---------------------------------------------------------------------------------------


@pytest.mark.slurm
def test_a_sweep_outlives_a_cancelled_job(slurm, make_chapter, tmp_path):
    points = [2, 3, 4, 5]
    plan = sweep.make_plan(make_chapter(), {"n": points})
    seen = set()

    def cancel_a_job() -> None:
        wait_until(lambda: starts(tmp_path).total() == 2, "two runs to start")
        jobs = slurm.jobs()
        slurm.ask("scancel", jobs[0])
        wait_until(lambda: jobs[0] not in slurm.jobs(), "the job to end")
        wait_until(lambda: starts(tmp_path).total() >= 3, "its run to start again")
        seen.update(slurm.jobs(), jobs)
        (tmp_path / "go").touch()

    killer = meanwhile(cancel_a_job)
    done = run(plan, "slurm", workers=2)
    killer.join()
    assert done.counts == {FINISHED: 4}
    assert len(seen) == 3
    assert sorted(starts(tmp_path).values()) == [1, 1, 1, 2]
    wait_until(lambda: not slurm.jobs(), "the jobs to end")
    wait_until(lambda: not kernels(slurm.processes), "the kernels to end")
    assert len(list((plan.folder / ".logs").iterdir())) >= 3


@pytest.mark.slurm
def test_ctrl_c_cancels_the_jobs(slurm, make_chapter, tmp_path):
    chapter = make_chapter()
    command = [sys.executable, "-m", "nadkit", "sweep", "one", "--root", chapter.root, "-p", "n=2:5"]
    where = ["--cluster", "slurm", "--workers", "2"]
    driver = subprocess.Popen([*command, *where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: starts(tmp_path).total() == 2, "two runs to start")
    driver.send_signal(signal.SIGINT)
    _, error = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "the same command runs what is missing" in error
    assert "Traceback" not in error
    wait_until(lambda: not slurm.jobs(), "the jobs to end")
    wait_until(lambda: not kernels(slurm.processes), "the kernels to end")


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_a_job_that_slurm_refuses_is_reported():
    queue = {"DASK_JOBQUEUE__SLURM__QUEUE": "nowhere"}
    with configured(queue), pytest.raises(BadInput, match=r"(?s)sbatch.*partition"), executors.connect("slurm"):
        pass


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_what_a_job_gets_is_said_by_the_users_configuration(tmp_path):
    settings = {"CORES": "2", "PROCESSES": "2", "WORKER_EXTRA_ARGS": "['--resources', 'own=7']"}
    settings = {f"DASK_JOBQUEUE__SLURM__{name}": value for name, value in settings.items()}

    def about() -> tuple:
        worker = distributed.get_worker()
        time.sleep(1)
        return os.environ["SLURM_JOB_ID"], worker.address, worker.state.nthreads, worker.state.total_resources

    with configured(settings), executors.connect("slurm", 2, logs=tmp_path / "logs") as executor:
        jobs, addresses, threads, resources = zip(*executor.map(lambda _: about(), range(4)), strict=True)
    assert (len(set(jobs)), len(set(addresses))) == (1, 2)
    assert set(threads) == {1}
    assert all(own == {"own": 7} for own in resources)


@needs_openssl
@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_slurm_uses_tls_where_dask_is_told_to(tmp_path):
    ours = cluster.make_certificate(tmp_path / "ours")
    with configured(ours), executors.connect("slurm", 1, logs=tmp_path / "logs") as executor:
        address = executor.submit(lambda: distributed.get_worker().address).result(60)
    assert address.startswith("tls://")


def test_slurm_where_there_is_none_is_reported():
    settings = LOOPBACK | {"PATH": os.path.dirname(sys.executable)}
    with configured(settings), pytest.raises(BadInput, match="no 'sbatch' here"), executors.connect("slurm"):
        pass
