"""The pages of a book in one PDF."""

import sys

import pikepdf
import pytest
import yaml
from bs4 import BeautifulSoup

from nadkit.book import pdf
from nadkit.book.chapters import BadInput
from nadkit.book.cli import main

PAGE = """\
<html><head><title>{title}</title><link rel="stylesheet" href="../_static/look.css"><script src="../menu.js"></script>
<script>window.MathJax = {{}}</script>{mathjax}</head><body><nav>elsewhere</nav><article class="bd-article">
<h1 id="top">{title}<a class="headerlink" href="#top">#</a></h1><script>menu()</script>
<p><a href="{other}.html#top">there</a> <a href="{other}.html">whole</a> <a href="https://doi.org/1">out</a></p>
<a href="../_pictures/one.png"><img loading="lazy" src="../_pictures/one.png" alt="One."></a>
<details class="hide above-input"><summary>code</summary></details><details><summary>Why?</summary>So.</details>
<div class="nadkit-rerun"><details><summary>Rerun</summary></details></div>
<input id="tab" type="radio"><label for="tab">this run</label>
</article></body></html>"""


@pytest.fixture
def book(tmp_path):
    """A book of two pages that were built."""
    pages = tmp_path / "_build" / "html" / "book"
    pages.mkdir(parents=True)
    (tmp_path / "book").mkdir()
    mathjax = '<script src="../_static/mathjax/tex.js"></script>'  # only where there are formulas
    for name, other, given in (("one", "two", ""), ("two", "one", mathjax)):
        (tmp_path / "book" / f"{name}.md").write_text(f"# {name}\n")
        (pages / f"{name}.html").write_text(PAGE.format(title=f"Page {name}", other=other, mathjax=given))
    toc = {"format": "jb-book", "root": "book/one", "parts": [{"caption": "A & B", "chapters": [{"file": "book/two"}]}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    (tmp_path / "_config.yml").write_text(yaml.safe_dump({"title": "Both <pages>", "author": "Us"}))
    return tmp_path


def joined(root):
    pages = {name: root / "_build" / "html" / f"{name}.html" for name in ("book/one", "book/two")}
    toc, config = (yaml.safe_load((root / name).read_text()) for name in ("_toc.yml", "_config.yml"))
    return BeautifulSoup(pdf.join(pages, config, toc), "html.parser")


def test_links_lead_to_the_sheets_of_one_document(book):
    found = joined(book)
    ids = [tag["id"] for tag in found.find_all(id=True)]
    assert len(ids) == len(set(ids))
    leads = [link["href"] for link in found.find_all("a")]
    assert {link for link in leads if link.startswith("#")} == {f"#{id}" for id in ids if "tab" not in id}
    assert {link for link in leads if not link.startswith("#")} == {"https://doi.org/1"}
    assert [label["for"] for label in found.find_all("label")] == ["book/one--tab", "book/two--tab"]


def test_a_sheet_has_what_its_page_says_without_scripts_and_folded_code(book):
    found = joined(book)
    assert found.h1.text == "Both <pages>"
    assert [part.text for part in found.find_all("h2")] == ["A & B"]
    assert [title.text for title in found.find_all("title")] == ["Both <pages>"]
    mathjax = (book / "_build" / "html" / "_static" / "mathjax" / "tex.js").as_uri()
    scripts = [(script.text, script.get("src")) for script in found.find_all("script")]
    assert scripts == [("window.MathJax = {}", None), ("", mathjax)]
    assert [box.summary.text for box in found.find_all("details")] == ["Why?"] * 2
    assert all(box.has_attr("open") for box in found.find_all("details"))
    assert "elsewhere" not in found.text
    picture = (book / "_build" / "html" / "_pictures" / "one.png").as_uri()
    assert [(image["src"], image.get("loading")) for image in found.find_all("img")] == [(picture, None)] * 2


@pytest.mark.browser
@pytest.mark.skipif(pdf.CHROMIUM is None, reason="no chromium on this machine")
def test_a_book_is_printed(book, capsys):
    out = book / "book.pdf"
    assert main(["pdf", str(out), "--root", str(book)]) == 0
    assert out.read_bytes().startswith(b"%PDF-")
    assert b"/ObjStm" in out.read_bytes()
    with pikepdf.open(out) as document:
        assert len(document.pages) == 3
        assert document.Root.MarkInfo.Marked
        assert {entry.title for entry in document.open_outline().root} == {"Both <pages>", "Page one", "Page two"}
    assert capsys.readouterr().out == f"2 pages of the book: {out}\n"


def test_what_cannot_be_printed_leaves_nothing(book, monkeypatch, capsys):
    out = book / "book.pdf"
    with monkeypatch.context() as patch:
        patch.delattr("nadkit.book.pdf")
        patch.delitem(sys.modules, "nadkit.book.pdf")
        patch.setitem(sys.modules, "pikepdf", None)
        assert main(["pdf", str(out), "--root", str(book)]) == 2
        assert "pikepdf is not installed: pip install -e '.[book,pdf]'" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(pdf, "CHROMIUM", sys.executable)  # which starts, and is no browser
        with pytest.raises(BadInput, match=r"no Chromium prints here \(.*\): install one"):
            pdf.write(book, out, say=lambda _: None)
    (book / "_build" / "html" / "book" / "two.html").unlink()
    assert main(["pdf", str(out), "--root", str(book)]) == 2
    assert "book/two is not in the last build: 'nadkit build' makes the pages" in capsys.readouterr().err
    assert not out.exists()
