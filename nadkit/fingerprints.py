"""Checksums that say whether a result still belongs to its chapter.

A *fingerprint* covers all that a run's notebook depends on, prose included: where it differs, the book runs the chapter
again. The checksum of the *experiment* covers what its numbers depend on: where it differs, a recorded result is stale,
and a sweep runs its points again.
"""

import ast
import hashlib
import importlib.metadata
import io
import json
import platform
import tokenize
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
}
# What shows, stores and names results is no part of their numbers.
PRESENTATION = MACHINE | {"claims", "files", "names", "plots", "results", "storage"}
PACKAGE = Path(__file__).parent


def fingerprint(chapter: Chapter, values: Mapping[str, Value], code: str | None = None) -> str:
    """Return a checksum of all that decides the result of a run.

    That is the notebook, its parameters, the library, what it computes with, and the published data
    that are at hand. `code` is the `code_print` if it is known.
    """
    return _checksum([code or code_print(chapter), _published(), dict(values)])


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
    return _checksum([cells, library, _computing()])


def _computing() -> dict[str, str]:
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
    shared = [known or experiment(chapter), _computing()]
    return lambda values: _checksum([*shared, dict(values)])


def records_print(chapter: Chapter) -> str:
    """Return a checksum of a chapter's recorded results, which its pages show beside the live ones."""
    folder = chapter.root / "book" / "recorded" / chapter.name
    return _checksum({path.name: files.sha256(path) for path in folder.glob("*.json")})


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "nadkit"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def bare(source: str) -> str:
    """Return Python code without comments, docstrings and empty lines; what is no Python, as it is."""
    lines = source.splitlines()
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):  # a notebook may hold commands of IPython
        return source
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, last = node.lineno - 1, node.end_lineno - 1
            # Columns are counted in bytes, and code may stand on both sides.
            before, after = lines[first].encode()[: node.col_offset], lines[last].encode()[node.end_col_offset :]
            lines[first : last + 1] = [""] * (last - first + 1)
            lines[first], lines[last] = before.decode(), (before if first == last else b"").decode() + after.decode()
    return "\n".join(line.rstrip() for line in lines if line.strip())


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
    code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    try:
        tree = ast.parse(code)
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


def _published() -> list[list[tuple[str, int]]]:
    """Return the published data at hand: names and sizes of the files, for each data folder, wherever that is."""
    return [sorted(_sizes(folder / "published")) for folder in files.data_folders()]


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.rglob("*"):
        # What begins with a dot is being written just now.
        if not path.name.startswith(".") and path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def _checksum(content: Any) -> str:  # noqa: ANN401
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
