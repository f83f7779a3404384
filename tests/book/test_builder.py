"""Builds: what runs again, what stays, and what becomes of the pages."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_book.config import get_final_config
from toy import files_below, make_notebook, printed

from nadkit import files
from nadkit.book import builder, records, runner, witness
from nadkit.book.builder import build
from nadkit.book.chapters import BadInput, load, validate
from nadkit.book.prints import experiment
from nadkit.book.runner import execute


def statuses(result: dict) -> dict[str, str]:
    return {name: chapter["status"] for name, chapter in result["chapters"].items()}


def test_a_build_runs_only_what_changed(make_book, tmp_path):
    threads = "import os\nprint('threads', os.environ.get('OMP_NUM_THREADS'))"
    book = {"one": make_notebook("One"), "part__two": make_notebook("Two", code=(threads,))}
    profiles = {"smoke": {"one": {"n": 2}}}
    root, out = make_book(profiles, **book), tmp_path / "out"

    first = build(root, "smoke", jobs=2, out=out)
    assert first["error"] is None
    assert statuses(first) == {"one": "finished", "part/two": "finished"}
    html = out / "_build" / "html"
    assert first["html"] == str(html / "index.html")
    assert "result 1.0" in (html / "book" / "one.html").read_text()
    executed = out / "_build" / "executed" / "smoke"
    assert f"threads {max(1, runner.joblib.cpu_count() // 2)}" in printed(executed / "part/two.ipynb")
    page = html / "book" / "part" / "two.html"
    drawn = page.stat().st_mtime_ns

    assert set(statuses(build(root, "smoke", out=out)).values()) == {"unchanged"}

    make_book(profiles, **book | {"one": make_notebook("One", code=("print('edited')",))})
    assert statuses(build(root, "smoke", out=out)) == {"one": "finished", "part/two": "unchanged"}
    assert "edited" in (html / "book" / "one.html").read_text()
    assert page.stat().st_mtime_ns == drawn

    make_book(profiles, **book | {"one": make_notebook("Another title")})
    build(root, "smoke", out=out)
    assert "Another title" in page.read_text()


def test_a_build_of_one_chapter_leaves_the_others_as_they_were(make_book, tmp_path):
    book = {"one": make_notebook("One"), "part__two": make_notebook("Two")}
    root = make_book(**book)
    path = root / "book" / "one.ipynb"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark changes nothing
    html = tmp_path / "_build" / "html" / "book"
    said = []
    first = build(root, out=tmp_path, say=said.append, only=["two"])
    assert (first["error"], statuses(first)) == (None, {"part/two": "finished"})
    assert "1 of 2 chapters never ran: their pages are without results" in said
    assert "result 1.5" in (html / "part" / "two.html").read_text()
    assert "result 1.5" not in (html / "one.html").read_text()
    assert "The mean is" in (html / "one.html").read_text()

    assert build(root, out=tmp_path)["error"] is None
    make_book(
        one=make_notebook("One", code=("print('edited')",)), part__two=make_notebook("Two", code=("print('anew')",))
    )
    assert statuses(build(root, out=tmp_path, only=["one"])) == {"one": "finished"}
    assert "edited" in (html / "one.html").read_text()
    assert "result 1.5" in (html / "part" / "two.html").read_text()
    with pytest.raises(BadInput, match="did you mean"):
        build(root, out=tmp_path, only=["won"])


def test_a_build_says_how_far_it_is(make_book, tmp_path):
    root, said = make_book(one=make_notebook("One"), two=make_notebook("Two")), []
    build(root, jobs=1, out=tmp_path, say=said.append)
    ends = [message for message in said if "finished" in message]
    assert "(1 of 2 chapters, about 60 s left)" in ends[0]
    assert "(2 of 2 chapters)" in ends[1]


def test_a_first_build_knows_what_chapters_took_elsewhere(make_book, tmp_path):
    """The longest chapter first, so that no core waits for the last one."""
    root, said = make_book(one=make_notebook("One"), two=make_notebook("Two")), []
    (root / "book" / "recorded").mkdir()
    (root / builder.SECONDS).write_text("quick: {one: 20, two: 30}\n")
    build(root, jobs=1, out=tmp_path, say=said.append)
    assert [message.partition(":")[0] for message in said if "finished" in message] == ["two", "one"]
    assert any("(1 of 2 chapters, about 20 s left)" in message for message in said)


def test_an_interrupt_while_chapters_are_being_started_ends_those_that_run(make_book, tmp_path, monkeypatch):
    class InterruptedPool(ThreadPoolExecutor):
        def submit(self, task, name, out):
            if name == "second":
                while not (tmp_path / "begun").exists():
                    time.sleep(0.01)
                raise KeyboardInterrupt
            return super().submit(task, name, out)

    mark = f"import pathlib, time\npathlib.Path({str(tmp_path / 'begun')!r}).touch()\ntime.sleep(60)"
    root = make_book(first=make_notebook(code=(mark,)), second=make_notebook())
    monkeypatch.setattr(builder, "ThreadPoolExecutor", InterruptedPool)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build(root, jobs=2, out=tmp_path / "out")
    assert time.monotonic() - start < 50  # and not when the first has had its sleep


def test_a_failed_chapter_lets_the_others_finish_and_keeps_the_pages(make_book, tmp_path):
    root = make_book(bad=make_notebook(code=("1 / 0",)), good=make_notebook())
    said = []
    result = build(root, jobs=2, out=tmp_path, say=said.append)
    assert statuses(result) == {"bad": "failed", "good": "finished"}
    assert (result["html"], result["status"]) == (None, "failed")
    assert "failed: bad" in result["error"]
    assert any("ZeroDivisionError" in message for message in said)
    assert not (tmp_path / "_build" / "html").exists()


def test_one_job_says_an_error_once(make_book, tmp_path, capfd):
    root, said = make_book(bad=make_notebook(code=("1 / 0",))), []
    build(root, jobs=1, out=tmp_path, say=said.append)
    assert said[-1] == "bad: failed (1 of 1 chapters)"
    assert capfd.readouterr().err.count("failed: ZeroDivisionError") == 1  # by its own process


def test_a_chapter_that_kills_its_process_fails_alone(make_book, tmp_path):
    kill = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    root = make_book(bad=make_notebook(code=(kill,)), good=make_notebook())
    result = build(root, jobs=2, out=tmp_path)
    assert statuses(result) == {"bad": "failed", "good": "finished"}
    assert "its process ended with code -9" in result["chapters"]["bad"]["error"]


def test_a_warning_fails_the_build_every_time(make_book, tmp_path):
    notebook = make_notebook()
    notebook.cells[0].source += "\n\nSee {doc}`nowhere`."
    root = make_book(one=notebook)
    for _ in range(2):
        result = build(root, out=tmp_path)
        assert result["html"] is None
        assert "book/one.ipynb" in result["error"]
        assert "unknown document: 'nowhere'" in result["error"]
        assert "\x1b" not in result["error"]


def pages(out: Path) -> dict[str, bytes]:
    """What the pages hold that people read, and when they were written."""
    html = out / "_build" / "html"
    return {name: ((html / name).stat().st_mtime_ns, (html / name).read_bytes()) for name in files_below(html)}


def test_two_builds_do_not_meet_in_one_folder(make_book, tmp_path):
    root = make_book(one=make_notebook())
    held = files.held(tmp_path / "_build", RuntimeError("held by nobody else"))
    with held, pytest.raises(BadInput, match="another build is at work there"):
        build(root, out=tmp_path)


def test_the_pages_stay_as_they_were_until_all_is_well(make_book, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(make_book(one=make_notebook("One"), two=make_notebook("Two")), out=out)
    before = pages(out)

    warns = make_notebook("One")
    warns.cells[0].source += "\n\nSee {doc}`nowhere`."
    root = make_book(one=warns, two=make_notebook("Deux"))
    assert "nowhere" in build(root, out=out)["error"]
    assert pages(out) == before

    def interrupt(stage: Path, work: Path) -> None:
        (work / "_build" / "html" / "book").mkdir(parents=True)
        (work / "_build" / "html" / "book" / "two.html").write_text("half a pa")
        raise KeyboardInterrupt

    root = make_book(one=make_notebook("Un"), two=make_notebook("Deux"))
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_render", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(root, out=out)
    assert pages(out) == before

    assert build(root, out=out)["error"] is None
    for page in ("one", "two"):
        text = (out / "_build" / "html" / "book" / f"{page}.html").read_text()
        assert "Deux" in text
        assert "Un" in text
    assert sorted(p.name for p in (out / "_build").iterdir()) == [
        ".lock",
        "executed",
        "html",
        "pages",
        "sphinx",
        "stage",
    ]


def test_a_build_interrupted_while_it_copies_draws_every_sidebar_again(make_book, tmp_path, monkeypatch):
    build(make_book(one=make_notebook("One"), two=make_notebook("Two")), out=tmp_path)
    root = make_book(one=make_notebook("Un"), two=make_notebook("Two"))
    stage = builder._stage

    def interrupt(*arguments: object) -> None:
        stage(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(builder, "_stage", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(root, out=tmp_path)
    build(root, out=tmp_path)
    assert "Un" in (tmp_path / "_build" / "html" / "book" / "two.html").read_text()


ASCII = """
import sys
from pathlib import Path
from nadkit.book import builder, prints, scorecard
from nadkit.book.chapters import load
scorecard.markdown = lambda *_: chr(177)
builder._make_scorecard(Path.cwd(), [], Path.cwd() / "out", {})
sys.stdout.write(prints.experiment(load(Path.cwd(), "one")))
"""


def test_checksums_and_pages_do_not_depend_on_the_locale(make_book, tmp_path):
    root = make_book(one=make_notebook(code=("from nadkit.inputs import basis",)))  # its source is not ASCII
    (root / "book" / "practice").mkdir()
    (root / "book" / "practice" / "scorecard.md").touch()
    locale = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", ASCII], cwd=root, env=locale, capture_output=True, text=True)
    assert done.stdout == experiment(load(root, "one")), done.stderr
    assert (root / "out" / "scorecard.md").read_text(encoding="utf-8") == "±"


def test_a_picture_that_changed_may_hold_what_looks_like_a_heading(make_book, tmp_path):
    picture = make_book() / "book" / "one.png"
    for content in (b"\x89PNG\n# \xff\n", b"\x89PNG\n# \xfe\n"):
        picture.write_bytes(content)
        builder._stage(picture.parents[1], {}, tmp_path / "stage")
    assert (tmp_path / "stage" / "book" / "one.png").read_bytes() == content


def test_the_page_of_a_chapter_that_is_gone_goes_too(make_book, tmp_path):
    build(make_book(one=make_notebook("One"), two=make_notebook("Two")), out=tmp_path)
    root = make_book(one=make_notebook("One"))
    (root / "book" / "two.ipynb").unlink()
    build(root, out=tmp_path)
    assert [name for name in pages(tmp_path) if name.endswith("two.html")] == []


def test_drafts_are_left_out_and_missing_pages_refused(make_book, tmp_path):
    root = make_book(one=make_notebook("One"))
    nbformat.write(make_notebook("Draft", code=("1 / 0",)), root / "book" / "draft.ipynb")
    said = []
    result = build(root, out=tmp_path, say=said.append)
    assert (result["error"], list(result["chapters"])) == (None, ["one"])
    assert "draft: left out, for _toc.yml does not list it" in said
    toc = (root / "_toc.yml").read_text()
    (root / "_toc.yml").write_text(toc.replace("book/one", "book/two"))
    with pytest.raises(BadInput, match=r"_toc.yml: book/two: no such page; expected book/two.ipynb"):
        build(root, out=tmp_path)


# ---- the scorecard and recorded results ----------------------------------------------------------

CLAIM = """\
from nadkit.book import results
from nadkit.book.claims import Claim, show
results.keep(mean=n * scale)
show([Claim("one-n", "n is large", n, ">= 3", source="Paper, fig. 1", reported=5, paper="somebody2020paper")])
"""
SCORECARD = "(scorecard)=\n# Scorecard\n\n```{include} _generated/scorecard.md\n```\n"
BIBLIOGRAPHY = "@article{somebody2020paper, author={Some Body}, title={A Paper}, journal={J}, year={2020}}\n"


@pytest.fixture
def scored(make_book):
    """A book whose chapter claims something, with a scorecard."""
    root = make_book({"smoke": {"one": {"n": 2}}}, one=make_notebook("One", code=(CLAIM,)))
    (root / "book" / "practice").mkdir()
    (root / "book" / "practice" / "scorecard.md").write_text(SCORECARD)
    (root / "book" / "references.bib").write_text(BIBLIOGRAPHY)
    (root / "book" / "references.md").write_text("# References\n\n```{bibliography}\n```\n")
    toc, config = (yaml.safe_load((root / name).read_text()) for name in ("_toc.yml", "_config.yml"))
    toc["chapters"] += [{"file": "book/practice/scorecard"}, {"file": "book/references"}]
    config |= {"bibtex_bibfiles": ["book/references.bib"]}
    # A path in the settings starts at the book, from wherever it is built.
    config["sphinx"] = {"config": {"bibtex_reference_style": "author_year", "html_search_scorer": "book/own.js"}}
    (root / "book" / "own.js").write_text("const Scorer = {};\n")
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    return root


def test_the_scorecard_follows_the_runs_and_the_records(scored, tmp_path, short_witness):
    html = tmp_path / "_build" / "html"
    assert build(scored, "smoke", out=tmp_path)["error"] is None
    data = json.loads((html / "scorecard.json").read_text())
    assert data["totals"][0]["live"]["fails"] == 1
    assert data["claims"][0]["recorded"] == []
    assert 'href="../one.html#claim-one-n"' in (html / "book" / "practice" / "scorecard.html").read_text()

    chapter = load(scored, "one")
    execute(chapter, validate(chapter), tmp_path / "big.ipynb")
    assert (
        records.record(tmp_path / "big.ipynb", scored, witness.make(chapter, print))
        == scored / "book" / "recorded" / "one" / "quick.json"
    )
    again = build(scored, "smoke", out=tmp_path)
    assert again["chapters"]["one"]["status"] == "finished"  # its page may show the record
    (claim,) = json.loads((html / "scorecard.json").read_text())["claims"]
    assert (claim["live"]["verdict"], claim["recorded"][0]["verdict"]) == ("fails", "holds")
    assert claim["recorded"][0]["state"] == "current"
    assert not (html / "book" / "recorded").exists()
    assert build(scored, "smoke", out=tmp_path)["chapters"]["one"]["status"] == "unchanged"

    for edit, state in (
        ("1 + 1", "verified"),
        ("", "verified"),
        ("n", "differs"),
    ):
        notebook = nbformat.read(chapter.path, as_version=4)
        cell = notebook.cells[-1]
        cell.source = cell.source.replace(", n, ", ", n + 1, ") if edit == "n" else f"{cell.source}{edit}\n"
        nbformat.write(notebook, chapter.path)
        said = []
        build(scored, "smoke", out=tmp_path, say=said.append)
        assert ("one: running the witness" in said) is bool(edit)  # what is known is not found again
        (claim,) = json.loads((html / "scorecard.json").read_text())["claims"]
        assert claim["recorded"][0]["state"] == state
        assert state in (html / "book" / "practice" / "scorecard.html").read_text()


def test_a_claim_of_an_unknown_paper_fails_the_build(scored, tmp_path):
    (scored / "book" / "references.bib").write_text(BIBLIOGRAPHY.replace("2020paper", "2021paper"))
    result = build(scored, "smoke", out=tmp_path)
    assert result["html"] is None
    assert "did you mean 'somebody2021paper'?" in result["error"]


def test_pages_have_buttons_to_the_repository_that_the_environment_names(make_book, tmp_path, monkeypatch):
    root = make_book(one=make_notebook())
    monkeypatch.delenv(builder.REPOSITORY, raising=False)
    assert builder._make_config(root, tmp_path) == {}

    def theme(url: str) -> dict:
        monkeypatch.setenv(builder.REPOSITORY, url)
        made = builder._make_config(root, tmp_path)["_config.yml"]
        return get_final_config(user_yaml=made, cli_config={"latex_individualpages": False})[0]["html_theme_options"]

    ours = theme("https://github.com/someone/a-fork")
    assert (ours["repository_url"], ours["use_repository_button"]) == ("https://github.com/someone/a-fork", True)
    assert ours["launch_buttons"]["binderhub_url"] == "https://mybinder.org"
    elsewhere = theme("https://git.example.org/someone/a-fork")
    assert elsewhere["repository_url"] == "https://git.example.org/someone/a-fork"
    assert not elsewhere["launch_buttons"].get("colab_url")
