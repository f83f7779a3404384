"""The forecast of claims: what parameters alone decide is as in the run, what a result decides is left open."""

import time
from pathlib import Path

import pytest
from toy import make_notebook

from nadkit.book import plan
from nadkit.book.chapters import find_chapters, load, profile_values
from nadkit.book.claims import UNDECIDED, UNKNOWN, Claim
from nadkit.book.forecast import expected, judged
from nadkit.book.records import recorded

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "book" / "recorded"
PARAMETERS = """\
n: int = 3  # how many [1..100]
networks: list[str] = ["lenet", "logreg"]  # which [architecture]
images: str = "digits"  # what they learn [images]
"""


def foreseen(make_book, code: str, **values) -> dict:
    """The claims expected of a chapter with this code."""
    imports = "from nadkit.book.claims import Claim, about, show\n"
    chapter = load(make_book(one=make_notebook("One", PARAMETERS, (imports, code))), "one")
    return {claim.id: claim for claim in expected(chapter, profile_values(chapter) | values)}


def obstacles(make_book, claim: str, before: str = "", **values) -> list[str]:
    """What a run lacks to decide one claim."""
    code = f"{before}\nshow([Claim('a', 'A', {claim})])"
    return foreseen(make_book, code, **values)["a"].obstacles


TRAIN = """
import pandas as pd
from nadkit import training
accuracies = {name: training.fit_many(name, [n])[0].test_accuracy[-1] for name in networks}
table = pd.DataFrame(accuracies)
"""


@pytest.mark.parametrize(
    ("claim", "found"),
    [
        ("1.0, '> 0', needs={'samples': (2 * n, 10)}", ["samples: 6 of the 10 needed"]),
        ("1.0, '> 0', needs={'samples': (len([n] * 10), 10)}", []),
        ("1.0, '> 0', same={'images': (images, 'cifar10')}", ["images: digits, the claim is about cifar10"]),
        ("1.0, '> 0', needs={'accuracy': (accuracies['lenet'], 0.99)}", []),
        ("1.0, '> 0', needs={'accuracy': (table.min(), 0.99), 'samples': (n, 4)}", ["samples: 3 of the 4 needed"]),
        ("accuracies.get('vgg11'), '> 0'", ["not measured"]),
        ("accuracies.get('lenet'), '> 0'", []),
        ("table.accuracy[table.network == 'lenet'].mean(), '> 0'", []),
        ("table.accuracy[table.network == 'vgg11'].mean(), '> 0'", ["without vgg11"]),
        ("table.loc['vgg11', 'accuracy'], '> 0'", ["without vgg11"]),
        ("table.max() if 'vgg11' in networks else None, '> 0'", ["not measured"]),
        ("float('nan'), '> 0'", ["not measured"]),
    ],
)
def test_what_parameters_decide_is_known_and_what_results_decide_is_hoped_for(make_book, claim, found):
    assert obstacles(make_book, claim, TRAIN) == found


@pytest.mark.parametrize(
    "before",
    [
        "x = [v for v in table]",
        "x, y = table.min(), 3",
        "x, y = table.shape",
        "x = max({'a': 1, **table}.values())",
        "x = max(*table)",
        "x = int(table.n) + len(table)",
        "x = {k: v for k, v in zip(networks, table)}['lenet']",
        "x = 0\nfor row in table:\n    x += row",
        "def f():\n    for row in table:\n        return row\nx = f()",
        "with open_it() as x:\n    pass",
        "while table.left:\n    x = table.next()",
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    a: table.T\nx = C(table).a",
    ],
)
def test_whatever_is_done_with_a_result_is_unknown_and_ends(make_book, before):
    claim = foreseen(make_book, f"{TRAIN}{before}\nshow([Claim('a', 'A', x, '> 0')])")["a"]
    assert claim.obstacles == []
    assert not isinstance(claim.measured, float)


def test_unknown_options_of_a_call_leave_known_what_it_is_called_for(make_book):
    before = f"{TRAIN}x = {{name: table.fit(name, **table.options) for name in networks}}\n"
    shown = "show([Claim(n, 'A', x.get(n), '> 0') for n in ('lenet', 'vgg11')])"
    found = foreseen(make_book, before + shown)
    assert {name: claim.obstacles for name, claim in found.items()} == {"lenet": [], "vgg11": ["not measured"]}


def test_nothing_is_computed_or_written(make_book, tmp_path):
    code = f"open({str(tmp_path / 'x')!r}, 'w').write('x')\nimport torch\nx = torch.ones(3)\nshow([])"
    assert foreseen(make_book, code) == {}
    assert not (tmp_path / "x").exists()


def test_claims_of_one_maker_share_what_it_says(make_book):
    code = "c = about(paper='p', needs={'n': (n, 4)})\nshow([c(f'a-{name}', 'A', 1.0, '> 0') for name in networks])"
    found = foreseen(make_book, code)
    assert list(found) == ["a-lenet", "a-logreg"]
    assert all(claim.paper == "p" and claim.obstacles == ["n: 3 of the 4 needed"] for claim in found.values())


def test_a_recorded_claim_is_judged_by_the_rules_of_today(make_book):
    rule = foreseen(make_book, "show([Claim('a', 'A', None, '> 0.5', needs={'n': (n, 4)})])")["a"]
    assert rule.judge(Claim("a", "A", 0.7, "> 0.9", needs={"n": (4, 100)})).verdict == "holds"
    assert rule.judge(Claim("a", "A", 0.7, "> 0.9", needs={"n": (3, 1)})).verdict == UNDECIDED


def test_a_recorded_claim_speaks_of_its_run_in_the_words_of_today(make_book):
    """What the statement says of results is unknown before a run: then the record's own words stay."""
    imports = "import torch\nfrom nadkit.book.claims import Claim, show\n"
    claims = "Claim('a', f'On {images} it learns', 1.0, '> 0'), Claim('b', f'{torch.rand(3).sum()} nets', 1.0, '> 0')"
    code = f"show([{claims}])"
    chapter = load(make_book(one=make_notebook("One", PARAMETERS, (imports, code))), "one")
    measured = [Claim("a", "It learned on file", 0.7, "> 0"), Claim("b", "6 nets", 0.7, "> 0")]
    found = judged(chapter, {"images": "file"}, measured)
    assert {id: claim.statement for id, claim in found.items()} == {"a": "On file it learns", "b": "6 nets"}


def test_a_recorded_claim_needs_what_a_run_like_its_own_needs(make_book):
    """Where parameters decide what is needed, those of the run do, and not those of another one."""
    imports = "from nadkit.book.claims import Claim, show\n"
    needs = "{} if images == 'file' else {'found again': (n, 5)}"
    code = f"show([Claim('a', 'A', 1.0, '> 0.5', needs={needs})])"
    chapter = load(make_book(one=make_notebook("One", PARAMETERS, (imports, code))), "one")
    measured = [Claim("a", "A", 0.7, "> 0.9"), Claim("gone", "B", 0.7, "> 0.9")]
    assert {id: claim.verdict for id, claim in judged(chapter, {"images": "file"}, measured).items()} == {"a": "holds"}
    assert judged(chapter, {"images": "digits"}, measured)["a"].verdict == UNDECIDED


def test_what_only_a_notebook_may_say_is_unknown(make_book):
    assert obstacles(make_book, "x, '> 0'", before="x = await something()") == []


def test_a_cell_that_is_not_python_tells_nothing(make_book):
    assert foreseen(make_book, "files = !ls\nshow([Claim('a', 'A', 1.0, '> 0')])") == {}


def test_a_forecast_neither_waits_nor_writes(make_book, tmp_path):
    code = f"import time\nfrom pathlib import Path\ntime.sleep(60)\nPath({str(tmp_path / 'made')!r}).mkdir()\n"
    started = time.monotonic()
    assert "a" in foreseen(make_book, code + "show([Claim('a', 'A', None, '> 0.5')])")
    assert time.monotonic() - started < 30
    assert not (tmp_path / "made").exists()


# ---- the book's own chapters ---------------------------------------------------------------------


def disagreements(chapter, values, made, *, small: bool = False) -> list[str]:
    """In what the forecast of a run says other things than the run; what depends on a result may be left open.

    Where it is `small`, it need not measure all that its parameters allow. But then it is a run of today's code, and
    names no condition that the forecast does not: records would not be judged by it.
    """
    found = {claim.id: claim for claim in expected(chapter, values)}
    wrong = [f"{claim.id} was not foreseen" for claim in made if claim.id not in found]
    for claim in (claim for claim in made if claim.id in found):
        rule = found[claim.id]
        if rule.obstacles and claim.verdict != UNDECIDED:
            wrong.append(f"{claim.id} was decided, in spite of {rule.obstacles}")
        if claim.measured is None and not rule.obstacles and not small:
            wrong.append(f"{claim.id} was not measured")
        known = rule._without_result()
        for which in ("needs", "same"):
            unforeseen = getattr(claim, which).keys() - getattr(rule, which).keys() if small else ()
            wrong += [f"{claim.id}, {name}: no such condition was foreseen" for name in unforeseen]
            for name, pair in getattr(known, which).items():
                got = getattr(claim, which).get(name, pair)  # some are stated only where a result calls for them
                if got[0] != UNKNOWN and tuple(got) != tuple(pair):  # a record may not state what is asked today
                    wrong.append(f"{claim.id}, {name}: {pair} was foreseen, {got} found")
    return wrong


@pytest.fixture(scope="module")
def left_open():
    """By record, the claims that the plan says it leaves open."""
    return {row.file: row.leaves for row in plan.read(ROOT).rows}


@pytest.mark.parametrize("name", [name for name in find_chapters(ROOT) if any((RECORDED / name).glob("*.json"))])
def test_the_records_are_as_foreseen(name, left_open):
    chapter = load(ROOT, name)
    for record in recorded(name, ROOT):
        known = {key: value for key, value in record.parameters.items() if key in chapter.parameters}
        values = profile_values(chapter, record.profile) | known
        today = judged(chapter, record.parameters, record.claims)
        made = [claim for id, claim in today.items() if id not in left_open.get(record.key, ())]
        assert disagreements(chapter, values, made) == []
