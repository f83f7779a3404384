"""The interactive figures: made of stored tables, honest where something is missing, driven by mouse and keys."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from browser import barriers, browser
from chromium import CHROMIUM, Page, opened

from nadkit.book import explorers, interactive, pages
from nadkit.book.explorers import ALL, MEMORISATION, Source
from nadkit.book.interactive import MISSING
from nadkit.book.results import MIME

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
ROOT = Path(__file__).parents[2]
SIGNAL = {"sigma": 3.0, "epsilon": 1.0}


def maps(network: str, accuracy: float, cells: list[tuple[int, int]]) -> pd.DataFrame:
    return pd.DataFrame([{"network": network, "fx": x, "fy": y, "accuracy": accuracy} for x, y in cells])


CELLS = [(x, y) for y in (-4, 0, 4) for x in (0, 4, 8)]
FRACTION, ACCURACY = "fraction of units ablated", "training accuracy"
CURVE = pd.DataFrame(
    [
        {"network": "MLP", "corruption": c, FRACTION: f, ACCURACY: 1 - f * f}
        for c in ("0", "0.4", "1")
        for f in (0.0, 0.5, 1.0)
    ]
)
HALF = CURVE[CURVE.corruption != "0"].assign(**{ACCURACY: 0.5})
BY_LAYER = pd.concat(
    [
        HALF[HALF[FRACTION] != 0.5].assign(layer="all", clamp="zero"),
        HALF.assign(layer="all", clamp="mean"),
        HALF.assign(layer="1", clamp="mean"),
    ]
)
IMAGES = [pages.packed(torch.eye(32).roll(k, 0)) for k in range(3)]
TABLES = {
    ("inputs/directional-bias", "map"): [
        Source(maps("lenet", 70.5, CELLS), "recorded: big", SIGNAL),
        Source(maps("lenet", 1.0, CELLS), "this build", SIGNAL),
    ],
    ("inputs/pooling", "map"): [
        Source(maps("lenet-nopool", 99.5, CELLS[:4]), "this build", SIGNAL),
        Source(maps("mlp", 1.0, CELLS), "this build", {"sigma": 1.0, "epsilon": 1.0}),
    ],
    ("inputs/nads", "first-lenet"): [
        Source(pd.DataFrame({"index": [0, 1, 50], "image": IMAGES}), "recorded: big", {}),
    ],
    ("inputs/nads", "eigenvalues"): [
        Source(
            pd.DataFrame(
                {
                    "curve": ["lenet, 100 networks"] * 2,
                    "networks": 100,
                    "index": [1, 2],
                    "eigenvalue / mean": [30.0, 17],
                }
            ),
            "recorded: big",
            {},
        ),
    ],
    ("inputs/accuracy-by-index", "accuracy-lenet"): [
        Source(
            pd.DataFrame({"series": ["NAD", "random"], "index": 0, "accuracy": [99.0, 60], "published": [100.0, None]}),
            "this build",
            {},
        ),
    ],
    ("inputs/nads", "first-logreg"): [Source(pd.DataFrame({"index": [0], "image": IMAGES[:1]}), "this build", {})],
    (MEMORISATION, "ablation"): [Source(CURVE, "recorded: old", {}), Source(CURVE, "this build", {})],
    (MEMORISATION, "layers"): [Source(BY_LAYER, "this build", {})],
    (MEMORISATION, "means"): [
        Source(
            pd.DataFrame(
                {"network": "MLP", "corruption": [0.0], "AUC, clamped to zero": 0.6, "AUC, clamped to the mean": 0.5}
            ),
            "this build",
            {},
        ),
    ],
}


def sources(chapter: str, name: str, *columns: str) -> list[Source]:
    found = TABLES.get((chapter, name), [])
    assert all({*columns} <= {*source.frame.columns} for source in found)
    return found


def test_a_cell_says_each_accuracy_and_the_published_one():
    explorer = ALL["fourier-map"](sources)
    fx, fy = explorer.controls
    assert (fx.values, fy.values) == ([0, 4, 8], [-4, 0, 4])
    assert (fx.start, fy.start) == (4, 4)
    assert re.fullmatch(
        r"Cell \(4, 4\): lenet 70\.5 %, lenet, published \d\d\.\d %, lenet-nopool not measured\.", explorer.words["4|4"]
    )
    assert "lenet-nopool 99.5 %" in explorer.words["0|0"]
    assert len(explorer.words) == 9
    assert "mlp" not in str(explorer.words)  # it learned another task
    assert explorer.runs == ["lenet, recorded: big", "lenet-nopool, this build"]


def test_the_published_accuracy_is_that_of_the_cell():
    from nadkit.data import published
    from nadkit.inputs.fourier import map_cells

    words = ALL["fourier-map"](sources).words
    full = published.published_fourier_map("lenet")
    for cell in map_cells():
        if (cell.fx, cell.fy) in CELLS:
            assert f"published {100 * full[cell.y, cell.x].item():.1f} %" in words[f"{cell.fx}|{cell.fy}"]


def test_a_direction_says_what_is_known_of_it():
    words = ALL["nads"](sources).words
    assert words["lenet|0"].startswith("NAD 0 of lenet: eigenvalue 30 times the mean, accuracy along")
    assert words["lenet|0"].endswith("99.0 % (published 100.0 %).")
    along = "accuracy along the NAD of this index"
    assert words["lenet|1"] == f"NAD 1 of lenet: eigenvalue 17 times the mean, not stored: {along}."
    assert words["lenet|50"] == f"NAD 50 of lenet: not stored: eigenvalue, {along}."


def test_a_curve_says_its_area_and_a_choice_that_nothing_measured_says_nothing():
    explorer = ALL["ablation"](sources)
    assert [c.values for c in explorer.controls] == [
        ["MLP"], ["all", "1"], ["zero", "mean"], ["recorded: old", "this build"], ["0", "0.4", "1"]
    ]  # fmt: skip
    first = explorer.words["MLP|all|zero|this build|0"]
    assert first.startswith("MLP, corruption 0, all layers clamped to zero: accuracy 0.75 with 50% of the units")
    assert first.endswith("area under the curve 0.625.")
    alone = explorer.words["MLP|1|mean|this build|0.4"]
    assert alone.startswith("MLP, corruption 0.4, layer 1 alone clamped to the mean: accuracy 0.50")
    assert "MLP|1|mean|this build|0" not in explorer.words
    assert "MLP|1|mean|recorded: old|0.4" not in explorer.words


def test_a_curve_that_two_tables_have_is_drawn_once_the_one_of_more_points():
    def points(state: dict[str, str]) -> list[dict]:
        rows = ALL["ablation"](sources).chart.to_dict()["data"]["values"]
        return [row for row in rows if state.items() <= row.items()]

    whole = {"run": "this build", "corruption": "1", "layer": "all", "clamp": "zero"}
    assert [row["fraction"] for row in points(whole)] == [0, 0.5, 1]
    assert [row["accuracy"] for row in points(whole | {"clamp": "mean"})] == [0.5, 0.5, 0.5]


def test_without_a_table_by_layer_there_is_nothing_to_choose_of_layers_and_clamps():
    def old(chapter: str, name: str, *columns: str) -> list[Source]:
        return [] if name == "layers" else sources(chapter, name, *columns)

    choices = {control.name: control.values for control in ALL["ablation"](old).controls}
    assert (choices["layer"], choices["clamp"]) == (["all"], ["zero"])


def test_what_a_field_starts_with_was_measured():
    for build in ALL.values():
        explorer = build(sources)
        assert interactive.key(*(control.start for control in explorer.controls)) in explorer.words


@pytest.mark.parametrize("name", ALL)
def test_without_tables_there_is_no_figure(name):
    assert ALL[name](lambda *_: []) is None


@pytest.mark.parametrize("name", ALL)
def test_a_figure_in_the_page_is_a_picture_with_words_and_data_that_cannot_end_their_script(name, tmp_path):
    explorer = ALL[name](sources)
    text = interactive.page(name, explorer, tmp_path)
    assert "" not in text.splitlines()  # Markdown would end the block
    data = json.loads(re.search('<script type="application/json">([^<]*)</script>', text)[1])
    assert data["words"] == explorer.words
    assert {control["name"] for control in data["controls"]} == {param["name"] for param in data["spec"]["params"]}
    assert re.search('<img src="data:image/png;base64,[^"]+" alt="[^"]+">', text)
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert interactive.page(name, explorer, tmp_path) == text


def test_a_chapter_leads_to_the_figure_of_its_table():
    notebook = {
        "cells": [{"outputs": [{"data": {"text/html": "<p>x</p>"}, "metadata": {MIME: {"tables": {"map": {}}}}}]}]
    }
    data = notebook["cells"][0]["outputs"][0]["data"]
    explorers.link(notebook, "inputs/flipping", "../")
    assert data["text/html"] == "<p>x</p>"
    explorers.link(notebook, "inputs/pooling", "../")
    assert '<a href="../explore.html#explorer-fourier-map">' in data["text/html"]


def test_a_book_without_the_page_has_no_figures(tmp_path):
    assert explorers.make(tmp_path, {}, tmp_path) == {}


def test_the_page_asks_for_every_figure():
    page = (ROOT / explorers.PAGE).read_text()
    assert re.findall(r"_generated/explorers/(\S+)\.md", page) == [*ALL]


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page of all figures, its scripts beside it."""
    folder = tmp_path_factory.mktemp("explorers")
    shutil.copytree(ROOT / "book" / "_static" / "explorers", folder / "_static" / "explorers")
    (folder / "_static" / "explorers" / "vega.js").write_text(interactive.library(), encoding="utf-8")
    (folder / "cache").mkdir()
    figures = "\n".join(interactive.page(name, ALL[name](sources), folder / "cache") for name in ALL)
    tags = "\n".join(re.findall(r"^<(?:link|script).*$", (ROOT / explorers.PAGE).read_text(), flags=re.MULTILINE))
    (folder / "book").mkdir()
    # Sphinx's pages have a script with a short name of its own.
    head = "<!doctype html><meta charset=utf-8><title>x</title><script>const _ = (text) => text;</script>"
    (folder / "book" / "explore.html").write_text(f"{head}{figures}{tags}", encoding="utf-8")
    return folder


@pytest.fixture
def page(folder, tmp_path):
    """The figures, open; at the end nothing was complained of, and nothing asked for outside."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with opened(folder / "book" / "explore.html", tmp_path / "profile") as found:
        found.wait('document.querySelectorAll(".nadkit-said").length === 3')
        yield found
        found.run("1")  # whatever is still to be told
        assert found.complaints() == []
        assert found.outside() == []


def said(page: Page, name: str) -> str:
    return page.run(f'document.querySelector("#explorer-{name} .nadkit-said").textContent')


def drawn(page: Page, name: str) -> str:
    """What is drawn, after the figure has had time to."""
    chart = f'document.querySelector("#explorer-{name} canvas")'
    return page.run(f"new Promise(r => setTimeout(r, 300)).then(() => {chart}.toDataURL())")


@pytest.mark.browser
def test_arrow_keys_step_through_the_map(page):
    before = drawn(page, "fourier-map")
    page.run('document.querySelector("#explorer-fourier-map .nadkit-chart").focus()')
    page.press("ArrowRight")
    assert said(page, "fourier-map").startswith("Cell (8, 4)")
    page.press("ArrowRight")  # there is no cell beyond
    page.press("ArrowUp", 2)
    assert said(page, "fourier-map").startswith("Cell (8, -4)")
    assert drawn(page, "fourier-map") != before
    assert page.run('document.querySelector("#explorer-fourier-map input[name=fx]").value') == "2"


@pytest.mark.browser
def test_pointing_at_a_cell_shows_it(page):
    x, y = page.middle("#explorer-fourier-map canvas")
    left, top = page.run(
        '(() => { const b = document.querySelector("#explorer-fourier-map canvas").getBoundingClientRect();'
        " return [b.x, b.y]; })()"
    )
    seen = set()
    for down in range(30, 200, 12):
        page.point(left + 90, top + down)
        seen.add(said(page, "fourier-map").partition(":")[0])
    assert len(seen) >= 3, (x, y, seen)


@pytest.mark.browser
def test_fields_choose_by_keyboard(page):
    page.run('document.querySelector("#explorer-nads input[name=index]").focus()')
    page.press("ArrowRight", 2)
    assert said(page, "nads").startswith("NAD 50 of lenet")
    page.run('document.querySelector("#explorer-nads select[name=network]").focus()')
    page.press("ArrowDown")
    assert said(page, "nads") == MISSING  # a slider has all its values


def fields(page: Page) -> dict[str, list]:
    """The fields of the ablation figure by name: what is chosen, and what else can be."""
    found = page.run(
        '[...document.querySelectorAll("#explorer-ablation select")].map(s => [s.name, s.selectedOptions[0].text,'
        " [...s.options].filter(o => !o.disabled).map(o => o.text), s.disabled])"
    )
    return {name: rest for name, *rest in found}


@pytest.mark.browser
def test_a_layer_that_no_record_has_comes_from_the_run_that_has_it(page):
    both = ["recorded: old", "this build"]
    start = {"layer": ["all", ["all", "1"], False], "clamp": ["zero", ["zero", "mean"], False]}
    levels = {"corruption": ["0", ["0", "0.4", "1"], False]}
    assert fields(page) == start | {"run": ["recorded: old", both, False]} | levels  # of one network: no field
    before = drawn(page, "ablation")

    page.run('document.querySelector("#explorer-ablation select[name=layer]").focus()')
    page.press("ArrowDown")
    assert "corruption 0.4, layer 1 alone clamped to the mean: accuracy 0.50" in said(page, "ablation")
    assert fields(page) == {
        "layer": ["1", ["all", "1"], False],
        "clamp": ["mean", ["mean"], True],
        "run": ["this build", ["this build"], True],
        "corruption": ["0.4", ["0.4", "1"], False],
    }
    assert drawn(page, "ablation") != before

    page.press("ArrowUp")
    assert fields(page)["clamp"] == ["mean", ["zero", "mean"], False]  # a choice is kept where it can be


@pytest.mark.browser
def test_arrow_keys_step_through_clamps_and_levels(page):
    page.run('document.querySelector("#explorer-ablation .nadkit-chart").focus()')
    page.press("ArrowDown")
    page.press("ArrowRight", 3)  # there is no level beyond
    assert "corruption 1, all layers clamped to the mean: accuracy 0.50" in said(page, "ablation")
    page.press("ArrowUp")
    assert "corruption 1, all layers clamped to zero: accuracy 0.75" in said(page, "ablation")


@pytest.mark.browser
def test_fields_say_no_more_than_their_kind_may(folder):
    with browser() as visit:
        page, _ = visit(folder / "book" / "explore.html")
        assert page.locator("#explorer-nads input[aria-valuetext]").count() == 1
        assert [wrong for wrong in barriers(page) if wrong.startswith("aria")] == []


@pytest.mark.browser
def test_without_scripts_the_pictures_stand(folder, tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    still = folder / "book" / "still.html"
    still.write_text(re.sub("<script (defer|src).*?</script>", "", (folder / "book" / "explore.html").read_text()))
    with opened(still, tmp_path / "profile") as page:
        assert page.run("[...document.images].map(i => i.naturalWidth > 300)") == [True] * 3
        assert page.run('document.querySelectorAll("canvas, input, select").length') == 0
