"""Builds: what runs again, what stays, and what becomes of the pages."""

from pathlib import Path

import pytest
from conftest import files_below, make_notebook, printed

from nadkit import builder, runner
from nadkit.builder import build


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


def test_a_failed_chapter_lets_the_others_finish_and_keeps_the_pages(make_book, tmp_path):
    root = make_book(bad=make_notebook(code=("1 / 0",)), good=make_notebook())
    said = []
    result = build(root, jobs=2, out=tmp_path, say=said.append)
    assert statuses(result) == {"bad": "failed", "good": "finished"}
    assert (result["html"], result["status"]) == (None, "failed")
    assert "failed: bad" in result["error"]
    assert any("ZeroDivisionError" in message for message in said)
    assert not (tmp_path / "_build" / "html").exists()


def test_a_chapter_that_kills_its_process_fails_alone(make_book, tmp_path):
    kill = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    root = make_book(bad=make_notebook(code=(kill,)), good=make_notebook())
    result = build(root, jobs=2, out=tmp_path)
    assert statuses(result) == {"bad": "failed", "good": "finished"}
    assert "its process ended with code -9" in result["chapters"]["bad"]["error"]


def test_a_warning_fails_the_build_every_time(make_book, tmp_path):
    notebook = make_notebook()
    notebook.cells[0].source += "\n\nSee {ref}`nowhere`."
    root = make_book(one=notebook)
    for _ in range(2):
        result = build(root, out=tmp_path)
        assert result["html"] is None
        assert "book/one.ipynb" in result["error"]
        assert "undefined label: 'nowhere'" in result["error"]
        assert "\x1b" not in result["error"]


def pages(out: Path) -> dict[str, bytes]:
    """What the pages hold that people read, and when they were written."""
    html = out / "_build" / "html"
    return {name: ((html / name).stat().st_mtime_ns, (html / name).read_bytes()) for name in files_below(html)}


def test_the_pages_stay_as_they_were_until_all_is_well(make_book, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(make_book(one=make_notebook("One"), two=make_notebook("Two")), out=out)
    before = pages(out)

    warns = make_notebook("One")
    warns.cells[0].source += "\n\nSee {ref}`nowhere`."
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
    assert sorted(p.name for p in (out / "_build").iterdir()) == ["executed", "html", "sphinx", "stage"]


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


def test_the_page_of_a_chapter_that_is_gone_goes_too(make_book, tmp_path):
    build(make_book(one=make_notebook("One"), two=make_notebook("Two")), out=tmp_path)
    root = make_book(one=make_notebook("One"))
    (root / "book" / "two.ipynb").unlink()
    build(root, out=tmp_path)
    assert [name for name in pages(tmp_path) if name.endswith("two.html")] == []
