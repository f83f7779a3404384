"""Checksums of runs and of experiments: what they follow, and what they leave alone."""

import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from toy import make_notebook

from nadkit.book import prints
from nadkit.book.chapters import cell_source, find_chapters, load, validate
from nadkit.book.prints import bare, experiment, fingerprint, result_print, result_printer

# ---- runs ----------------------------------------------------------------------------------------


def test_the_fingerprint_follows_source_tags_and_parameters_alone(make_book):
    def mark(notebook: nbformat.NotebookNode, **overrides) -> str:
        chapter = load(make_book(one=notebook), "one")
        return fingerprint(chapter, validate(chapter, overrides=overrides))

    same = mark(make_notebook())
    decorated = make_notebook()
    decorated.cells[-1].outputs = [nbformat.v4.new_output("stream", text="old")]
    decorated.cells[-1].execution_count = 9
    assert mark(decorated) == same
    tagged = make_notebook()
    tagged.cells[-1].metadata["tags"] = ["hide-input"]
    others = [mark(tagged), mark(make_notebook(code=("1",))), mark(make_notebook(), n=4)]
    assert len({same, *others}) == 4


def test_the_fingerprint_follows_the_library_and_not_the_machine(make_book, monkeypatch):
    chapter = load(make_book(one=make_notebook()), "one")
    asked = []
    sha256 = prints.files.sha256
    monkeypatch.setattr(prints.files, "sha256", lambda p: (asked.append(p.name), sha256(p))[1])
    same = fingerprint(chapter, {})
    assert "claims.py" in asked
    assert not {"cli.py", "runner.py", "chapters.py", "parameters.py"} & set(asked)
    monkeypatch.setattr(prints.files, "sha256", lambda path: "edited")
    assert fingerprint(chapter, {}) != same


def test_the_fingerprint_follows_what_makes_the_pages_of_chapters():
    """Whatever chapters import from the machine, directly or not, counts, but for what shows nothing."""
    silent = {
        "chapters",  # reads notebooks, which the fingerprint has
        "executors",  # where the work is done
        "parameters",  # checks values, which the fingerprint has
        "prints",  # checksums
        "runner",  # runs notebooks
        "sources",  # Python code, for checksums
        "sweep",  # runs chapters
        "witness",  # whether records hold; what it found is part of `records_print`
    }
    root = Path(__file__).parents[2]
    cells = (cell for name in find_chapters(root) for cell in load(root, name).notebook["cells"])
    left, found = [cell_source(cell) for cell in cells if cell["cell_type"] == "code"], set()
    while left:
        files = {file for source in left for file in prints._imported(source) if file.parent.name == "book"}
        new = {file for file in files - found if file.stem not in silent}
        found |= new
        left = [file.read_text(encoding="utf-8") for file in new]
    assert {f"book/{file.name}" for file in found} == prints.SHOWING


def test_the_fingerprint_follows_versions(make_book, monkeypatch):
    chapter = load(make_book(one=make_notebook()), "one")
    marks = [fingerprint(chapter, {})]
    version = prints.importlib.metadata.version
    for package in ("torch", "torchvision", "numpy"):
        monkeypatch.setattr(prints.importlib.metadata, "version", lambda p, p0=package: version(p) + "9" * (p == p0))
        marks.append(fingerprint(chapter, {}))
    monkeypatch.undo()
    monkeypatch.setattr(prints.platform, "python_version", lambda: "3.99.0")
    marks.append(fingerprint(chapter, {}))
    assert len(set(marks)) == len(marks)
    monkeypatch.setattr(prints.platform, "python_version", lambda: "3.99.1")
    assert fingerprint(chapter, {}) == marks[-1]


def test_the_fingerprint_follows_the_published_data_at_hand(make_book, monkeypatch, tmp_path):
    chapter = load(make_book(one=make_notebook()), "one")
    cache, mine = tmp_path / "cache", tmp_path / "mine"
    monkeypatch.setattr(prints.files, "data_folders", lambda: [mine, cache])
    marks = [fingerprint(chapter, {})]
    for folder, content in [(cache, "1"), (mine, "1"), (mine, "12")]:
        (folder / "published" / "nads").mkdir(parents=True, exist_ok=True)
        (folder / "published" / "nads" / "lenet.npy").write_text(content)
        marks.append(fingerprint(chapter, {}))
    assert len(set(marks)) == 4
    (mine / "published" / ".lenet-part.npy").write_text("half")
    (mine / "other.npy").write_text("of no chapter's")
    assert fingerprint(chapter, {}) == marks[-1]


def test_many_checksums_are_those_of_one_each(make_book):
    chapter = load(make_book(one=make_notebook()), "one")
    together = result_printer(chapter)
    for n in (1, 2):
        assert together({"n": n}) == result_print(chapter, {"n": n})
    assert together({"n": 1}) != together({"n": 2})


# ---- commits -------------------------------------------------------------------------------------


def test_a_run_names_its_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        user = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *user, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    assert prints.commit(tmp_path) is None
    (tmp_path / "a.txt").write_text("a")
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")
    assert prints.commit(tmp_path) == head
    (tmp_path / "book" / "recorded").mkdir(parents=True)
    (tmp_path / "book" / "recorded" / "a.json").write_text("{}")
    assert prints.commit(tmp_path) == head
    (tmp_path / "run.log").write_text("neither code nor in the book")
    assert prints.commit(tmp_path) == head
    for name in ("mine.py", "book/data.csv"):
        (tmp_path / name).write_text("1")
        assert prints.commit(tmp_path) == f"{head}+"
        (tmp_path / name).unlink()
    (tmp_path / "a.txt").write_text("b")
    assert prints.commit(tmp_path) == f"{head}+"
    monkeypatch.setenv("PATH", "")
    assert prints.commit(tmp_path) is None


# ---- experiments ---------------------------------------------------------------------------------

SCIENCE = "from nadkit import training, plots\nresult = training.SEPARABLE  # of one\n"


def mark(make_book, code: str = SCIENCE, **changes) -> str:
    notebook = make_notebook(code=(code,), **changes)
    return experiment(load(make_book(one=notebook), "one"))


@pytest.mark.parametrize(
    "same",
    [
        {"title": "Another title"},
        {"parameters": "n: int = 5  # of what\n"},
        {"code": SCIENCE.replace("of one", "of many")},
        {"code": "# a comment\n\n" + SCIENCE},
    ],
)
def test_prose_and_parameters_are_no_part_of_the_experiment(make_book, same):
    assert mark(make_book, **same) == mark(make_book)


def test_code_is_part_of_the_experiment_unless_it_presents(make_book):
    notebook = make_notebook(code=(SCIENCE, "draw(result)"))
    first = experiment(load(make_book(one=notebook), "one"))
    notebook.cells[-1].source = "draw(result, colour=1)"
    changed = experiment(load(make_book(one=notebook), "one"))
    assert changed != first
    notebook.cells[-1].metadata["tags"] = ["presentation"]
    assert experiment(load(make_book(one=notebook), "one")) == mark(make_book)


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("training/many", True),
        ("architectures/lenet", True),  # training imports it
        ("seeds", True),
        ("plots", False),
        ("book/sweep", False),
        ("inputs/theory", False),  # this chapter does without
    ],
)
def test_the_science_that_a_chapter_imports_is_part_of_its_experiment(make_book, monkeypatch, tmp_path, module, counts):
    before = mark(make_book)
    copy = tmp_path / "nadkit"
    shutil.copytree(prints.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(prints, "PACKAGE", copy)
    assert mark(make_book) == before
    path = copy / f"{module}.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert mark(make_book) == before
    path.write_text(path.read_text() + "\nAN_EDIT = 1\n")
    assert (mark(make_book) != before) is counts


def test_names_from_nadkit_itself_tell_where_they_are_from(make_book, monkeypatch, tmp_path):
    code = "from nadkit import fit_many\nresult = fit_many"
    before = mark(make_book, code)
    copy = tmp_path / "nadkit"
    shutil.copytree(prints.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(prints, "PACKAGE", copy)
    for module, counts in (("inputs/theory", False), ("training/many", True)):
        path = copy / f"{module}.py"
        path.write_text(path.read_text() + "\nAN_EDIT = 1\n")
        assert (mark(make_book, code) != before) is counts


def test_bare_code_has_neither_words_nor_layout():
    source = """\
\"\"\"A module.\"\"\"
x = "# no comment"  # a comment

def f(a, b=(1, 2)):
    \'\'\'Several
    lines.\'\'\'
    return f"{a} # none either"
"""
    for same in (
        "x = '# no comment'\ndef f(a, b=(1, 2)):\n    return f'{a} # none either'",
        "x = (\n    '# no comment'\n)\n\n\ndef f(\n    a,\n    b=(\n        1,\n        2,\n    ),\n):\n"
        "    'words'; return f'{a} # none either'",
    ):
        assert bare(same) == bare(source)
    for other in ("no comment", "a", "(1, 2)", "return", "# none"):
        assert bare(source.replace(other, other.replace("2", "3") if "2" in other else f"{other}x")) != bare(source)
    assert bare("x = 1.0") != bare("x = 1")
    assert bare("%matplotlib inline\n# gone") == bare("%matplotlib inline") != bare("%matplotlib qt")
    assert bare("no Python at all") == "no Python at all"


def test_what_a_chapter_runs_is_part_of_it(make_book):
    """A chapter that sweeps another one is out of date, and its record stale, when that one has changed."""

    def marks(code: str) -> tuple[str, str]:
        outer = make_notebook(code=("sweep_it()",))
        outer.metadata["nadkit_runs"] = ["part/inner"]
        chapter = load(make_book(outer=outer, part__inner=make_notebook(code=(code,))), "outer")
        return fingerprint(chapter, {}), experiment(chapter)

    before, after = marks("1"), marks("2")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert marks("1") == before


def test_a_result_outlives_mended_prose_and_data_that_came(make_book, monkeypatch, tmp_path):
    def mark(n: int = 3, **changes) -> tuple[str, str]:
        chapter = load(make_book(one=make_notebook(**changes)), "one")
        return result_print(chapter, {"n": n})

    before = mark()
    assert mark(title="Another") == before
    assert len({before, mark(n=4), mark(code=("1",))}) == 3
    monkeypatch.setattr(prints.files, "data_folders", lambda: [tmp_path])
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "lenet.npy").write_text("1")
    assert mark() == before


def test_a_cell_with_commands_of_ipython_still_tells_its_imports(make_book):
    assert mark(make_book, "%matplotlib inline\nfrom nadkit import training") != mark(make_book, "%matplotlib inline")
