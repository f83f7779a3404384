"""Checksums that say whether a result still belongs to its chapter.

A *fingerprint* covers all that a run's notebook depends on, prose included: where it differs, the book runs the chapter
again. The checksum of the *experiment* covers the code that its numbers depend on: where it differs, a sweep runs its
points again, and a recorded result must be verified by its witness.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import nadkit
from nadkit import files
from nadkit.book import outside
from nadkit.book.chapters import BadInput, Chapter, cell_source, cell_tags, load
from nadkit.book.parameters import Value
from nadkit.book.sources import bare, checksum, imported

PACKAGE = Path(__file__).parents[1]
# The book's machinery runs chapters and is not part of their results: editing it reruns nothing. But these of its
# modules make what an executed notebook shows.
MACHINE = "book/"
SHOWING = {f"book/{name}.py" for name in ("answers", "claims", "collect", "pages", "records", "results")}
# Code that draws, names and stores results does not change their numbers.
PRESENTATION = {"files.py", "names.py", "plots.py", "storage.py"}


def require_own_library(root: Path) -> None:
    """Raise BadInput where the book at `root`, the current folder or PYTHONPATH has another library than runs here.

    Kernels and other processes that a command starts would import it, and checksums would be those of this one.
    """
    named = [Path(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    first = [folder for folder in named if (folder / "nadkit" / "__init__.py").exists()][:1]
    for folder in (root, Path.cwd(), *first):
        if (folder / "nadkit" / "__init__.py").exists() and (folder / "nadkit").resolve() != PACKAGE.resolve():
            raise BadInput(
                f"expected the library {folder / 'nadkit'}, but the one that runs is {PACKAGE}: go to {root}, "
                f"and type {sys.executable} -m nadkit in place of nadkit, with no other library in PYTHONPATH"
            )


def fingerprint(
    chapter: Chapter,
    values: Mapping[str, Value],
    code: str | None = None,
    named: Mapping[str, str] | None = None,
) -> str:
    """Return a checksum of all that decides the result of a run.

    That is the notebook, its parameters, what they name outside the book, the library, the packages it computes with,
    and the published data that are at hand. `code` is the `code_print` and `named` the `outside.checksums` if they are
    known.
    """
    named = outside.checksums(chapter, values) if named is None else named
    return checksum([code or code_print(chapter), published_at_hand(), dict(values) | dict(named)])


def code_print(chapter: Chapter) -> str:
    """Return a checksum of what all runs of a chapter share: the notebook, the library, and versions."""
    cells = [
        (c["cell_type"], cell_source(c), c["metadata"]) for part in _parts(chapter) for c in part.notebook["cells"]
    ]
    library = {
        name: files.sha256(PACKAGE / name)
        for name in sorted(_name(path) for kind in ("py", "toml", "csv", "npy") for path in PACKAGE.rglob(f"*.{kind}"))
        if name in SHOWING or not name.startswith(MACHINE)
    }
    return checksum([cells, library, computing_versions()])


def computing_versions() -> dict[str, str]:
    """Return the versions that numbers may depend on; for the library itself, its files count instead."""
    found = versions() | {"python": platform.python_version().rpartition(".")[0]}
    found.pop("nadkit", None)
    return found


def _parts(chapter: Chapter) -> list[Chapter]:
    """Return a chapter and those that it runs itself, which its notebook's metadata name under `nadkit_runs`."""
    return [chapter, *(load(chapter.root, name) for name in chapter.notebook["metadata"].get("nadkit_runs", []))]


def experiment(chapter: Chapter, *, shown: bool = False) -> str:
    """Return a checksum of a chapter's experiment: its code, and that of the science it imports.

    Left out are the cells tagged `parameters`, comments, docstrings, and the modules that only show or store; and,
    unless what is `shown` counts as well, the cells tagged `presentation`, among which are the claims.
    """
    left_out = {"parameters"} if shown else {"parameters", "presentation"}
    sources = [
        cell_source(cell)
        for part in _parts(chapter)
        for cell in part.notebook["cells"]
        if cell["cell_type"] == "code" and not left_out & set(cell_tags(cell))
    ]
    library = {_name(path): bare(path.read_text(encoding="utf-8")) for path in _science(sources)}
    return checksum([[bare(source) for source in sources], library])


def result_print(chapter: Chapter, values: Mapping[str, Value], known: str | None = None) -> str:
    """Return a checksum of what the numbers of a run depend on: experiment, versions, values and what these name.

    If it is the same for two runs, one may go on from the other's checkpoints, and a point of a sweep need not be run
    again, even if prose was edited since. `known` is the checksum of the `experiment` if there is one already.
    """
    return result_printer(chapter, known)(values)


def result_printer(chapter: Chapter, known: str | None = None) -> Callable[[Mapping[str, Value]], str]:
    """Return the function from values to their `result_print`; what they share is read only once."""
    shared, named = [known or experiment(chapter), computing_versions()], {}
    return lambda values: checksum([*shared, dict(values) | outside.checksums(chapter, values, named)])


def records_print(chapter: Chapter) -> str:
    """Return a checksum of a chapter's records and of what is known of their validity, which its pages show."""
    folder = chapter.root / "book" / "recorded"
    records = {path.name: files.sha256(path) for path in (folder / chapter.name).glob("[!.]*.json")}
    try:
        known = json.loads((folder / "verified.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    own = {key: entry for key, entry in known.items() if key.startswith(f"{chapter.name}/")}
    return checksum([records, own])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "nadkit"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def commit(root: Path) -> str | None:
    """Return the commit that `root` is at, with a '+' where files differ from it; None outside git.

    New files that are neither code nor in the book, such as logs, do not count. Nor do records: one record would make
    the next one's commit look changed.
    """
    # Without optional locks, git does not disturb other work in the folder.
    git = ["git", "--no-optional-locks", "-C", str(root)]
    status = ["status", "--porcelain", "-z", "--untracked-files=all", "--", ".", ":!book/recorded"]
    try:
        head, inside, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True, timeout=10).stdout.strip("\n")
            for command in (["rev-parse", "HEAD"], ["rev-parse", "--show-prefix"], status)
        )
    except (OSError, subprocess.SubprocessError):
        return None
    book = f"?? {inside}book/"
    counting = [
        line
        for line in changes.split("\0")
        if line and (not line.startswith("?? ") or line.startswith(book) or line.endswith(".py"))
    ]
    return head + ("+" if counting else "")


def why_no_commit(root: Path) -> str:
    """Return why `commit` names none, in git's own words where it has some."""
    try:
        asked = ["git", "-C", str(root), "status", "--porcelain"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
    except OSError as error:
        return f"git does not run: {error.strerror}"
    except subprocess.SubprocessError:
        return "git does not answer"
    return " ".join(done.stderr.split()) or "it has no commit yet"


def processor_name() -> str:
    """Return the name of this machine's processor."""
    return _processor_facts().get("model name") or platform.processor() or platform.machine()


def processor() -> str:
    """Return the kind of this machine's processor: its name, family and model."""
    facts = _processor_facts()
    return ", ".join(
        [processor_name(), *(f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts)]
    )


def _processor_facts() -> dict[str, str]:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _science(sources: Iterable[str]) -> list[Path]:
    """Return the files of the library that pieces of code import, transitively, less what only runs or presents."""
    found: set[Path] = set()
    left = {path for source in sources for path in _imported(source)}
    while left := {path for path in left - found if _counts(_name(path))}:
        found |= left
        left = {more for path in left for more in _imported(path.read_text(encoding="utf-8"))}
    return sorted(found)


def _counts(name: str) -> bool:
    return not name.startswith(MACHINE) and name not in PRESENTATION


def _imported(source: str) -> Iterator[Path]:
    """Give the files of the library that Python code imports."""
    for name in imported(source):
        if name.startswith("nadkit."):
            name = name.removeprefix("nadkit.")
            yield from _files(nadkit.HOME.get(name, f"nadkit.{name}").split(".")[1:])


def _files(parts: Sequence[str]) -> list[Path]:
    """Return the files of a module or package, or of the one that holds what is named."""
    path = PACKAGE.joinpath(*parts)
    if parts and path.is_dir():
        return sorted(path.rglob("*.py"))
    if path.with_suffix(".py").is_file():
        return [path.with_suffix(".py")]
    return _files(parts[:-1]) if len(parts) > 1 else []


def published_at_hand() -> list[list[tuple[str, int]]]:
    """Return the published data at hand: names and sizes of the files, for each data folder, wherever that is."""
    return [sorted(_sizes(folder / "published")) for folder in files.data_folders()]


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.rglob("*"):
        # A file whose name begins with a dot is still being written.
        if not path.name.startswith(".") and path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size
