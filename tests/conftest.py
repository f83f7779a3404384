"""Fixtures shared by the tests: small throw-away books."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import yaml

from nadkit.book import witness

PARAMETERS = """\
n: int = 3  # how often [1..100]
scale: float = 0.5  # by what [>0]
method: str = "mean"  # how [mean, sum]
sizes: list[int] = [1, 2]  # of what [>0]
"""
CODE = "print('result', n * scale, method, sizes)"


def make_notebook(
    title: str = "A chapter",
    parameters: str = PARAMETERS,
    code: tuple[str, ...] = (CODE,),
    kernel: str = "python3",
) -> nbformat.NotebookNode:
    """A chapter with a title, a parameters cell and one cell per piece of code."""
    declaration = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [
        nbformat.v4.new_markdown_cell(f"# {title}\n\nThe mean is $\\sum_i x_i / n$."),
        declaration,
        *(nbformat.v4.new_code_cell(source) for source in code),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    spec = {"name": kernel, "display_name": kernel, "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})


def printed(path: Path) -> str:
    """What an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def files_below(folder: Path) -> list[str]:
    """The files in a folder and below it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


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
