"""Proofreading: what is wrong with chapters, found in their text before anything runs.

`problems` reads the sources: claims, labels, figures, parameters and profiles. `of_run` finds what only the executed
notebook shows.
"""

import ast
import contextlib
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nadkit.book import claims
from nadkit.book.chapters import (
    BadInput,
    Chapter,
    cell_source,
    cell_tags,
    find_chapters,
    find_pages,
    find_profiles,
    load,
    read_notebook,
    read_profile,
    read_text,
    resolve,
)
from nadkit.book.parameters import Parameter
from nadkit.book.sources import tree, without_commands
from nadkit.names import hint

LIST = "Claims tested here"
"""The title, in the first cell of a chapter, of the list of its claims."""
# Above a heading, after an equation, as an option of a directive, in LaTeX, in reStructuredText.
_LABEL = re.compile(
    r"^[ \t>]*\(([^()\n]+)\)=[ \t]*$|\$\$[ \t]*\(([^()\n]+)\)[ \t]*$"
    r"|^[ \t>]*:?(?:label|name):[ \t]*(\S+)[ \t]*$|\\label\{([^{}\n]+)\}|^\.\. _([^:\n]+):[ \t]*$",
    re.MULTILINE,
)
_REFERENCE = re.compile(
    r"\{(?:ref|numref|eq)\}`(?:[^`<]*<)?\s*([^`<>]+?)\s*>?`|^[ \t]*[`:]{3,}\{solution(?:-start)?\}[ \t]+(\S+)",
    re.MULTILINE,
)
_SPHINX_HAS = {"genindex", "modindex", "search"}
# A picture in Markdown or HTML without a text; a directive with a picture.
_MUTE = re.compile(r"!\[\s*\]\(|<img(?![^>]*\balt=[\"'][^\"'])")
_PICTURE = re.compile(r"^[ \t]*(`{3,}|:{3,})\{(?:figure|image)\}.*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)
_ALT = "give the figure a text, in the cell's metadata under mystnb, image, alt"


class Problem(NamedTuple):
    """What is wrong, in words, and the chapters that it is about."""

    chapters: set[str]
    text: str


@dataclass(frozen=True, eq=False)
class Passage:
    """A cell of a chapter, or a page of Markdown; `where` says which."""

    chapter: str
    where: str
    cell: Mapping[str, Any]

    @functools.cached_property
    def prose(self) -> str:
        """The text without blocks and spans of code; of a code cell, nothing."""
        return _without_code(cell_source(self.cell)) if self.cell["cell_type"] == "markdown" else ""

    @functools.cached_property
    def code(self) -> ast.Module:
        """The syntax tree of a code cell; of another, and of one that is not Python, an empty one."""
        return tree(cell_source(self.cell) if self.cell["cell_type"] == "code" else "")

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of that tree."""
        return list(ast.walk(self.code))


# ---- the book --------------------------------------------------------------------------------------------------------


def require_sound(root: Path) -> None:
    """Raise BadInput, which says all that is wrong, unless the book at `root` is sound."""
    if found := problems(root):
        raise BadInput("\n".join(found))


def problems(root: Path, only: Sequence[str] = ()) -> list[str]:
    """Return what is wrong with the book, in words; where chapters are named, what is wrong with `only` these.

    The book is what its table of contents lists, and the chapters that are named.

    Raises:
        BadInput: a name is unknown, or the table of contents lists a page that is not there.
    """
    known, pages = find_chapters(root), find_pages(root)
    wanted = {resolve(name, known)[0] for name in only}
    listed = [name for name in (page.removeprefix("book/") for page in pages) if name in known]
    names = [*listed, *sorted(wanted.difference(listed))]
    found: list[Problem] = []
    passages: dict[str, list[Passage]] = {}
    for name in names:
        try:
            passages[name] = _passages(name, read_notebook(known[name]))
            found += _of_form(load(root, name))
        except BadInput as error:
            found.append(Problem({name}, str(error)))
    if not found:  # otherwise they would be found again
        found += _of_profiles(root)
    for cells in passages.values():
        found += _of_code(cells) + _of_claims(cells) + _of_figures(cells)
    found += _of_ids(passages)
    if len(passages) == len(names):  # otherwise references to what cannot be read would seem wrong
        found += _of_labels([*itertools.chain(*passages.values()), *_text_pages(root, pages)])
    return [problem.text for problem in found if not wanted or wanted & problem.chapters]


def _passages(name: str, notebook: Mapping[str, Any]) -> list[Passage]:
    def where(number: int, cell: Mapping[str, Any]) -> str:
        return f"{name}, cell {number}" + (f" ({cell['id']})" if "id" in cell else "")

    return [Passage(name, where(number, cell), cell) for number, cell in enumerate(notebook["cells"], start=1)]


def _text_pages(root: Path, pages: Iterable[str]) -> list[Passage]:
    files = [root / f"{page}.{kind}" for page in pages for kind in ("md", "rst")]
    cells = {path: {"cell_type": "markdown", "source": read_text(path)} for path in files if path.exists()}
    return [Passage("", path.relative_to(root).as_posix(), cell) for path, cell in cells.items()]


def _of_profiles(root: Path) -> list[Problem]:
    found = []
    for profile in find_profiles(root):
        try:
            read_profile(root, profile)
        except BadInput as error:
            found.append(Problem({name for name in find_chapters(root) if name in str(error)}, str(error)))
    return found


def _of_form(chapter: Chapter) -> list[Problem]:
    name, notebook, said = chapter.name, chapter.notebook, []
    kernel = notebook["metadata"].get("kernelspec", {}).get("name", "python3")
    if kernel != "python3":
        said.append(f"{name}: expected the Jupyter kernel 'python3', which every installation has, got {kernel!r}")
    said += [
        f"{name}, parameters cell, {p.name}: expected a help text" for p in chapter.parameters.values() if not p.help
    ]
    said += [f"{name}, parameters cell, {p.name}: {why}" for p in chapter.parameters.values() if (why := _unknown(p))]
    ids = [cell["id"] for cell in notebook["cells"] if "id" in cell]
    said += [f"{name}: two cells have the id {id!r}; copy the text of a cell, not its id" for id in _twice(ids)]
    return [Problem({name}, text) for text in said]


def _unknown(parameter: Parameter) -> str:
    """Return what is wrong with a default that the library does not know, or nothing."""
    try:
        parameter.check(parameter.default)
    except ValueError as error:
        return str(error)
    return ""


def _twice(items: Iterable[str]) -> list[str]:
    items = list(items)
    return sorted({item for item in items if items.count(item) > 1})


def _of_code(passages: Iterable[Passage]) -> list[Problem]:
    """Find cells that are not Python; what they claim, or what they use of other cells, cannot be told."""
    found = []
    for passage in passages:
        if passage.cell["cell_type"] != "code" or "parameters" in cell_tags(passage.cell):  # `load` reads these
            continue
        try:
            ast.parse(without_commands(cell_source(passage.cell)))
        except SyntaxError as error:
            got = f"{(error.text or '').strip()!r} ({error.msg})"
            text = f"{passage.where}: expected Python, and commands only as lines that begin with % or !, got {got}"
            found.append(Problem({passage.chapter}, text))
    return found


# ---- claims ----------------------------------------------------------------------------------------------------------


def listed_claims(notebook: Mapping[str, Any]) -> list[str] | None:
    """Return the ids of the claims that the first text of a chapter lists, or None where it has no list."""
    opening = next((cell_source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"), "")
    _, found, rest = opening.partition(LIST)
    return re.findall(r"`([^`]+)`", rest.partition("\n\n")[0]) if found else None


def _of_claims(passages: Sequence[Passage]) -> list[Problem]:
    """Compare the claims that a chapter lists with those that its code spells out."""
    listed = listed_claims({"cells": [passage.cell for passage in passages]})
    found = list(_claims_in(passages))
    made = {id: passage.where for id, passage, _ in found}
    twice = _twice(id for id, _, always in found if always)
    said = [f"{made[id]}: two claims have the id {id!r}: every claim needs its own" for id in twice]
    if listed is not None:
        where = next(passage.where for passage in passages if passage.cell["cell_type"] == "markdown")
        spelled = [re.compile(pattern) for passage in passages for pattern in _spelled(passage.nodes)]
        never = [id for id in listed if not any(pattern.fullmatch(id) for pattern in spelled)]
        said += [f"{where}: the list of claims has {id!r} twice" for id in _twice(listed)]
        said += [f"{made[id]}: the claim {id!r} is not in the list {LIST!r}" for id in made if id not in listed]
        said += [f"{where}: no claim is made that has the listed id {id!r}{hint(id, made)}" for id in never]
    return [Problem({passages[0].chapter}, text) for text in said]


def _claims_in(passages: Sequence[Passage]) -> Iterator[tuple[str, Passage, bool]]:
    """Give the ids of the claims that code makes literally, `MAKER("id", statement, measured, "> 0")`.

    With each comes whether it is made under no condition. The chapter's own functions are passed over, for they may
    make several claims, or change the id.
    """
    helpers = {node.name for p in passages for node in p.nodes if isinstance(node, ast.FunctionDef)}
    for passage in passages:
        choices = [n for n in passage.nodes if isinstance(n, ast.If | ast.IfExp | ast.Match | ast.Try)]
        sometimes = {node for choice in choices for node in ast.walk(choice)}
        for call in (node for node in passage.nodes if isinstance(node, ast.Call)):
            own = isinstance(call.func, ast.Name) and call.func.id in helpers
            if (id := _argument(call, 0, "id")) and _is_bound(_argument(call, 3, "holds_if")) and not own:
                yield id, passage, call not in sometimes


def _argument(call: ast.Call, position: int, name: str) -> str:
    """Return an argument that is a literal string, or ''."""
    given = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg == name)]
    return next((node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)), "")


def _is_bound(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(claims.parse_bound(text))
    return False


def _spelled(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Give patterns of the words that code can spell: its strings, with `.+` for what is put into them."""
    for node in nodes:
        pattern = _pattern(node)
        match node:
            case ast.Constant() | ast.JoinedStr() | ast.BinOp() if re.search("[a-z]", pattern):
                yield pattern
            # an id that is put together of variables only
            case ast.Call(
                args=[ast.JoinedStr() | ast.Call(func=ast.Attribute(attr="join" | "format")) as id, _, _, _, *_]
            ):
                yield _pattern(id)


def _pattern(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return "".join(map(_pattern, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _pattern(left) + _pattern(right)
    return ".+"


def _of_ids(passages: Mapping[str, Sequence[Passage]]) -> list[Problem]:
    """Find the claims of one id in several chapters."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for name, cells in passages.items():
        listed = listed_claims({"cells": [passage.cell for passage in cells]}) or []
        for id, where in [
            *((id, passage.where) for id, passage, _ in _claims_in(cells)),
            *((id, name) for id in listed),
        ]:
            places[id].setdefault(name, where)
    return [
        Problem(
            set(found), f"{' and '.join(found.values())}: the claim {id!r} exists twice; an id exists once in the book"
        )
        for id, found in places.items()
        if len(found) > 1
    ]


# ---- labels ----------------------------------------------------------------------------------------------------------


def _of_labels(passages: Iterable[Passage]) -> list[Problem]:
    """Find labels that exist twice, and references to labels that do not exist."""
    labels: dict[str, list[Passage]] = defaultdict(list)
    references: list[tuple[str, Passage]] = []
    for passage in passages:
        prose = passage.prose
        for found in _LABEL.finditer(prose):
            labels[_group(found).lower()].append(passage)
        references += [(_group(found), passage) for found in _REFERENCE.finditer(prose)]
    found = []
    for label, places in labels.items():
        if len(places) > 1:
            where = " and ".join(dict.fromkeys(place.where for place in places))
            found.append(Problem({place.chapter for place in places}, f"{where}: the label {label!r} exists twice"))
    for label, passage in references:
        if label.lower() not in labels.keys() | _SPHINX_HAS:
            text = f"{passage.where}: no place has the label {label!r}{hint(label, labels)}"
            found.append(Problem({passage.chapter}, text))
    return found


def _group(found: re.Match[str]) -> str:
    return next(filter(None, found.groups())).strip()


def _without_code(text: str) -> str:
    """Return Markdown without blocks and double-quoted spans of code, which may show labels; directives stay."""
    lines, directives, code = [], [], ""
    for line in re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).splitlines():  # less the page's own settings
        marks, what = re.match(r"[ \t]*((?:`{3,}|~{3,}|:{3,})?)[ \t]*(.*)", line).groups()
        if code:
            code = "" if marks.startswith(code) and not what else code
            continue
        if directives and marks.startswith(directives[-1]) and not what:
            directives.pop()
        elif marks and re.match(r"\{(?!code)", what):
            directives.append(marks)
        elif marks and not marks.startswith(":"):
            code = marks
            continue
        lines.append(line)
    return re.sub(r"(?<!`)``(?!`).+?(?<!`)``(?!`)", "", "\n".join(lines))


# ---- figures ---------------------------------------------------------------------------------------------------------


def _of_figures(passages: Iterable[Passage]) -> list[Problem]:
    """Find figures that come without a text for those who cannot see them."""
    found = []
    for passage in passages:
        pictures = (block[0] for block in _PICTURE.finditer(passage.prose))
        if _MUTE.search(passage.prose) or not all(re.search(r"^\s*:?alt:\s*\S", p, re.MULTILINE) for p in pictures):
            found.append(f"{passage.where}: give the picture a text (alt)")
        if _draws(passage.code) and not _shown_with(passage.cell, "image", "alt"):
            found.append(f"{passage.where}: {_ALT}")
        shows = (node for node in passage.nodes if _is_call(node, "results", {"show", "show_recorded"}))
        if not all(any(k.arg is None or (k.arg == "alt" and _says(k.value)) for k in show.keywords) for show in shows):
            found.append(f"{passage.where}: results.show: expected alt='what there is to see'")
    return [Problem({passage.chapter}, text) for text in found]


def _shown_with(cell: Mapping[str, Any], part: str, name: str) -> str:
    """Return a setting of how a cell's output is shown, or ''."""
    value: object = cell
    for key in ("metadata", "mystnb", part, name):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value.strip() if isinstance(value, str) else ""


def _says(value: ast.expr) -> bool:
    return not isinstance(value, ast.Constant) or bool(str(value.value or "").strip())


def _draws(code: ast.Module) -> bool:
    """Return whether a cell shows a figure: `plots.lines(...)` at its end, `display(plots.lines(...))`, `plt.show`."""
    shown = [end.value for end in code.body[-1:] if isinstance(end, ast.Expr)]
    calls = [node for node in _outside_functions(code.body) if isinstance(node, ast.Call)]
    shown += [value for call in calls if ast.unparse(call.func) == "display" for value in call.args]
    return any(_is_call(value, "plots", _figures()) for value in shown) or any(
        _is_call(call, "plt", {"figure", "show", "subplots"}) for call in calls
    )


def _outside_functions(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Give all nodes but those inside functions, which show nothing by themselves."""
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield node
            yield from _outside_functions(ast.iter_child_nodes(node))


def _is_call(node: ast.AST, module: str, names: set[str]) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=of), attr=name)):
            return of == module and name in names
    return False


@functools.cache
def _figures() -> set[str]:
    """Return the names of the functions in `nadkit.plots` that return a figure; to import them would take seconds."""
    source = ast.parse((Path(__file__).parents[1] / "plots.py").read_text("utf-8"))
    return {f.name for f in source.body if isinstance(f, ast.FunctionDef) and ast.unparse(f.returns or f) == "Figure"}


# ---- after a run -----------------------------------------------------------------------------------------------------


def of_run(path: Path, name: str) -> list[str]:
    """Return what is wrong with an executed chapter: claims that are not those listed, and figures without a text."""
    notebook = read_notebook(path)
    notebook["cells"] = [cell for cell in notebook["cells"] if "injected-parameters" not in cell_tags(cell)]
    listed = listed_claims(notebook)
    shown = [entry["id"] for store in claims.stores(notebook, claims.MIME) for entry in store["claims"]]
    found = [f"{name}: the claim {id!r} was shown twice" for id in _twice(shown)]
    if listed is not None:
        more, missing = set(shown) - set(listed), set(listed) - set(shown)
        found += [f"{name}: the claim {id!r} was shown, but is not in the list {LIST!r}" for id in sorted(more)]
        found += [f"{name}: the claim {id!r} is in the list {LIST!r}, but was not shown" for id in sorted(missing)]
    for passage in _passages(name, notebook):
        data = [output.get("data", {}) for output in passage.cell.get("outputs", [])]
        images = any(kind.startswith("image/") for entry in data for kind in entry)
        if images and not _shown_with(passage.cell, "image", "alt") and "remove-output" not in cell_tags(passage.cell):
            found.append(f"{passage.where}: {_ALT}")
        if any(_MUTE.search("".join(entry.get("text/html", ""))) for entry in data):
            found.append(f"{passage.where}: give the picture a text (alt)")
    return found
