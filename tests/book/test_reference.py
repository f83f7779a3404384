"""The reference: docstrings become reStructuredText, and parameters a table."""

import json
import re
from pathlib import Path

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace
from toy import make_notebook

import nadkit
import nadkit.inputs.basis
from nadkit.book import reference
from nadkit.book.chapters import load


def made(text: str, **scope: object) -> list[str]:
    return reference.as_rst(text.split("\n"), scope)


def test_names_become_links_to_where_they_are_defined_and_others_stay():
    basis = nadkit.inputs.basis
    assert made("A `Basis` of `k` `axes`.", Basis=basis.Basis, axes=basis) == [
        "A `Basis <nadkit.inputs.basis.Basis>` of `k` `axes <nadkit.inputs.basis>`."
    ]


@pytest.mark.parametrize(
    ("text", "rst"),
    [
        ("|A_k B_k^T|_F^2 / k", r"\|A_k B_k^T\|_F^2 / k"),
        ("2 * 3, x_ and *", r"2 \* 3, x\_ and \*"),
        ("``a * b``, `c | d`", "``a * b``, `c | d`"),
        ("- one `f`s * two", r"- one `f`\ s \* two"),
    ],
)
def test_mathematics_is_no_markup(text, rst):
    assert made(text) == [rst]


def test_equations_that_stand_apart_stay_as_they_are():
    assert made("The NADs.\n\n    C = |g|  *\n    D = 2\n\nEnd * here") == [
        "The NADs.", "", "::", "", "    C = |g|  *", "    D = 2", "", r"End \* here",
    ]  # fmt: skip


def test_sections_and_lists_are_no_equations():
    text = "Raises:\n    ValueError: a|b\n\n    or c\n- item\n\n    goes on"
    assert made(text) == ["Raises:", r"    ValueError: a\|b", "", "    or c", "- item", "", "    goes on"]


def test_two_attributes_on_a_line_are_two_names():
    assert made("Attributes:\n    n_train, n_test: both, or") == [
        "Attributes:",
        "    n_train,n_test: both, or",
    ]


def test_the_parameters_of_a_chapter_are_a_table_with_the_quick_values_first(make_book):
    root = make_book({"smoke": {"one": {"n": 2}}}, one=make_notebook("One < two"))
    page = reference.parameters([load(root, "one")])
    assert "## [One < two](/book/one.ipynb)" in page
    assert '<th scope="col">quick</th><th scope="col">smoke</th>' in page
    assert "<code>n</code><br><small>how often</small>" in page
    assert "<td><code>int</code></td><td><code>3</code></td><td><code>2</code></td><td>1..100</td>" in page
    assert "<td><code>0.5</code></td><td></td><td>&gt;0</td>" in page
    assert "<code>mean</code>, <code>sum</code>" in page


def test_every_module_is_in_the_reference():
    root = Path(nadkit.__file__).parents[1]
    pages = "".join(page.read_text() for page in (root / "book" / "reference").glob("*.md"))
    paths = [path.relative_to(root).with_suffix("") for path in (root / "nadkit").rglob("*.py")]
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths if path.stem != "__main__"}
    # the page on architectures has what their package gives out
    modules = {name for name in modules if not name.startswith("nadkit.architectures.")}
    assert modules == set(re.findall(r"automodule:: (\S+)", pages))


def test_the_search_keeps_the_names_of_pages_that_are_not_drawn_again(tmp_path):
    pages, html = tmp_path / "pages", tmp_path / "html"
    pages.mkdir()
    one, two = (pages / f"{name}.rst" for name in ("one", "two"))
    one.write_text("One\n===\n\n.. index:: single: direction; neural\n\n.. toctree::\n\n   two\n")
    two.write_text("Two\n===\n\n.. index:: ! pair: unit; map\n")
    settings = {"extensions": ["nadkit.book.reference"], "root_doc": "one"}

    def names() -> dict:
        Sphinx(pages, None, html, tmp_path / "doctrees", "html", settings, status=None, warning=None).build()
        return json.loads((html / "searchindex.js").read_text().partition("(")[2].rpartition(")")[0])["indexentries"]

    first = names()
    assert {"one", "two", "direction", "neural", "unit", "map"} <= set(first)
    one.write_text(one.read_text() + "\nEdited.\n")
    assert names() == first


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_two_processes_share_the_pages_where_there_are_two_cores(tmp_path, monkeypatch, cores):
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    (tmp_path / "index.rst").write_text("All\n===\n")
    settings = {"extensions": [*sorted(reference.QUIET), "nadkit.book.reference"]}
    with docutils_namespace():
        app = Sphinx(tmp_path, None, tmp_path / "out", tmp_path / "out", "html", settings, status=None, warning=None)
    assert app.parallel == min(cores, 2)
    assert app.is_parallel_allowed("read")
    assert app.is_parallel_allowed("write")
