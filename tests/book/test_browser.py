"""The finished pages in a browser: they say nothing wrong, fit a phone, and keep nobody out.

The pages are those of a toy book with the real book's settings and styles, or those in the folder that NADKIT_PAGES
names: `NADKIT_PAGES=_build/html pytest tests/book/test_browser.py`.
"""

import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from browser import DESK, PHONE, THEMES, barriers, browser, mute, too_wide, undrawn
from toy import make_notebook

from nadkit.book.builder import build

ROOT = Path(__file__).parents[2]
REAL = os.environ.get("NADKIT_PAGES")
RESULT = """\
import pandas as pd
from nadkit import plots
from nadkit.book import results
plots.style()
table = pd.DataFrame({"epoch": range(1, 4), "accuracy": [0.2, 0.5, 0.9]})
results.show("curve", table, lambda t: plots.lines(t, x="epoch", y="accuracy"), alt="Accuracy after each epoch.")
results.show("numbers", table, alt="unused")
"""
CLAIMS = """\
from nadkit import stats
from nadkit.book.claims import Claim, show
show([
    Claim("toy-holds", "More is more", stats.Measured(3, 1), "> 0"),
    Claim("toy-fails", "Less is more", stats.Measured(-3, 1), "> 0"),
    Claim("toy-open", "Much is more", stats.Measured(0, 1), "> 0"),
    Claim("toy-outside", "More is the same", stats.Measured(3, 1), "between -1 and 1"),
])
"""

TOC = """\
format: jb-book
root: book/intro
chapters:
  - file: book/inputs/nads
  - file: book/inputs/others
  - file: book/practice/scorecard
  - file: book/reference/parameters
  - file: book/reference/names
  - file: book/references
"""
TEXTS = {
    "book/inputs/others": "# Another chapter\n\nA NAD is a direction, NADs are many: $x^2$, {ref}`scorecard`.\n",
    "book/intro": "# A toy book\n\nOf NADs, and of {cite:t}`morcos2018importance`: {ref}`scorecard`.\n",
    "book/reference/names": "# Names\n\n```{eval-rst}\n.. automodule:: nadkit.names\n   :members:\n```\n",
}
REAL_TEXTS = ("book/practice/scorecard", "book/reference/parameters")

pytestmark = [pytest.mark.browser, pytest.mark.timeout(3600 if REAL else 600)]


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """The folder of the pages."""
    if REAL:
        return Path(REAL).absolute()
    root = tmp_path_factory.mktemp("toy")
    for name in ("_config.yml", "book/references.bib", "book/references.md", "book/_static"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, root / name)
    real = {
        name: (ROOT / f"{name}.md").read_text() for name in ("book/practice/scorecard", "book/reference/parameters")
    }
    for name, text in (TEXTS | real).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.md").write_text(text)
    (root / "_toc.yml").write_text(TOC)
    nads = make_notebook("NADs: the preferred directions", code=(RESULT, CLAIMS))
    nads.cells[0].source += "\n\n**Claims tested here:** `toy-holds`, `toy-fails`, `toy-open`,\n`toy-outside`."
    nbformat.write(nads, root / "book/inputs/nads.ipynb")
    result = build(root, out=tmp_path_factory.mktemp("out"))
    assert result["error"] is None, result["error"]
    return Path(result["html"]).parent


@pytest.fixture(scope="module")
def pages(html) -> list[Path]:
    """The pages that people read."""
    return sorted((html / "book").rglob("*.html"))


class Found(NamedTuple):
    """What is wrong with a page in one theme."""

    complaints: list[str]
    undrawn: int
    mute: list[str]
    barriers: list[str]
    wide: list[str]


@pytest.fixture(scope="module", params=THEMES)
def found(request, html, pages) -> dict[str, Found]:
    """What is wrong with each page, in either theme."""
    with browser(request.param) as visit:
        return {page.relative_to(html).as_posix(): look(*visit(page)) for page in pages}


def look(page, complaints: list[str]) -> Found:
    complaints = [*complaints]  # axe asks for more
    wrong = complaints, undrawn(page), mute(page), barriers(page)
    page.set_viewport_size(PHONE)
    wide = too_wide(page)
    page.set_viewport_size(DESK)
    return Found(*wrong, wide)


def test_nothing_fails_and_nothing_comes_from_outside(found):
    assert {page: wrong.complaints for page, wrong in found.items() if wrong.complaints} == {}


def test_formulas_are_drawn(found):
    assert {page: wrong.undrawn for page, wrong in found.items() if wrong.undrawn} == {}


def test_pictures_and_tables_say_what_they_show(found):
    assert {page: wrong.mute for page, wrong in found.items() if wrong.mute} == {}


def test_nobody_is_kept_out(found):
    assert {page: wrong.barriers for page, wrong in found.items() if wrong.barriers} == {}


def test_pages_fit_a_phone(found):
    assert {page: wrong.wide for page, wrong in found.items() if wrong.wide} == {}


def test_search_finds_the_chapter_first(html):
    with browser() as visit:
        page, complaints = visit(html / "search.html")
        page.goto(f"{page.url}?q=NAD")
        first = page.locator("#search-results ul.search li a").first
        assert first.get_attribute("href").startswith("book/inputs/nads.html")
        assert complaints == []


class Targets(HTMLParser):
    """Collects where a page's links lead, and what on it they can lead to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids = {""}
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


def test_links_within_the_book_lead_somewhere(pages):
    targets, dead = {page: Targets(page) for page in pages}, []
    for page, here in targets.items():
        for link in here.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            file = (page.parent / unquote(address.path)).resolve() if address.path else page
            known = targets[file].ids if file in targets else {unquote(address.fragment)}
            if not file.exists() or unquote(address.fragment) not in known:
                dead.append(f"{page.name}: {link}")
    assert dead == []
    assert sum(len(here.links) for here in targets.values()) > 10
