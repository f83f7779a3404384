"""Sweeps: grids, what is run and what is not, and everything that may die on the way."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Executor, Future
from contextlib import suppress
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from toy import make_notebook

from nadkit.book import runner, sweep
from nadkit.book.chapters import BadInput, load
from nadkit.book.cli import main
from nadkit.book.prints import result_printer
from nadkit.book.slots import TRIES, Slots
from nadkit.book.sweep import TO_RUN, SweepStopped, make_plan, parse_values

# Every run leaves a line, so that we see what ran, and how often.
LOG = "open(f'{log}', 'a').write(f'{n} ')"


class Inline(Executor):
    """Does each task at once, in this process."""

    def submit(self, task, /, *args):
        future = Future()
        try:
            future.set_result(task(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def chapter(make_book):
    return load(make_book({"smoke": {"one": {"n": 2}}}, one=make_notebook()), "one")


@pytest.fixture
def logged(make_book, tmp_path, monkeypatch):
    """A function that makes a chapter of some code and returns it with the file that its runs write to."""

    def make(*code: str) -> tuple:
        log = tmp_path / "log.txt"
        code = (*(c.replace("TMP", repr(str(tmp_path))) for c in code), LOG.replace("{log}", str(log)))
        return load(make_book(one=make_notebook(code=code)), "one"), log

    monkeypatch.chdir(tmp_path)
    return make


def names(plan: sweep.Plan) -> list[str]:
    return [point.out.name for point in plan.points]


def runs(log: Path) -> Counter:
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


# ---- the grid ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("n", "3", ["3"]),
        ("n", "0:3", [0, 1, 2]),
        ("n", "7, 0:5:2", ["7", 0, 2, 4]),
        ("n", "-2:1", [-2, -1, 0]),
        ("scale", "0.5,1e-3", ["0.5", "1e-3"]),
        ("method", "mean,sum", ["mean", "sum"]),
        ("method", '["mean, weighted", "sum"]', ["mean, weighted", "sum"]),
        ("sizes", "1,2;3", ["1,2", "3"]),
    ],
)
def test_values_of_a_command_line(chapter, name, text, values):
    assert parse_values(chapter, name, text) == values


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("n", "5:5", "n: expected START:STOP or START:STOP:STEP, whole numbers that go up, got '5:5'"),
        ("n", "1,0:10:0", "whole numbers that go up, got '0:10:0'"),
        ("n", "9:0", "whole numbers that go up, got '9:0'"),
        ("n", "a:b", "whole numbers that go up, got 'a:b'"),
        ("scale", "0.1:0.5:0.1", "scale: expected a list such as 0.1,0.2, got '0.1:0.5:0.1'"),
    ],
)
def test_a_range_that_is_none_is_explained(chapter, name, text, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        parse_values(chapter, name, text)


def test_a_grid_is_every_combination_named_by_its_own_values(chapter, tmp_path):
    axes = {"method": ["mean", "sum"], "n": ["2", 10]}
    plan = make_plan(chapter, axes, fixed={"scale": "2"}, out=tmp_path / "out")
    assert names(plan) == [f"n={n},method={m}.ipynb" for m in ("mean", "sum") for n in (2, 10)]
    assert [point.values for point in plan.points][1] == {"n": 10, "scale": 2.0, "method": "mean", "sizes": [1, 2]}
    assert plan.counts == {TO_RUN: 4}
    assert not (tmp_path / "out").exists()


def test_zipped_values_go_together(chapter):
    plan = make_plan(chapter, {"method": ["mean", "sum"]}, zipped={"n": [1, 2], "sizes": ["1", "2,3"]})
    points = [(p.swept["n"], p.swept["sizes"], p.swept["method"]) for p in plan.points]
    assert points == [(1, [1], "mean"), (2, [2, 3], "mean"), (1, [1], "sum"), (2, [2, 3], "sum")]


def test_a_sweep_has_a_folder_of_its_own(chapter, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folders = [
        make_plan(chapter, {"n": [1, 2]}).folder,
        make_plan(chapter, {"n": [1, 2], "scale": [1]}).folder,
        make_plan(chapter, {"n": [1, 2]}, fixed={"scale": 2}).folder,
        make_plan(chapter, {"n": [1, 2]}, profile="smoke").folder,
    ]
    assert folders[2] == tmp_path / "sweeps" / "one" / "quick,by=n,scale=2.0"
    assert len(set(folders)) == 4
    assert make_plan(chapter, {"n": [1, 2, 3]}, fixed={"scale": 0.5}).folder == folders[0]
    swapped = make_plan(chapter, {"scale": [1], "n": [1, 2]})
    assert (swapped.folder, set(names(swapped))) == (folders[1], {"n=1,scale=1.0.ipynb", "n=2,scale=1.0.ipynb"})


@pytest.mark.parametrize(
    ("axes", "more", "message"),
    [
        ({}, {}, "one run is made by 'nadkit run'"),
        ({"n": []}, {}, "n: no values: the grid is empty"),
        ({"n": [1, 200]}, {}, r"n: expected a value in the range \[1..100\], got 200"),
        ({"n": [1, "x"], "method": ["men", "sum"]}, {}, "(?s)expected int, got 'x'.*did you mean 'mean'"),
        ({"m": [1]}, {}, "m: no such parameter; "),
        ({"n": [1, "1"]}, {}, "n: 1 is there twice"),
        ({"n": [1, 2]}, {"zipped": {"n": [1]}}, "n: given twice"),
        ({"n": [1, 2]}, {"fixed": {"n": 1}}, "n: given twice"),
        ({}, {"zipped": {"n": [1, 2], "scale": [1]}}, "as many values for each parameter, got n 2, scale 1"),
        ({"n": range(1, 101), "scale": range(1, 2000)}, {}, "the grid has 199,900 points or more"),
        ({"n": [1]}, {"profile": "smok"}, "did you mean 'smoke'"),
        ({"n": [1]}, {"fixed": {"scale": -1}}, "scale: expected a value in the range"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_written(chapter, tmp_path, axes, more, message):
    with pytest.raises(BadInput, match=message):
        make_plan(chapter, axes, out=tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


# ---- the folder ----------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_refused(make_book, tmp_path):
    root = make_book({"smoke": {"one": {"n": 2}}}, one=make_notebook(), two=make_notebook())
    one, two = load(root, "one"), load(root, "two")
    out = tmp_path / "out"
    sweep.run(make_plan(one, {"n": [1]}, out=out), Inline())
    make_plan(one, {"n": [1, 2, 3]}, out=out)
    for wrong, message in [
        (lambda: make_plan(two, {"n": [1]}, out=out), "chapter: one there, two here"),
        (lambda: make_plan(one, {"n": [1]}, out=out, profile="smoke"), "profile: quick there, smoke here"),
        (lambda: make_plan(one, {"n": [1]}, out=out, fixed={"scale": 2}), r"fixed: {} there, {'scale': 2.0} here"),
        (lambda: make_plan(one, {"scale": [1]}, out=out), r"swept: \['n'\] there, \['scale'\] here"),
        (lambda: make_plan(one, {"n": [1]}, out=out.parent), "found other things in it"),
        (lambda: make_plan(one, {"n": [1]}, out=out / "n=1.ipynb"), "expected a folder, found a file"),
        (lambda: make_plan(one, {"n": [1]}, out=root / "book" / "x"), "outside 'book'"),
    ]:
        with pytest.raises(BadInput, match=message):
            wrong()
    (out / sweep.PLAN).write_text("{")
    with pytest.raises(BadInput, match=r"sweep.json is damaged"):
        make_plan(one, {"n": [1]}, out=out)


def test_two_sweeps_never_share_a_folder(chapter, tmp_path):
    plan = make_plan(chapter, {"n": [1]}, out=tmp_path / "out")

    class Second(Inline):
        def submit(self, task, /, *args):
            with pytest.raises(BadInput, match="another sweep is at work there"):
                sweep.run(plan, Inline())
            return super().submit(task, *args)

    assert sweep.run(plan, Second()).counts == {"finished": 1}


def test_a_folder_that_cannot_be_made(chapter, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SweepStopped, match="cannot be written to"):
        sweep.run(make_plan(chapter, {"n": [1]}, out=tmp_path / "file" / "out"), Inline())


# ---- running -------------------------------------------------------------------------------------


def test_only_what_is_missing_or_changed_runs(logged):
    chapter, log = logged()
    plan = make_plan(chapter, {"n": [1, 2]})
    heard = []
    done = sweep.run(plan, Inline(), say=heard.append)
    assert done.counts == {"finished": 2}
    assert [line.partition(" in ")[0] for line in heard] == ["1/2 n=1: finished", "2/2 n=2: finished"]
    assert all(point.seconds > 0 for point in done.points)
    plan = make_plan(chapter, {"n": [1, 2, 3]})
    assert plan.counts == {"unchanged": 2, TO_RUN: 1}
    sweep.run(plan, Inline())
    assert runs(log) == {1: 1, 2: 1, 3: 1}
    path = chapter.path
    path.write_text(path.read_text().replace("The mean is", "Here the mean is"))
    assert make_plan(load(chapter.root, "one"), {"n": [1, 2]}).counts == {"unchanged": 2}
    changed, _ = logged("'a new cell'")
    assert make_plan(changed, {"n": [1, 2]}).counts == {TO_RUN: 2}
    plan.points[0].out.write_bytes(plan.points[0].out.read_bytes()[:-40])
    assert make_plan(chapter, {"n": [1, 2]}).counts == {"unchanged": 1, TO_RUN: 1}


FAULTS = """\
import os, pathlib
def once(name):
    mark = pathlib.Path(TMP) / f"{name}-{n}"
    first = not mark.exists()
    mark.touch()
    return first
def count():
    with open(pathlib.Path(TMP) / f"tries-{n}", "a") as file:
        file.write("x")
    import time
    time.sleep(0.3)
if n == 2 and once("kernel"):
    os.kill(os.getpid(), 9)
if n == 3 and once("worker"):
    os.kill(os.getppid(), 9)
if n in (4, 5, 6):
    count()
if n == 4:
    1 / 0
if n == 5:
    os.kill(os.getpid(), 9)
if n == 6:
    os.kill(os.getppid(), 9)
"""


def test_whatever_dies_all_good_points_finish_once(logged, tmp_path):
    chapter, log = logged(FAULTS)
    plan = make_plan(chapter, {"n": range(1, 11)})
    with Slots(2) as slots:
        done = sweep.run(plan, slots)
        family = psutil.Process().children(recursive=True)
    family = [p for p in family if p.is_running() and "resource_tracker" not in " ".join(p.cmdline())]  # Python's own
    status = {point.swept["n"]: point.status for point in done.points}
    assert {n for n, s in status.items() if s == "failed"} == {4, 5, 6}
    assert runs(log) == dict.fromkeys([1, 2, 3, 7, 8, 9, 10], 1)
    errors = {point.swept["n"]: point.error for point in done.points if point.error}
    assert "ZeroDivisionError: division by zero" in errors[4]
    assert "the kernel died" in errors[5]
    assert f"its process died, {TRIES} times in a row" in errors[6]
    tries = {n: len((tmp_path / f"tries-{n}").read_text()) for n in (4, 5, 6)}
    assert tries == {4: 1, 5: TRIES, 6: TRIES}
    assert all(runner.read_record(p.out)["status"] == "finished" for p in done.points if p.status == "finished")
    stray = [p.name for p in plan.folder.rglob("*") if p.suffix != ".ipynb" or p.name.startswith(".")]
    assert sorted(stray) == [".lock", "sweep.json"]
    assert all_gone(family)
    again = make_plan(chapter, {"n": range(1, 11)})
    assert {p.swept["n"] for p in again.points if p.status == TO_RUN} == {4, 5, 6}


def all_gone(processes: list[psutil.Process]) -> bool:
    alive = psutil.wait_procs(processes, timeout=30)[1]
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.alone
def test_a_sweep_whose_driver_ends_leaves_no_process_and_goes_on(logged, tmp_path, end):
    chapter, log = logged("import time\nif n > 3:\n    time.sleep(float(open(TMP + '/pause').read()))")
    (tmp_path / "pause").write_text("60")
    command = [sys.executable, "-m", "nadkit", "sweep", "one", "-p", "n=1:7", "--workers", "2", "--json"]
    command += ["--root", str(chapter.root)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **piped, start_new_session=True) as driver:
        said = [driver.stderr.readline() for _ in range(3)]
        assert all("finished" in line for line in said), "".join([*said, driver.stderr.readline()])
        busy = time.monotonic() + 60
        while len(kernels(driver.pid)) < 2:  # of points 4 and 5
            assert time.monotonic() < busy
        family = psutil.Process(driver.pid).children(recursive=True)
        if end == signal.SIGINT:  # as a terminal does: everybody hears it
            os.killpg(driver.pid, end)
        else:
            driver.send_signal(end)
        out, err = driver.communicate(timeout=60)
    assert all_gone(family)
    if end != signal.SIGKILL:
        assert driver.returncode == 130
        assert "the same command runs what is missing" in err
        assert "Traceback" not in err
        assert json.loads(out)["status"] == "failed"
    assert sorted(p.name for p in (tmp_path / "sweeps" / "one").rglob("*.ipynb") if p.name[0] != ".") == [
        "n=1.ipynb",
        "n=2.ipynb",
        "n=3.ipynb",
    ]
    (tmp_path / "pause").write_text("0")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["counts"] == {"unchanged": 3, "finished": 3}
    assert runs(log) == dict.fromkeys(range(1, 7), 1)


def kernels(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that ends just now
            found += [child] if "ipykernel_launcher" in " ".join(child.cmdline()) else []
    return found


def test_a_try_that_died_after_its_last_step_is_not_repeated(logged):
    chapter, log = logged()
    plan = make_plan(chapter, {"n": [1]})
    task = sweep._task(plan, plan.points[0])
    first = sweep.run_point(task)
    assert sweep.run_point(task) == first
    assert runs(log) == {1: 1}


def test_a_full_disk_stops_the_sweep(logged, monkeypatch):
    chapter, log = logged()
    write = runner.nbformat.write

    def full(notebook, path):
        if "n=2" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(notebook, path)

    monkeypatch.setattr(runner.nbformat, "write", full)

    class OneByOne(Inline):
        """Does a task when its result is asked for, as an executor with one worker would."""

        def submit(self, task, /, *args):
            future = Lazy(lambda: super(OneByOne, self).submit(task, *args).result())
            return future

    plan = make_plan(chapter, {"n": [1, 2, 3]})
    with pytest.raises(SweepStopped, match="No space left on device; make room"):
        sweep.run(plan, OneByOne())
    assert runs(log) == {1: 1, 2: 1}
    monkeypatch.undo()
    assert make_plan(chapter, {"n": [1, 2, 3]}, out=plan.folder).counts == {"unchanged": 1, TO_RUN: 2}


class Lazy(Future):
    def __init__(self, work):
        super().__init__()
        self.work = work

    def add_done_callback(self, call):
        call(self)

    def cancelled(self):
        return False

    def exception(self, timeout=None):
        if self.work:
            work, self.work = self.work, None
            try:
                self.set_result(work())
            except Exception as error:
                self.set_exception(error)
        return super().exception(timeout)


def test_a_chapter_that_changes_on_the_way_stops_the_sweep(logged):
    chapter, log = logged()
    plan = make_plan(chapter, {"n": [1, 2]})
    logged("'a new cell'")
    with pytest.raises(SweepStopped, match="not those that the sweep began with"):
        sweep.run(plan, Inline())
    assert not runs(log)


def test_a_result_that_does_not_come_here_stops_the_sweep(chapter, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "SECONDS_TO_APPEAR", 0.2)
    monkeypatch.setattr(sweep, "run_point", lambda task: {"status": "finished", "result_print": task.result_print})
    with pytest.raises(SweepStopped, match="on a shared file system"):
        sweep.run(make_plan(chapter, {"n": [1]}, out=tmp_path / "out"), Inline())


def test_a_worker_without_the_book_stops_the_sweep(logged, tmp_path):
    chapter, _ = logged()
    plan = make_plan(chapter, {"n": [1, 2]})
    chapter.path.unlink()
    with pytest.raises(SweepStopped, match=r"(?s)no chapter is called 'one'.*on a shared file system"):
        sweep.run(plan, Inline())


def test_workers_see_the_folder_and_the_data_of_the_driver(logged, monkeypatch, tmp_path):
    (tmp_path / "my_own_networks.py").write_text("depth = 7\n")
    monkeypatch.setenv("NADKIT_DATA", "data")
    chapter, _ = logged("import os, my_own_networks\nassert os.environ['NADKIT_DATA'] == TMP + '/data'")
    assert sweep.run(make_plan(chapter, {"n": [1]}), Inline()).counts == {"finished": 1}


# ---- how fast ------------------------------------------------------------------------------------


@pytest.mark.alone
def test_ten_thousand_points_are_checked_and_looked_up_in_time(make_book, tmp_path):
    source = "n: int = 0  # of what [0..]\nwords: list[str] = ['a']  # more\n"
    chapter = load(make_book(one=make_notebook(parameters=source, code=("n",))), "one")
    axes = {"n": range(2500), "words": ["a", "b", "a,b", "c"]}
    plan = make_plan(chapter, axes, out=tmp_path / "out")
    plan.folder.mkdir()
    sweep._held(plan).__enter__()
    mark = result_printer(chapter)
    notebook = make_notebook(code=("x" * 5000,))
    notebook.metadata["nadkit"] = "RECORD"
    text = nbformat.writes(notebook)
    for point in plan.points[:9000]:
        record = {"status": "finished", "result_print": mark(point.values)}
        point.out.write_text(text.replace('"RECORD"', json.dumps(record)))
    start = time.perf_counter()
    again = make_plan(chapter, axes, out=plan.folder)
    took = time.perf_counter() - start
    assert again.counts == {"unchanged": 9000, TO_RUN: 1000}
    assert took < 5


@pytest.mark.alone
def test_a_run_costs_little_above_its_notebook(make_book, tmp_path, monkeypatch):
    """Measured with pytest's own process in the place of a worker, whose dispatch is timed apart."""
    chapter = load(make_book(one=make_notebook()), "one")
    inside = []
    execute_notebook = papermill.execute_notebook

    def timed(*args, **kwargs):
        start = time.perf_counter()
        execute_notebook(*args, **kwargs)
        inside.append(time.perf_counter() - start)

    monkeypatch.setattr(papermill, "execute_notebook", timed)
    plan = make_plan(chapter, {"n": range(1, 7)}, out=tmp_path / "out")
    start = time.perf_counter()
    assert sweep.run(plan, Inline()).counts == {"finished": 6}
    own = (time.perf_counter() - start - sum(inside)) / 6
    with Slots(1) as slots:
        slots.submit(max, 1, 2).result()
        start = time.perf_counter()
        for _ in range(20):
            slots.submit(max, 1, 2).result()
        dispatch = (time.perf_counter() - start) / 20
    assert own + dispatch < 0.150


# ---- the command ---------------------------------------------------------------------------------


def test_the_command_ends_with_a_table(logged, capsys):
    logged("if n == 2: 1 / 0")
    root = str(Path("toy").absolute())
    command = ["sweep", "one", "-p", "n=1:3", "-p", "scale=2", "--root", root, "--workers", "1"]
    assert main([*command, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["n", "status", "time"]
    assert "nothing was run" in out
    assert not Path("sweeps").exists()
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [["n", "status"], ["1", "finished"], ["2", "failed"]]
    assert "ZeroDivisionError" in out
    assert "one: 1 finished, 1 failed; in " in out
    assert "2/2 n=2: failed: one: cell" in err
    assert main([*command, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"unchanged": 1, "failed": 1}
    assert data["points"][0]["parameters"] == {"n": 1}


def test_the_command_cuts_a_long_table(chapter, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "one", "-p", "n=1:101", "--root", str(chapter.root), "--dry-run"]) == 0
    assert "... and 60 points more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "n=1:1"], "n: expected START:STOP or START:STOP:STEP, whole numbers that go up, got '1:1'"),
        (["-p", "n=2"], "expected several values"),
        (["-p", "n=1:200"], "got 110\n... and 89 more"),
        (["-p", "n=1,2", "-p", "n=3"], "n: given twice"),
        (["--zip", "n=1,2", "--zip", "n=3,4"], "n: given twice"),
        (["-p", "m=1,2"], "no such parameter; "),
        (["-p", "n=1,2", "--gpus", "99"], "--gpus 99: this machine has"),
        (["-p", "n=1,2", "--gpus", "a"], "expected numbers of GPUs"),
        (["-p", "n=1,2", "--workers", "0"], "at least 1"),
        (["-p", "n=1,2", "--zp", "n=3"], "did you mean '--zip'"),
        (["-p", "n=1,2", "--dryrun"], "did you mean '--dry-run'"),
        (["-p", 'method=["mean"'], "expected a list such as"),
    ],
)
def test_the_command_refuses_bad_input(chapter, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "one", "--root", str(chapter.root), *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("sweeps").exists()
