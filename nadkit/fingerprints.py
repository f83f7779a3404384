"""Checksums that say whether a result still belongs to its chapter.

A *fingerprint* covers all that a run's notebook depends on, prose included: where it differs, the book runs the chapter
again. The checksum of the *experiment* covers the code that its numbers depend on: where it differs, a sweep runs its
points again, and a recorded result must be verified by its witness.
"""

import ast
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nadkit import files
from nadkit.chapters import Chapter, cell_source, cell_tags, load
from nadkit.parameters import Value

# What runs a chapter is no part of its result: editing these reruns nothing.
MACHINE = {
    "__main__",
    "builder",
    "chapters",
    "cli",
    "executors",
    "fingerprints",
    "parameters",
    "runner",
    "scorecard",
    "sweep",
    "witness",
}
# What shows, stores and names results is no part of their numbers.
PRESENTATION = MACHINE | {"claims", "files", "names", "plots", "records", "results", "storage"}
PACKAGE = Path(__file__).parent


def fingerprint(chapter: Chapter, values: Mapping[str, Value], code: str | None = None) -> str:
    """Return a checksum of all that decides the result of a run.

    That is the notebook, its parameters, the library, what it computes with, and the published data
    that are at hand. `code` is the `code_print` if it is known.
    """
    return _checksum([code or code_print(chapter), published_at_hand(), dict(values)])


def code_print(chapter: Chapter) -> str:
    """Return a checksum of what all runs of a chapter share: the notebook, the library, and versions."""
    cells = [
        (c["cell_type"], cell_source(c), c["metadata"]) for part in _parts(chapter) for c in part.notebook["cells"]
    ]
    library = {
        path.relative_to(PACKAGE).as_posix(): files.sha256(path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem not in MACHINE
    }
    return _checksum([cells, library, computing_versions()])


def computing_versions() -> dict[str, str]:
    """Return the versions that numbers may depend on; of the library itself, the files count."""
    found = versions() | {"python": platform.python_version().rpartition(".")[0]}
    found.pop("nadkit", None)
    return found


def _parts(chapter: Chapter) -> list[Chapter]:
    """Return a chapter and those that it runs itself, which its notebook's metadata name under `nadkit_runs`."""
    return [chapter, *(load(chapter.root, name) for name in chapter.notebook["metadata"].get("nadkit_runs", []))]


def experiment(chapter: Chapter) -> str:
    """Return a checksum of a chapter's experiment: its code, and that of the science it imports.

    Left out are the cells tagged `parameters` or `presentation`, comments, docstrings, and the modules
    that only show or store.
    """
    sources = [
        cell_source(cell)
        for part in _parts(chapter)
        for cell in part.notebook["cells"]
        if cell["cell_type"] == "code" and not {"parameters", "presentation"} & set(cell_tags(cell))
    ]
    library = {path.relative_to(PACKAGE).as_posix(): bare(path.read_text()) for path in _science(sources)}
    return _checksum([[bare(source) for source in sources], library])


def result_print(chapter: Chapter, values: Mapping[str, Value], known: str | None = None) -> str:
    """Return a checksum of what the numbers of a run depend on: experiment, versions and values.

    Where it is the same, a run may go on from another one's checkpoints, and a point of a sweep need not be run again,
    though prose was mended since. `known` is the checksum of the `experiment` if there is one already.
    """
    return result_printer(chapter, known)(values)


def result_printer(chapter: Chapter, known: str | None = None) -> Callable[[Mapping[str, Value]], str]:
    """Return the function from values to their `result_print`; what they share is read only once."""
    shared = [known or experiment(chapter), computing_versions()]
    return lambda values: _checksum([*shared, dict(values)])


def records_print(chapter: Chapter) -> str:
    """Return a checksum of a chapter's records and of what is known of their validity, which its pages show."""
    folder = chapter.root / "book" / "recorded"
    paths = [*(folder / chapter.name).glob("*.json")]
    known = folder / "verified.json"
    return _checksum(
        {path.name: files.sha256(path) for path in [*paths, *([known] if paths and known.exists() else [])]}
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "nadkit"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit(root: Path) -> str | None:
    """Return the commit that `root` is at, with a '+' where files differ from it; None outside git.

    Records do not count: one record would make the next one's commit look changed.
    """
    # Without optional locks it disturbs nobody who works there.
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        head, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=10).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", ".", ":!book/recorded"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if changes else "")


def bare(source: str) -> str:
    """Return what Python code does, whatever its layout: its syntax tree, without docstrings, as text.

    Comments, line breaks, quotes and optional commas leave it alone. Non-Python source is returned unchanged.
    """
    try:
        tree = ast.parse(_without_commands(source))
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


def _without_commands(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


def _science(sources: Iterable[str]) -> list[Path]:
    """Return the files of the library that pieces of code import, transitively, less what only presents."""
    found: set[str] = set()
    left = {module for source in sources for module in _imports(source)}
    while left := left - found - PRESENTATION:
        found |= left
        left = {name for module in left for path in _files(module) for name in _imports(path.read_text())}
    return sorted(path for module in found for path in _files(module))


def _files(module: str) -> list[Path]:
    folder = PACKAGE / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [*PACKAGE.glob(f"{module}.py")]


def _imports(source: str) -> Iterator[str]:
    """Give the modules `nadkit.NAME` that Python code imports."""
    try:
        tree = ast.parse(_without_commands(source))
    except SyntaxError:  # the run will say so
        return
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="nadkit"):
                names = [f"nadkit.{alias.name}" for alias in node.names]
            case ast.ImportFrom(module=str(name)):
                names = [name]
            case ast.Import():
                names = [alias.name for alias in node.names]
            case _:
                names = []
        yield from (name.split(".")[1] for name in names if name.startswith("nadkit."))


def published_at_hand() -> list[list[tuple[str, int]]]:
    """Return the published data at hand: names and sizes of the files, for each data folder, wherever that is."""
    return [sorted(_sizes(folder / "published")) for folder in files.data_folders()]


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.rglob("*"):
        # What begins with a dot is being written just now.
        if not path.name.startswith(".") and path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def _checksum(content: Any) -> str:  # noqa: ANN401
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
