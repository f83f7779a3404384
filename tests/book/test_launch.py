"""Notebooks for Colab: their first cell installs the library, the rest is the chapter in plain Markdown."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from toy import CODE, files_below, make_notebook

from nadkit.book import launch
from nadkit.book.chapters import BadInput, cell_source, cell_tags, find_chapters, load
from nadkit.book.cli import main
from nadkit.book.plain import Plain

ROOT = Path(__file__).parents[2]
URL, NOW = "https://github.com/someone/a-fork", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def book(make_book, monkeypatch):
    """The root of a committed book."""
    root = make_book(part__one=make_notebook(code=(CODE,)), two=make_notebook("Two"))
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    monkeypatch.setenv("NADKIT_REPOSITORY", URL)
    return root


def test_notebooks_lie_as_in_the_book_and_install_its_commit(book, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["notebooks", str(out), "--root", str(book)]) == 0
    assert "2 notebooks" in capsys.readouterr().out
    assert files_below(out) == ["book/part/one.ipynb", "book/two.ipynb"]
    head = subprocess.run(["git", "-C", str(book), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    for path in out.rglob("*.ipynb"):
        nbformat.validate(notebook := nbformat.read(path, as_version=4))
        assert f'"git+{URL}@{head}"' in notebook.cells[0].source
        assert CODE in [cell.source for cell in notebook.cells]
    assert main(["notebooks", str(tmp_path / "one"), "part/one", "--root", str(book)]) == 0
    assert files_below(tmp_path / "one") == ["book/part/one.ipynb"]


def test_the_first_cell_installs_where_the_library_is_missing_and_only_there(monkeypatch):
    asked: list[str] = []
    shell = InteractiveShell()
    shell.register_magic_function(asked.append, magic_name="pip")
    chapter = load(ROOT, "practice/template")
    first = launch.notebook(chapter, Plain(ROOT), URL, NOW).cells[0].source
    shell.run_cell(first).raise_error()
    assert asked == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    shell.run_cell(first).raise_error()
    needs, library = asked
    assert library == f'install --quiet --no-deps "git+{URL}@{NOW}"'
    assert re.findall(r'"([^"]+)"', needs) == launch.needs()


def test_what_runs_notebooks_is_left_to_who_runs_them():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    left = set(project["dependencies"]) - set(launch.needs())
    assert set(launch.needs()) <= set(project["dependencies"])
    assert {re.match(r"[\w-]+", need)[0] for need in left} == launch.RUNNERS


def test_chapters_need_nothing_that_runs_notebooks():
    """But for one that runs others, and says so instead of installing."""
    chapters = [load(ROOT, name) for name in find_chapters(ROOT)]
    running = [chapter for chapter in chapters if chapter.notebook["metadata"].get("nadkit_runs")]
    for chapter in running:
        first = launch.notebook(chapter, Plain(ROOT), URL, NOW).cells[0]
        assert first.cell_type == "markdown"
        assert "not on Colab" in first.source
    code = [
        cell_source(cell)
        for chapter in chapters
        if chapter not in running
        for cell in chapter.notebook["cells"]
        if cell["cell_type"] == "code"
    ]
    imports = {line for source in code for line in re.findall(r"^(?:from nadkit|import nadkit).*[^(]$", source, re.M)}
    assert len(imports) > 20
    hidden = "import sys; sys.modules.update(dict.fromkeys(['papermill', 'nbclient', 'jupyter_client', 'zmq']))"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([hidden, *sorted(imports)])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", find_chapters(ROOT))
def test_a_notebook_is_the_chapter_without_the_signs_of_the_book(name):
    chapter = load(ROOT, name)
    first, *rest = launch.notebook(chapter, Plain(ROOT), URL, NOW).cells
    assert first.id == "install"
    was = [(cell_source(c), cell_tags(c)) for c in chapter.notebook["cells"] if c["cell_type"] == "code"]
    assert [(c.source, cell_tags(c)) for c in rest if c.cell_type == "code"] == was
    text = "\n".join(cell.source for cell in rest if cell.cell_type == "markdown")
    assert not re.search(r"`{3,}\{|\{(ref|numref|eq|cite[:tp]*|doc|term)\}`|^\([\w-]+\)=", text, re.MULTILINE)


def test_an_old_notebook_without_ids_becomes_one_too(book, tmp_path):
    path = book / "book" / "two.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        cell.pop("id")
    path.write_text(nbformat.writes(notebook))
    made = launch.notebook(load(book, "two"), Plain(book), URL, NOW)
    nbformat.validate(made)
    assert [cell.id for cell in made.cells] == ["install", "cell-1", "cell-2", "cell-3"]


def test_what_cannot_be_installed_is_refused(book, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for url in ("", "someone/a-fork", 'https://github.com/a/b" && rm -r "c', "https://github.com/a/b c"):
        monkeypatch.setenv("NADKIT_REPOSITORY", url)
        assert main(["notebooks", str(out), "--root", str(book)]) == 2
        assert "NADKIT_REPOSITORY: expected the repository's address" in capsys.readouterr().err
    monkeypatch.setenv("NADKIT_REPOSITORY", URL)
    with pytest.raises(BadInput, match="did you mean two"):
        launch.write(book, out, ["twoo"])
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(BadInput, match="expected an empty folder"):
        launch.write(book, out)
    (book / "book" / "new.ipynb").write_text("{}")
    with pytest.raises(BadInput, match="expected a clone with all changes committed"):
        launch.write(book, tmp_path / "other")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(BadInput, match="dubious ownership"):  # in git's own words
        launch.write(book, tmp_path / "other")
    assert files_below(out) == ["mine.txt"]
    assert not (tmp_path / "other").exists()
