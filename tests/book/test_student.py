"""The student edition: what becomes of a chapter, and what nbgrader makes of that."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from toy import make_notebook

from nadkit.book.chapters import BadInput, find_chapters, load, profile_values
from nadkit.book.cli import main
from nadkit.book.parameters import parse_parameters

pytest.importorskip("nbgrader", reason="nbgrader is not installed: pip install -e '.[teach]'")
pytest.importorskip("pybtex", reason="pybtex is not installed: pip install -e '.[teach]'")

from nadkit.book import student

ROOT = Path(__file__).parents[2]
GRADED = ("activations/selectivity", "practice/template")  # the quick ones

PARAMETERS = """\
n: int = 3  # how often [1..100]
names: list[str] = [
    "ä",
    "b",
]  # of what
note: str | None = None  # a word
"""
INTRO = """\
(one)=
# One

See {ref}`one`, {ref}`what follows <two>`, {eq}`eq-sum` and {eq}`eq-far`; {cite:t}`two2018`, {cite:p}`many2020,one2019`.

```{include} _generated/lead/one/figure.md
```

$$ a = 1 $$

$$
s = \\sum_i x_i
$$ (eq-sum)

```{note}
Of $s$,

and more.
```

````{dropdown} Profiles and claims
**Claims tested here:** `one-n`.
````

```{dropdown} Why?
Because of {eq}`eq-sum`.
```
"""
BIBLIOGRAPHY = """\
@article{one2019, author = {van der One, Ada}, year = {2019}}
@article{two2018, author = {One, Ada and Tw{\\'o}, Bob}, year = {2018}}
@article{many2020, author = {One, Ada and Two, Bob and Three, Eve}, year = {2020}}
"""
EXERCISES = """\
## Exercises

```{exercise} Sum (easy)
:label: ex-sum

What is $s$?
```
"""
BETWEEN = """\
````{solution-end}
````

```{exercise} Words
:label: ex-words

Why?
```

````{solution-start} ex-words
:class: dropdown
````

By {eq}`eq-sum`.

````{solution-end}
````

**Next:** {ref}`two`.
"""


def toy(*, checked: bool = True):
    """A chapter with claims and two exercises."""
    notebook = make_notebook("One", PARAMETERS, ("x = [n] * 2", "limit, total = 5, 0", "shown = limit", "limit"))
    first, parameters, *code = notebook.cells
    first.source = INTRO
    text = [
        nbformat.v4.new_markdown_cell(source, id=f"text-{i}")
        for i, source in enumerate(["## Claims", "About claims.", EXERCISES, START, BETWEEN])
    ]
    solution = nbformat.v4.new_code_cell("s = sum(x)\ns", id="solution")
    check = nbformat.v4.new_code_cell("# Put the sum into `s`.\nassert s == sum(x)", id="check")
    check.metadata.tags = ["exercise-test", "remove-cell", "presentation"]
    made, limits, used, last = code
    notebook.cells = [first, parameters, made, text[0], limits, used, text[1], text[2], last]
    notebook.cells += [text[3], solution, *([check] if checked else []), text[4]]
    return notebook


START = "````{solution-start} ex-sum\n:class: dropdown\n````\n\nTwice $n$."


@pytest.fixture
def book(make_book):
    root = make_book({"smoke": {"part/one": {"n": 2, "names": ["c"]}}}, part__one=toy(), two=make_notebook("Two"))
    (root / "book" / "references.bib").write_text(BIBLIOGRAPHY, encoding="utf-8")
    (root / "book" / "intro.md").write_text("(two)=\n\n# A toy book\n")
    return root


def cells_of(folder: Path, name: str) -> dict[str, nbformat.NotebookNode]:
    """The cells of an assignment by id."""
    notebook = nbformat.read(folder / "source" / name / f"{name}.ipynb", as_version=4)
    return {cell.id: cell for cell in notebook.cells}


def test_an_exercise_becomes_cells_that_nbgrader_grades(book, tmp_path):
    made = student.write(book, tmp_path / "course")
    assert made == [student.Assignment("part-one", "part/one", checked=1, by_hand=2)]
    cells = cells_of(tmp_path / "course", "part-one")
    roles = {
        id: (cell.cell_type, *(cell.metadata.nbgrader.get(role) for role in ("locked", "solution", "grade", "points")))
        for id, cell in cells.items()
        if "nbgrader" in cell.metadata
    }
    assert roles == {
        "ex-sum": ("markdown", True, False, False, None),
        "ex-sum-answer": ("markdown", False, True, True, 1),
        "ex-sum-code": ("code", False, True, False, None),
        "ex-sum-check": ("code", True, False, True, 1),
        "ex-words": ("markdown", True, False, False, None),
        "ex-words-answer": ("markdown", False, True, True, 1),
    }
    assert [cells[id].metadata.nbgrader.grade_id for id in roles] == list(roles)
    assert cells["ex-sum"].source == "### Exercise: Sum (easy)\n\nWhat is $s$?\n\nPut the sum into `s`."
    assert cells["ex-sum-code"].source == "### BEGIN SOLUTION\ns = sum(x)\ns\n### END SOLUTION"
    assert cells["ex-words-answer"].source == "### BEGIN SOLUTION\nBy (1).\n### END SOLUTION"


def test_code_without_a_check_is_graded_by_hand(make_book, tmp_path):
    root = make_book({"smoke": {}}, part__one=toy(checked=False))
    (made,) = student.write(root, tmp_path / "course", ["part/one"])
    assert (made.checked, made.by_hand) == (0, 2)
    code = cells_of(tmp_path / "course", "part-one")["ex-sum-code"].metadata.nbgrader
    assert (code.grade, code.solution, code.points) == (True, True, 1)


def test_markdown_needs_no_extension(book, tmp_path):
    student.write(book, tmp_path / "course")
    cells = cells_of(tmp_path / "course", "part-one")
    assert cells["cell-0"].source == "\n\n".join(
        [
            "# One",
            "See *One*, what follows, (1) and (an equation of another chapter); "
            "One and Twó (2018), (One et al., 2020; van der One, 2019).",
            "$$ a = 1 $$",
            "$$\ns = \\sum_i x_i \\tag{1}\n$$",
            "> **Note.** Of $s$,\n>\n> and more.",
            "<details><summary>Why?</summary>\n\nBecause of (1).\n\n</details>",
        ]
    )
    assert [cell.source for cell in cells.values()][-1] == "**Next:** *A toy book*."


def test_parameters_are_the_smoke_profile_s_and_claims_are_left_out_unless_used(book, tmp_path):
    student.write(book, tmp_path / "course")
    cells = cells_of(tmp_path / "course", "part-one")
    assert cells["cell-1"].source == PARAMETERS.replace("= 3", "= 2").replace('[\n    "ä",\n    "b",\n]', "['c']")
    code = [cell.source for cell in cells.values() if cell.cell_type == "code"]
    assert "limit, total = 5, 0" in code  # a later cell needs it
    assert "shown = limit" not in code
    assert "About claims." not in [cell.source for cell in cells.values()]


@pytest.mark.parametrize("name", find_chapters(ROOT))
def test_parameters_of_every_chapter_take_other_values(name):
    chapter = load(ROOT, name)
    values = profile_values(chapter, student.SIZE)
    (source,) = (
        "".join(cell["source"])
        for cell in chapter.notebook["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    )
    declared = parse_parameters(student.with_values(source, values))
    assert {parameter.name: parameter.default for parameter in declared.values()} == values
    assert [(p.type, p.help, p.rule) for p in declared.values()] == [
        (p.type, p.help, p.rule) for p in chapter.parameters.values()
    ]


def test_no_solution_of_the_book_is_left_to_students(tmp_path):
    from nbgrader.preprocessors import CheckCellMetadata, ClearSolutions

    made = student.write(ROOT, tmp_path / "course")
    assert {a.chapter for a in made} == set(find_chapters(ROOT))
    assert {a.chapter for a in made if a.checked} > {*GRADED, "inputs/nads"}
    ids = []
    for assignment in made:
        path = tmp_path / "course" / "source" / assignment.name / f"{assignment.name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        left = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
        assert [cell.source for cell in left if re.search(r"`{3}\{|\{(ref|eq|cite)[:a-z]*\}`", cell.source)] == []
        for preprocess in (ClearSolutions(), CheckCellMetadata()):
            notebook, _ = preprocess.preprocess(notebook, {})
        answers = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]
        assert {cell.source for cell in answers} <= {
            "YOUR ANSWER HERE",
            "# YOUR CODE HERE\nraise NotImplementedError()",
        }
        ids += [cell.metadata.nbgrader.grade_id for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert len(set(ids)) == len(ids)
    # what was left out of the chapters is not missed
    undefined = ["-m", "ruff", "check", "--isolated", "--select", "F821", str(tmp_path / "course" / "source")]
    done = subprocess.run([sys.executable, *undefined], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_and_left_alone(book, tmp_path, capsys):
    course = tmp_path / "course"
    course.mkdir()
    student.write(book, course)  # an empty folder will do
    before = {path: path.read_bytes() for path in course.rglob("*") if path.is_file()}
    assert main(["student", str(course), "part/one", "--root", str(book)]) == 2
    assert "expected an empty folder, or a place for a new one" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in course.rglob("*") if path.is_file()} == before
    with pytest.raises(BadInput, match="got a file; name another"):
        student.write(book, course / "nbgrader_config.py")


@pytest.mark.parametrize(
    "solution",
    [
        "```{solution} ex-other\n:class: dropdown\n\nA secret.\n```",
        ":::{solution} ex-other\nA secret.\n:::",
        ":::{solution-start} ex-other\n:::\n\nA secret.\n\n:::{solution-end}\n:::",
    ],
)
def test_no_form_of_a_solution_reaches_students(make_book, tmp_path, solution):
    notebook = toy()
    asks = f":::{{exercise}} Other\n:label: ex-other\n\nWhat?\n:::\n\n{solution}"
    notebook.cells.append(nbformat.v4.new_markdown_cell(asks, id="other"))
    notebook.cells.append(nbformat.v4.new_code_cell("%matplotlib inline", id="magic"))
    student.write(make_book({"smoke": {}}, one=notebook), tmp_path / "course")
    cells = cells_of(tmp_path / "course", "one")
    assert [id for id, cell in cells.items() if "secret" in cell.source] == ["ex-other-answer"]
    assert cells["ex-other-answer"].source == "### BEGIN SOLUTION\nA secret.\n### END SOLUTION"


def test_nothing_is_left_of_a_course_that_could_not_be_written(book, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nbgrader.nbgraderformat.write", full)
    with pytest.raises(OSError, match="No space left"):
        student.write(book, tmp_path / "new" / "course")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("```{exercise} Words\n:label: ex-words\n", "```{exercise} Words\n"), "exercise 'Words': expected a line"),
        (
            (":label: ex-words", ":label: ex:words"),
            "exercise 'Words': expected a line ':label: NAME', .* got 'ex:words'",
        ),
        (("{solution-start} ex-words", "{solution-start} ex-wrods"), "solution of 'ex-wrods': expected the exercise"),
    ],
)
def test_exercises_that_cannot_be_read_are_named(make_book, tmp_path, change, said):
    notebook = toy()
    notebook.cells[-1].source = notebook.cells[-1].source.replace(*change)
    with pytest.raises(BadInput, match=f"^one: {said}"):
        student.write(make_book({"smoke": {}}, one=notebook), tmp_path / "course")
    assert not (tmp_path / "course").exists()


def test_a_cell_that_is_not_python_uses_and_makes_no_names(make_book, tmp_path):
    notebook = toy()
    notebook.cells.append(nbformat.v4.new_code_cell("files = !ls", id="files"))
    student.write(make_book({"smoke": {}}, one=notebook), tmp_path / "course")
    assert cells_of(tmp_path / "course", "one")["files"].source == "files = !ls"


def test_what_cannot_be_done_is_said(book, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="two: expected a chapter with exercises"):
        student.write(book, tmp_path / "course", ["two"])
    with pytest.raises(BadInput, match="no chapter is called 'ones'"):
        student.write(book, tmp_path / "course", ["ones"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"nbgrader is not installed: pip install -e '\.\[teach\]'"):
        student.write(book, tmp_path / "course")


# ---- nbgrader itself -------------------------------------------------------------------------------------------------

WRONG = {
    "activations-selectivity": (
        "ex-selectivity-shift-code",
        "one = trained['ConvNet', 'with', 0].network().to(place)\n"
        "activity = recorded_units(one, ways['ConvNet']['trained'], problems['ConvNet'].shape)\n"
        "moved = {c: selectivity.class_selectivity(activity.class_means) + c for c in (0.0, 1.0)}",
    ),
    "practice-template": (
        "ex-template-by-heart-code",
        "swapped = {'train': test, 'test': train}\n"
        "accuracy = {split: training.evaluate(network, data)[1] for split, data in swapped.items()}",
    ),
}
SCORES = """
import json, sys
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db", "nadkit") as book:
    found = {
        f"{s.student.id} {grade.name}": [grade.auto_score, grade.max_score]
        for s in book.assignment_submissions(sys.argv[1]) for n in s.notebooks for grade in n.grades
        if grade.name.endswith("-check")
    }
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chapter", GRADED)
def test_nbgrader_makes_and_grades_an_assignment(tmp_path, chapter):
    course, name = tmp_path / "course", chapter.replace("/", "-")
    assert main(["student", str(course), chapter, "--root", str(ROOT)]) == 0

    def run(*command: str) -> str:
        # nbgrader starts other programs of its environment, which is an activated one
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, *command], cwd=course, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "nbgrader", "generate_assignment", name)
    released = nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)
    assert released.cells[0].source.startswith("*A student edition")
    solved = cells_of(course, name)
    where, wrong = WRONG[name]
    for who in ("right", "wrong"):
        notebook = nbformat.from_dict(released)
        for cell in notebook.cells:
            if cell.metadata.get("nbgrader", {}).get("solution") and cell.cell_type == "code":
                cell.source = solved[cell.metadata.nbgrader.grade_id].source
            if who == "wrong" and cell.metadata.get("nbgrader", {}).get("grade_id") == where:
                cell.source = wrong
        handed_in = course / "submitted" / who / name / f"{name}.ipynb"
        handed_in.parent.mkdir(parents=True)
        nbformat.write(notebook, handed_in)
    run("-m", "nbgrader", "autograde", name)
    check = where.replace("-code", "-check")
    assert json.loads(run("-c", SCORES, name)) == {f"right {check}": [1, 1], f"wrong {check}": [0, 1]}
    for who in ("right", "wrong"):
        graded = nbformat.read(course / "autograded" / who / name / f"{name}.ipynb", as_version=4)
        failed = [
            cell.metadata.nbgrader.grade_id if "nbgrader" in cell.metadata else cell.source
            for cell in graded.cells
            if any(output.output_type == "error" for output in cell.get("outputs", []))
        ]
        assert failed == ([] if who == "right" else [check])
