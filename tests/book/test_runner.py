"""Running chapters: what a run leaves behind, how it fails, and what a build runs again."""

import asyncio
import errno
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from toy import CODE, files_below, make_notebook, printed

from nadkit.book import kernel, runner
from nadkit.book.chapters import load, validate
from nadkit.book.runner import KernelDied, RunFailed, execute, run_name, up_to_date


def run(root: Path, name: str, out: Path, **overrides) -> dict:
    chapter = load(root, name)
    return execute(chapter, validate(chapter, overrides=overrides), out)


# ---- one run -------------------------------------------------------------------------------------


def test_overrides_reach_the_notebook_and_its_record(make_book, tmp_path):
    out = tmp_path / "runs" / "a {braced} folder" / "one.ipynb"
    code = (CODE, "import os\nprint(os.getcwd())")
    root = make_book(part__one=make_notebook(code=code))
    record = run(root, "one", out, n="4", sizes="5,6", method="sum")
    notebook = nbformat.read(out, as_version=4)
    nbformat.validate(notebook)
    assert "result 2.0 sum [5, 6]" in printed(out)
    assert str(root / "book" / "part") in printed(out)
    assert notebook.metadata.nadkit == record
    assert record["parameters"] == {"n": 4, "scale": 0.5, "method": "sum", "sizes": [5, 6]}
    assert (record["chapter"], record["profile"]) == ("part/one", "quick")
    assert (record["status"], record["versions"]["python"][0]) == ("finished", "3")
    assert {"torch", "torchvision", "numpy"} < record["versions"].keys()
    assert (record["commit"], record["cpus"]) == (None, runner.joblib.cpu_count())
    assert "papermill" not in notebook.metadata
    (injected,) = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert "hide-input" in injected.metadata.tags
    assert "scale" not in injected.source
    assert files_below(tmp_path / "runs") == ["a {braced} folder/one.ipynb"]


def test_a_notebook_with_a_byte_order_mark_runs(make_book, tmp_path):
    root = make_book(one=make_notebook())
    path = root / "book" / "one.ipynb"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    run(root, "one", tmp_path / "one.ipynb", n="4")
    assert "result 2.0 mean" in printed(tmp_path / "one.ipynb")


def test_a_chapter_finds_what_its_caller_finds(make_book, tmp_path, monkeypatch):
    (tmp_path / "here" / "data").mkdir(parents=True)
    (tmp_path / "here" / "my_own_networks.py").write_text("depth = 7\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("NADKIT_DATA", "data")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "given"))
    before = dict(os.environ)
    code = "import os, sys, my_own_networks\nprint(my_own_networks.depth, os.environ['NADKIT_DATA'], *sys.path)"
    run(make_book(one=make_notebook(code=(code,))), "one", tmp_path / "one.ipynb")
    found = printed(tmp_path / "one.ipynb").split()
    assert found[:2] == ["7", str(tmp_path / "here" / "data")]
    assert str(tmp_path / "given") in found
    assert dict(os.environ) == before


@pytest.mark.skipif(not kernel.AUTOGROUP.exists(), reason="no priorities of sessions here")
@pytest.mark.parametrize("niceness", [0, 7])
def test_a_run_of_low_priority_has_a_kernel_whose_session_gives_way(make_book, tmp_path, niceness):
    code = f"import os\nprint(os.nice(0), open({str(kernel.AUTOGROUP)!r}).read())"
    root, out = make_book(one=make_notebook(code=(code,))), tmp_path / "one.ipynb"
    subprocess.run(
        [sys.executable, "-m", "nadkit", "run", "one", "--root", str(root), "--out", str(out)],
        preexec_fn=lambda: os.nice(niceness),
        check=True,
    )
    nice, _, *told = printed(out).split()
    assert told == ["nice", nice if niceness else "0"]


def test_a_kernel_that_ends_tells_the_terminal_of_no_closed_socket(make_book, tmp_path):
    code = "import logging\nprint(logging.getLogger('tornado.general').isEnabledFor(logging.ERROR))"
    root = make_book(one=make_notebook(code=(code,)))
    run(root, "one", tmp_path / "one.ipynb")
    assert printed(tmp_path / "one.ipynb").split() == ["False"]


def test_a_kernel_looks_for_garbage_seldom(make_book, tmp_path):
    root = make_book(one=make_notebook(code=("import gc\nprint(*gc.get_threshold())",)))
    run(root, "one", tmp_path / "one.ipynb")
    assert printed(tmp_path / "one.ipynb").split() == [str(n) for n in kernel.SELDOM]


def test_a_kernel_closes_no_pipe_that_its_control_thread_still_sends_on(make_book, tmp_path):
    """Two threads on one socket of libzmq abort the process, with a line on the terminal."""
    seen = tmp_path / "threads"
    code = f"""\
import atexit, pathlib, threading, time
own = get_ipython().kernel
publish = own._publish_status_and_flush
def late(status, channel, *rest):  # what the control thread sends last, after it asked the main thread to end
    if channel == "control":
        time.sleep(0.3)
    publish(status, channel, *rest)
own._publish_status_and_flush = late
def note(path=pathlib.Path({str(seen)!r}), threading=threading):  # runs before what ipykernel closes
    path.write_text(" ".join(thread.name for thread in threading.enumerate()))
atexit.register(note)
"""
    root = make_book(one=make_notebook(code=(code,)))
    run(root, "one", tmp_path / "one.ipynb")
    assert "IOPub" in seen.read_text()
    assert kernel.CONTROL not in seen.read_text()


def test_a_kernel_that_ends_looks_for_no_garbage_after_what_was_asked_for_its_end(make_book, tmp_path):
    code = f"""\
import atexit, gc, pathlib
def note(phase, info, path=pathlib.Path({str(tmp_path / "passed over")!r}), count=gc.get_freeze_count):
    path.write_text(str(count()))
gc.callbacks.append(note)
atexit.register(pathlib.Path({str(tmp_path / "asked")!r}).write_text, "done")"""
    root = make_book(one=make_notebook(code=(code,)))
    run(root, "one", tmp_path / "one.ipynb")
    assert (tmp_path / "asked").exists()
    assert int((tmp_path / "passed over").read_text()) > 10_000


def test_the_notebooks_own_values_need_no_injected_cell(make_book, tmp_path):
    root = make_book(one=make_notebook())
    run(root, "one", tmp_path / "one.ipynb")
    assert len(nbformat.read(tmp_path / "one.ipynb", as_version=4).cells) == 3


def test_a_failing_cell_is_reported_and_the_earlier_result_untouched(make_book, tmp_path):
    out = tmp_path / "runs" / "one.ipynb"
    root = make_book(one=make_notebook(code=("print(1 / (n - 1))", "print('later')")))
    run(root, "one", out, n=2)
    before = out.read_bytes()
    with pytest.raises(RunFailed, match="ZeroDivisionError: division by zero") as caught:
        run(root, "one", out, n=1)
    failed = tmp_path / "runs" / "one.failed.ipynb"
    assert caught.value.notebook == failed
    assert str(failed) in str(caught.value)
    assert out.read_bytes() == before
    record = nbformat.read(failed, as_version=4).metadata.nadkit
    assert (record["status"], record["parameters"]["n"]) == ("failed", 1)
    run(root, "one", out, n=3)
    assert files_below(tmp_path / "runs") == ["one.ipynb"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os\nos._exit(1)", r"the kernel died .*\n    import os\n    os._exit\(1\)"),
        ("raise SystemExit", "holds an error"),
    ],
)
def test_a_run_that_ends_early_is_no_success(make_book, tmp_path, code, message):
    root = make_book(one=make_notebook(code=("print('first')", code, "print('never')")))
    with pytest.raises(RunFailed, match=message):
        run(root, "one", tmp_path / "runs" / "one.ipynb")
    assert files_below(tmp_path / "runs") == ["one.failed.ipynb"]
    assert "first" in printed(tmp_path / "runs" / "one.failed.ipynb")


def test_a_cell_that_never_ran_is_no_success(make_book, tmp_path, monkeypatch):
    def leave_unrun(source: str, part: str, **_: object) -> None:
        Path(part).write_text(Path(source).read_text())

    monkeypatch.setattr(runner.papermill, "execute_notebook", leave_unrun)
    with pytest.raises(RunFailed, match="cell 2 of the notebook did not run"):
        run(make_book(one=make_notebook()), "one", tmp_path / "runs" / "one.ipynb")
    assert files_below(tmp_path / "runs") == ["one.failed.ipynb"]


def test_a_kernel_that_does_not_answer_is_started_again(make_book, tmp_path, monkeypatch):
    execute_notebook, tries = papermill.execute_notebook, []

    def deaf_at_first(*args: str, **options: object) -> None:
        tries.append(1)
        if len(tries) < deaf:
            Path(args[1]).write_text(Path(args[0]).read_text())
            raise RuntimeError(says[0])
        execute_notebook(*args, **options)

    monkeypatch.setattr(runner.papermill, "execute_notebook", deaf_at_first)
    root, deaf = make_book(one=make_notebook()), 3
    for message in ("Kernel died before replying to kernel_info", "Kernel didn't respond in 60 seconds"):
        says = [message]
        tries.clear()
        run(root, "one", tmp_path / "one.ipynb")
        assert "result 1.5" in printed(tmp_path / "one.ipynb")
    tries.clear()
    deaf = 9
    with pytest.raises(RunFailed, match="the kernel did not start: Kernel didn't respond"):
        run(root, "one", tmp_path / "two.ipynb")
    assert len(tries) == 3


LINE = "from ipykernel import get_connection_info\nprint('by', get_connection_info(unpack=True)['transport'])"


def test_kernels_share_no_ports(make_book, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    root = make_book(one=make_notebook(code=(LINE,)))
    run(root, "one", tmp_path / "one.ipynb")
    assert "by ipc" in printed(tmp_path / "one.ipynb")
    assert not list((tmp_path / "tmp").iterdir())
    # a path too long for a socket
    far = tmp_path / ("x" * 100)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    run(root, "one", tmp_path / "one.ipynb")
    assert "by tcp" in printed(tmp_path / "one.ipynb")


def test_a_file_system_may_refuse_sockets(tmp_path, monkeypatch):
    path = tmp_path / "kernel-5"
    assert runner._holds_socket(str(path))
    assert not path.exists()

    class Refused(socket.socket):
        def bind(self, address: str) -> None:
            raise PermissionError(address)

    monkeypatch.setattr(runner.socket, "socket", Refused)
    assert not runner._holds_socket(str(path))


def test_a_missing_kernel_is_named_with_those_there_are(make_book, tmp_path):
    root = make_book(one=make_notebook(kernel="python33"))
    with pytest.raises(RunFailed, match=r"kernel 'python33', which is not.*did you mean 'python3'"):
        run(root, "one", tmp_path / "one.ipynb")


def test_a_full_disk_leaves_nothing_half_written(make_book, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    root = make_book(one=make_notebook())
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFailed, match=r"(?i)one\.ipynb.*no space left"):
        run(root, "one", tmp_path / "runs" / "one.ipynb")
    assert files_below(tmp_path / "runs") == []


@pytest.mark.parametrize("command", [["run", "one", "--out", "runs"], ["build", "--out", "runs"]])
def test_an_interrupt_stops_the_kernel_and_leaves_nothing(make_book, tmp_path, command):
    code = (
        f"import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        f"time.sleep(60)"
    )
    root = make_book(one=make_notebook(code=(code,)))
    process = subprocess.Popen(
        [sys.executable, "-m", "nadkit", *command, "--json", "--root", str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=hear_interrupts,
    )
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in json.loads(output)["error"]
    assert "Traceback" not in errors
    assert [file for file in files_below(tmp_path / "runs") if file != "_build/.lock"] == []  # a build's lock stays
    wait_until(lambda: not is_alive(int((tmp_path / "pid").read_text())))


@pytest.mark.parametrize("when", ["the processes start", "the kernels start", "the cells run"])
def test_an_interrupted_build_leaves_no_process(make_book, tmp_path, when):
    code = "import os, pathlib, time\npathlib.Path(f'{os.environ[\"MARKS\"]}/{os.getpid()}').touch()\ntime.sleep(60)"
    root = make_book(**{name: make_notebook(code=(code,)) for name in "abc"})
    (tmp_path / "marks").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "nadkit", "build", "--jobs", "2", "--root", str(root), "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MARKS": str(tmp_path / "marks")},
        preexec_fn=hear_interrupts,
    )
    started: set[psutil.Process] = set()

    def reached() -> bool:
        # A run of a chapter is a child, its kernel a grandchild.
        started.update(psutil.Process(process.pid).children(recursive=True))
        marks = len(list((tmp_path / "marks").iterdir()))
        return {"the processes start": len(started) >= 1, "the kernels start": len(started) >= 3}.get(when, marks == 2)

    wait_until(reached)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    wait_until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started))


def test_a_kernel_that_an_interrupt_met_while_it_started_is_ended(make_book, tmp_path, monkeypatch):
    started = []

    def start(*_: object, **__: object) -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.papermill, "execute_notebook", start)
    other = subprocess.Popen(["sleep", "60"])
    with pytest.raises(KeyboardInterrupt):
        run(make_book(one=make_notebook()), "one", tmp_path / "one.ipynb")
    assert started[0].wait(timeout=5) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_an_interrupt_cut_off_is_no_news(make_book, tmp_path, monkeypatch):
    def start(*_: object, **__: object) -> None:
        step = asyncio.sleep(0)  # which the interrupt meets before it is awaited
        assert step
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.papermill, "execute_notebook", start)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt) as caught:
            run(make_book(one=make_notebook()), "one", tmp_path / "one.ipynb")
        del caught  # and with it the last reference
        gc.collect()
    assert not said


def hear_interrupts() -> None:
    """Undo what a shell does to its background jobs, which inherit an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---- names ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({}, "one/quick.ipynb"),
        ({"n": 3}, "one/quick.ipynb"),
        ({"method": "sum", "n": 4}, "one/quick,n=4,method=sum.ipynb"),
        ({"sizes": [3, 4], "scale": 1e-5}, "one/quick,scale=1e-05,sizes=3+4.ipynb"),
    ],
)
def test_a_run_is_named_by_what_differs_from_its_profile(make_book, overrides, name):
    chapter = load(make_book(one=make_notebook()), "one")
    assert run_name(chapter, "quick", validate(chapter, overrides=overrides)) == name


def test_a_run_is_named_though_its_profile_is_not_possible_here(make_book):
    source = 'device: str = "auto"  # where [device]\n'
    notebook = make_notebook(parameters=source, code=())
    chapter = load(make_book({"gpu": {"one": {"device": "cuda:99"}}}, one=notebook), "one")
    values = validate(chapter, "gpu", {"device": "cpu"})
    assert run_name(chapter, "gpu", values) == "one/gpu,device=cpu.ipynb"


def test_odd_and_long_values_give_safe_and_distinct_names(make_book):
    source = 'words: list[str] = ["a"]  # words\n'
    chapter = load(make_book(one=make_notebook(parameters=source, code=())), "one")
    values = [["a/b"], ["a_b"], ["a+b"], ["a", "b"], ["../x"], ["x" * 300], ["x" * 301], []]
    names = [run_name(chapter, "quick", {"words": words}) for words in values]
    assert len(set(names)) == len(names)
    for name in names:
        folder, file = name.split("/")
        assert folder == "one"
        assert len(file) < 120


def test_only_a_finished_run_with_the_fingerprint_is_up_to_date(tmp_path):
    path = tmp_path / "one.ipynb"
    assert not up_to_date(path, "abc")
    for status, expected in [("finished", True), ("failed", False)]:
        record = {"status": status, "fingerprint": "abc"}
        nbformat.write(nbformat.v4.new_notebook(metadata={"nadkit": record}), path)
        assert up_to_date(path, "abc") is expected
        assert not up_to_date(path, "abd")
    path.write_text("{")
    assert not up_to_date(path, "abc")


def test_of_a_progress_bar_the_last_frame_is_kept(make_book, tmp_path):
    code = (
        "import sys, time\n"
        "print('before')\n"
        "for i in range(3):\n"
        "    print(f'\\r{i} of 2', end='', file=sys.stderr, flush=True)\n"
        "    time.sleep(0.2)\n"
        "print('\\nwarning', file=sys.stderr)\n"
        "print('after')"
    )
    run(make_book(one=make_notebook(code=(code,))), "one", tmp_path / "one.ipynb")
    (cell,) = [c for c in nbformat.read(tmp_path / "one.ipynb", as_version=4).cells if "before" in c.source]
    streams = {name: [o.text for o in cell.outputs if o.name == name] for name in ("stdout", "stderr")}
    assert streams["stderr"] == ["2 of 2\nwarning\n"]
    assert "".join(streams["stdout"]) == "before\nafter\n"


def test_what_a_dead_kernel_had_started_ends(make_book, tmp_path):
    code = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "os.kill(os.getpid(), 9)"
    )
    with pytest.raises(KernelDied, match="the kernel died"):
        run(make_book(one=make_notebook(code=(code,))), "one", tmp_path / "one.ipynb")
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10  # a killed process takes a moment to die
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline


def test_an_interrupted_run_finds_its_checkpoints_and_a_finished_one_leaves_none(make_book, tmp_path):
    code = (
        "from nadkit.book import results\n"
        "path = results.checkpoint('state')\n"
        "again = path.exists()\n"
        "path.write_text('half')\n"
        "assert again, 'interrupted'"
    )
    root, out = make_book(one=make_notebook(code=(code,))), tmp_path / "out" / "one.ipynb"
    with pytest.raises(RunFailed, match="interrupted"):
        run(root, "one", out)
    assert (out.parent / ".one.checkpoints").is_dir()
    with pytest.raises(RunFailed, match="interrupted"):
        run(root, "one", out, n=5)
    record = run(root, "one", out)
    assert record["resumed"]
    assert files_below(out.parent) == ["one.ipynb"]
