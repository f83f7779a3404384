"""The student edition: chapters as source assignments of nbgrader, with their exercises to be solved.

A chapter becomes one notebook, at its smoke size, so that it runs in seconds, without what is of the book alone: its
claims, and excerpts that are made when the book is built. Of each exercise

- the solution's text becomes a Markdown cell that is graded by hand;
- the solution's code becomes a solution cell, graded by hand, or
- by the check that the author gives: a code cell behind the solution that carries the tag `exercise-test` (and
  `remove-cell`, so that the book does not show it). It raises an error where the answer is wrong. Its first comment
  tells students what the check looks at.

The rest is nbgrader's: it makes the students' version, collects, grades and gives feedback.
"""

import ast
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nadkit.book import papers
from nadkit.book.chapters import (
    BadInput,
    Chapter,
    cell_source,
    cell_tags,
    find_chapters,
    find_pages,
    load,
    profile_values,
    read_notebook,
)
from nadkit.book.papers import Paper
from nadkit.book.parameters import Value

SIZE = "smoke"
"""The profile whose values the notebooks have."""
CHECK = "exercise-test"
"""The tag of a code cell that checks an exercise."""
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"

_BLOCK = re.compile(r"^[ \t]*(`{3,})\{([\w-]+)\}[ \t]*([^\n]*)\n(.*?)^[ \t]*\1[ \t]*$\n?", re.MULTILINE | re.DOTALL)
_OPTIONS = re.compile(r"\A(?:[ \t]*:[\w-]+:[^\n]*\n)*\n*")
_TARGET = re.compile(r"^\(([\w-]+)\)=[ \t]*\n", re.MULTILINE)
_EQUATION = re.compile(r"\$\$((?:(?!\$\$).)*)\$\$[ \t]*\(([\w-]+)\)", re.DOTALL)
_ROLE = re.compile(r"\{(ref|numref|eq|cite(?::[tp])?)\}`([^`]+)`")
_NOTES = ("note", "tip", "hint", "warning", "important", "attention", "caution", "danger", "error", "seealso")
_BOOK_ALONE = "Profiles and claims"
"""The title of the part of a chapter that is about the book's machine."""

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
    """What was made of a chapter: the name for nbgrader, and how many exercises are graded by whom."""

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
    _require_free(folder)
    chapters = [load(root, name) for name in names or _listed(root)]
    plain = _Plain(root)
    made = [(chapter, *_assignment(chapter, plain)) for chapter in chapters]
    if names:
        if without := [chapter.name for chapter, _, exercises in made if not exercises]:
            raise BadInput(f"{without[0]}: expected a chapter with exercises, which this one has not")
    else:
        made = [entry for entry in made if entry[2]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        _write(part, [(chapter, notebook) for chapter, notebook, _ in made])
        if folder.exists():
            folder.rmdir()  # it is empty
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
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


def _listed(root: Path) -> list[str]:
    """Return the chapters that the table of contents lists, in its order."""
    found = find_chapters(root)
    return [name for name in (page.removeprefix("book/") for page in find_pages(root)) if name in found]


def _require_free(folder: Path) -> None:
    if folder.is_file():
        raise BadInput(f"{folder}: expected a folder, or a place for a new one, got a file; name another")
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(
            f"{folder}: expected an empty folder, or a place for a new one, for a course may hold students' work; "
            "name another, and copy from its 'source' the assignments that you want to renew"
        )


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


def _assignment(chapter: Chapter, plain: "_Plain") -> tuple[NotebookNode, list[_Exercise]]:
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
    for cell in _of_experiment(chapter.notebook["cells"]):
        source = cell_source(cell)
        if cell["cell_type"] == "code":
            if solved is not None:
                (solved.checks if CHECK in cell_tags(cell) else solved.code).append(source)
                continue
            if "parameters" in cell_tags(cell):
                source = with_values(source, values)
            yield new_code_cell(source, id=cell["id"])
            continue
        for number, (kind, title, body) in enumerate(_blocks(source)):
            if kind == "exercise":
                label = re.search(r"^:label:[ \t]*(\S+)", body, re.MULTILINE)
                if label is None:
                    raise BadInput(f"{chapter.name}: exercise {title!r}: expected a line ':label: NAME'")
                exercises[label[1]] = made = _Exercise(label[1], title, _OPTIONS.sub("", body).strip())
                yield made
            elif kind == "solution-start":
                if title not in exercises:
                    raise BadInput(f"{chapter.name}: solution of {title!r}: expected the exercise before it")
                solved = exercises[title]
            elif kind == "solution-end":
                solved = None
            elif solved is not None:
                solved.words += [body.strip()] if body.strip() else []
            elif text := convert(body).strip():
                yield new_markdown_cell(text, id=f"{cell['id']}-{number}" if number else cell["id"])


def _blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Give the exercises, and beginnings and ends of solutions, in a text: (kind, title, body); what else is is ''."""
    start = 0
    for found in _BLOCK.finditer(text):
        if found[2] in ("exercise", "solution-start", "solution-end"):
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
    nodes = list(ast.walk(ast.parse(cell_source(cell))))
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


# ---- Markdown --------------------------------------------------------------------------------------------------------


class _Plain:
    """Makes plain Markdown of MyST, as far as that is simple: what JupyterLab shows without an extension."""

    def __init__(self, root: Path) -> None:
        self._titles = _titles(root)
        self._papers = papers.read(root) or {}

    def of_chapter(self, chapter: Chapter) -> Callable[[str], str]:
        """Return the function that converts the texts of a chapter, whose equations have numbers of their own."""
        texts = [cell_source(cell) for cell in chapter.notebook["cells"] if cell["cell_type"] == "markdown"]
        labels = [found[2] for text in texts for found in _EQUATION.finditer(text)]
        numbers = {label: number for number, label in enumerate(labels, start=1)}
        return lambda text: self._convert(text, numbers)

    def _convert(self, text: str, numbers: Mapping[str, int]) -> str:
        text = _BLOCK.sub(lambda block: self._block(block, numbers), text)
        text = _TARGET.sub("", text)
        text = _EQUATION.sub(lambda e: f"$${e[1].rstrip()} \\tag{{{numbers[e[2]]}}}\n$$", text)
        text = _ROLE.sub(lambda role: self._role(role[1], role[2], numbers), text)
        return re.sub(r"\n{3,}", "\n\n", text)

    def _block(self, block: re.Match[str], numbers: Mapping[str, int]) -> str:
        kind, title, body = block[2], block[3].strip(), _OPTIONS.sub("", block[4])
        if kind == "include" or (kind == "dropdown" and title == _BOOK_ALONE):
            return ""
        if kind == "dropdown":
            inside = self._convert(body, numbers).strip()
            return f"<details><summary>{title}</summary>\n\n{inside}\n\n</details>\n"
        if kind == "admonition" or kind in _NOTES:
            inside = (
                f"**{title if kind == 'admonition' else kind.capitalize()}.** {self._convert(body, numbers).strip()}"
            )
            return "".join(f"> {line}".rstrip() + "\n" for line in inside.splitlines())
        return block[0]

    def _role(self, kind: str, content: str, numbers: Mapping[str, int]) -> str:
        shown, _, target = content.removesuffix(">").rpartition("<") if content.endswith(">") else ("", "", content)
        if kind == "eq":
            return f"({numbers[content]})" if content in numbers else "(an equation of another chapter)"
        if kind in ("ref", "numref"):
            return shown.strip() or f"*{self._titles.get(target, target)}*"
        known = [self._papers.get(key.strip(), Paper(key.strip(), "", "")) for key in content.split(",")]
        cited = [(paper.authors, paper.year) for paper in known]
        if kind == "cite:t":
            return ", ".join(f"{who} ({year})" for who, year in cited)
        return f"({'; '.join(f'{who}, {year}' for who, year in cited)})"


def _titles(root: Path) -> dict[str, str]:
    """Return the heading below each label of the book."""
    texts = [page.read_text(encoding="utf-8") for page in (root / "book").rglob("*.md")]
    for path in find_chapters(root).values():
        texts += [cell_source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown"]
    return {label: title for text in texts for label, title in re.findall(r"^\(([\w-]+)\)=\s*\n#+ +(.*)$", text, re.M)}
