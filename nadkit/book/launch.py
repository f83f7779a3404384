"""Notebooks to open elsewhere, on Colab or Binder: chapters whose first cell installs the library.

Colab takes one notebook from a branch of the repository, and nothing around it. So the notebooks of that branch install
the library themselves, at the commit that they were made from, and their text is plain Markdown.
"""

import importlib.metadata
import os
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nadkit.book.builder import REPOSITORY
from nadkit.book.chapters import BadInput, Chapter, cell_source, listed_chapters, load, new_folder
from nadkit.book.plain import Plain
from nadkit.book.prints import commit, why_no_commit

RUNNERS = {"ipykernel", "jupyter-client", "nbclient", "papermill", "pyzmq", "traitlets"}
"""Packages that run notebooks. A running notebook already has them, and must not replace them."""
FIRST = """\
# Where the library is missing, as on Colab, install it as it was when this notebook was made.
import importlib.util

if importlib.util.find_spec("nadkit") is None:
    %pip install --quiet {packages}
    %pip install --quiet --no-deps "git+{url}@{commit}"
"""
ALONE_NOT = """\
*This chapter runs other chapters, so it needs the book around it: it runs on Binder or in a clone of
[the repository]({url}), and not on Colab.*
"""


def write(root: Path, folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write chapters as notebooks that install the library, all at once or not at all, and return their paths.

    They lie in `folder` as in the book, `book/inputs/nads.ipynb`. Without names, these are all chapters that the table
    of contents lists. The environment names the repository.

    Raises:
        BadInput: no repository is named, a file is not committed, the folder holds something, or a name is unknown.
    """
    url, now = os.environ.get(REPOSITORY, ""), commit(root)
    if not re.fullmatch(r"(https?|file)://[\w.:/~+-]+", url):
        raise BadInput(f"{REPOSITORY}: expected the repository's address, https://HOST/OWNER/NAME, got {url!r}")
    if now is None or now.endswith("+"):
        got = "changes that no commit holds" if now else why_no_commit(root)
        raise BadInput(f"{root}: expected a clone with all changes committed, for only these can be installed: {got}")
    plain = Plain(root)
    with new_folder(root, folder) as part:
        chapters = [load(root, name) for name in names or listed_chapters(root)]
        paths = [Path("book", f"{chapter.name}.ipynb") for chapter in chapters]
        for chapter, path in zip(chapters, paths, strict=True):
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook(chapter, plain, url, now), part / path)
    return [folder / path for path in paths]


def notebook(chapter: Chapter, plain: Plain, url: str, now: str) -> NotebookNode:
    """Return a chapter with its first cell, at its own parameters and without results."""
    convert = plain.of_chapter(chapter)
    if chapter.notebook["metadata"].get("nadkit_runs"):
        cells = [new_markdown_cell(ALONE_NOT.format(url=url), id="install")]
    else:
        first = FIRST.format(packages=" ".join(f'"{need}"' for need in needs()), url=url, commit=now)
        cells = [new_code_cell(first, id="install")]
    for number, cell in enumerate(chapter.notebook["cells"], start=1):
        own = cell.get("id", f"cell-{number}")  # old notebooks have no ids
        if cell["cell_type"] == "code":
            cells.append(new_code_cell(cell_source(cell), id=own, metadata=cell["metadata"]))
        elif text := convert(cell_source(cell)).strip():
            cells.append(new_markdown_cell(text, id=own))
    return new_notebook(cells=cells, metadata=chapter.notebook["metadata"])


def needs() -> list[str]:
    """Return the packages, with versions, that the library computes with."""
    named = [re.split(r"\s*;", need) for need in importlib.metadata.requires("nadkit") or []]
    return [need for need, *only in named if not only and re.match(r"[\w.-]+", need)[0].lower() not in RUNNERS]
