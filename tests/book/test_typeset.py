"""Tests of the page that a build makes of a chapter."""

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from toy import make_notebook

from nadkit.book import collect, results, typeset
from nadkit.book.chapters import load, validate
from nadkit.book.cli import main
from nadkit.book.typeset import Pictures

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = Path(typeset.__file__).parents[2] / "book" / "_static" / "pages.js"


def png(side: int = 8, seed: int = 0) -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def words(content: bytes) -> str:
    return base64.b64encode(content).decode()


def displayed(content: bytes, pdf: bytes | None = None, width: int | None = None) -> nbformat.NotebookNode:
    data = {"image/png": words(content), "text/plain": "<Figure>"}
    data |= {"application/pdf": words(pdf)} if pdf else {}
    metadata = {"image/png": {"width": width, "height": width}} if width else {}
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


def shown(name: str, page: str, *pdfs: bytes, caption: str = "") -> nbformat.NotebookNode:
    store = {"version": 1, "tables": {name: {"columns": [], "rows": []}}}
    store |= {"captions": {name: caption}} if caption else {}
    more = {results.PDF: [words(pdf) for pdf in pdfs]} if pdfs else {}
    return nbformat.v4.new_output("display_data", {"text/html": page}, metadata={results.MIME: store, **more})


@pytest.fixture
def typeset_page(make_book, tmp_path):
    """A function that returns the page of a chapter whose executed cells gave some outputs, and its pictures."""

    def page(*outputs: list, mystnb: dict | None = None, record: dict | None = None) -> tuple[dict, Pictures]:
        root = make_book({"cpu": {"part/one": {"n": 7}}}, part__one=make_notebook("One"))
        notebook = make_notebook("One", code=("x",) * len(outputs))
        for cell, given in zip(notebook.cells[2:], outputs, strict=True):
            cell.outputs, cell.metadata["mystnb"] = given, mystnb or {}
        notebook.metadata["nadkit"] = record or {"profile": "quick", "seconds": 130.0}
        executed = tmp_path / "one.ipynb"
        nbformat.write(notebook, executed)
        pictures = Pictures(tmp_path / "pictures")
        return typeset.chapter(load(root, "part/one"), executed, [], {}, {}, pictures), pictures

    return page


def page_of(notebook: dict) -> str:
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    return "\n".join(output["data"].get("text/html", "") for output in outputs)


def test_displayed_pictures_become_figures_with_captions(typeset_page):
    alt = 'A wave of "two" cycles. It falls.'
    notebook, pictures = typeset_page([displayed(png(8), b"%PDF", width=4)], mystnb={"image": {"alt": alt}})
    text = page_of(notebook)
    assert 'width="4" height="4" alt="A wave of &quot;two&quot; cycles. It falls."' in text
    assert "</b> A wave of &quot;two&quot; cycles.</figcaption>" in text
    assert "base64" not in text
    (place,) = pictures.made
    assert text.count(f'"../../{place}"') == 2  # the picture, and the link that enlarges it
    data = notebook["cells"][3]["outputs"][0]["data"]  # behind the title and the box
    assert set(data) == {"text/html", "text/plain"}


def test_a_caption_may_be_given_and_have_formulas(typeset_page):
    mystnb = {"figure": {"caption": "The direction $v$."}, "image": {"alt": "A wave."}}
    drawn = shown("map", f'<img src="data:image/png;base64,{words(png())}">', caption="$x < y$")
    notebook, _ = typeset_page([displayed(png())], [drawn], mystnb=mystnb)
    text = page_of(notebook)
    assert r'The direction <span class="math notranslate nohighlight">\(v\)</span>.</figcaption>' in text
    assert r"\(x &lt; y\)</span></figcaption>" in text
    # Or Sphinx would write the caption once more.
    assert not [cell for cell in notebook["cells"] if "figure" in cell["metadata"].get("mystnb", {})]


def test_several_pictures_of_a_cell_are_told_apart(typeset_page):
    notebook, _ = typeset_page([displayed(png(seed=i)) for i in range(2)], mystnb={"image": {"alt": "Waves."}})
    assert "Waves (1 of 2).</figcaption>" in page_of(notebook)
    assert "Waves (2 of 2).</figcaption>" in page_of(notebook)


def test_figures_are_numbered_through_the_page():
    figure = '<figcaption><b class="nadkit-number">Figure.</b> Words.'
    page = typeset.numbered(f"{figure}<details>{figure}</details>")
    assert page.index(">Figure 1.<") < page.index(">Figure 2.<")
    assert typeset.numbered(page) == page


def test_pictures_are_made_once_and_stay_close_to_what_they_were(tmp_path):
    x = np.linspace(0, 1, 128)
    smooth = np.stack([np.outer(x, x), np.outer(x, 1 - x), np.outer(1 - x, x)], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray((255 * smooth).astype(np.uint8)).save(buffer, format="png")
    pictures = Pictures(tmp_path)
    place = pictures.add(buffer.getvalue())
    made = pictures.made[place]
    when = made.stat().st_mtime_ns
    assert made.stat().st_size < len(buffer.getvalue())
    off = np.abs(np.asarray(Image.open(made).convert("RGB"), dtype=float) - np.floor(255 * smooth))
    assert off.mean() < 10
    assert Pictures(tmp_path).add(buffer.getvalue()) == place
    assert made.stat().st_mtime_ns == when


FRAME = """<table border="1" class="dataframe">
  <thead>
    <tr style="text-align: right;">
      <th></th>
      <th>share</th>
    </tr>
    <tr>
      <th>frequency</th>
      <th></th>
    </tr>
  </thead>
  <tbody>
    <tr><th>1</th><td>0.123456</td></tr>
    <tr><th>2</th><td>12345.6</td></tr>
    <tr><th>3</th><td>60000</td></tr>
    <tr><th>4</th><td>-1.50e-07</td></tr>
  </tbody>
</table>"""


def test_tables_of_pandas_have_one_head_and_three_digits(typeset_page):
    notebook, _ = typeset_page([nbformat.v4.new_output("display_data", {"text/html": FRAME})])
    text = page_of(notebook)
    assert "<thead><tr><th>frequency</th><th>share</th></tr></thead>" in text
    for cell in ("0.123", "12,300", "60000", "-1.5e-07"):
        assert f"<td>{cell}</td>" in text
    assert text.startswith('<div class="nadkit-scroll">')


def test_many_kept_numbers_are_folded(typeset_page):
    def kept(n: int) -> nbformat.NotebookNode:
        text = "\n".join(f"a<{i} = {i}" for i in range(n))
        store = {"version": 1, "numbers": {f"a<{i}": i for i in range(n)}}
        return nbformat.v4.new_output("display_data", {"text/plain": text}, metadata={results.MIME: store})

    few, many = (page_of(typeset_page([kept(n)])[0]) for n in (3, 4))
    assert few == ""
    assert many.startswith('<details class="nadkit-kept"><summary>')
    assert "<pre>a&lt;0 = 0\n" in many


def test_a_head_of_two_real_rows_stays(typeset_page):
    two = FRAME.replace("<th></th>\n    </tr>", "<th>%</th>\n    </tr>")
    notebook, _ = typeset_page([nbformat.v4.new_output("display_data", {"text/html": two})])
    assert page_of(notebook).count("</tr>") == two.count("</tr>")


def test_the_head_says_how_long_to_read_and_how_to_rerun(typeset_page):
    notebook, _ = typeset_page(record={"profile": "cpu", "seconds": 130.0})
    title, box, *_ = notebook["cells"]
    assert title["source"][0] == "# One\n"  # by which a build tells whether the sidebar changed
    assert title["source"][2].endswith(">1 min to read</p>\n")
    text = box["source"]
    assert "$ nadkit run part/one --profile cpu --out runs" in text
    assert "$ nadkit run part/one --profile cpu -p n=7 --out runs" in text
    assert '<a href="../../notebooks/part/one.ipynb" download>' in text
    assert "<td>this page, profile cpu</td><td>2 min</td>" in text
    assert "<td><code>n</code></td><td>how often</td><td>1..100</td><td>3</td><td>7</td>" in text
    assert "<td>mean, sum</td>" in text


def test_the_command_to_rerun_is_one_that_a_shell_takes(make_book):
    parameters = 'names: list[str] = ["it\'s", "b"]  # of what\n'
    root = make_book(one=make_notebook("One", parameters=parameters))
    (line,) = re.findall(r"^\$ (.* -p .*)$", typeset.rerun(load(root, "one"), {}, [], ""), re.M)
    _, _, name, _, given, *_ = shlex.split(line)
    values = validate(load(root, name), overrides=dict([given.split("=", 1)]))
    assert values == {"names": ["it's", "b"]}


def test_a_minute_of_reading_is_200_words():
    cells = [{"cell_type": "markdown", "source": "word " * 1000 + "\n```{include} a/b.md\n```\n$a b c$"}]
    assert typeset.reading_minutes([*cells, {"cell_type": "code", "source": "word " * 1000}]) == 5
    assert typeset.reading_minutes([]) == 1


@pytest.fixture
def built(make_book):
    """A book whose only executed chapter drew three pictures, one of them without a PDF."""
    root = make_book(part__one=make_notebook("One"), two=make_notebook("Two"))
    page = "".join(f'<img src="data:image/png;base64,{words(png(seed=i))}" alt="a">' for i in range(2))
    notebook = make_notebook("One", code=("x", "y"))
    notebook.cells[2].outputs = [shown("map", page, b"%PDF-1", b"%PDF-2")]
    notebook.cells[3].outputs = [displayed(png(seed=9))]
    path = root / "_build" / "executed" / "quick" / "part" / "one.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    return root


def test_the_figures_of_a_build_are_written_for_slides(built, tmp_path, capsys):
    out = tmp_path / "slides"
    assert main(["figures", str(out), "--root", str(built), "--json"]) == 0
    assert [entry["pdf"] for entry in json.loads(capsys.readouterr().out)] == [True, True, False]
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    names = ["cell-3.png", "map-2.pdf", "map-2.png", "map.pdf", "map.png"]
    assert found == [f"part/one/{name}" for name in names]
    assert (out / "part/one/map-2.pdf").read_bytes() == b"%PDF-2"
    assert (out / "part/one/cell-3.png").read_bytes() == png(seed=9)
    assert main(["figures", str(out), "one", "--root", str(built)]) == 0
    assert "without PDF, for their last run kept none: part/one" in capsys.readouterr().out
    assert main(["figures", str(out), "two", "--root", str(built)]) == 2
    assert "two is not in the last build of profile quick" in capsys.readouterr().err


def test_pictures_are_found_by_the_tables_that_they_show(built):
    names = [drawing.name for drawing in collect.drawings(built / "_build/executed/quick/part/one.ipynb")]
    assert names == ["map", "map-2", "cell-3"]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(
    ("address", "does", "found"),
    [
        ("", "", []),
        ("?present", "", ["nadkit-present"]),
        ("", "key(document.body, 'p')", ["nadkit-present"]),
        ("", "key(document.body, 'p'); key(document.body, 'p')", []),
        ("", "key(document.querySelector('textarea'), 'p')", []),
        ("", "document.querySelector('a').click()", ["nadkit-large"]),
        ("", "document.querySelector('a').click(); key(document.querySelector('dialog img'), 'Escape')", []),
        ("", "document.querySelector('a').click(); key(document.querySelector('dialog img'), 'Enter')", []),
    ],
)
def test_the_script_enlarges_figures_and_makes_pages_fit_for_a_projector(address, does, found, tmp_path):
    page = tmp_path / "page.html"
    key = "function key(at, key) { at.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})) }"
    page.write_text(
        f'<body><textarea></textarea><a class="nadkit-enlarge" href="x.png"><img src="x.png" alt="x"></a>'
        f"<script>{SCRIPT.read_text()}</script><script>{key}; {does}</script></body>"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--user-data-dir={tmp_path}"]
    done = subprocess.run(
        [*command, f"{page.as_uri()}{address}"], capture_output=True, text=True, timeout=120, check=True
    )
    # A closed figure may still stand in the page: it is removed a little later.
    shown = {"nadkit-present": 'class="nadkit-present"', "nadkit-large": 'class="nadkit-large" open'}
    assert [name for name, text in shown.items() if text in done.stdout] == found
