"""Pages in a headless Chromium, and what may be wrong with them."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nadkit.book.pdf import CHROMIUM

THEMES = ("light", "dark")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
# Without the last, a page from a file may not read its own fonts ahead.
FLAGS = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files")
LOCAL = re.compile(r"(file|data|blob|about):")


class Visited(NamedTuple):
    """An open page, and what went wrong while it loaded."""

    page: Any
    complaints: list[str]


Visit = Callable[[Path], Visited]


@contextmanager
def browser(theme: str = "light") -> Iterator[Visit]:
    """A function that opens a file, in a browser that has no network."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = chromium.new_context(viewport=DESK, color_scheme=theme)
        context.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
        page, complaints = context.new_page(), []
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: LOCAL.match(r.url) or complaints.append(f"outside: {r.url}"))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))

        def visit(path: Path) -> Visited:
            complaints.clear()
            page.goto(path.as_uri())
            page.evaluate("window.MathJax && MathJax.startup.promise")
            return Visited(page, complaints)

        yield visit
        chromium.close()


def mute(page: Any) -> list[str]:
    """Pictures without a text of their own, and tables and figures without a caption."""
    return page.evaluate("""() => [
        ...[...document.querySelectorAll('img')].filter(i => !i.alt.trim() || i.alt === i.getAttribute('src')),
        ...[...document.querySelectorAll('figure')].filter(f => !f.querySelector('figcaption')),
        ...[...document.querySelectorAll('table.nadkit-claims')].filter(t => !t.caption),
    ].map(element => element.outerHTML.slice(0, 200))""")


def too_wide(page: Any) -> list[str]:
    """What makes the page wider than the window."""
    return page.evaluate("""() => {
        const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width) return [];
        const cut = e => /auto|scroll|hidden/.test(getComputedStyle(e).overflowX);
        const scrolls = e => e && (cut(e) || scrolls(e.parentElement));
        return [...document.querySelectorAll('body *')]
            .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement)).slice(0, 5)
            .map(e => e.outerHTML.slice(0, 200));
    }""")


def undrawn(page: Any) -> int:
    """Number of formulas that are not drawn, or drawn as an error."""
    return page.evaluate("""() =>
        [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container svg')).length
        + document.querySelectorAll('[data-mjx-error]').length""")


def barriers(page: Any, impacts: Sequence[str] = ("critical", "serious")) -> list[str]:
    """What axe-core finds of these impacts: rule, element, and what it measured."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # Formulas are thousands of paths, and one picture each with a text of its own.
    where = {"exclude": [["mjx-container"]]}
    found = axe.run(page, where, {"resultTypes": ["violations"], "preload": False}).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:200]} {[check['message'] for check in node['any'][:1]]}"
        for violation in found
        if violation["impact"] in impacts
        for node in violation["nodes"]
    ]
