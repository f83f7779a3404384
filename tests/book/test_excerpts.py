"""Tests of what pages that are no chapters take from chapters."""

import re

import nbformat
import pytest

from nadkit.book import excerpts, pages
from nadkit.book.chapters import BadInput
from nadkit.book.claims import Claim, Claims, Run
from nadkit.book.results import MIME
from nadkit.book.scorecard import rows
from nadkit.book.typeset import Pictures

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
IMAGE = f'<img src="data:image/png;base64,{PNG}" alt="A map. Bright is high."><p class="nadkit-provenance">A GPU</p>'


@pytest.fixture
def book(tmp_path):
    """A book with one page, which asks for what is given, and one executed chapter; returns what `make` makes."""
    store = {"version": 1, "tables": {"map": {"columns": [], "rows": []}}}
    output = nbformat.v4.new_output("display_data", {"text/html": IMAGE}, metadata={MIME: store})
    executed = tmp_path / "bias.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])]), executed)
    claims = Claims([Claim("low-first", "Low <frequencies> come first", 0.75, ">= 0.5", reported=0.9)])
    run = Run(executed, {"chapter": "inputs/bias", "profile": "quick"}, claims, "Bias")

    def made(*names: str, page: str = "glance", chapters: tuple[str, ...] = ("inputs/bias",)) -> dict[str, str]:
        path = tmp_path / "book" / f"{page}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"Words.\n\n```{{include}} _generated/{name}.md\n```\n" for name in names))
        out, pictures = tmp_path / "out", Pictures(tmp_path / "pictures")
        found = excerpts.make(tmp_path, chapters, {"inputs/bias": executed}, rows([run], []), out, pictures)
        return {place: file.read_text() for place, file in found.items()}

    return made


def test_a_page_gets_the_figures_that_it_names(book):
    ((place, text),) = book("figures/inputs/bias/map").items()
    assert place == "book/_generated/figures/inputs/bias/map.md"
    assert re.search(r'<a class="nadkit-enlarge" href="../_pictures/\w+.png"><img src="../_pictures/\w+.png"', text)
    assert 'alt="A map. Bright is high."' in text
    assert "</b> A map. <small>this build</small></figcaption>" in text


def test_a_figure_of_this_build_alone_says_on_which_images_it_is(book, tmp_path):
    kinds = ("digits (1,797 images of 8x8), fixed split, as 1x8x8", "MNIST, as 1x28x28, 9 of them", "synthetic")
    data = [{"name": f"images {i}", "kind": kind, "sha256": None} for i, kind in enumerate(kinds)]
    notebook = nbformat.read(tmp_path / "bias.ipynb", 4)
    made_with = nbformat.v4.new_output("display_data", metadata={MIME: {"version": 1, "data": data}})
    notebook.cells[0].outputs.append(made_with)
    nbformat.write(notebook, tmp_path / "bias.ipynb")
    (text,) = book("figures/inputs/bias/map").values()
    assert "<small>this build, on digits of 8 x 8 pixels and MNIST of 28 x 28 pixels</small>" in text


def test_tabs_say_themselves_which_run_a_figure_is_of(book, tmp_path):
    notebook = nbformat.read(tmp_path / "bias.ipynb", 4)
    notebook.cells[0].outputs[0].data["text/html"] = pages.tabs([("recorded", IMAGE), ("this run", IMAGE)])
    nbformat.write(notebook, tmp_path / "bias.ipynb")
    (text,) = book("figures/inputs/bias/map").values()
    assert "</b> A map.</figcaption>" in text


def test_a_page_gets_the_best_of_a_figure(book):
    (text,) = book("lead/inputs/bias/map").values()
    assert text.count("<img") == 1
    assert "A GPU" not in text
    assert "</b> A map. <small>this run</small></figcaption>" in text


def test_a_chapter_may_ask_for_its_own_figure(book, tmp_path):
    book()
    include = "```{include} _generated/%s/map.md\n```"
    asked = nbformat.v4.new_markdown_cell(f"# Bias\n\n{include % 'lead/inputs/bias'}")
    code = nbformat.v4.new_code_cell(f'text = """\n{include % "figures/no"}\n"""')
    path = tmp_path / "book" / "inputs" / "bias.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[asked, code]), path)
    assert list(book()) == ["book/inputs/_generated/lead/inputs/bias/map.md"]


@pytest.mark.parametrize(("page", "link"), [("glance", "inputs/bias"), ("more/glance", "../inputs/bias")])
def test_a_page_gets_the_verdicts_that_it_names(book, page, link):
    (text,) = book("claims/low-first", page=page).values()
    assert f'<a href="{link}.html#claim-low-first">Low &lt;frequencies&gt; come first</a>' in text
    assert "✓ holds" in text
    assert "(holds if &gt;= 0.5; reported 0.9, measured 0.75; this build)" in text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("figures/inputs/bais/map", "no chapter is called 'inputs/bais': did you mean 'inputs/bias'"),
        ("figures/inputs/bias/mab", "inputs/bias shows nothing called 'mab': did you mean 'map'"),
        ("claims/low-frst", "no chapter claims 'low-frst': did you mean 'low-first'"),
    ],
)
def test_what_is_not_there_is_named_with_its_page(book, name, message):
    with pytest.raises(BadInput, match=f"book/glance.md: _generated/{name}.md: {message}"):
        book(name)


def test_a_chapter_that_has_not_run_leaves_a_note(book):
    chapters = ("inputs/bias", "inputs/nads")
    made = book("figures/inputs/nads/first", "claims/nads-first", chapters=chapters)
    assert "nadkit build inputs/nads" in made["book/_generated/figures/inputs/nads/first.md"]
    assert "<li>" not in made["book/_generated/claims/nads-first.md"]
