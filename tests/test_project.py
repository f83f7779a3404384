"""The project as a whole: one environment, two set-up commands, two halves."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
    tested = re.search(r"\.\[([a-z,]+,dev)\]", (ROOT / "Makefile").read_text())[1].split(",")
    assert {"lab", *tested} <= set(extras)


def test_readme_names_two_set_up_commands_and_ci_runs_the_second():
    readme = (ROOT / "README.md").read_text()
    set_up = readme.split("## Set-up")[1].split("\n## ")[0]
    assert re.findall(r"^\$ (make .*)$", set_up, re.MULTILINE) == ["make book", "make test"]
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"book", "test"} <= set(targets)


def test_make_clean_removes_what_make_book_made_and_nothing_else():
    rule = re.search(r"^clean:\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule[1] == "\trm -rf _build\n"


def test_version_is_one():
    namespace = {}
    exec((ROOT / "nadkit" / "__init__.py").read_text(), namespace)
    assert namespace["__version__"] == PROJECT["version"]


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("citation-file-format", "CITATION.cff"), ("github-workflows", ".github/workflows/*.yml")],
)
def test_files_for_others_keep_to_their_schemas(schema, pattern):
    found = list(map(str, ROOT.glob(pattern)))
    assert found
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *found]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_citations_name_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    page = (ROOT / "book" / "reference" / "cite.md").read_text()
    assert cited["version"] == PROJECT["version"] == re.search(r"version = {(.*?)}", page)[1]
    assert cited["title"] == re.search(r"title   = {(.*?)}", page)[1]


def test_every_module_is_in_the_reference():
    pages = "".join(path.read_text() for path in (ROOT / "book" / "reference").glob("*.md"))
    named = re.findall(r"automodule:: ([\w.]+)$", pages, re.MULTILINE)
    assert len(named) == len(set(named))
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "nadkit").rglob("*.py")
    }
    # the modules of architectures stand on the page of their package, which gives their public names
    left_out = {name for name in modules if name.startswith("nadkit.architectures.")} | {"nadkit.__main__"}
    assert set(named) == modules - left_out


def imported(path: Path) -> set[str]:
    """The modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_progress_bars_are_plain():
    """`tqdm.auto`, which `tqdm.contrib` imports, complains in a notebook wherever ipywidgets are missing."""
    sources = [*(ROOT / "nadkit").rglob("*.py"), *(ROOT / "book").rglob("*.ipynb")]
    used = {
        line for path in sources for line in re.findall(r"(?:from|import) tqdm[\w.]*(?: import \w+)?", path.read_text())
    }
    assert used == {"from tqdm import tqdm"}


def test_the_science_never_imports_the_machine_of_the_book():
    package = ROOT / "nadkit"
    science = [path for path in package.rglob("*.py") if path.parent != package / "book" and path.name != "__main__.py"]
    assert len(science) > 30
    assert [path for path in science if any(name.startswith("nadkit.book") for name in imported(path))] == []


def test_code_tests_and_chapters_of_one_thing_are_in_folders_of_one_name():
    for folder in ("inputs", "activations", "neighbours"):
        assert all((ROOT / place / folder).is_dir() for place in ("nadkit", "tests", "book"))
    folders = {path.name for path in (ROOT / "nadkit").iterdir() if (path / "__init__.py").exists()}
    tested = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    assert folders == tested


def prose(part: str) -> dict[str, str]:
    """The text of each chapter of a part."""
    notebooks = {path.name: json.loads(path.read_text("utf-8")) for path in (ROOT / "book" / part).glob("*.ipynb")}
    assert notebooks
    return {
        name: "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        for name, notebook in notebooks.items()
    }


@pytest.mark.parametrize("part", ["inputs", "activations", "neighbours", "bridge"])
def test_chapters_ask_three_questions(part):
    for name, text in prose(part).items():
        questions = text.partition("## Three questions\n")[2].partition("\n## ")[0]
        assert len(re.findall(r"^`{3,}\{dropdown\} \S", questions, re.MULTILINE)) == 3, name
        assert "{exercise}" in text, name


@pytest.mark.parametrize("part", ["inputs", "activations", "neighbours", "bridge", "practice"])
def test_chapters_grade_their_exercises(part):
    for name, text in prose(part).items():
        titles = re.findall(r"^`{3,}\{exercise\}(.*)$", text, re.MULTILINE)
        assert [title for title in titles if not re.search(r"\S \((easy|medium|hard)\)$", title)] == [], name
