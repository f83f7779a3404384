"""Claims: verdicts from numbers alone, shown to people and read back by programs."""

import json
import math
from pathlib import Path

import nbformat
import numpy as np
import pytest

from nadkit.book.chapters import BadInput, read_notebook
from nadkit.book.claims import FAILS, HOLDS, MIME, SYMBOLS, UNDECIDED, Claim, Claims, about, annotate, read
from nadkit.stats import Measured


def claim(measured: float | None = 1.0, holds_if: str = ">= 0.95", **more) -> Claim:
    fields = {"id": "top-1", "statement": "It works", "source": "Paper, fig. 1", "reported": 0.99}
    return Claim(**fields | {"measured": measured, "holds_if": holds_if} | more)


@pytest.mark.parametrize(
    ("measured", "error", "holds_if", "verdict"),
    [
        (0.96, 0.0, ">= 0.95", HOLDS),
        (0.95, 0.0, ">= 0.95", HOLDS),
        (0.95, 0.0, "> 0.95", FAILS),
        (0.94, 0.0, ">= 0.95", FAILS),
        (0.75, 0.25, ">= 0.5", HOLDS),
        (0.75, 0.25, "> 0.5", UNDECIDED),
        (0.75, 0.25, ">= 1", UNDECIDED),
        (0.75, 0.25, "> 1", FAILS),
        (0.75, 0.25, ">= 0.6", UNDECIDED),
        (2.0, 0.5, "<= 3", HOLDS),
        (4.0, 0.5, "<= 3", FAILS),
        (3.0, 0.5, "<= 3", UNDECIDED),
        (3.0, 0.0, "< 3", FAILS),
        (-2.0, 0.5, "<= -1.5", HOLDS),
        (1.0, 0.1, "between 0.8 and 1.2", HOLDS),
        (1.0, 0.5, "between 0.8 and 1.2", UNDECIDED),
        (1.2, 0.1, "between 0.8 and 1.2", UNDECIDED),
        (1.5, 0.1, "between 0.8 and 1.2", FAILS),
        (0.1, 0.1, "between 0.8 and 1.2", FAILS),
        (0.03, 0.02, "within 0.05", HOLDS),
        (-0.03, 0.02, "within 0.05", HOLDS),
        (0.04, 0.02, "within 0.05", UNDECIDED),
        (-0.08, 0.02, "within 0.05", FAILS),
        (1e-4, 0.0, "< 1e-3", HOLDS),
    ],
)
def test_verdict_looks_at_the_whole_interval(measured, error, holds_if, verdict):
    assert claim(measured, holds_if, error=error).verdict == verdict


def test_too_small_a_run_decides_nothing():
    small = claim(1.0, needs={"networks": (200, 1000), "seeds": (5, 3)})
    assert small.verdict == UNDECIDED
    assert small.why_undecided == "networks: 200 of the 1000 needed"
    assert claim(1.0, needs={"networks": (1000, 1000)}).verdict == HOLDS


@pytest.mark.parametrize(
    ("actual", "paper", "why"),
    [
        (0.1, 3.0, "sigma: 0.1, the claim is about 3.0"),
        ("ours", "paper", "sigma: ours, the claim is about paper"),
        (None, 3, "sigma: None, the claim is about 3"),
        (np.float64(0.5), np.int64(2), "sigma: 0.5, the claim is about 2"),
        (3, 3.0, ""),
        (np.str_("paper"), "paper", ""),
        (np.bool_(True), True, ""),
    ],
)
def test_a_run_of_other_settings_decides_nothing(actual, paper, why):
    other = claim(1.0, same={"sigma": (actual, paper), "convention": ("a", "a")})
    assert (other.verdict, other.why_undecided) == (UNDECIDED if why else HOLDS, why)
    assert json.dumps(other.same)


@pytest.mark.parametrize(
    ("images", "theirs", "verdict"),
    [
        ("cifar10", "cifar10", HOLDS),
        ("folder:/home/me/cifar10-jpeg", "cifar10", "holds, on a JPEG copy of CIFAR-10"),
        ("folder:cifar10-jpeg/", "cifar10", "holds, on a JPEG copy of CIFAR-10"),
        ("folder:cifar10-jpeg", "mnist", UNDECIDED),
        ("folder:/home/me/cats", "cifar10", UNDECIDED),
        ("a JPEG copy of CIFAR-10", "cifar10", "holds, on a JPEG copy of CIFAR-10"),
    ],
)
def test_a_verdict_on_a_stand_in_says_so_and_is_not_one_on_the_images(images, theirs, verdict):
    made = claim(same={"images": (images, theirs)})
    assert made.verdict == verdict
    assert "/home/me" not in str(Claims([made]))
    assert Claims.from_json(Claims([made]).to_json())[0] == made


def test_a_stand_in_excuses_nothing_else():
    copy = {"images": ("folder:cifar10-jpeg", "cifar10")}
    assert claim(0.1, same=copy).verdict == "fails, on a JPEG copy of CIFAR-10"
    assert claim(same=copy | {"width": (0.25, 1.0)}).verdict == UNDECIDED
    assert claim(same=copy | {"width": (0.25, 1.0)}).why_undecided == "width: 0.25, the claim is about 1.0"
    assert claim(None, same=copy).verdict == UNDECIDED


def test_all_that_stands_against_a_verdict_is_said():
    both = claim(None, same={"sigma": (1, 3)}, needs={"seeds": (1, 3)})
    assert both.why_undecided == "not measured; sigma: 1, the claim is about 3; seeds: 1 of the 3 needed"


def test_a_table_says_which_setting_is_another():
    data, metadata = Claims([claim(same={"convention": ("a<b", "paper")})])._repr_mimebundle_()
    assert "convention: a&lt;b, the claim is about paper" in data["text/html"]
    assert "convention: a<b, the claim is about paper" in data["text/plain"]
    assert metadata[MIME]["claims"][0]["why_undecided"] == "convention: a<b, the claim is about paper"


@pytest.mark.parametrize(
    ("reported", "text"),
    [(0.25, "0.25"), (10_000, "10000"), (np.float32(0.99), "0.99"), ("about half", "about half"), (None, "-")],
)
def test_what_was_reported_may_be_a_number_or_words(reported, text):
    data, _ = Claims([claim(reported=reported)])._repr_mimebundle_()
    assert f"reported: {text};" in data["text/plain"]
    assert f'<td class="nadkit-reported">{text}<br>' in data["text/html"]


def test_what_was_not_measured_is_undecided():
    assert claim(None).verdict == UNDECIDED
    assert claim(None).why_undecided == "not measured"
    assert claim(1.0).why_undecided == ""


@pytest.mark.parametrize(
    "nothing", [math.nan, math.inf, Measured(math.nan), Measured(1.0, math.nan), Measured(math.inf, 1.0)]
)
def test_a_number_that_is_not_finite_was_not_measured(nothing):
    unknown = claim(nothing)
    assert (unknown.measured, unknown.error, unknown.why_undecided) == (None, 0.0, "not measured")


def test_a_measurement_brings_its_error():
    made = Claim("top-1", "It works", Measured(np.float32(0.75), 0.25), "> 0.5")
    assert (made.measured, made.error, made.verdict) == (0.75, 0.25, UNDECIDED)
    assert (made.source, made.reported, made.paper) == ("our measurement", None, "")
    assert json.dumps(Claims([made]).to_json())
    assert list(Claims.from_json(Claims([made]).to_json())) == [made]
    with pytest.raises(ValueError, match="expected none beside a Measured"):
        claim(Measured(1.0, 0.1), error=0.2)


def test_claims_share_what_is_said_once():
    theirs = about(
        source="Paper, fig. 1", paper="somebody2020", needs={"seeds": (3, 3)}, same={"sigma": (1, 1), "size": (8, 32)}
    )
    plain = theirs("a", "It works", Measured(1.0, 0.1), "> 0", reported=0.99)
    assert plain == Claim(
        "a", "It works", 1.0, "> 0", "Paper, fig. 1", 0.99, 0.1,
        {"seeds": (3, 3)}, {"sigma": (1, 1), "size": (8, 32)}, "somebody2020",
    )  # fmt: skip
    more = theirs("b", "It works", None, "> 0", source="ours", needs={"epochs": (1, 2)}, same={"size": (8, 8)})
    assert (more.source, more.needs) == ("ours", {"seeds": (3, 3), "epochs": (1, 2)})
    assert more.same == {"sigma": (1, 1), "size": (8, 8)}
    assert plain.needs == {"seeds": (3, 3)}
    assert about(of="LeNet on MNIST")("c", "it works", None, "> 0").statement == "LeNet on MNIST: it works"
    with pytest.raises(TypeError, match="unexpected keyword"):
        theirs("c", "It works", 1.0, "> 0", sauce="Paper")


def test_numbers_of_numpy_become_plain():
    converted = claim(np.float32(0.5), error=np.float64(0.25), reported=np.float32(0.75))
    assert json.dumps(Claims([converted]).to_json())
    assert (converted.measured, converted.error, converted.reported) == (0.5, 0.25, 0.75)


@pytest.mark.parametrize(
    "holds_if",
    [
        "",
        "0.95",
        "=> 0.95",
        "== 1",
        ">= x",
        ">= 0.9 or so",
        "between 2 and 1",
        "within -1",
        "within",
        ">= nan",
        "> inf",
    ],
)
def test_only_bounds_are_conditions(holds_if):
    with pytest.raises(ValueError, match="holds_if: expected"):
        claim(1.0, holds_if)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("measured", "many"),
        ("error", -0.1),
        ("error", math.nan),
        ("id", "Top 1"),
        ("needs", {"networks": (1, math.nan)}),
        ("needs", {"networks": (1,)}),
        ("needs", {"networks": 1}),
        ("same", {"sigma": (1,)}),
        ("same", {"sigma": "ab"}),
        ("same", {"sigma": (math.nan, 3.0)}),
        ("same", {"sizes": ([1, 2], [1, 2])}),
        ("paper", None),
        ("paper", ["a2020"]),
    ],
)
def test_a_claim_that_no_verdict_can_come_from_is_refused(field, value):
    with pytest.raises(ValueError, match="expected"):
        claim(**{field: value})


def test_two_claims_cannot_share_an_id():
    with pytest.raises(ValueError, match="two claims have the id 'top-1'"):
        Claims([claim(), claim()])


def test_table_says_the_verdict_in_words_and_by_a_symbol():
    claims = [
        claim(1.0, id="a", statement="x < y & 'z'"),
        claim(0.1, id="b"),
        claim(None, id="c", reported=None),
    ]
    data, _ = Claims(claims)._repr_mimebundle_()
    for verdict in (HOLDS, FAILS, UNDECIDED):
        assert f"{SYMBOLS[verdict]} {verdict}" in data["text/html"]
        assert f"{SYMBOLS[verdict]} {verdict}" in data["text/plain"]
    assert "x &lt; y &amp;" in data["text/html"]
    assert "not measured" in data["text/html"]


def executed(path: Path, *stores: list[Claim], status: str = "finished") -> Path:
    """A notebook as it looks after a run that showed these claims."""
    cells = []
    for claims in stores:
        data, metadata = Claims(claims)._repr_mimebundle_()
        output = nbformat.v4.new_output("display_data", data, metadata=metadata)
        cells.append(nbformat.v4.new_code_cell("show(...)", outputs=[output]))
    record = {"status": status, "chapter": "inputs/nads"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"nadkit": record})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def test_claims_come_back_from_the_notebook_they_were_shown_in(tmp_path):
    settings = {"sigma": (0.1, 3.0), "convention": ("paper", "paper"), "whitened": (None, True)}
    made = [
        claim(0.5, error=0.25, needs={"networks": (20, 10)}, paper="somebody2020"),
        claim(None, id="other", same=settings),
    ]
    (run,) = read(executed(tmp_path / "a.ipynb", made))
    assert list(run.claims) == made
    assert run.record["chapter"] == "inputs/nads"
    assert run.title == "a"


def test_notes_stand_beside_undecided_claims_alone(tmp_path):
    path = executed(tmp_path / "a.ipynb", [claim(1.0, id="a"), claim(None, id="b"), claim(None, id="c")])
    notebook = read_notebook(path)
    annotate(notebook, {"a": "A note", "b": "waits for <x>"})
    (html,) = (cell["outputs"][0]["data"]["text/html"] for cell in notebook["cells"])
    assert "A note" not in html
    assert html.count("not measured</small><br><small>waits for &lt;x&gt;</small>") == 1
    assert "Recorded" not in html


def test_what_was_recorded_stands_beside_the_claims_of_this_run(tmp_path):
    notebook = read_notebook(executed(tmp_path / "a.ipynb", [claim(None, id="a"), claim(1.0, id="b")]))
    annotate(notebook, {}, {"a": ("MNIST, 12 min on <GPU>", claim(0.97, id="a"))})
    assert "Recorded:" not in notebook["cells"][0]["outputs"][0]["data"]["text/html"]
    of_another = claim(0.97, id="a", statement="On <MNIST>")
    annotate(notebook, {}, {"a": ("MNIST, 12 min on <GPU>", of_another)})
    assert (
        notebook["cells"][0]["outputs"][0]["data"]["text/html"].count("<small>Recorded: On &lt;MNIST&gt;</small>") == 1
    )
    (html,) = (cell["outputs"][0]["data"]["text/html"] for cell in notebook["cells"])
    assert '<th scope="col">Recorded</th>' in html
    assert "✓ holds</strong><br>0.97<br><small>MNIST, 12 min on &lt;GPU&gt;</small></td></tr>" in html
    assert html.count('<td class="nadkit-recorded">-</td>') == 1  # b has no record
    assert html.count('<td class="nadkit-run"><strong') == 2


@pytest.mark.parametrize(
    ("there", "said"), [(22.1, "<small>reported 22.1; MNIST</small>"), (None, "<small>MNIST</small>")]
)
def test_what_a_record_reported_is_told_where_it_is_another_number(tmp_path, there, said):
    notebook = read_notebook(executed(tmp_path / "a.ipynb", [claim(1.0, id="a", reported=19.4)]))
    annotate(notebook, {}, {"a": ("MNIST", claim(0.97, id="a", reported=there))})
    assert said in notebook["cells"][0]["outputs"][0]["data"]["text/html"]


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        ("between 0.9 and 1.1", "≠ outside our band"),
        ("within 0.1", "≠ outside our band"),
        (">= 0.9", "✗ fails"),
        ("between -1 and 1", "✓ holds"),
    ],
)
def test_a_band_that_is_missed_does_not_read_as_if_the_paper_were_wrong(bound, words):
    made = claim(0.5, bound)
    data, metadata = Claims([made])._repr_mimebundle_()
    assert f"{words}</strong>" in data["text/html"]
    assert f"{words}:" in data["text/plain"]
    assert made.verdict in (HOLDS, FAILS)
    assert metadata[MIME]["claims"][0]["verdict"] == made.verdict


def test_a_band_that_is_missed_on_a_stand_in_says_so():
    made = claim(0.5, "between 0.9 and 1.1", same={"images": ("folder:x/cifar10-jpeg", "cifar10")})
    assert made.verdict == "fails, on a JPEG copy of CIFAR-10"
    assert made.verdict_in_words == "≠ outside our band, on a JPEG copy of CIFAR-10"


def test_claims_stored_before_they_named_their_paper_are_read(tmp_path):
    path = executed(tmp_path / "a.ipynb", [claim()])
    notebook = json.loads(path.read_text())
    del notebook["cells"][0]["outputs"][0]["metadata"][MIME]["claims"][0]["paper"]
    path.write_text(json.dumps(notebook))
    assert list(read(path)[0].claims) == [claim(paper="")]


def test_a_verdict_in_the_file_is_not_believed(tmp_path):
    path = executed(tmp_path / "a.ipynb", [claim(0.1)])
    path.write_text(path.read_text().replace('"verdict": "fails"', '"verdict": "holds"'))
    assert read(path)[0].claims[0].verdict == FAILS


def test_a_folder_is_read_without_failed_and_hidden_runs(tmp_path):
    executed(tmp_path / "one" / "quick.ipynb", [claim()])
    executed(tmp_path / "two" / "quick.ipynb", [claim()], status="failed")
    executed(tmp_path / "two" / "gpu.failed.ipynb", [claim()], status="failed")
    executed(tmp_path / "two" / ".part.ipynb", [claim()])
    assert [run.path.parent.name for run in read(tmp_path)] == ["one"]
    assert len(read(tmp_path, failed=True)) == 3


def test_a_failed_run_is_read_only_where_asked_for(tmp_path):
    path = executed(tmp_path / "a.ipynb", [claim()], status="failed")
    with pytest.raises(BadInput, match="failed run"):
        read(path)
    assert len(read(path, failed=True)[0].claims) == 1


def test_one_id_in_two_tables_of_a_notebook_is_refused(tmp_path):
    path = executed(tmp_path / "a.ipynb", [claim()], [claim()])
    with pytest.raises(BadInput, match="two claims have the id 'top-1'"):
        read(path)


@pytest.mark.parametrize("content", ["", '{"cells": [', "[]", '{"cells": 3}'])
def test_a_damaged_notebook_is_named(tmp_path, content):
    (tmp_path / "a.ipynb").write_text(content)
    with pytest.raises(BadInput, match=r"a\.ipynb is not a notebook"):
        read(tmp_path)


def test_a_damaged_store_is_named(tmp_path):
    path = executed(tmp_path / "a.ipynb", [claim()])
    path.write_text(path.read_text().replace('"holds_if": ">= 0.95"', '"holds_if": "maybe"'))
    assert MIME in path.read_text()
    with pytest.raises(BadInput, match=r"a\.ipynb: the claims stored in it cannot be read"):
        read(path)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="found nothing"):
        read(tmp_path / "absent")
    with pytest.raises(BadInput, match="no finished run below this folder; 'nadkit run'"):
        read(tmp_path)
    executed(tmp_path / "a.failed.ipynb", [claim()])
    with pytest.raises(BadInput, match="no finished run below this folder, and 1 that failed; 'nadkit run'"):
        read(tmp_path)
