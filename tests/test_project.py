"""The project as a whole: one environment, two set-up commands, two halves."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from nadkit import fingerprints

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MACHINE = fingerprints.MACHINE - {"__main__"} | {"results"}
SCIENCE = {
    "ablation",
    "anisotropy",
    "architectures",
    "checkpoints",
    "devices",
    "directions",
    "fitting",
    "images",
    "interventions",
    "parallel",
    "plots",
    "published",
    "seeds",
    "selectivity",
    "sites",
    "stats",
    "synthetic",
    "theory",
    "training",
    "variants",
    "vmapped",
}


def test_conda_environment_is_that_of_pyproject():
    """Everything but Python itself and the tools comes from pyproject.toml, so the two cannot differ."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert environment["name"] == PROJECT["name"]
    assert f"python{PROJECT['requires-python']}" in conda
    assert set(conda) - {f"python{PROJECT['requires-python']}"} == {"pip", "make"}
    (line,) = pip
    extras = re.fullmatch(r"--editable \.\[([a-z,]+)\]", line)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert {"book", "lab"} <= set(extras)


def test_readme_names_two_set_up_commands_and_ci_runs_the_second():
    readme = (ROOT / "README.md").read_text()
    set_up = readme.split("## Set-up")[1].split("\n## ")[0]
    assert re.findall(r"^\$ (make .*)$", set_up, re.MULTILINE) == ["make book", "make test"]
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"book", "test"} <= set(targets)


def test_version_is_one():
    namespace = {}
    exec((ROOT / "nadkit" / "__init__.py").read_text(), namespace)
    assert namespace["__version__"] == PROJECT["version"]


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "nadkit":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nadkit."):
            names.add(node.module.split(".")[1])
    return names


@pytest.mark.parametrize("module", sorted(SCIENCE))
def test_the_science_never_imports_the_book_machine(module):
    base = ROOT / "nadkit" / module
    files = sorted(base.glob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    assert files
    for path in files:
        assert not _imports(path) & (MACHINE | {"claims"}), path


def test_every_module_is_in_one_half():
    modules = {p.stem for p in (ROOT / "nadkit").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert modules - {"__init__", "__main__"} == SCIENCE | MACHINE | {"claims", "files", "names", "storage"}
