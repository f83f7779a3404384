"""The book itself: it runs, says what it measured, and its pages work without a network."""

import fnmatch
import itertools
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import browser
import nbformat
import pytest
import yaml
from test_forecast import disagreements

from nadkit.book import builder, claims, explorers, interactive, proofread, results, witness
from nadkit.book.builder import build
from nadkit.book.chapters import (
    Chapter,
    cell_source,
    cell_tags,
    find_chapters,
    find_pages,
    load,
    read_mapping,
    validate,
)
from nadkit.book.records import UNVERIFIED, recorded, validity_of
from nadkit.inputs.covariance import LOCAL_FROM

ROOT = Path(__file__).parents[2]
CHAPTERS = list(find_chapters(ROOT))
PROFILE = "smoke"
WIDTH = 96  # columns of code that readers see, as in book/ruff.toml
# These have no lines left to split a text for screen readers over; there it may stay on a longer one.
FULL = {
    "activations/memorisation",
    "activations/model-selection",
    "activations/selectivity",
    "activations/selectivity-and-importance",
    "bridge/two-kinds-of-directions",
    "neighbours/pi-nets",
    "neighbours/search-without-training",
    "neighbours/taylor-pruning",
}


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder `_build` of the book built once in the profile for tests."""
    if not CHAPTERS:
        pytest.skip("the book has no chapters yet")
    out = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in witness.BASE.items():  # so that the runs can be compared to the witnesses
            patch.setenv(name, value)
        patch.setattr("nadkit.book.records.verify", lambda *_, **__: [])  # a test of its own looks, and writes nothing
        result = build(ROOT, PROFILE, out=out)
    assert result["error"] is None, result["error"]
    return out / "_build"


def pages(built: Path) -> list[Path]:
    """The HTML pages that people read."""
    return sorted((built / "html" / "book").rglob("*.html"))


# ---- the sources ---------------------------------------------------------------------------------


def test_nothing_is_wrong_with_the_chapters_and_profiles():
    assert proofread.problems(ROOT) == []


def test_every_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert {f"book/{name}" for name in CHAPTERS} <= set(listed)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_sound(name):
    chapter = load(ROOT, name)
    assert chapter.notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(cell["id"] for cell in chapter.notebook["cells"])
    assert chapter.parameters
    assert listed_claims(name)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_is_short_and_each_cell_that_readers_see_fits_on_a_slide(name):
    chapter = load(ROOT, name)
    code = {cell["id"]: cell for cell in without_solutions(chapter) if "parameters" not in cell_tags(cell)}
    lines = {cell: cell_source(source).splitlines() for cell, source in code.items()}
    assert sum(bool(line) for source in lines.values() for line in source) <= 450
    seen = [cell for cell in code if "hide-input" not in cell_tags(code[cell])]
    assert {cell: len(lines[cell]) for cell in seen if len(lines[cell]) > 30} == {}
    wide = [line for cell in seen for line in lines[cell] if len(line) > WIDTH]
    assert [line for line in wide if not (name in FULL and line.lstrip().startswith("alt = "))] == []
    assert len(chapter.parameters) <= 20


def without_solutions(chapter: Chapter) -> Iterator[dict]:
    """The cells of code outside the solutions of exercises, and without their checks."""
    inside = False
    for cell in chapter.notebook["cells"]:
        if cell["cell_type"] == "code" and not inside and "exercise-test" not in cell_tags(cell):
            yield cell
        inside = (inside or "{solution-start}" in cell_source(cell)) and "{solution-end}" not in cell_source(cell)


def listed_claims(name: str) -> list[str]:
    """The claims that a chapter's first cell says it tests."""
    return proofread.listed_claims(load(ROOT, name).notebook)


def test_what_a_first_build_expects_is_of_chapters_that_exist():
    expected = read_mapping(ROOT / builder.SECONDS)
    assert set(expected["quick"]) <= set(CHAPTERS)
    assert all(5 < seconds < 300 for seconds in expected["quick"].values())


def test_titles_are_short_and_distinct():
    titles = [title_of(page) for page in find_pages(ROOT)]
    assert len(set(titles)) == len(titles)
    assert [title for title in titles if len(title) > 40] == []


def title_of(page: str) -> str:
    path = ROOT / f"{page}.md"
    text = path.read_text() if path.exists() else load(ROOT, page.removeprefix("book/")).notebook["cells"][0]["source"]
    return re.search(r"^# (.*)$", "".join(text), flags=re.MULTILINE)[1]


@pytest.mark.parametrize("part", ["inputs", "activations", "neighbours"])
def test_the_page_on_a_paper_knows_every_chapter_of_its_part_and_names_claims_that_exist(part):
    page = (ROOT / "book" / part / "paper.md").read_text()
    chapters = [name for name in CHAPTERS if name.startswith(f"{part}/")]
    assert set(re.findall(r"{ref}`([a-z0-9-]+)`", page)) >= {name.partition("/")[2] for name in chapters}
    listed = [claim for name in chapters for claim in listed_claims(name)]
    tables = [table.partition("\n\n")[0] for table in page.split("| in the paper")[1:]]
    named = re.findall(r"`([a-z0-9]+-[a-z0-9*-]+)`", "".join(tables))
    named = [pattern for pattern in named if f"{{ref}}`{pattern}`" not in page]
    assert named
    assert [pattern for pattern in named if not fnmatch.filter(listed, pattern)] == []


@pytest.mark.parametrize("name", [name for name in CHAPTERS if name.startswith("activations/")])
def test_a_chapter_reads_the_figures_that_it_draws_from_the_paper_before_it_trains(name):
    cells = [cell_source(cell) for cell in load(ROOT, name).notebook["cells"] if cell["cell_type"] == "code"]
    panel = r'"(\d[a-e](?:_\w+)?)"'
    drawn = [source for source in cells if re.search(r"digitised\.(figure|areas)|read_off\(", source)]
    reads = [number for number, source in enumerate(cells) if "digitised.origin(" in source]
    trains = [number for number, source in enumerate(cells) if re.search(r"\bfit(_many|_networks)?\(", source)]
    assert len(reads) == bool(drawn)
    for number in reads:
        assert number < trains[0]
        assert set(re.findall(panel, cells[number])) >= {each for source in drawn for each in re.findall(panel, source)}


# ---- the runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_profile_reached_the_chapter(built, name):
    chapter = load(ROOT, name)
    wanted = validate(chapter, PROFILE)
    notebook = nbformat.read(built / "executed" / PROFILE / f"{name}.ipynb", as_version=4)
    assert notebook.metadata.nadkit.parameters == wanted
    injected = "".join(cell.source for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", []))
    changed = {n for n, value in wanted.items() if value != chapter.parameters[n].default}
    assert set(re.findall(r"^(\w+) = ", injected, flags=re.MULTILINE)) == changed


def test_every_chapter_claims_something_under_an_id_of_its_own(built):
    runs = claims.read(built / "executed" / PROFILE)
    assert len(runs) == len(CHAPTERS)
    assert all(run.claims for run in runs)
    ids = [claim.id for run in runs for claim in run.claims]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_claims_are_as_foreseen(built, name):
    (run,) = claims.read(built / "executed" / PROFILE / f"{name}.ipynb")
    chapter = load(ROOT, name)
    assert disagreements(chapter, validate(chapter, PROFILE), run.claims, small=True) == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_lists_the_claims_that_it_tests(built, name):
    executed = built / "executed" / PROFILE / f"{name}.ipynb"
    assert proofread.of_run(executed, name) == []
    (run,) = claims.read(executed)
    assert sorted(listed_claims(name)) == sorted(claim.id for claim in run.claims)


def test_memorisation_stores_what_the_ablation_explorer_offers(built):
    name = explorers.MEMORISATION
    executed = {name: built / "executed" / PROFILE / f"{name}.ipynb"}
    explorer = explorers.ablation(explorers.tables(ROOT, executed))
    layers, clamps = ["all", "relu1", "relu2", "relu9", "relu10", "relu11"], ["zero", "mean"]
    choices = {control.name: control.values for control in explorer.controls}
    assert (choices["layer"], choices["clamp"]) == (layers, clamps)
    for network, own in {"MLP": layers[:3], "ConvNet": [layers[0], *layers[3:]]}.items():
        for layer, clamp, level in itertools.product(own, clamps, "01"):
            assert interactive.key(network, layer, clamp, "this build", level) in explorer.words


@pytest.mark.parametrize("name", CHAPTERS)
def test_todays_code_gives_the_recorded_numbers(built, name):
    """The smoke run is the witness's run where the size is the same; else the witness runs once more."""
    chapter = load(ROOT, name)
    for record in recorded(name, ROOT):
        values = witness.parameters(chapter, record.witness.parameters)
        executed = built / "executed" / PROFILE / f"{name}.ipynb"
        smoke = validate(chapter, PROFILE)
        today = witness.seen(executed, smoke) if values == smoke else witness.observe(chapter, values)
        validity = validity_of(record, today)
        if "not at hand" in validity.why:
            pytest.skip(f"{record.key}: {validity.why}")
        assert validity.state == "verified", f"{record.key} {validity.state}: {validity.why}"


NEVER_REPEATS = {"tay-removed-faster": "a ratio of times"}


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_witness_sees_every_claim_that_its_record_decides(name):
    """Else the record would stay verified whatever becomes of the code behind that claim."""
    today = set(listed_claims(name))
    for record in recorded(name, ROOT):
        blind = []
        for claim in record.claims:
            series = record.witness.series.get(f"claim {claim.id}")
            tells = series and series.values != [None] and (series.robust or series.repeats)
            if claim.verdict != claims.UNDECIDED and claim.id in today and not tells:
                blind.append(claim.id)
        assert set(blind) <= set(NEVER_REPEATS), f"{record.key}: {', '.join(blind)}"


BY_WINDOWS = (
    "bridge/two-kinds-of-directions/cpu",
    "inputs/flipping/gpu",
    "inputs/nads/cpu",
    "inputs/poisoning/cpu",
    "neighbours/local-elasticity/cpu",
)
"""The records that took secants by the windows that a pixel reaches, as is done from so many networks on."""


@pytest.mark.parametrize("key", BY_WINDOWS)
def test_a_witness_takes_secants_as_its_record_did(key):
    """Else it would not see that the code of the windows has changed."""
    chapter, profile = key.rsplit("/", 1)
    (record,) = (r for r in recorded(chapter, ROOT) if r.name.startswith(profile))
    size = record.witness.parameters
    assert record.parameters["n_networks"] >= LOCAL_FROM
    assert size.get("local", size["n_networks"] >= LOCAL_FROM)


EDITS = {
    "inputs/flipping": ("basis=by_frequency)", "basis=fourier)"),
    "inputs/poisoning": ("index=index, epsilon=epsilon)", "index=index, epsilon=epsilon / 2)"),
    "inputs/conditioning": ('schedule="constant", ', ""),
    "practice/sweeps": ("range(seeds)", "range(1, seeds + 1)"),
}


def edited(built: Path, folder: Path, name: str, old: str, new: str) -> witness.Comparison:
    """How a run of an edited chapter in a copy of the book compares to that of the book, at the size of a witness."""
    shutil.copytree(ROOT / "book", folder / "book")
    for page in ("_toc.yml", "_config.yml"):
        shutil.copy(ROOT / page, folder)
    path = folder / "book" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
    cell.source = cell.source.replace(old, new)
    nbformat.write(notebook, path)
    values = validate(load(ROOT, name), PROFILE)
    then = witness.seen(built / "executed" / PROFILE / f"{name}.ipynb", values)
    return witness.compare(then, witness.observe(load(folder, name), values))


@pytest.mark.parametrize("name", EDITS)
def test_the_size_of_a_witness_shows_another_experiment(built, tmp_path, name):
    """Deliberate edits of chapters whose networks hardly learn at this size."""
    assert edited(built, tmp_path, name, *EDITS[name]).differing


def test_the_size_of_a_witness_shows_no_other_experiment_where_there_is_none(built, tmp_path):
    same = "basis=by_frequency)", "basis=by_frequency  # from low to high\n)"
    assert edited(built, tmp_path, "inputs/flipping", *same).agrees


def test_what_is_known_of_the_records_is_of_todays_code():
    """`nadkit verify` before a commit; else everybody's first build runs the witnesses."""
    states = {record.key: record.validity.state for name in CHAPTERS for record in recorded(name, ROOT)}
    assert [key for key, state in states.items() if state == UNVERIFIED] == []


# ---- the pages -----------------------------------------------------------------------------------


class Loads(HTMLParser):
    """Collects what a page loads, and the images without a text of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.mute: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("canonical", "author"):
            self.addresses.append(given.get("href") or "")
        for name in ("src", "srcset", "poster", "data"):
            self.addresses.append(given.get(name) or "")
        if tag == "img" and given.get("alt", "") in ("", given.get("src")):
            self.mute.append(given.get("src") or "")


def test_pages_load_nothing_from_outside(built):
    outside = re.compile(r"(https?:)?//")
    for page in pages(built):
        loads = Loads()
        loads.feed(page.read_text())
        assert any(loads.addresses)
        assert [a for a in loads.addresses if outside.match(a.strip())] == [], page
    sheets = list((built / "html" / "_static").rglob("*.css"))
    assert sheets
    for sheet in sheets:
        found = re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", sheet.read_text())
        assert found == [], sheet


def test_every_picture_is_drawn_and_says_what_it_shows(built):
    for page in pages(built):
        assert "&lt;Figure size" not in page.read_text(), page
        assert results.NOT_DRAWN not in page.read_text(), page
        loads = Loads()
        loads.feed(page.read_text())
        assert loads.mute == [], page


@pytest.mark.browser
def test_pages_work_in_a_browser_without_a_network(built):
    with browser.browser() as visit:
        for path in pages(built):
            page, complaints = visit(path)
            assert complaints == [], path
            assert browser.undrawn(page) == 0, path
