"""Chapters: finding the notebooks of the book, and the values their parameters take.

A chapter declares its parameters (see `nadkit.book.parameters`) in the cell tagged `parameters`. The
values there are the profile `quick`; `book/profiles/NAME.yml` maps chapter -> parameter -> value
for the others.
"""

import copy
import functools
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nadkit.book.parameters import (
    Choices,
    Known,
    Parameter,
    Range,
    Rule,
    Value,
    parse_parameters,
)
from nadkit.names import did_you_mean, nearest

QUICK = "quick"


class BadInput(ValueError):
    """The request cannot be carried out; the message says what was expected and what was given."""


# ---- the book ------------------------------------------------------------------------------------


def find_root(start: Path | None = None) -> Path:
    """Return the folder of the book: `start`, or the nearest folder above it that is one.

    Without `start`, the search begins in the current folder. If it finds no book there, it takes the one that this code
    lies in, so that a chapter runs in any folder.

    Raises:
        BadInput: there is none.
    """
    more = [] if start else Path(__file__).parents
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, *more):
        if (folder / "_toc.yml").is_file() and (folder / "book").is_dir():
            return folder
    raise BadInput(
        f"no book found: expected '_toc.yml' and a folder 'book' in {start} or above; "
        "go to the folder of the book, or name it with --root DIR"
    )


def find_chapters(root: Path) -> dict[str, Path]:
    """Return the files of the chapters by name, which is the path below `book/` without its suffix."""
    book = root / "book"
    relative = (path.relative_to(book) for path in sorted(book.rglob("*.ipynb")))
    return {
        path.with_suffix("").as_posix(): book / path
        for path in relative
        if not any(part.startswith(".") for part in path.parts)
    }


def find_pages(root: Path) -> list[str]:
    """Return the pages that the table of contents lists, in its order: paths below `root` without their suffix.

    Raises:
        BadInput: it lists a page that is not there.
    """
    pages = pages_below(read_yaml(root / "_toc.yml"))
    for page in pages:
        if not any((root / f"{page}.{kind}").exists() for kind in ("md", "ipynb", "rst")):
            raise BadInput(f"_toc.yml: {page}: no such page; expected {page}.ipynb or {page}.md")
    return pages


def listed_chapters(root: Path) -> list[str]:
    """Return the chapters that the table of contents lists, in its order.

    Raises:
        BadInput: it lists a page that is not there.
    """
    found = find_chapters(root)
    return [name for name in (page.removeprefix("book/") for page in find_pages(root)) if name in found]


def require_outside(path: Path, root: Path) -> None:
    """Raise BadInput where results would go among the sources of the book at `root`."""
    if path.resolve().is_relative_to(root.resolve() / "book"):
        raise BadInput(f"{path}: expected a place outside 'book', which holds the sources")


def read_text(path: Path) -> str:
    """Return what a file of text holds.

    Raises:
        BadInput: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: expected text in UTF-8; save it so") from None


@contextmanager
def new_folder(root: Path, folder: Path, advice: str = "name another") -> Iterator[Path]:
    """Give a temporary folder, which becomes `folder` if the block succeeds and is removed if it fails.

    Raises:
        BadInput: `folder` is a file, holds something, is the current one, or lies among the sources of the book at
            `root`; the message ends with the `advice`.
    """
    folder = folder.absolute()
    if folder.is_file():
        raise BadInput(f"{folder}: expected a folder, or a place for a new one, got a file; {advice}")
    if folder == Path.cwd():
        raise BadInput(f"{folder}: expected a folder below the current one, or elsewhere; {advice}")
    require_outside(folder, root)
    if folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: expected an empty folder, or a place for a new one; {advice}")
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rmdir()  # it is empty
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def pages_below(toc: object) -> list[str]:
    """Return the pages that a table of contents, or a part of it, lists: paths without their suffix."""
    return [re.sub(r"\.(md|ipynb|rst)$", "", page) for page in _pages(toc)]


def _pages(toc: object) -> Iterator[str]:
    """Give the files that a table of contents lists, in its order."""
    if isinstance(toc, list):
        for entry in toc:
            yield from _pages(entry)
    elif isinstance(toc, dict):
        for key, value in toc.items():
            if key in ("root", "file"):
                yield str(value)
            else:
                yield from _pages(value)


@dataclass(frozen=True)
class Chapter:
    """One notebook of the book."""

    root: Path
    name: str
    title: str
    parameters: Mapping[str, Parameter]
    notebook: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The notebook's file."""
        return self.root / "book" / f"{self.name}.ipynb"


def load(root: Path, name: str) -> Chapter:
    """Return the chapter called `name`; the last part of a name is enough where only one chapter has it.

    Raises:
        BadInput: the name is unknown or ambiguous, the notebook damaged, or a parameter malformed.
    """
    name, path = resolve(name, find_chapters(root))
    notebook = read_notebook(path)
    return Chapter(root, name, find_title(notebook, name), _parameters(notebook, name), notebook)


def resolve(name: str, chapters: Mapping[str, Path]) -> tuple[str, Path]:
    """Return the full name and the file of one of the `chapters`; the last part of its name may be enough.

    Raises:
        BadInput: the name is unknown or ambiguous.
    """
    if name in chapters:
        return name, chapters[name]
    short = {full: full.rpartition("/")[2] for full in chapters}
    matches = [full for full in chapters if short[full] == name]
    if len(matches) == 1:
        return matches[0], chapters[matches[0]]
    if matches:
        raise BadInput(f"{name!r} is the name of several chapters: {', '.join(matches)}")
    if near := nearest(name.rpartition("/")[2], short.values()):
        options = [full for full in chapters if short[full] == near]
        raise BadInput(f"no chapter is called {name!r}: did you mean {' or '.join(options)}?")
    raise BadInput(f"no chapter is called {name!r}: {did_you_mean(name, chapters)}")


def read_notebook(path: Path) -> dict[str, Any]:
    """Return the notebook at `path` as plain data.

    Raises:
        BadInput: the file is not a notebook.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except ValueError:
        fault = "it is damaged, or was only written in part"
    else:
        fault = _fault(notebook)
    if fault:
        raise BadInput(f"{path} is not a notebook: {fault}")
    return notebook


def _fault(notebook: object) -> str | None:
    """Say what of a notebook's form, as far as we rely on it, is wrong; or return None."""
    if not isinstance(notebook, dict) or not isinstance(notebook.get("metadata"), dict):
        return "expected a mapping, with a mapping 'metadata' in it"
    if not isinstance(cells := notebook.get("cells"), list):
        return f"expected a list of 'cells', got {cells!r:.40}"
    for number, cell in enumerate(cells, start=1):
        if not isinstance(cell, dict) or "cell_type" not in cell or not isinstance(cell.get("metadata"), dict):
            return f"cell {number}: expected a mapping with a 'cell_type' and a mapping 'metadata'"
    return None


def cell_source(cell: Mapping[str, Any]) -> str:
    """Return the text of a cell, which a notebook file holds as one string or as a list of lines."""
    return "".join(cell.get("source", ""))


def cell_tags(cell: Mapping[str, Any]) -> list[str]:
    """Return the tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def find_title(notebook: Mapping[str, Any], default: str) -> str:
    """Return the first heading of a notebook."""
    text = "\n".join(cell_source(c) for c in notebook["cells"] if c["cell_type"] == "markdown")
    heading = re.search(r"^# +(.+?)\s*$", text, flags=re.MULTILINE)
    return heading[1] if heading else default


def _parameters(notebook: Mapping[str, Any], chapter: str) -> dict[str, Parameter]:
    cells = [cell for cell in notebook["cells"] if "parameters" in cell_tags(cell)]
    if len(cells) > 1:
        raise BadInput(f"{chapter}: expected one cell tagged 'parameters', got {len(cells)}")
    try:
        return parse_parameters(cell_source(cells[0])) if cells else {}
    except ValueError as error:
        raise BadInput(f"{chapter}, parameters cell, {error}") from None


# ---- profiles and values -------------------------------------------------------------------------


def find_profiles(root: Path) -> list[str]:
    """Return the names of the profiles, `quick` (the notebooks' own values) first."""
    files = sorted((root / "book" / "profiles").glob("*.yml"))
    for path in files:
        if path.stem == QUICK:
            raise BadInput(f"{path}: the profile 'quick' is the notebooks' own values; rename it")
    return [QUICK, *(path.stem for path in files)]


def read_profile(root: Path, profile: str) -> dict[str, dict[str, Value]]:
    """Return what a profile sets: chapter -> parameter -> value.

    Raises:
        BadInput: there is no such profile, or its file sets what the chapters do not declare.
    """
    if profile not in (profiles := find_profiles(root)):
        raise BadInput(f"no profile is called {profile!r}: {did_you_mean(profile, profiles)}")
    if profile == QUICK:
        return {}
    path = root / "book" / "profiles" / f"{profile}.yml"
    stamp = tuple((file, *_changed(file)) for file in (path, *find_chapters(root).values()))
    return copy.deepcopy(_read_profile(root, path, stamp))


def _changed(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=16)
def _read_profile(root: Path, path: Path, _stamp: tuple) -> dict[str, dict[str, Value]]:
    """Return what the profile at `path` sets; a build asks hundreds of times, so it is kept while no file changes."""
    settings: dict[str, dict[str, Value]] = {}
    for name, values in read_mapping(path).items():
        try:
            chapter = load(root, name)
            if chapter.name in settings:
                raise BadInput(f"{chapter.name} is there twice, under its whole name and the last part of it")
            settings[chapter.name] = _convert(chapter, values or {})
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None
    return settings


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML or JSON file holds.

    Raises:
        BadInput: there is no such file, it cannot be read, or there is no mapping in it.
    """
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected 'name: value' lines, got {content!r}")
    return {str(name): value for name, value in content.items()}


def read_yaml(path: Path) -> object:
    """Return what a YAML or JSON file holds.

    Raises:
        BadInput: there is no such file, it cannot be read, or it has a key twice, of which YAML would take the last.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror.lower()}; expected a file of 'name: value' lines") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are not UTF-8, or a 13th month
        raise BadInput(f"{path} is not readable as YAML or JSON: {error}") from None


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise BadInput(f"{key.value!r} is there twice, in lines {lines[name]} and {line}; keep one of them")
            lines[name] = line
        return node


def validate(chapter: Chapter, profile: str = QUICK, overrides: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """Return the value of every parameter: the override, else the profile's, else the notebook's.

    Overrides may be strings, as a command line has them. Paths are relative to the current folder, and
    returned as absolute ones.

    Raises:
        BadInput: values are wrong; the message names them all.
    """
    return convert(chapter, profile_values(chapter, profile) | dict(overrides or {}))


def profile_values(chapter: Chapter, profile: str = QUICK) -> dict[str, Value]:
    """Return the value of every parameter in a profile; the values need not be possible on this machine."""
    defaults = {name: parameter.default for name, parameter in chapter.parameters.items()}
    return defaults | read_profile(chapter.root, profile).get(chapter.name, {})


def convert(chapter: Chapter, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return some parameters' values, which may be strings, as their types.

    Raises:
        BadInput: values are wrong; the message names them all.
    """
    return _convert(chapter, values, known=True)


def _convert(chapter: Chapter, values: Mapping[str, Value], known: bool = False) -> dict[str, Value]:
    if not isinstance(values, Mapping):
        raise BadInput(f"{chapter.name}: expected 'parameter: value' lines, got {values!r}")
    converted, problems = {}, []
    for name, value in values.items():
        try:
            if name not in chapter.parameters:
                raise ValueError(f"no such parameter; {did_you_mean(str(name), chapter.parameters)}")
            parameter = chapter.parameters[name]
            converted[name] = parameter.convert(value)
            # `nadkit check` tells whether the library knows a default; here, that would mean importing PyTorch.
            parameter.check(converted[name], known=known and converted[name] != parameter.default)
            if known:
                converted[name] = parameter.locate(converted[name])
        except ValueError as error:
            problems.append(f"{chapter.name}: {name}: {error}")
    if problems:
        raise BadInput("\n".join(problems))
    return converted


def allowed(entry: Mapping[str, Any]) -> str:
    """Return in words which values a parameter may have, from its entry in what `describe` returns."""
    if "choices" in entry:
        return ", ".join(map(str, entry["choices"]))
    return entry.get("range") or entry.get("known", "")


def describe(chapter: Chapter) -> dict[str, Any]:
    """Return what `nadkit show` says about a chapter, as plain data."""
    profiles = {name: profile_values(chapter, name) for name in find_profiles(chapter.root)}
    return {
        "chapter": chapter.name,
        "title": chapter.title,
        "file": str(chapter.path),
        "profiles": list(profiles),
        "parameters": [
            {
                "name": name,
                "type": parameter.type,
                "help": parameter.help,
                **_describe_rule(parameter.rule),
                "values": {profile: values[name] for profile, values in profiles.items()},
            }
            for name, parameter in chapter.parameters.items()
        ],
    }


def _describe_rule(rule: Rule | None) -> dict[str, Any]:
    match rule:
        case Choices(options):
            return {"choices": list(options)}
        case Range(text):
            return {"range": text}
        case Known(kind):
            return {"known": kind}
    return {}
