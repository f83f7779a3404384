"""The scorecard: verdicts counted from numbers, with links, on a page that Sphinx builds without a warning."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from test_results import OTHER, Page, a_record
from toy import make_notebook

from nadkit.book import builder, papers
from nadkit.book.chapters import BadInput
from nadkit.book.claims import FAILS, HOLDS, UNDECIDED, Claim, Claims, Run
from nadkit.book.papers import Paper, parse
from nadkit.book.scorecard import (
    GONE,
    ON_A_STAND_IN,
    OWN,
    conclusion,
    lines,
    link,
    markdown,
    require_cited,
    rows,
    to_json,
    totals,
)

ROOT = Path(__file__).parents[2]
KEYS = {"ortizjimenez2020neural", "morcos2018importance"}
CITED = {"ortizjimenez2020neural": Paper("Ortiz-Jiménez et al.", "2020", "https://arxiv.org/abs/2006.09717")}


def claim(id: str, measured: float | None, *, paper: str = "ortizjimenez2020neural", **more) -> Claim:
    fields = {"statement": f"Statement {id}", "source": "figure 1", "reported": 0.99, "holds_if": ">= 0.9"}
    return Claim(id=id, measured=measured, paper=paper, **fields | more)


def run(*claims: Claim, chapter: str = "inputs/nads") -> Run:
    record = {"chapter": chapter, "profile": "quick", "status": "finished"}
    return Run(Path("x.ipynb"), record, Claims(claims), f"Title of *{chapter}*, $x^2$")


def recorded(profile: str, *claims: Claim, **more):
    return a_record(path=Path(f"{profile}.json"), profile=profile, claims=Claims(claims), **more)


def images_of(n: str) -> list[dict[str, str]]:
    return [{"name": "images", "kind": f"MNIST, as 1x28x28, {n} and 10,000 of them (seed 0)", "sha256": "00ff"}]


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
        ([("gpu", 0.2, {"data": images_of("12,000")}), ("cpu", 0.3, {"data": images_of("60,000")})], 0.3),
    ],
)
def test_the_best_record_is_valid_measured_and_of_the_largest_scale(records, measured):
    (row,) = rows([run(claim("a", 1.0))], [recorded(p, claim("a", m), **more) for p, m, more in records])
    assert (row.best and row.best[1].measured) == measured
    assert len(row.recorded) == len(records)


def test_a_record_that_has_what_a_claim_needs_comes_before_a_bigger_one_that_has_not():
    enough = recorded("cpu", claim("a", 0.95, needs={"levels": (6, 6)}))
    bigger = recorded("gpu", claim("a", 0.5, needs={"levels": (2, 6)}), data=images_of("60,000"))
    (row,) = rows([run(claim("a", None, needs={"levels": (2, 6)}))], [bigger, enough])
    assert (row.best[0].profile, row.best[1].verdict) == ("cpu", HOLDS)


def test_no_record_is_chosen_for_its_verdict():
    """The bigger run counts, though its error leaves open what a smaller one would decide."""
    decides = recorded("cpu", claim("a", 0.95))
    bigger = recorded("gpu", claim("a", 0.9, error=0.1), data=images_of("60,000"))
    (row,) = rows([run(claim("a", None))], [bigger, decides])
    assert (row.best[0].profile, row.best[1].verdict) == ("gpu", UNDECIDED)


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
    assert verdict(needs={"epochs": (1, 20)}) == (UNDECIDED, "epochs: not in this record, 20 needed")
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


def table(text: str) -> Page:
    """The table of all claims."""
    return Page(re.search(r'<div class="nadkit-filtered">.*', text, flags=re.DOTALL)[0])


def rows_of(text: str) -> dict[str, str]:
    """The HTML of each claim's row, by id."""
    return dict(re.findall(r'<tr id="scorecard-([^"]*)"(.*?)</tr>', text, flags=re.DOTALL))


def test_the_page_has_one_table_with_words_and_symbols():
    records = [recorded("paper", claim("a", 0.1), claim("gone", 1.0), validity=OTHER)]
    text = markdown(rows(LIVE, records), CITED)
    assert re.findall("^## .*$", text, flags=re.MULTILINE) == ["## In short", "## Totals", "## All claims"]
    found = rows_of(text)
    assert list(found) == ["a", "b", "own", "gone", "c", "d"]
    for id, chapter in {"a": "inputs/nads", "c": "activations/one"}.items():
        assert f'href="../{chapter}.html#claim-{id}"' in found[id]
        assert f'href="../{chapter}.html"' in found[id]
        assert f'data-chapter="{chapter}"' in found[id]
    assert 'href="https://arxiv.org/abs/2006.09717">figure 1</a>' in found["a"]
    assert "arxiv" not in found["own"] + found["d"]
    assert [re.search('data-verdict="([^"]*)"', row)[1] for row in found.values()] == [
        HOLDS, FAILS, HOLDS, GONE, UNDECIDED, UNDECIDED
    ]  # fmt: skip
    assert "✓ holds" in Page(found["a"]).text
    assert "✗ fails" in Page(found["b"]).text
    assert "? not decidable at this scale" in Page(found["c"]).text
    assert GONE in found["gone"]
    assert {head["scope"] for head in table(text).all("th")} == {"col", "row"}


def test_where_a_number_comes_from_is_behind_a_click():
    records = [recorded("paper", claim("a", 0.1), validity=OTHER)]
    found = rows_of(markdown(rows(LIVE, records)))["a"]
    before, _, behind = found.partition("<details>")
    assert "H200" not in before
    words = Page(behind.partition("</details>")[0]).text
    assert "holds if >= 0.9" in words
    assert "this build, profile quick" in words
    assert "paper · NVIDIA H200 · 01234567+ · 2025-11-20differs: 1 of 2 series differ" in words


def test_the_fields_offer_what_the_rows_have_and_wait_for_a_script():
    text = markdown(rows(LIVE, []), CITED)
    form = re.search(r'<form class="nadkit-filter" hidden>.*?</form>', text, flags=re.DOTALL)[0]
    for name in ("paper", "verdict", "chapter"):
        select = re.search(rf'<select name="{name}">.*?</select>', form)[0]
        offered = re.findall('<option value="([^"]+)"', select)
        assert set(offered) == set(re.findall(f'data-{name}="([^"]*)"', text))
    assert re.search('<option value="">all</option>', form)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ([1.0, 1.0, 0.1, None], "2 of 3 decided claims hold; open: 1."),
        ([1.0, 1.0], "all 2 decided claims hold."),
        ([0.1, 0.1, None], "all 2 decided claims fail; open: 1."),
        ([0.1, None], "the one decided claim fails; open: 1."),
        ([None, None], "of 2 claims none is decided; open: 2."),
    ],
)
def test_a_conclusion_follows_from_the_verdicts(measured, said):
    made = [claim(f"c{i}", value) for i, value in enumerate(measured)]
    assert conclusion(rows([run(*made)], [])) == said


def test_a_conclusion_takes_the_recorded_verdict_first_and_says_what_is_planned():
    records = [recorded("paper", claim("b", 1.0), claim("c", 1.0), claim("d", None))]
    live = run(claim("a", 1.0), claim("b", 0.1), claim("c", None), claim("d", 0.1), claim("e", None))
    made = rows([live], records, {"e": "waits for x"})
    assert [row.standing[0] is not None for row in made] == [False, True, True, False, False]
    assert conclusion(made) == "3 of 4 decided claims hold; open: 1, planned runs would decide all."
    told = lines(made, "").splitlines()[1:-1]
    assert ["profile paper" in line for line in told] == [False, True, True, False, False]
    assert ["holds" in line.split("<a ")[0] for line in told] == [True, True, True, False, False]
    assert f"- **{OWN.capitalize()}**: " in markdown(rows(LIVE, []))
    text = markdown(rows(LIVE, []), CITED)
    assert "- {cite:t}`ortizjimenez2020neural` ([arXiv:2006.09717](https://arxiv.org/abs/2006.09717)): 1 of 2" in text


def test_what_stands_is_not_chosen_for_its_verdict():
    """The record has all that the claim needs and leaves it open: a live run with more luck does not outdo it."""
    (row,) = rows([run(claim("a", 1.0))], [recorded("paper", claim("a", 0.95, error=0.1))])
    assert row.standing[0] is not None
    assert row.standing[1].verdict == UNDECIDED
    short = claim("a", 1.0, needs={"seeds": (3.0, 5.0)})
    (row,) = rows([run(claim("a", 0.95, error=0.1, needs={"seeds": (5.0, 5.0)}))], [recorded("paper", short)])
    assert row.standing[0] is None
    assert row.standing[1].verdict == UNDECIDED


def test_where_neither_run_can_decide_the_recorded_one_is_shown_with_what_it_reported():
    """Though the live run lacks less: figures show recorded runs first."""
    here = claim("a", 1.0, needs={"seeds": (3.0, 5.0)})
    there = claim("a", 0.3, same={"images": ("MNIST", "CIFAR-10")}, reported=0.77)
    (row,) = rows([run(here)], [recorded("paper", there)], judged=lambda of: {c.id: c for c in of.claims})
    assert (row.standing[1].measured, row.standing[1].verdict) == (0.3, UNDECIDED)
    (text,) = (Page(found).text for found in rows_of(markdown([row])).values())
    assert "0.77" in text
    assert "0.99" not in text
    unmeasured = replace(there, measured=None)
    (row,) = rows([run(here)], [recorded("paper", unmeasured)], judged=lambda of: {c.id: c for c in of.claims})
    assert row.standing[0] is None


def test_a_record_is_judged_for_the_parameters_of_its_run():
    needed = run(claim("a", 1.0, needs={"found again": (0.9, 0.5)}))
    record = recorded("paper", claim("a", 1.0))
    (row,) = rows([needed], [record])
    assert row.best[1].verdict == UNDECIDED
    (row,) = rows([needed], [record], judged=lambda of: {c.id: c for c in of.claims})
    assert row.best[1].verdict == HOLDS
    assert row.standing[0] is record


def test_a_row_speaks_of_the_run_whose_number_it_shows():
    here, there = (
        claim("a", 1.0, statement=f"LeNet learns {images}", needs={"n": (n, 9)})
        for images, n in (("digits", 5), ("MNIST", 9))
    )
    (row,) = rows_of(markdown(rows([run(here)], [recorded("paper", there)]))).values()
    assert "LeNet learns MNIST" in Page(row).text
    assert "digits" not in Page(row).text
    assert "LeNet learns digits" in row  # for the search
    (row,) = rows_of(markdown(rows([run(here)], []))).values()
    assert "LeNet learns digits" in row


def test_claims_that_only_a_record_has_are_told_apart_from_those_counted():
    text = markdown(rows(LIVE[:1], [recorded("paper", claim("old", 1.0))]))
    assert "In a record only, and not in the totals: 1." in text
    assert "In a record only" not in markdown(rows(LIVE, []))


def test_the_totals_have_a_column_for_each_verdict_recorded_and_here():
    text = markdown(rows(LIVE, [recorded("paper", claim("a", 1.0))]), CITED)
    totals_table = re.search(r'<table class="table nadkit-totals">.*?</table>', text, flags=re.DOTALL)[0]
    assert re.findall('colspan="4">(.*?)<', totals_table) == ["Recorded", "This build"]
    assert "".join(f"<td>{n}</td>" for n in (3, 1, 0, 0, 0, 1, 1, 1, 0)) in totals_table
    assert totals_table.count("✓ holds") == totals_table.count(ON_A_STAND_IN) == 2


def test_claims_of_a_chapter_lead_to_their_rows_and_their_sources():
    made = Claims([claim("a", 1.0, source="a < b"), claim("own", 1.0, paper="", source="a < b")])
    data, metadata = made._repr_mimebundle_()
    notebook = {"cells": [{"outputs": [{"data": data, "metadata": metadata}, {"data": {}}]}, {}]}
    link(notebook, "../", CITED)
    (page,) = [output["data"]["text/html"] for output in notebook["cells"][0]["outputs"][:1]]
    first, second = re.findall(r"<tr id=.*?</tr>", page)
    assert '<a href="../practice/scorecard.html#scorecard-a"><code>a</code></a>' in first
    assert '<small><a href="https://arxiv.org/abs/2006.09717">a &lt; b</a></small>' in first
    assert '<a href="../practice/scorecard.html#scorecard-own"><code>own</code></a>' in second
    assert "<small>a &lt; b</small>" in second


def test_a_stand_in_has_a_column_of_its_own_and_yields_to_the_images_themselves():
    copy, itself = ({"images": (images, "cifar10")} for images in ("folder:x/cifar10-jpeg", "cifar10"))
    live = run(claim("a", None, same={"images": ("digits", "cifar10")}))
    on_copy, on_itself = recorded("paper", claim("a", 1.0, same=copy)), recorded("cpu", claim("a", 0.1, same=itself))
    (row,) = rows([live], [on_copy], {"a": "waits for x"})
    assert row.best[1].verdict == "holds, on a JPEG copy of CIFAR-10"
    assert totals([row])[0].recorded == {HOLDS: 0, FAILS: 0, UNDECIDED: 0, ON_A_STAND_IN: 1}
    assert row.waits == "waits for x"
    text = markdown([row])
    assert "✓ holds, on a JPEG copy of CIFAR-10" in table(text).text
    assert f'data-verdict="{ON_A_STAND_IN}"' in text
    assert "decided on a stand-in only: 1." in text
    (row,) = rows([live], [on_copy, on_itself])
    assert row.best[1].verdict == FAILS


def test_an_undecided_claim_says_which_run_it_waits_for():
    waits = {"a": "waits for x", "c": "waits for the run “big” (GPU, about 3 min)"}
    made = rows(LIVE, [], waits)  # a is decided live
    assert {row.claim.id: row.waits for row in made if row.waits} == {"c": waits["c"]}
    assert [entry["waits_for"] for entry in to_json(made)["claims"]] == [None, None, None, waits["c"], None]
    found = rows_of(markdown(made))
    assert "waits" not in found["a"]
    assert found["c"].count(waits["c"]) == 1


def test_words_of_claims_and_records_cannot_break_the_page():
    nasty = "a < b\n\n</table> & {cite:t}`x` ```"
    claims = [claim("a", None, statement=nasty, source=nasty, reported=nasty, same={nasty: (1, 2)})]
    text = markdown(rows([run(*claims)], [recorded("paper", *claims, device=nasty)]))
    assert table(text).text.count("a < b </table> & {cite:t}`x` ```") == 6
    for block in ("scroll", "filtered"):  # a blank line would end it, as Markdown has it
        inside = re.search(rf'<div class="nadkit-{block}".*?</table>', text, flags=re.DOTALL)[0]
        assert "" not in inside.splitlines()


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


def test_papers_are_read_from_the_bibliography():
    text = (
        "@comment{no, }\n@string{x = {y}}\n"
        "@article{ a2020 ,\n title={@misc{b, c}}, author={{\\'E}, A. and B, B.}, year=2020, doi={10.1/x}}\n"
        "  @Misc{c-d:2021, author={A and B and C}, eprint={1234.5678}, doi={10.1/y}}\n@misc{e,}"
    )
    assert parse(text) == {
        "a2020": Paper("É and B", "2020", "https://doi.org/10.1/x"),
        "c-d:2021": Paper("A et al.", "", "https://arxiv.org/abs/1234.5678"),
        "e": Paper("e", "", ""),
    }
    assert [paper.at for paper in parse(text).values()] == ["doi:10.1/x", "arXiv:1234.5678", ""]
    with pytest.raises(BadInput, match="bibliography"):
        parse("@article{a, b")


def test_every_paper_of_the_book_leads_out():
    found = papers.read(ROOT)
    assert found.keys() > KEYS
    assert found["ortizjimenez2020neural"] == CITED["ortizjimenez2020neural"]
    assert [key for key, paper in found.items() if not paper.url] == ["miller1955note"]  # a chapter of a book


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
    (book / "practice" / "_generated" / "scorecard.md").write_text(markdown(made, CITED))
    assert builder._render(root, tmp_path / "out") is None
    page = (tmp_path / "out" / "_build" / "html" / "book" / "practice" / "scorecard.html").read_text()
    assert 'href="../inputs/nads.html#claim-a"' in page
    assert 'href="../../scorecard.json"' in page
    assert "Ortiz-Jiménez" in page
    assert 'href="https://arxiv.org/abs/2006.09717"' in page
    assert not (tmp_path / "out" / "_build" / "html" / "book" / "practice" / "_generated").exists()
