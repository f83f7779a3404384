"""What `import nadkit` gives: the names that one types most, and no torch before one of them is used."""

import ast
import importlib
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import nadkit

PACKAGE = Path(nadkit.__file__).parent


@pytest.mark.parametrize("name", nadkit.__all__)
def test_every_name_is_that_of_its_module(name):
    assert name in dir(nadkit)
    assert getattr(nadkit, name) is getattr(importlib.import_module(nadkit.HOME[name]), name)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert {alias.name: node.module for node in block.body for alias in node.names} == nadkit.HOME


def test_the_package_imports_nothing_heavy():
    code = "import sys, nadkit; dir(nadkit); print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_unknown_names_are_refused_and_modules_are_imported():
    with pytest.raises(AttributeError, match="no attribute 'compute_nad'"):
        _ = nadkit.compute_nad
    with pytest.raises(ImportError):
        exec("from nadkit import nowhere")
    exec("from nadkit import seeds")


@pytest.mark.parametrize("folder", ["activations", "data", "inputs"])
def test_folders_import_nothing(folder):
    """So a module of one folder can import one of another, whichever of them comes first."""
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text())
    assert [type(node) for node in tree.body] == [ast.Expr]


def test_data_files_are_installed_with_their_package():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for path in (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")):
        package = next(p for p in path.parents if (p / "__init__.py").exists())
        patterns = settings[".".join(package.relative_to(PACKAGE.parent).parts)]
        assert any(fnmatch(path.relative_to(package).as_posix(), pattern) for pattern in patterns), path
