"""Fixtures shared by the tests of the machine: small throw-away books."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import yaml

from nadkit.book import witness


@pytest.fixture
def make_book(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a book of the given chapters and profiles and returns its folder."""

    def write(profiles: dict | None = None, **chapters: nbformat.NotebookNode) -> Path:
        root = tmp_path / "toy"
        (root / "book" / "profiles").mkdir(parents=True, exist_ok=True)
        for name, notebook in chapters.items():
            path = root / "book" / f"{name.replace('__', '/')}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, path)
        for name, content in (profiles or {}).items():
            (root / "book" / "profiles" / f"{name}.yml").write_text(yaml.safe_dump(content))
        (root / "book" / "intro.md").write_text("# A toy book\n\nWords.\n")
        files = [{"file": f"book/{name.replace('__', '/')}"} for name in chapters]
        toc = {"format": "jb-book", "root": "book/intro", "chapters": files}
        config = {
            "title": "Toy",
            "only_build_toc_files": True,
            "execute": {"execute_notebooks": "off"},
        }
        (root / "_toc.yml").write_text(yaml.safe_dump(toc))
        (root / "_config.yml").write_text(yaml.safe_dump(config))
        return root

    return write


@pytest.fixture
def short_witness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Witnesses are made in one environment beside the usual one."""
    monkeypatch.setattr(witness, "ENVIRONMENTS", {"two threads": {"OMP_NUM_THREADS": "2"}})
