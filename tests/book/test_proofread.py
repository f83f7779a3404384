"""Proofreading: what is wrong with chapters is found in their text, before anything runs."""

import copy
from pathlib import Path

import nbformat
import pytest
from toy import PARAMETERS, make_notebook

from nadkit.book.builder import build
from nadkit.book.chapters import BadInput
from nadkit.book.cli import main
from nadkit.book.proofread import of_run, problems

TEXT = """\
(one)=
# One

**Claims tested here:** `one-large`, `one-lenet`.

$$ x $$ (eq-one)

See {ref}`here <one>`, {eq}`eq-one` and {ref}`search`. Write ``{ref}`nowhere` `` or

```markdown
(one)=
# A template, with a ![](picture)
{ref}`nowhere`
```

````{exercise} Why?
:label: ex-one

```{image} one.png
:alt: One.
```
````

```{solution-start} ex-one
```
"""
CLAIMS = """\
from nadkit.book.claims import Claim, about, show
claim = about(paper="somebody2020paper")
def of(name): return claim(f"one-{name}", "lenet is large", n, "> 0")
show([Claim("one-large", "n is large", n, ">= 3"), of("lenet")])
"""
FIGURE = "import nadkit.plots as plots\nfigures = [plots.lines(table, x='x', y='y')]\nplots.lines(table, x='x', y='y')"
SHOW = "results.show('t', table, lambda t: plots.lines(t, x='x', y='y'), alt='A line.')\nplots.wave_map(waves, n)"
ALT = {"image": {"alt": "A line."}, "figure": {"caption": "One."}}


def sound() -> nbformat.NotebookNode:
    """A chapter with which nothing is wrong."""
    notebook = make_notebook("One", code=(CLAIMS, FIGURE, SHOW, "%matplotlib inline"))
    notebook.cells[0].source = TEXT
    notebook.cells[3].metadata["mystnb"] = copy.deepcopy(ALT)
    return notebook


def other(text: str = "", code: str = "1 + 1") -> nbformat.NotebookNode:
    """Another chapter, with some text and some code."""
    return make_notebook(f"Other\n\n{text}", code=(code,))


def found(root: Path, *only: str) -> str:
    return "\n".join(problems(root, only))


def test_nothing_is_wrong_with_a_sound_book(make_book):
    root = make_book({"smoke": {"one": {"n": 2}}}, one=sound(), other=other("See {ref}`one`."))
    assert problems(root) == problems(root, ["other"]) == []


def text(old: str, new: str):
    def edit(notebook: nbformat.NotebookNode) -> None:
        assert old in notebook.cells[0].source
        notebook.cells[0].source = notebook.cells[0].source.replace(old, new)

    return edit


def code(cell: int, old: str, new: str):
    def edit(notebook: nbformat.NotebookNode) -> None:
        assert old in notebook.cells[cell].source
        notebook.cells[cell].source = notebook.cells[cell].source.replace(old, new)

    return edit


def metadata(cell: int, **fields: object):
    return lambda notebook: notebook.cells[cell].metadata.update(fields)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        # claims
        (
            code(2, 'of("lenet")]', 'Claim("one-large", "again", n, "> 1"), of("lenet")]'),
            "one, cell 3 (cell-2): two claims have the id 'one-large': every claim needs its own",
        ),
        (
            text(", `one-lenet`", ", `one-large`, `one-lenet`"),
            "one, cell 1 (cell-0): the list of claims has 'one-large' twice",
        ),
        (
            text("`one-large`, ", ""),
            "one, cell 3 (cell-2): the claim 'one-large' is not in the list 'Claims tested here'",
        ),
        (
            code(2, 'Claim("one-large", "n is large", n, ">= 3")', 'Claim(id="one-b", measured=n, holds_if="> 3")'),
            "one, cell 3 (cell-2): the claim 'one-b' is not in the list 'Claims tested here'",
        ),
        (
            text("`one-large`", "`won-large`"),
            "one, cell 1 (cell-0): no claim is made that has the listed id 'won-large'; did you mean 'one-large'?",
        ),
        # labels
        (
            text("{ref}`here <one>`", "{ref}`here <won>`"),
            "one, cell 1 (cell-0): no place has the label 'won'; did you mean 'one'?",
        ),
        (text("$$ (eq-one)", "$$"), "no place has the label 'eq-one'; did you mean 'ex-one'?"),
        (text(":label: ex-one", ""), "no place has the label 'ex-one'; did you mean 'eq-one'?"),
        # a figure has a number of its own on its page, and no label
        (
            text("{eq}`eq-one`", "{numref}`fig-one`"),
            "one, cell 1 (cell-0): no place has the label 'fig-one'",
        ),
        (
            text("$$ (eq-one)", "$$ (one)"),
            "one, cell 1 (cell-0): the label 'one' exists twice",
        ),
        # figures
        (
            metadata(3, mystnb={"figure": ALT["figure"]}),
            "one, cell 4 (cell-3): give the figure a text, in the cell's",
        ),
        (
            metadata(3, mystnb=ALT | {"image": {"alt": " "}}),
            "one, cell 4 (cell-3): give the figure a text, in the cell's",
        ),
        (code(4, ", alt='A line.'", ""), "one, cell 5 (cell-4): results.show: expected alt="),
        (code(4, "alt='A line.'", "alt=''"), "one, cell 5 (cell-4): results.show: expected alt="),
        (
            code(4, "plots.wave_map(waves, n)", "if n: display(plots.log_map(waves))"),
            "one, cell 5 (cell-4): give the figure",
        ),
        (code(4, "plots.wave_map(waves, n)", "plt.show()"), "one, cell 5 (cell-4): give the figure"),
        (text(":alt: One.", ""), "one, cell 1 (cell-0): give the picture a text (alt)"),
        (text("See {ref}", "![](one.png) {ref}"), "one, cell 1 (cell-0): give the picture a text (alt)"),
        # parameters, cells
        (
            code(4, "plots.wave_map(waves, n)", "files = !ls"),
            "one, cell 5 (cell-4): expected Python, and commands only as lines that begin with % or !, "
            "got 'files = !ls' (invalid syntax)",
        ),
        (
            code(1, "# how often [1..100]", "# how often [1..100"),
            "one, parameters cell, line 1, 'n: int = 3  # how often [1..100': the brackets of its comment do not match",
        ),
        (code(1, "# how often [1..100]", "# [1..100]"), "one, parameters cell, n: expected a help text"),
        (
            code(1, "n: int = 3", 'network: str = "lennet"  # what to train [architecture]\nn: int = 3'),
            "one, parameters cell, network: unknown architecture 'lennet'; did you mean 'lenet'",
        ),
        (
            lambda notebook: notebook.metadata.kernelspec.update(name="conda-mine"),
            "one: expected the Jupyter kernel 'python3', which every installation has, got 'conda-mine'",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_chapter_and_cell(make_book, edit, problem):
    notebook = sound()
    edit(notebook)
    root = make_book(one=notebook, other=other())
    assert problem in found(root)
    assert problem in found(root, "one")
    assert found(root, "other") == ""


def test_a_claim_that_depends_on_a_condition_may_be_made_in_two_ways(make_book):
    notebook = sound()
    branch = 'show([Claim("one-large", "n", n, "> 0")] if n else [Claim("one-large", "n", n, "> 1")])'
    notebook.cells[2].source = f"{notebook.cells[2].source}\n{branch}"
    assert problems(make_book(one=notebook)) == []


def test_two_cells_of_one_id_are_found(make_book):
    root = make_book(one=sound())
    path = root / "book" / "one.ipynb"
    path.write_text(path.read_text().replace('"cell-4"', '"cell-2"'))
    assert "one: two cells have the id 'cell-2'" in found(root)


def test_ids_and_labels_exist_once_in_the_book(make_book):
    root = make_book(one=sound(), other=other("(one)=\n## Again", CLAIMS))
    assert "one, cell 1 (cell-0) and other, cell 1 (cell-0): the label 'one' exists twice" in found(root)
    assert "one, cell 3 (cell-2) and other, cell 3 (cell-2): the claim 'one-large' exists twice" in found(root, "other")
    assert "one and other" not in found(root)


def test_a_page_refers_to_labels_of_the_book(make_book):
    root = make_book(one=sound())
    (root / "book" / "intro.md").write_text("---\nname: one\n---\n# A toy book\n\n{ref}`one`, {ref}`two`\n")
    assert problems(root) == ["book/intro.md: no place has the label 'two'"]


def test_a_draft_is_checked_where_it_is_named(make_book):
    root = make_book(one=sound())
    nbformat.write(sound(), root / "book" / "draft.ipynb")
    assert problems(root) == []
    assert "one, cell 3 (cell-2) and draft, cell 3 (cell-2): the claim 'one-large' exists twice" in found(root, "draft")
    with pytest.raises(BadInput, match="did you mean draft"):
        problems(root, ["drat"])


def test_profiles_are_checked(make_book):
    root = make_book({"gpu": {"one": {"m": 2}}}, one=sound(), other=other())
    assert "gpu.yml: one: m: no such parameter" in found(root, "one")
    assert problems(root, ["other"]) == []


def test_a_build_refuses_before_it_runs_anything_and_the_command_says_the_same(make_book, tmp_path, capsys):
    notebook = sound()
    text(", `one-lenet`", "")(notebook)
    notebook.cells[1].source = PARAMETERS.replace("[1..100]", "[1..100")
    root = make_book(one=notebook, other=other("{ref}`nowhere`, {ref}`one`"))
    with pytest.raises(BadInput) as caught:
        build(root, out=tmp_path / "out", only=["other"])
    assert not (tmp_path / "out").exists()
    assert main(["check", "--root", str(root)]) == 2
    assert str(caught.value) in capsys.readouterr().err
    assert "one, parameters cell, line 1" in str(caught.value)
    assert "other, cell 1 (cell-0): no place has the label 'nowhere'" in str(caught.value)
    assert "no place has the label 'one'" not in str(caught.value)
    make_book(one=sound(), other=other())
    assert main(["check", "one", "--root", str(root)]) == 0


SHOWN = """\
from nadkit.book.claims import about, show
claim = about()
show([claim("-".join(["one", each]), "n", n, "> 0") for each in names])
"""
IMAGE = "from IPython.display import HTML, Image, display\nimport base64\n"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def test_what_only_a_run_tells_fails_the_build(make_book, tmp_path):
    image = f"{IMAGE}picture = Image(base64.b64decode('{PNG}'), format='png')\npicture"
    html = f"{IMAGE}HTML('<img src=\"data:image/png;base64,{PNG}\">')"
    notebook = make_notebook("One\n\nClaims tested here: `one-a`, `one-b`.", code=(SHOWN, image, html))
    notebook.cells[2].source = f"names = ['a', 'c']\n{SHOWN}"
    root = make_book(one=notebook)
    result = build(root, "quick", out=tmp_path)
    assert (result["status"], result["html"]) == ("failed", None)
    assert result["error"].splitlines() == [
        "one: the claim 'one-c' was shown, but is not in the list 'Claims tested here'",
        "one: the claim 'one-b' is in the list 'Claims tested here', but was not shown",
        "one, cell 4 (cell-3): give the figure a text, in the cell's metadata under mystnb, image, alt",
        "one, cell 5 (cell-4): give the picture a text (alt)",
        "The pages were not built",
    ]
    executed = tmp_path / "_build" / "executed" / "quick" / "one.ipynb"
    done = nbformat.read(executed, as_version=4)
    done.cells[2].outputs, done.cells[0].source = [], "# One"
    done.cells[3].metadata["mystnb"] = ALT
    done.cells[4].outputs = []
    nbformat.write(done, executed)
    assert of_run(executed, "one") == []
