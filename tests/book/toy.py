"""Small throw-away chapters for tests."""

from pathlib import Path

import nbformat

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
