"""The scorecard: verdicts counted from numbers, with links, on a page that Sphinx builds without a warning."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from test_results import OTHER, Page, a_record
from toy import make_notebook

from nadkit.book import builder
from nadkit.book.chapters import BadInput
from nadkit.book.claims import FAILS, HOLDS, UNDECIDED, Claim, Claims, Run
from nadkit.book.scorecard import GONE, ON_A_STAND_IN, OWN, bibliography, markdown, require_cited, rows, to_json, totals

ROOT = Path(__file__).parents[2]
KEYS = {"ortizjimenez2020neural", "morcos2018importance"}


def claim(id: str, measured: float | None, *, paper: str = "ortizjimenez2020neural", **more) -> Claim:
    fields = {"statement": f"Statement {id}", "source": "figure 1", "reported": 0.99, "holds_if": ">= 0.9"}
    return Claim(id=id, measured=measured, paper=paper, **fields | more)


def run(*claims: Claim, chapter: str = "inputs/nads") -> Run:
    record = {"chapter": chapter, "profile": "quick", "status": "finished"}
    return Run(Path("x.ipynb"), record, Claims(claims), f"Title of *{chapter}*, $x^2$")


def recorded(profile: str, *claims: Claim, **more):
    return a_record(path=Path(f"{profile}.json"), profile=profile, claims=Claims(claims), **more)


LIVE = [
    run(claim("a", 1.0), claim("b", 0.1), claim("own", 1.0, paper="")),
    run(claim("c", None), claim("d", 0.95, error=0.1, paper="morcos2018importance"), chapter="activations/one"),
]


def test_totals_are_those_of_each_paper_and_of_our_own():
    records = [recorded("paper", claim("a", 1.0), claim("own", 0.1, paper=""))]
    found = totals(rows(LIVE, records))
    assert [(t.paper, t.claims) for t in found] == [
        ("morcos2018importance", 1), ("ortizjimenez2020neural", 3), ("", 1)
    ]  # fmt: skip
    assert [list(t.live.values()) for t in found] == [[0, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert [list(t.recorded.values()) for t in found] == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert list(found[0].live) == [HOLDS, FAILS, UNDECIDED, ON_A_STAND_IN]


@pytest.mark.parametrize(
    ("records", "measured"),
    [
        ([], None),
        ([("quick", 0.1, {}), ("gpu", 0.2, {})], 0.2),
        ([("gpu", 0.2, {}), ("paper", 0.3, {})], 0.3),
        ([("gpu", 0.2, {}), ("paper", 0.3, {"validity": OTHER})], 0.2),
        ([("paper", 0.3, {"validity": OTHER})], None),
        ([("gpu", 0.2, {}), ("paper", None, {})], 0.2),
        ([("gpu", 0.2, {"started": "2025-01-02"}), ("gpu", 0.3, {"started": "2025-01-01"})], 0.2),
        ([("gpu", 0.2, {"started": "2025-01-01"}), ("gpu", 0.3, {"started": "2025-01-02"})], 0.3),
    ],
)
def test_the_best_record_is_valid_measured_and_of_the_largest_scale(records, measured):
    (row,) = rows([run(claim("a", 1.0))], [recorded(p, claim("a", m), **more) for p, m, more in records])
    assert (row.best and row.best[1].measured) == measured
    assert len(row.recorded) == len(records)


def test_a_recorded_measurement_is_judged_by_the_rules_of_today():
    """Bound, amounts needed and settings are the live claim's; what was measured, and at what scale, the record's."""
    old = {"needs": {"networks": (100, 50), "gone": (1, 2)}, "same": {"sigma": (3.0, 3.0)}, "holds_if": ">= 0.9"}

    def verdict(**today) -> str:
        live = claim("a", None, **{"needs": {"networks": (1, 50)}, "same": {"sigma": (1.0, 3.0)}, **today})
        (row,) = rows([run(live)], [recorded("paper", claim("a", 0.8, **old))])
        return row.best[1].verdict, row.best[1].why_undecided

    assert verdict() == (FAILS, "")
    assert verdict(holds_if=">= 0.7") == (HOLDS, "")
    assert verdict(needs={"networks": (1, 200)}) == (UNDECIDED, "networks: 100 of the 200 needed")
    assert verdict(needs={"epochs": (1, 20)}) == (UNDECIDED, "epochs: unknown, 20 needed")
    assert verdict(same={"sigma": (3.0, 1.0)}) == (UNDECIDED, "sigma: 3.0, the claim is about 1.0")
    assert verdict(same={"epsilon": (1.0, 1.0)})[0] == UNDECIDED
    (row,) = rows([run()], [recorded("paper", claim("a", 0.95, holds_if=">= 0.9"))])
    assert row.best[1].verdict == HOLDS  # nobody makes the claim today: its own rules are left


def test_data_for_programs_have_every_claim_with_its_verdicts():
    records = [
        recorded("gpu", claim("a", 0.2), claim("gone", 1.0), validity=OTHER),
        recorded("paper", claim("a", 0.95)),
    ]
    data = to_json(rows(LIVE, records))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    by_id = {entry["id"]: entry for entry in data["claims"]}
    assert list(by_id) == ["a", "b", "own", "gone", "c", "d"]
    a = by_id["a"]
    assert (a["chapter"], a["link"]) == ("inputs/nads", "book/inputs/nads.html#claim-a")
    assert (a["live"]["measured"], a["live"]["verdict"], a["live"]["profile"]) == (1.0, HOLDS, "quick")
    assert [(r["record"], r["state"], r["verdict"]) for r in a["recorded"]] == [
        ("gpu", "differs", FAILS), ("paper", "current", HOLDS)
    ]  # fmt: skip
    assert (a["recorded"][0]["device"], a["recorded"][0]["date"]) == ("NVIDIA H200", "2025-11-20")
    assert (by_id["gone"]["live"], by_id["gone"]["link"]) == (None, "book/inputs/nads.html")
    assert by_id["c"]["live"]["why_undecided"] == "not measured"
    assert data["totals"][0] == {
        "paper": "morcos2018importance",
        "claims": 1,
        "live": {HOLDS: 0, FAILS: 0, UNDECIDED: 1, ON_A_STAND_IN: 0},
        "recorded": {HOLDS: 0, FAILS: 0, UNDECIDED: 0, ON_A_STAND_IN: 0},
    }
    assert sum(total["claims"] for total in data["totals"]) == 5


def tables(text: str) -> list[Page]:
    return [Page(found) for found in re.findall(r"<div.*?</div>", text, flags=re.DOTALL)]


def test_the_page_has_a_table_for_each_chapter_with_words_and_symbols():
    records = [recorded("paper", claim("a", 0.1), claim("gone", 1.0), validity=OTHER)]
    text = markdown(rows(LIVE, records))
    assert re.findall("^## .*$", text, flags=re.MULTILINE) == [
        "## Totals",
        "## [Title of *inputs/nads*, $x^2$](/book/inputs/nads.ipynb)",
        "## [Title of *activations/one*, $x^2$](/book/activations/one.ipynb)",
    ]  # fmt: skip
    assert "| {cite:t}`ortizjimenez2020neural` | 3 | live | 1 | 1 | 1 | 0 |\n|  |  | recorded | 0 | 0 | 0 | 0 |" in text
    assert f"| {OWN} | 1 | live | 1 | 0 | 0 | 0 |\n|  |  | recorded | 0 | 0 | 0 | 0 |" in text
    first, second = tables(text)
    assert [a["href"] for a in first.all("a")] == [
        "../inputs/nads.html#claim-a",
        "../inputs/nads.html#claim-b",
        "../inputs/nads.html#claim-own",
        "../inputs/nads.html",
    ]
    assert {head["scope"] for head in first.all("th")} == {"col", "row"}
    assert len(first.all("caption")) == 1
    assert "✓ holds" in first.text
    assert "✗ fails" in first.text
    assert "? not decidable at this scale" in second.text
    assert GONE in first.text
    assert "paper · NVIDIA H200 · 01234567+ · 2025-11-20differs: 1 of 2 series differ" in first.text
    assert "differs" not in second.text


def test_a_stand_in_has_a_column_of_its_own_and_yields_to_the_images_themselves():
    copy, itself = ({"images": (images, "cifar10")} for images in ("folder:x/cifar10-jpeg", "cifar10"))
    live = run(claim("a", None, same={"images": ("digits", "cifar10")}))
    on_copy, on_itself = recorded("paper", claim("a", 1.0, same=copy)), recorded("cpu", claim("a", 0.1, same=itself))
    (row,) = rows([live], [on_copy], {"a": "waits for x"})
    assert row.best[1].verdict == "holds, on a JPEG copy of CIFAR-10"
    assert totals([row])[0].recorded == {HOLDS: 0, FAILS: 0, UNDECIDED: 0, ON_A_STAND_IN: 1}
    assert row.waits == "waits for x"
    (table,) = tables(markdown([row]))
    assert "✓ holds, on a JPEG copy of CIFAR-10" in table.text
    (row,) = rows([live], [on_copy, on_itself])
    assert row.best[1].verdict == FAILS


def test_an_undecided_claim_says_which_run_it_waits_for():
    waits = {"a": "waits for x", "c": "waits for the run “big” (GPU, about 3 min)"}
    made = rows(LIVE, [], waits)  # a is decided live
    assert {row.claim.id: row.waits for row in made if row.waits} == {"c": waits["c"]}
    assert [entry["waits_for"] for entry in to_json(made)["claims"]] == [None, None, None, waits["c"], None]
    first, second = tables(markdown(made))
    assert "waits" not in first.text
    assert second.text.count(waits["c"]) == 1


def test_words_of_claims_and_records_cannot_break_the_page():
    nasty = "a < b\n\n</table> & {cite:t}`x` ```"
    claims = [claim("a", None, statement=nasty, source=nasty, reported=nasty, same={nasty: (1, 2)})]
    text = markdown(rows([run(*claims)], [recorded("paper", *claims, device=nasty)]))
    (page,) = tables(text)
    assert page.text.count("a < b </table> & {cite:t}`x` ```") == 6
    assert "" not in re.search(r"<div.*</div>", text, flags=re.DOTALL)[0].splitlines()


def test_a_book_without_claims_has_a_scorecard():
    assert "nothing yet" in markdown([])
    assert to_json([]) == {"version": 1, "totals": [], "claims": []}


def test_records_of_other_chapters_do_not_mix_in():
    (row,) = rows([run(claim("a", 1.0))], [recorded("paper", claim("a", 0.1), chapter="activations/one")])
    assert row.recorded == []


def test_a_paper_that_the_bibliography_lacks_is_named_with_its_claim():
    require_cited(rows(LIVE, []), KEYS)
    wrong = rows([run(claim("a", 1.0, paper="ortizjimenez2020"), claim("b", 1.0, paper="zz"))], [])
    with pytest.raises(BadInput) as caught:
        require_cited(wrong, KEYS)
    first, second = str(caught.value).splitlines()
    assert "claim a of inputs/nads" in first
    assert "did you mean 'ortizjimenez2020neural'?" in first
    assert "claim b" in second


def test_keys_are_read_from_the_bibliography():
    text = "@comment{no, }\n@string{x = {y}}\n@article{ a2020 ,\n title={@misc{b, c}}}\n  @Misc{c-d:2021,}\n"
    assert bibliography(text) == {"a2020", "c-d:2021"}
    assert bibliography((ROOT / "book" / "references.bib").read_text()) > KEYS


def test_the_page_is_built_without_a_warning(make_book, tmp_path):
    """The page of this book, with its style and bibliography, over a toy chapter; the chapter was not run."""
    root = make_book(inputs__nads=make_notebook("A title"))
    book = root / "book"
    (book / "practice" / "_generated").mkdir(parents=True)
    shutil.copy(ROOT / "book" / "practice" / "scorecard.md", book / "practice")
    shutil.copytree(ROOT / "book" / "_static", book / "_static", ignore=shutil.ignore_patterns("mathjax"))
    shutil.copy(ROOT / "book" / "references.bib", book)
    shutil.copy(ROOT / "book" / "references.md", book)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    toc["chapters"] += [{"file": "book/practice/scorecard"}, {"file": "book/references"}]
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    nasty = "x < y & {ref}`nowhere` ```\n\n$z$"
    records = [recorded("paper", claim("a", 0.1, source=nasty), claim("gone", 1.0))]
    made = rows([run(claim("a", 1.0, statement=nasty), claim("b", None, paper=""))], records)
    (book / "practice" / "_generated" / "scorecard.md").write_text(markdown(made))
    assert builder._render(root, tmp_path / "out") is None
    page = (tmp_path / "out" / "_build" / "html" / "book" / "practice" / "scorecard.html").read_text()
    assert 'href="../inputs/nads.html#claim-a"' in page
    assert 'href="../../scorecard.json"' in page
    assert "Ortiz-Jiménez" in page
    assert re.search(r'<h2>.*href="\.\./inputs/nads\.html".*Title of <em>inputs/nads</em>', page)
    assert len(re.findall("Title of <em>inputs/nads</em>", page)) > 1  # in the page's table of contents, too
    assert not (tmp_path / "out" / "_build" / "html" / "book" / "practice" / "_generated").exists()
