"""The command: answers, exit codes, and complaints that help."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from toy import CODE, make_notebook, printed

from nadkit.book.cli import main
from nadkit.book.prints import PACKAGE

CLAIM = """\
from nadkit.book.claims import Claim, show
show([Claim("one-n", "n is large", n, ">= 3", source="Paper, fig. 1", reported=5)])
"""


@pytest.fixture
def book(make_book, monkeypatch):
    """A book with one chapter that claims something, and the current folder inside it."""
    chapter = make_notebook("One", code=(CODE, CLAIM))
    root = make_book({"smoke": {"part/one": {"n": 2, "scale": 2.0}}}, part__one=chapter)
    monkeypatch.chdir(root)
    return root


def ask(capsys, *argv: str) -> tuple[int, dict | list, str]:
    """The exit code, the JSON document on stdout, and stderr of a command."""
    code = main([*argv, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.mark.alone
def test_help_answers_at_once_and_imports_nothing_heavy():
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "nadkit", "--help"], capture_output=True, text=True, check=True)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5
    commands = "list show check run sweep record verify build collect figures student claims"
    for line in (*commands.split(), "130  interrupted"):
        assert line in done.stdout
    heavy = "import sys, nadkit.book.cli; print({'torch', 'papermill', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_run_of_default_names_imports_neither_pytorch_nor_grammars(make_book):
    network = 'network: str = "lenet"  # what to train [architecture]\n'
    root = make_book({}, one=make_notebook("One", parameters=network))
    code = (
        "import sys; from pathlib import Path; from nadkit.book import chapters, runner\n"
        "print(chapters.validate(chapters.load(Path.cwd(), 'one')), {'torch', 'lark'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'network': 'lenet'} set()"


def test_list(book, capsys):
    code, data, _ = ask(capsys, "list")
    assert code == 0
    file = str(book / "book" / "part" / "one.ipynb")
    assert data == [{"chapter": "part/one", "title": "One", "parameters": 4, "file": file}]
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == ["part/one", "One", "4", "parameters"]


def test_show(book, capsys):
    code, data, _ = ask(capsys, "show", "one")
    assert code == 0
    assert data["parameters"][0]["values"] == {"quick": 3, "smoke": 2}
    assert main(["show", "one"]) == 0
    table = capsys.readouterr().out
    assert "1..100" in table
    assert "mean, sum" in table


def test_run_then_claims(book, capsys):
    (book / "my.yml").write_text("n: 4\nscale: 1e-3\n")
    command = ("run", "one", "--profile", "smoke", "--params", "my.yml", "-p", "n=5")
    code, data, err = ask(capsys, *command)
    assert (code, err) == (0, "")
    assert data["parameters"] == {"n": 5, "scale": 1e-3, "method": "mean", "sizes": [1, 2]}
    assert data["notebook"] == str(book / "runs/part/one/smoke,n=5,scale=0.001.ipynb")
    assert data["claims"][0]["verdict"] == "holds"
    code, data, _ = ask(capsys, "claims", "runs")
    assert code == 0
    assert [entry["claims"][0]["measured"] for entry in data] == [5.0]

    assert main(["run", "one", "--profile", "smoke", "--out", "x.ipynb"]) == 0
    assert "fails: n is large" in capsys.readouterr().out
    code, data, _ = ask(capsys, "claims", "runs", "x.ipynb")
    assert code == 3
    assert data[1]["run"]["profile"] == "smoke"


def test_claims_say_why_a_run_of_other_settings_decides_nothing(make_book, monkeypatch, capsys):
    code = CLAIM.replace('">= 3"', '">= 3", same={"scale": (scale, 3.0)}')
    monkeypatch.chdir(make_book(one=make_notebook(code=(code,))))
    assert main(["run", "one"]) == 0
    capsys.readouterr()
    assert main(["claims", "runs"]) == 0
    assert "? not decidable at this scale: n is large" in (out := capsys.readouterr().out)
    assert "scale: 0.5, the claim is about 3.0" in out
    _, data, _ = ask(capsys, "claims", "runs")
    (claim,) = data[0]["claims"]
    assert claim["why_undecided"] == "scale: 0.5, the claim is about 3.0"
    assert claim["same"] == {"scale": [0.5, 3.0]}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "No module named 'my_own_networks'"),
        ("1 / 0", "division by zero"),
        ("raise ValueError('of mine')", "of mine"),
        ("raise SystemExit(0)", "network: importing 'my_own_networks' ended in sys.exit(0); expected MODULE:FUNCTION"),
        ("tiny = 3", "expected a callable"),
        ("def tiny(): ...", None),
    ],
)
def test_an_architecture_of_ones_own_lies_in_the_current_folder(make_book, monkeypatch, capsys, source, message):
    parameters = 'network: str = "lenet"  # which [architecture]'
    code = "import importlib\nimportlib.import_module(network.partition(':')[0])"
    monkeypatch.chdir(make_book(one=make_notebook(parameters=parameters, code=(code,))))
    monkeypatch.delitem(sys.modules, "my_own_networks", raising=False)
    if source:
        Path("my_own_networks.py").write_text(source)
    result, data, err = ask(capsys, "run", "one", "-p", "network=my_own_networks:tiny")
    sys.modules.pop("my_own_networks", None)
    assert result == (2 if message else 0), err
    assert "Traceback" not in err
    if message:
        assert message in data["error"]


def test_a_failed_run_has_its_own_exit_code(make_book, monkeypatch, capsys):
    monkeypatch.chdir(make_book(bad=make_notebook(code=("1 / 0",))))
    code, data, err = ask(capsys, "run", "bad")
    assert code == 1
    assert data["status"] == "failed"
    assert data["notebook"].endswith("runs/bad/quick.failed.ipynb")
    assert "ZeroDivisionError" in data["error"]
    assert "ZeroDivisionError" in err
    code, data, _ = ask(capsys, "build")
    assert code == 1
    assert data["chapters"]["bad"]["status"] == "failed"


def test_build(book, capsys):
    code, data, err = ask(capsys, "build", "--out", "elsewhere", "--jobs", "1")
    assert code == 0
    assert data["html"] == str(book / "elsewhere/_build/html/index.html")
    assert "part/one: finished" in err
    assert main(["build", "--out", "elsewhere"]) == 0
    assert "index.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["lst"], "no command is called 'lst': did you mean 'list'?"),
        (["list", "--jsn"], "unknown argument '--jsn': did you mean '--json'?"),
        (["--json", "list"], "unknown argument '--json': put it after the command, as in 'nadkit list --json'"),
        (["--root", "book", "list"], "unknown argument '--root': put it after the command, as in 'nadkit list --root'"),
        (["run", "one", "--profle=smoke"], "unknown argument '--profle=smoke': did you mean"),
        (["run", "one", "--prof", "smoke"], "unknown argument '--prof': did you mean '--profile'?"),
        (["show", "onne"], "no chapter is called 'onne': did you mean part/one?"),
        (["run", "one", "-p", "n"], "expected NAME=VALUE, got 'n'"),
        (["run", "one", "-p", "=3"], "expected NAME=VALUE, got '=3'"),
        (["run", "one", "-p", "m=3"], "part/one: m: no such parameter"),
        (["run", "one", "-p", "n=2.0"], "part/one: n: expected int, got '2.0'"),
        (["run", "one", "--params", "absent.yml"], "absent.yml: no such file"),
        (["run", "one", "--params", "book"], "book: is a directory; expected a file of 'name: value' lines"),
        (["run", "one", "-p", "sizes="], "part/one: sizes: expected at least one value"),
        (["run", "one", "-p", "sizes=1,2,1"], "part/one: sizes: 1 is there twice"),
        (["run", "one", "--params", "odd.yml"], "part/one: 3: no such parameter"),
        (["run", "one", "--out", "book/part/one.ipynb"], "expected a place outside 'book'"),
        (["run", "one", "--profile", "smok"], "did you mean 'smoke'?"),
        (["build", "--jobs", "0"], "expected a whole number, at least 1, got '0'"),
        (["build", "--profile", "gpu"], "no profile is called 'gpu'"),
        (["build", "--out", "book"], "expected a place outside 'book'"),
        (["run", "one", "--gpus", "99"], "--gpus 99: this machine has"),
        (["sweep", "one", "-p", "n=1:3", "--gpus", "99", "--dry-run"], "--gpus 99: this machine has"),
        (["sweep", "one", "-p", "n=1:3", "--cluster", "host:1", "--dry-run"], "expected tcp://HOST:PORT, tls://"),
        (["sweep", "one", "-p", "n=1:3", "--cluster", "tcp://a:1", "--workers", "2", "--dry-run"], "has the workers"),
        (["record", "--plan", "--dry-run", "--workers", "2"], "expected no --workers, --gpus, --cluster and --out"),
        (["figures", "slides"], "profile quick was never built here (no profile was): 'nadkit build' makes it"),
        (["student", "book/course"], "expected a place outside 'book'"),
        (["student", "."], "expected a folder below the current one, or elsewhere"),
        (["run", "one", "--params", "month.yml"], "month.yml is not readable as YAML or JSON: month must be in 1..12"),
        (["claims"], "the following arguments are required: RUNS"),
        (["claims", "absent"], "found nothing"),
        (["list", "--root", "/"], "no book found"),
    ],
)
def test_bad_input_runs_nothing_and_says_what_to_do(book, capsys, argv, message):
    (book / "odd.yml").write_text("3: 4\n")
    (book / "month.yml").write_text("n: 2024-13-45\n")
    code, data, err = ask(capsys, *argv)
    assert code == 2
    assert message in data["error"]
    assert message in err
    assert not (book / "runs").exists()
    assert not (book / "_build").exists()


@pytest.mark.parametrize("command", ["run one", "record one", "record --plan", "sweep one", "build", "verify"])
@pytest.mark.parametrize("where", ["book", "current", "path"])
def test_a_clone_is_run_by_its_own_library_alone(book, tmp_path, capsys, monkeypatch, command, where):
    """Kernels would import its library, while checksums would be those of the one that runs."""
    clone = book if where == "book" else tmp_path / "clone"
    (clone / "nadkit").mkdir(parents=True)
    (clone / "nadkit" / "__init__.py").touch()
    monkeypatch.chdir(clone if where == "current" else tmp_path)
    if where == "path":
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(clone), str(PACKAGE.parent)]))
    code, data, _ = ask(capsys, *command.split(), "--root", str(book))
    assert code == 2
    assert f"expected the library {clone / 'nadkit'}, but the one that runs is {PACKAGE}" in data["error"]
    assert f"go to {book}, and type {sys.executable} -m nadkit" in data["error"]


def test_complaints_for_people_leave_stdout_empty(book, capsys):
    assert main(["show", "onne"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "nadkit: no chapter is called 'onne': did you mean part/one?\n"


def test_a_reader_that_stops_reading_is_no_error(book):
    command = f"{sys.executable} -m nadkit show one --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_terminal_without_a_letter_shows_another(make_book):
    root = make_book(one=make_notebook(parameters="n: int = 3  # how often ± 1 [1..100]"))
    command = [sys.executable, "-m", "nadkit", "show", "one", "--root", str(root)]
    ascii = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=ascii, capture_output=True, text=True)
    assert "how often ? 1" in done.stdout, done.stderr


def test_an_answer_that_cannot_be_written_is_a_failure(book):
    command = f"{sys.executable} -m nadkit list > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "nadkit: cannot write the answer: No space left on device\n")


def test_what_a_module_of_ones_own_prints_is_not_mixed_with_the_answer(make_book, monkeypatch, capsys):
    root = make_book(one=make_notebook(parameters='architecture: str = "logreg"  # network [architecture]\n'))
    monkeypatch.chdir(root)
    (root / "loud.py").write_text("print('hello')\nfrom nadkit.architectures import LeNet as small\n")
    code, data, err = ask(capsys, "sweep", "one", "-p", "architecture=loud:small,logreg", "--dry-run")
    assert (code, data["counts"]) == (0, {"to run": 2})
    assert "hello" in err


def test_a_text_that_is_not_utf8_is_named(book, capsys):
    (book / "book" / "intro.md").write_bytes(b"# A book\n\nCaf\xe9.\n")
    code, data, _ = ask(capsys, "check")
    assert code == 2
    assert "intro.md, line 3: expected text in UTF-8" in data["error"]


# ---- many runs -----------------------------------------------------------------------------------


def test_collect_makes_one_table(book, capsys):
    words = ["sweep", "one", "-p", "n=2,10", "-p", "scale=3e-12", "--workers", "1", "--json"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(["collect", "sweeps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("n,scale,method,sizes,")
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "10"]
    code, data, _ = ask(capsys, "collect", "sweeps", "-o", "table.parquet")
    assert code == 0
    assert [(row["n"], row["verdict.one-n"]) for row in data] == [(2, "fails"), (10, "holds")]
    assert [row["scale"] for row in data] == [3e-12, 3e-12]
    assert pd.read_parquet("table.parquet")["claim.one-n"].tolist() == [2, 10]
    for words, message in [
        (["collect", "sweeps", "-o", "table.xls"], "expected a file called NAME.csv or NAME.parquet"),
        (["collect", "swaps"], "swaps"),
    ]:
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_record_runs_a_chapter_once_and_keeps_its_results(book, capsys, short_witness):
    recorded = book / "book" / "recorded" / "part" / "one"
    code, data, err = ask(capsys, "record", "one", "--profile", "smoke", "-p", "n=7")
    assert (code, data["record"]) == (0, str(recorded / "smoke,n=7.json"))
    stored = json.loads((recorded / "smoke,n=7.json").read_text())
    assert (stored["chapter"], stored["parameters"]["n"]) == ("part/one", 7)
    assert "verdict" not in stored["claims"][0]
    assert stored["witness"]["parameters"]["n"] == 2
    code, data, err = ask(capsys, "record", "one", "--profile", "smoke", "-p", "n=7")
    assert code == 0
    assert "is finished already" in err
    (recorded / "smoke,n=7.json").unlink()
    assert main(["record", "one", "--from", data["notebook"]]) == 0
    assert [path.name for path in recorded.iterdir()] == ["smoke,n=7.json"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-p", "n=0"], 2, "expected a value in the range"),
        (["--from", "nowhere.ipynb"], 2, "nowhere.ipynb: expected an executed notebook, found nothing"),
        (["--from", "book/part/one.ipynb"], 2, "is not a finished run"),
        (["--from", "x.ipynb", "-p", "n=1"], 2, "--from: the run is made, and has its parameters"),
        (["--from", "x.ipynb", "--profile", "gpu"], 2, "--from: the run is made"),
        (["--out", "book/x"], 2, "outside 'book'"),
        (["--cluster", "tcp://localhost"], 2, "expected tcp://HOST:PORT"),
    ],
)
def test_record_refuses_bad_input(book, capsys, words, code, message):
    assert main(["record", "one", *words]) == code
    assert message in capsys.readouterr().err
    assert not (book / "book" / "recorded").exists()


def test_verify_says_whether_todays_code_gives_the_recorded_numbers(book, capsys, short_witness):
    assert ask(capsys, "verify")[:2] == (0, [])
    assert ask(capsys, "record", "one", "--profile", "smoke", "-p", "n=7")[0] == 0
    code, (found,), _ = ask(capsys, "verify")
    assert (code, found) == (0, {"record": "part/one/smoke,n=7", "state": "current", "why": ""})
    code, (found,), err = ask(capsys, "verify", "one", "--again")
    assert (code, found["state"]) == (0, "verified")
    assert "part/one: running the witness" in err
    path = book / "book" / "part" / "one.ipynb"
    path.write_text(path.read_text().replace(", n, ", ", n + 1, "))
    code, (found,), _ = ask(capsys, "verify")
    assert (code, found["state"]) == (1, "differs")
    assert "1 of 1 series differ: claim one-n (by" in found["why"]
    path.write_text(path.read_text().replace("n + 1", "nn"))
    code, (found,), _ = ask(capsys, "verify", "--again")
    assert (code, found["state"]) == (1, "not verified yet")
    assert main(["verify", "won"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_record_takes_a_finished_run_whose_prose_was_mended(book, capsys, short_witness):
    assert main(["record", "one", "--out", "one.ipynb"]) == 0
    path = book / "book" / "part" / "one.ipynb"
    path.write_text(path.read_text().replace("The mean is", "Here the mean is"))
    capsys.readouterr()
    assert main(["record", "one", "--out", "one.ipynb"]) == 0
    assert "one.ipynb is finished already" in capsys.readouterr().err


def test_record_runs_again_what_measured_other_claims(make_book, monkeypatch, capsys, short_witness):
    """They are no part of the experiment, but a run keeps what its own claims measured."""
    show = "from nadkit.book.claims import Claim, show\nshow([Claim('a', 'A.', 0.5, '> 0')])"
    notebook = make_notebook(code=("x = 0.5", show))
    notebook.cells[-1].metadata["tags"] = ["presentation"]
    root = make_book(one=notebook)
    path = root / "book" / "one.ipynb"
    monkeypatch.chdir(root)
    assert main(["record", "one", "--out", "one.ipynb"]) == 0
    path.write_text(path.read_text().replace("0.5, '> 0'", "-0.5, '> 0'"))
    assert main(["record", "one", "--from", "one.ipynb"]) == 2
    assert "what one claims or shows changed since this run; run it again" in capsys.readouterr().err
    assert main(["record", "one", "--out", "one.ipynb"]) == 0
    assert "is finished already" not in capsys.readouterr().err
    (record,) = (root / "book" / "recorded" / "one").iterdir()
    assert json.loads(record.read_text())["claims"][0]["measured"] == -0.5


def test_a_run_that_stored_nothing_is_a_failure_and_as_a_given_file_bad_input(make_book, monkeypatch, capsys):
    monkeypatch.chdir(make_book(one=make_notebook()))
    for words, code in ((["--out", "one.ipynb"], 1), (["--from", "one.ipynb"], 2)):
        assert main(["record", "one", *words]) == code
        assert "one.ipynb: nothing to record" in capsys.readouterr().err


def test_a_failed_run_is_not_recorded(make_book, monkeypatch, capsys):
    root = make_book(one=make_notebook(code=("1 / 0",)))
    monkeypatch.chdir(root)
    assert main(["record", "one"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not (root / "book" / "recorded").exists()


def test_run_splits_its_work_over_the_workers_asked_for(make_book, monkeypatch, capsys):
    code = "import os\nfrom nadkit.book import executors\nprint('slots', len(executors.given()._slots))"
    root = make_book(one=make_notebook(code=(code,)))
    monkeypatch.chdir(root)
    assert main(["run", "one", "--workers", "3"]) == 0
    assert "slots 3" in printed(root / "runs" / "one" / "quick.ipynb")
