"""The student edition: chapters as source assignments of nbgrader, with their exercises to be solved.

A chapter becomes one notebook, at its smoke size, so that it runs in seconds. What belongs to the book alone is left
out: its claims, and excerpts that are made when the book is built. Of each exercise

- the solution's text becomes a Markdown cell that is graded by hand;
- the solution's code becomes a solution cell, which is graded by hand, or
- by the check that the author gives: a code cell after the solution that carries the tag `exercise-test` (and
  `remove-cell`, so that the book does not show it). It raises an error where the answer is wrong. Its first comment
  tells students what the check looks at.

The rest is nbgrader's: it makes the students' version, collects, grades and gives feedback.
"""

import ast
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nadkit.book.chapters import (
    BadInput,
    Chapter,
    cell_source,
    cell_tags,
    listed_chapters,
    load,
    new_folder,
    profile_values,
)
from nadkit.book.parameters import Value
from nadkit.book.plain import BLOCK, OPTIONS, Plain
from nadkit.book.sources import tree

SIZE = "smoke"
"""The profile whose values the notebooks have."""
CHECK = "exercise-test"
"""The tag of a code cell that checks an exercise."""
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"

HEADER = """\
*A student edition of a chapter of the book* Directions in deep networks. *Its parameters are those of the tests, so
that it runs in seconds: its numbers are not those of the book. Run the cells in their order. Your answers go into the
cells that say so.*
"""
CONFIG = """\
# nbgrader reads this file where it is started, in this folder.
c = get_config()
c.CourseDirectory.course_id = "nadkit"
c.IncludeHeaderFooter.header = "source/header.ipynb"
c.ExecutePreprocessor.timeout = 600  # seconds a cell
"""


@dataclass(frozen=True)
class Assignment:
    """What was made of a chapter: the name for nbgrader, and how many exercises are graded by checks and by hand."""

    name: str
    chapter: str
    checked: int
    by_hand: int


@dataclass
class _Exercise:
    """An exercise of a chapter, and its solution as far as it is there."""

    label: str
    title: str
    text: str
    words: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)


def write(root: Path, folder: Path, names: Sequence[str] = ()) -> list[Assignment]:
    """Write chapters as a course folder of nbgrader, all at once or not at all, and return what was made.

    Without names, these are all chapters of the table of contents that have exercises.

    Raises:
        BadInput: nbgrader is missing, the folder holds something, a name is unknown, or a chapter cannot be converted.
    """
    for module in ("nbgrader", "pybtex"):
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"{module} is not installed: pip install -e '.[teach]'")
    # a course may hold students' work
    with new_folder(
        root, folder, "name another, and copy from its 'source' the assignments that you want to renew"
    ) as part:
        chapters = [load(root, name) for name in names or listed_chapters(root)]
        plain = Plain(root)
        made = [(chapter, *_assignment(chapter, plain)) for chapter in chapters]
        if names:
            if without := [chapter.name for chapter, _, exercises in made if not exercises]:
                raise BadInput(f"{without[0]}: expected a chapter with exercises, which this one has not")
        else:
            made = [entry for entry in made if entry[2]]
        _write(part, [(chapter, notebook) for chapter, notebook, _ in made])
    return [
        Assignment(
            name=assignment_name(chapter),
            chapter=chapter.name,
            checked=sum(bool(exercise.checks) for exercise in exercises),
            by_hand=sum(bool(exercise.words) or not exercise.checks for exercise in exercises),
        )
        for chapter, _, exercises in made
    ]


def assignment_name(chapter: Chapter) -> str:
    """Return what nbgrader calls a chapter: `inputs-nads`."""
    return chapter.name.replace("/", "-")


def _write(course: Path, made: Sequence[tuple[Chapter, NotebookNode]]) -> None:
    from nbgrader import nbgraderformat

    header = new_notebook(cells=[new_markdown_cell(HEADER, id="header")])
    places = {course / "source" / "header.ipynb": header}
    for chapter, notebook in made:
        name = assignment_name(chapter)
        places[course / "source" / name / f"{name}.ipynb"] = notebook
    for path, notebook in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            nbgraderformat.write(notebook, file)  # nbgrader's own check of its metadata is part of it
    (course / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")


# ---- one chapter -----------------------------------------------------------------------------------------------------


def _assignment(chapter: Chapter, plain: Plain) -> tuple[NotebookNode, list[_Exercise]]:
    """Return a chapter as an assignment, and its exercises."""
    convert = plain.of_chapter(chapter)
    parts = list(_parts(chapter, convert))
    exercises = [part for part in parts if isinstance(part, _Exercise)]
    cells = [c for part in parts for c in (_cells_of(part, convert) if isinstance(part, _Exercise) else [part])]
    notebook = new_notebook(cells=cells, metadata=nbformat.from_dict(chapter.notebook["metadata"]))
    notebook.metadata.setdefault("kernelspec", NotebookNode(name="python3", display_name="Python 3"))
    notebook.metadata.kernelspec.language = "python"  # by which nbgrader chooses what stands for an answer
    nbformat.validate(notebook)
    return notebook, exercises


def _parts(chapter: Chapter, convert: Callable[[str], str]) -> Iterator[NotebookNode | _Exercise]:
    """Give the parts of a chapter in their order: cells of code and of text, and exercises with their solutions."""
    values = profile_values(chapter, SIZE)
    exercises: dict[str, _Exercise] = {}
    solved: _Exercise | None = None
    for place, cell in enumerate(_of_experiment(chapter.notebook["cells"]), start=1):
        source, own = cell_source(cell), cell.get("id", f"cell-{place}")  # old notebooks have no ids
        if cell["cell_type"] == "code":
            if solved is not None:
                (solved.checks if CHECK in cell_tags(cell) else solved.code).append(source)
                continue
            if "parameters" in cell_tags(cell):
                source = with_values(source, values)
            yield new_code_cell(source, id=own)
            continue
        for number, (kind, title, body) in enumerate(_blocks(source)):
            if kind == "exercise":
                label = re.search(r"^:label:[ \t]*(\S+)", body, re.MULTILINE)
                if label is None or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", label[1]):
                    got = f", got {label[1]!r}" if label else ""
                    raise BadInput(
                        f"{chapter.name}: exercise {title!r}: expected a line ':label: NAME', the name of at most 64 "
                        f"letters, digits, '-' and '_'{got}"
                    )
                exercises[label[1]] = made = _Exercise(label[1], title, OPTIONS.sub("", body).strip())
                yield made
            elif kind in ("solution", "solution-start"):
                if title not in exercises:
                    raise BadInput(f"{chapter.name}: solution of {title!r}: expected the exercise before it")
                if kind == "solution-start":
                    solved = exercises[title]
                else:
                    exercises[title].words.append(OPTIONS.sub("", body).strip())
            elif kind == "solution-end":
                solved = None
            elif solved is not None:
                solved.words += [body.strip()] if body.strip() else []
            elif text := convert(body).strip():
                yield new_markdown_cell(text, id=f"{own}-{number}" if number else own)


def _blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Give the exercises, and beginnings and ends of solutions, in a text: (kind, title, body); what else is is ''."""
    start = 0
    for found in BLOCK.finditer(text):
        if found[2] in ("exercise", "solution", "solution-start", "solution-end"):
            yield "", "", text[start : found.start()]
            yield found[2], found[3].strip(), found[4]
            start = found.end()
    yield "", "", text[start:]


def _of_experiment(cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the cells without the section of claims, as far as no later cell uses what it makes."""
    inside, kept = False, []
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "markdown" and (heading := re.search(r"^## +(.*)", cell_source(cell), re.MULTILINE)):
            inside = heading[1].strip() == "Claims"
        later = {name for other in cells[number + 1 :] for name in _names(other, ast.Load)}
        if not inside or _names(cell, ast.Store) & later:
            kept.append(cell)
    return kept


def _names(cell: Mapping[str, Any], how: type[ast.expr_context]) -> set[str]:
    """Return the names that a code cell uses (ast.Load) or makes (ast.Store)."""
    if cell["cell_type"] != "code":
        return set()
    nodes = list(ast.walk(tree(cell_source(cell))))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, how)}
    if how is ast.Store:
        names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names


def with_values(source: str, values: Mapping[str, Value]) -> str:
    """Return the source of a parameters cell with other values; types, comments and rules stay."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            value, first, last = node.value, node.value.lineno - 1, node.value.end_lineno - 1
            if values.get(node.target.id, ast.literal_eval(value)) == ast.literal_eval(value):
                continue
            before, after = lines[first].encode()[: value.col_offset], lines[last].encode()[value.end_col_offset :]
            lines[first : last + 1] = [before.decode() + repr(values[node.target.id]) + after.decode()]
    return "".join(lines)


# ---- one exercise ----------------------------------------------------------------------------------------------------


def _cells_of(exercise: _Exercise, convert: Callable[[str], str]) -> list[NotebookNode]:
    """Return an exercise as cells of nbgrader: its text, which is locked, and where it is answered and graded."""
    asks = [said for check in exercise.checks if (said := _leading_comment(check))]
    text = "\n\n".join([f"### Exercise: {exercise.title}", convert(exercise.text).strip(), *asks])
    cells = [_graded(new_markdown_cell(text), exercise.label, locked=True)]
    if exercise.words or not exercise.code:
        answer = convert("\n\n".join(exercise.words)).strip()
        cell = new_markdown_cell(f"{BEGIN}\n{answer}\n{END}")
        cells.append(_graded(cell, f"{exercise.label}-answer", grade=True, solution=True, points=1))
    for number, code in enumerate(exercise.code, start=1):
        # one mark an exercise, at its last cell
        by_hand = not exercise.checks and number == len(exercise.code)
        name = f"{exercise.label}-code" + (f"-{number}" if number > 1 else "")
        graded = {"grade": True, "points": 1} if by_hand else {}
        cells.append(_graded(new_code_cell(f"{BEGIN}\n{code}\n{END}"), name, solution=True, **graded))
    for number, check in enumerate(exercise.checks, start=1):
        name = f"{exercise.label}-check" + (f"-{number}" if number > 1 else "")
        cells.append(_graded(new_code_cell(check), name, grade=True, locked=True, points=1))
    return cells


def _leading_comment(code: str) -> str:
    found = re.match(r"(?:#[^\n]*\n)+", code)
    return " ".join(line.lstrip("# ") for line in found[0].splitlines()) if found else ""


def _graded(cell: NotebookNode, grade_id: str, **role: bool | int) -> NotebookNode:
    """Return a cell with what nbgrader is to do with it; an exercise's label is the same in every edition."""
    from nbgrader.nbgraderformat import SCHEMA_VERSION

    usual = {"grade": False, "solution": False, "locked": False, "task": False}
    cell.metadata["nbgrader"] = {"schema_version": SCHEMA_VERSION, "grade_id": grade_id, **usual, **role}
    cell["id"] = grade_id[-64:].lstrip("-_")  # ids of cells have at most 64 characters
    return cell
