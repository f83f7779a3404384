"""Python source reduced to what it does: its bare code, and what it imports; and checksums of such content."""

import ast
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


@cache  # nine chapters with records ask for the same modules
def bare(source: str) -> str:
    """Return Python code independent of its layout: its syntax tree, without docstrings, as text.

    Comments, line breaks, quotes and optional commas do not change it. Non-Python source is returned unchanged.
    """
    try:
        tree = ast.parse(without_commands(source))
    except SyntaxError:  # the run will say so
        return source
    return json.dumps([_commands(source), _plain(tree)])


def _plain(node: object) -> object:
    """Return a syntax tree as plain lists; what is empty is left out, as newer versions of Python have more fields."""
    match node:
        case ast.AST():
            fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind"))
            return [type(node).__name__, *([name, value] for name, value in fields if value not in (None, []))]
        case list():
            return [_plain(item) for item in node if not _is_words(item)]
        case None | bool() | int() | str():
            return node
    return repr(node)  # floats, bytes, ...


def _is_words(statement: object) -> bool:
    """Return whether a statement is a string by itself, such as a docstring."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _commands(source: str) -> list[str]:
    """Return the lines that are commands of IPython, which a notebook may hold."""
    return [line.strip() for line in source.splitlines() if line.lstrip().startswith(("%", "!"))]


def without_commands(source: str) -> str:
    """Return a cell's source without IPython's commands, lines that begin with `%` or `!`: what is left is Python."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


def tree(source: str) -> ast.Module:
    """Return the syntax tree of a cell without IPython's commands; of a cell that is not Python, an empty one."""
    try:
        return ast.parse(without_commands(source))
    except SyntaxError:  # `nadkit check` says so, and so will the run
        return ast.Module([], [])


@cache
def imported(source: str, package: str = "") -> tuple[str, ...]:
    """Return the dotted names that Python code imports; relative ones are those of its package."""
    return tuple(_names(tree(source), package))


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module, level=level):
                above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                parent = [*above, *([module] if module else [])]
                yield from (".".join([*parent, alias.name]) for alias in node.names)
            case ast.Import():
                yield from (alias.name for alias in node.names)


def files_of(module: str, path: Sequence[str]) -> dict[str, Path]:
    """Return the files of a module and of those it imports from the same folder, transitively, by their dotted names.

    Nothing is run. Of an installed package, only its own files count: the others are known by their versions.

    Args:
        module: its dotted name.
        path: the folders in which its first part is looked for, in order; then it is looked for as Python would.
    """
    top = module.partition(".")[0]
    spec = PathFinder.find_spec(top, list(path)) or _usual_spec(top)
    places = [] if spec is None else [*(spec.submodule_search_locations or [spec.origin or ""])]
    if not places or not Path(places[0]).exists():
        return {}
    folder = Path(places[0]).parent
    installed = folder in {Path(place) for name, place in sysconfig.get_paths().items() if "lib" in name}
    found: dict[str, Path] = {}
    left, seen = {module}, set()
    while left:
        seen |= left
        more: set[str] = set()
        for dotted, file in {pair for name in left for pair in _files(folder, name)} - found.items():
            found[dotted] = file
            more |= set(imported(text(file), dotted if file.stem == "__init__" else dotted.rpartition(".")[0]))
        left = {name for name in more - seen if not installed or name.partition(".")[0] == top}
    return found or ({top: Path(spec.origin)} if spec.origin else {})  # a compiled one


def _usual_spec(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # as of no name
        return None


def _files(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Give the files that an import of a dotted name runs, its packages' first."""
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:n])
        for file in (place / "__init__.py", place.parent / f"{place.name}.py"):
            if file.is_file():
                yield ".".join(parts[:n]), file
                break


def checksum(content: Any) -> str:  # noqa: ANN401
    """Return the SHA-256 of what JSON can hold; the order of a mapping does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def text(file: Path) -> str:
    """Return the source of a module, whatever its encoding: a wrong letter does not matter here."""
    return file.read_text(encoding="utf-8", errors="replace")
