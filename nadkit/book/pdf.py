"""PDF: the pages of a built book in one file, printed by a headless Chromium.

LaTeX would set only what Sphinx knows of a page. Our figures, claims and tables are HTML, which needs a browser.
"""

import html
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pikepdf
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Error, sync_playwright

from nadkit import files
from nadkit.book import chapters
from nadkit.book.chapters import BadInput, find_pages, read_mapping

# The system's browser; if there is none, playwright takes its own.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--no-sandbox", "--allow-file-access-from-files")
PATIENCE = 10 * 60 * 1000
"""Milliseconds that the browser may take to open the joined pages."""
STYLE = """\
@page { size: A4; margin: 18mm 16mm; }
html { font-size: 11px; }
body { display: block; }
section.nadkit-sheet { break-before: page; padding: 0; }
h1, h2, h3, h4, summary, .nadkit-tabs > label { break-after: avoid; }
figure, tr, .admonition-title, .cell_input { break-inside: avoid; }
figure img { width: auto; height: auto; max-width: 100%; max-height: 100mm; }
pre { white-space: pre-wrap; }
.nadkit-scroll, .nadkit-tabs > div { overflow: visible; }
.nadkit-sheet .nadkit-tabs { display: block; }
.nadkit-sheet .nadkit-tabs > label { display: block; border: none; padding: .6em 0 0; font-weight: bold; }
a.headerlink, .nadkit-tabs > input { display: none; }"""
FOOTER = '<div style="width: 100%; text-align: center; font-size: 8px"><span class="pageNumber"></span></div>'


def write(root: Path, out: Path, build: Path | None = None, say: Callable[[str], None] = print) -> int:
    """Print the last build of the book at `root` to the file `out`, and return how many of its pages that has.

    `build` is the folder in which it was built, if not `root`.

    Raises:
        BadInput: a page was not built, the table of contents is wrong, or a browser is missing.
        DataError: the file cannot be written.
    """
    folder = (build or root).absolute() / "_build" / "html"
    pages = {name: folder / f"{name}.html" for name in find_pages(root)}
    if missing := [name for name, path in pages.items() if not path.exists()]:
        raise BadInput(f"{missing[0]} is not in the last build: 'nadkit build' makes the pages")
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:  # some browsers may not read the system's own /tmp
        joined = Path(beside) / "book.html"
        joined.write_text(join(pages, read_mapping(root / "_config.yml"), read_mapping(root / "_toc.yml")), "utf-8")
        say(f"printing {len(pages)} pages of the book, which takes minutes")
        with files.atomic_write(out) as part:
            _pack(_printed(joined), part)
    return len(pages)


def join(pages: Mapping[str, Path], config: Mapping[str, Any], toc: Mapping[str, Any]) -> str:
    """Return the pages as one HTML document that needs no network: a title, the contents, and a sheet for each page."""
    names = {path.as_uri(): name for name, path in pages.items()}
    sheets = {name: _sheet(name, path, names) for name, path in pages.items()}
    # Sphinx gives MathJax only to pages with formulas.
    like = next((path for path in pages.values() if "/mathjax/" in path.read_text("utf-8")), next(iter(pages.values())))
    head = BeautifulSoup(like.read_text("utf-8"), "html.parser").head
    for tag in head.find_all(["link", "script", "title"]):
        if "stylesheet" in tag.get("rel", []) or "/mathjax/" in tag.get("src", ""):
            _place(tag, like)
        elif "window.MathJax" not in tag.text:
            tag.decompose()
    title = html.escape(str(config.get("title", "")))
    by = f"<p>{html.escape(str(config.get('author', '')))}, {date.today():%d %B %Y}</p>"
    contents = "\n".join(_contents(toc, sheets))
    body = "\n".join(f'<section class="nadkit-sheet" id="{name}">{sheet}</section>' for name, sheet in sheets.items())
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head>{head.decode_contents()}<title>{title}</title>'
        f"<style>{STYLE}</style></head><body><main class='bd-content'><article class='bd-article'>"
        f"<h1>{title}</h1>{by}{contents}{body}</article></main></body></html>"
    )


def _sheet(name: str, path: Path, names: Mapping[str, str]) -> Tag:
    """Return what a page says, its names made unlike those of the others, its links to them leading to their sheets."""
    article = BeautifulSoup(path.read_text("utf-8"), "html.parser").select_one("article.bd-article")
    for tag in article.select("script, details.hide, .nadkit-rerun"):  # what is folded on the pages
        tag.decompose()
    for tag in article.find_all(True):
        for key in ("id", "for"):
            if tag.get(key):
                tag[key] = f"{name}--{tag[key]}"
        if tag.name == "details":
            tag["open"] = ""
        _place(tag, path)
        if tag.name == "a" and "href" in tag.attrs:
            page, _, anchor = tag["href"].partition("#")
            if page in names:
                tag["href"] = f"#{names[page]}--{anchor}" if anchor else f"#{names[page]}"
            elif page.startswith("file:"):  # a picture, or a notebook beside the pages
                tag.unwrap()
    return article


def _place(tag: Tag, page: Path) -> None:
    """Let a tag name files by where they are, for the document lies elsewhere."""
    for key in ("src", "href"):
        if tag.get(key):
            tag[key] = urljoin(page.as_uri(), tag[key])
    tag.attrs.pop("loading", None)  # an image that is loaded only when scrolled to would not be printed


def _contents(toc: Mapping[str, Any], sheets: Mapping[str, Tag]) -> Iterator[str]:
    """Give the table of contents: for each part its caption, and links to its pages by their titles."""
    for part in toc.get("parts") or [toc]:
        yield f"<h2>{html.escape(part['caption'])}</h2>" if "caption" in part else ""
        yield "<ul>"
        for name in chapters.pages_below(part):
            title = sheets[name].h1.get_text().removesuffix("#") if sheets[name].h1 else name
            yield f'<li><a href="#{name}">{html.escape(title)}</a></li>'
        yield "</ul>"


def _pack(printed: bytes, out: Path) -> None:
    """Write a PDF with its objects in compressed streams: the tags that make it accessible are half of it otherwise."""
    with pikepdf.open(io.BytesIO(printed)) as document:
        document.save(out, object_stream_mode=pikepdf.ObjectStreamMode.generate)


def _printed(document: Path) -> bytes:
    """Return a document as PDF, with its headings as bookmarks.

    Raises:
        BadInput: no browser opens and prints the document.
    """
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page()
            page.goto(document.as_uri(), timeout=PATIENCE)
            page.evaluate("window.MathJax?.startup?.promise")
            return page.pdf(
                format="A4",
                outline=True,
                tagged=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                prefer_css_page_size=True,
            )
    except Error as error:
        why = str(error).splitlines()[0]
        raise BadInput(f"no Chromium prints here ({why}): install one, or 'playwright install chromium'") from None
