"""The scorecard in a browser: filtered and sorted by mouse and by keyboard, whole without a script."""

import re
import shutil
from pathlib import Path

import pytest
from chromium import CHROMIUM, Page, opened
from test_scorecard import CITED, claim, recorded, run

from nadkit.book.scorecard import markdown, rows

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]
ROOT = Path(__file__).parents[2]
SHOWN = '[...document.querySelectorAll("table.nadkit-scorecard tbody tr")].map(r => r.id.replace("scorecard-", ""))'


@pytest.fixture
def scorecard(tmp_path):
    """A file with the scorecard of a few claims, and the links and scripts of the book's page."""
    live = [
        run(claim("a", 1.0), claim("b", 0.1, statement="Something else"), claim("own", 2.0, paper="")),
        run(claim("c", None), chapter="activations/one"),
    ]
    text = markdown(rows(live, [recorded("gpu", claim("b", 0.2))]), CITED)
    source = (ROOT / "book" / "practice" / "scorecard.md").read_text()
    tags = "\n".join(re.findall(r"^<(?:link|script).*$", source, flags=re.MULTILINE))
    page = tmp_path / "book" / "practice" / "scorecard.html"
    page.parent.mkdir(parents=True)
    page.write_text(f"<!doctype html><meta charset=utf-8><title>x</title>{text}{tags}")
    shutil.copytree(ROOT / "book" / "_static", tmp_path / "_static", ignore=shutil.ignore_patterns("mathjax"))
    return page


@pytest.fixture
def page(scorecard, tmp_path):
    """The scorecard, open; at the end nothing was complained of, and nothing asked for outside."""
    with opened(scorecard, tmp_path / "profile") as found:
        found.wait('!document.querySelector("form.nadkit-filter").hidden')
        yield found
        found.run("1")  # whatever is still to be told
        assert found.complaints() == []
        assert found.outside() == []


def count(page: Page) -> str:
    return page.run('document.querySelector("form.nadkit-filter output").textContent')


def test_the_fields_filter_the_rows(page):
    assert page.run(SHOWN) == ["a", "b", "own", "c"]
    assert count(page) == "4 of 4 claims"
    page.click("input[name=words]")
    page.write("something")
    assert page.run(SHOWN) == ["b"]
    assert count(page) == "1 of 4 claims"
    page.click("button[type=reset]")
    page.wait(f"{SHOWN}.length === 4")


def test_the_fields_are_reached_and_set_by_keyboard(page):
    page.run('document.querySelector("input[name=words]").focus()')
    page.press("Tab", 2)
    assert page.run("document.activeElement.name") == "verdict"
    page.press("ArrowDown", 2)  # all, holds, fails
    assert page.run(SHOWN) == ["b"]
    page.press("ArrowUp")
    assert page.run(SHOWN) == ["a", "own"]


def test_a_title_sorts_by_mouse_and_by_keyboard(page):
    page.click(".nadkit-scorecard thead th:nth-child(5)")
    page.wait(f'{SHOWN}.join() === "c,b,a,own"')  # none, 0.2, 1, 2
    page.run('document.querySelector(".nadkit-scorecard thead th:nth-child(5) [tabindex]").focus()')
    page.press("Enter")
    page.wait(f'{SHOWN}.join() === "own,a,b,c"')
    assert page.run('document.querySelector(".nadkit-scorecard thead th:nth-child(5)").ariaSort') == "descending"


def test_a_link_to_a_row_shows_it_whatever_was_filtered(page):
    page.click("input[name=words]")
    page.write("something")
    assert page.run(SHOWN) == ["b"]
    page.run('location.hash = "#scorecard-c"')
    page.wait(f"{SHOWN}.length === 4")
    assert page.run('document.querySelector("#scorecard-c details").open')


def test_without_scripts_the_whole_table_stands(scorecard, tmp_path):
    scorecard.write_text(re.sub("<script.*", "", scorecard.read_text()))
    with opened(scorecard, tmp_path / "profile") as page:
        assert page.run(SHOWN) == ["a", "b", "own", "c"]
        assert page.run('document.querySelector("form.nadkit-filter").hidden')
        assert page.outside() == []
