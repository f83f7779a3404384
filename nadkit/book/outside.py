"""What a run's values name that lies outside the book: the user's own modules, and folders of images.

These decide the result as much as the values do, so a run is identified by their content, too.
"""

import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from nadkit import files
from nadkit.book.chapters import Chapter
from nadkit.book.parameters import Known, Value
from nadkit.book.sources import bare, checksum, files_of, text

ABSENT = "not here"


def checksums(
    chapter: Chapter, values: Mapping[str, Value], known: dict[str, str | None] | None = None
) -> dict[str, str]:
    """Return a checksum of what each `MODULE:FUNCTION` and `folder:PATH` among the values names: `content of ...`.

    New checksums are added to `known`; what is already there is not read again.
    """
    found, known = {}, {} if known is None else known
    for name, value in values.items():
        rule = chapter.parameters[name].rule if name in chapter.parameters else None
        for item in value if isinstance(value, list) else [value]:
            if isinstance(rule, Known) and isinstance(item, str):
                if item not in known:
                    known[item] = _content(rule.kind, item, chapter)
                found[f"content of {item}"] = known[item]
    return {name: content for name, content in found.items() if content}


def _content(kind: str, value: str, chapter: Chapter) -> str | None:
    prefix, _, rest = value.partition(":")
    if kind == "architecture" and rest and prefix != "torchvision":
        return module_checksum(prefix, import_path(chapter))
    if kind == "images" and prefix == "folder":
        return folder_checksum(value)
    return None


def import_path(chapter: Chapter) -> list[str]:
    """Return where a chapter finds modules: `PYTHONPATH`, the current folder, the chapter's own, what is installed."""
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return [*given, os.getcwd(), str(chapter.path.parent), *sys.path]


def module_checksum(module: str, path: list[str]) -> str:
    """Return a checksum of what a module's code does, and of the modules that it imports from its folder."""
    found = files_of(module, path)
    code = {name: bare(text(file)) if file.suffix == ".py" else _sha256_of(file) for name, file in found.items()}
    return checksum(sorted(code.items())) if code else ABSENT


def folder_checksum(name: str) -> str:
    """Return a checksum of the names and contents of all files in the splits of `folder:PATH` that are not hidden.

    Files beside the splits do not count.
    """
    from nadkit.data.image_files import TEST_SPLITS, folder_path  # it imports torch

    try:
        root = folder_path(name)
    except ValueError:  # the run will report it
        return ABSENT
    content = []
    for split in ("train", *TEST_SPLITS):
        for folder, below, names in os.walk(root / split, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            visible = (Path(folder, name) for name in names if not name.startswith("."))
            content += [(file.relative_to(root).as_posix(), _sha256_of(file)) for file in visible if file.is_file()]
    return checksum(sorted(content))


def _sha256_of(file: Path) -> str:
    about = file.stat()
    return _sha256(file, about.st_size, about.st_mtime_ns)


@functools.cache
def _sha256(file: Path, size: int, changed: int) -> str:
    """Return a file's checksum; within a process it is read again where size or time of change differ."""
    return files.sha256(file)
