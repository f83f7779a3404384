"""The plan of records: what it says, what its runs decide, and how it is worked through."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toy import make_notebook

from nadkit.book import children, plan, records
from nadkit.book.chapters import BadInput, find_chapters, load, profile_values
from nadkit.book.cli import main
from nadkit.book.forecast import expected

ROOT = Path(__file__).parents[2]
PARAMETERS = """\
n: int = 3  # how many [1..100]
networks: list[str] = ["lenet"]  # which [architecture]
slow: bool = False  # whether to wait
"""
RUN = """\
from nadkit.book import results
state = results.checkpoint("state")
state.write_text("begun")
found = {name: float(n) for name in networks}
"""
CLAIMS = """\
from nadkit.book.claims import about, show
theirs = about(paper="morcos2018", needs={"samples": (n, 10), "found": (len(found), 1)})
show([
    theirs("one-first", "LeNet", found.get("lenet"), ">= 1"),
    theirs("one-second", "VGG11", found.get("vgg11"), ">= 1"),
])
"""
ROWS = [
    {"name": "the small one", "chapter": "one", "profile": "quick", "device": "cpu", "measured": 1}
    | {"parameters": {"n": 10}},
    {"name": "the big one", "chapter": "one", "profile": "paper", "device": "gpu", "estimated": 3},
]


def git(root, *command):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "-C", str(root), *command], check=True, capture_output=True)


@pytest.fixture
def planned(make_book, short_witness):
    """A function that makes a book with the plan of these rows, all committed."""

    def make(*rows):
        chapter = make_notebook("One", PARAMETERS, (RUN, CLAIMS))
        root = make_book({"paper": {"one": {"n": 20, "networks": ["lenet", "vgg11"]}}}, one=chapter)
        path = root / plan.PLAN
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(list(rows)))
        (root / ".gitignore").write_text("runs\n")
        git(root, "init")
        git(root, "add", ".")
        git(root, "commit", "-m", "a book")
        return root

    return make


def test_what_a_run_decides_is_computed_from_the_claims(planned):
    small, big = plan.read(planned(*ROWS)).rows
    assert small.decides == ["one-first"]
    assert big.decides == ["one-first", "one-second"]


def test_the_plan_is_worked_through(planned, capsys):
    root = planned(*ROWS)
    assert main(["record", "--plan", "--root", str(root), "--device", "cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [entry["recorded"] for entry in answer["ended"]] == [True]
    (record,) = records.recorded("one", root)
    assert record.parameters["n"] == 10
    assert not record.commit.endswith("+")
    now = plan.read(root)
    assert now.decided == {"one-first": "holds"}
    assert now.rows[0].state == "current"
    assert now.waits_for() == {"one-second": "waits for the run “the big one” (GPU, about 3 min)"}
    assert list(plan.work(root, ["cpu"])) == []


STAND_IN = """\
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
given = json.loads(pathlib.Path(words[words.index("--params") + 1]).read_text())
if given.get("slow"):
    signal.pause()
found = [*words[:2], given, os.environ["OMP_NUM_THREADS"], os.nice(0)]
print(json.dumps({"error": json.dumps(found)}))
"""


@pytest.fixture
def stand_in(monkeypatch):
    """In place of `nadkit record` a script that tells how it was called, or waits until it is stopped."""
    monkeypatch.setattr(children, "NADKIT", [sys.executable, "-c", STAND_IN])


def test_a_run_has_its_parameters_and_threads_and_a_low_priority(planned, stand_in):
    ((_, told),) = plan.work(planned(*ROWS), ["cpu"], threads=1, say=str)
    assert json.loads(told) == ["record", "one", {"n": 10}, "1", min(19, os.nice(0) + plan.NICE)]


def test_a_run_is_stopped_when_the_time_is_over(planned, stand_in):
    (row,) = plan.read(planned(ROWS[0] | {"parameters": {"n": 10, "slow": True}})).rows
    assert plan._record(row, 0.5, None) == plan.STOPPED


def test_runs_for_a_gpu_go_by_claims_per_minute_and_those_for_a_cpu_as_they_stand(planned):
    quick = {"chapter": "one", "profile": "quick", "device": "gpu"}
    root = planned(
        quick | {"name": "slow", "estimated": 100, "parameters": {"n": 10, "networks": ["lenet", "vgg11"]}},
        quick | {"name": "first", "estimated": 3, "parameters": {"n": 11}},
        quick | {"name": "the same claim", "estimated": 4, "parameters": {"n": 12}},
        quick | {"name": "one more", "estimated": 50, "parameters": {"n": 13, "networks": ["vgg11"]}},
        quick | {"name": "cpu", "device": "cpu", "measured": 900, "parameters": {"n": 14}},
    )
    found = plan.read(root)
    assert [row.name for row in found.todo(["gpu"])] == ["first", "one more", "slow", "the same claim"]
    assert [row.name for row in found.todo(["cpu"])] == ["cpu"]
    assert found.waits_for()["one-first"] == "waits for the run “cpu” (two CPU cores, about 15 h)"


def test_what_fits_into_the_time_left_goes_first(planned, monkeypatch):
    root = planned(ROWS[0] | {"measured": 50}, ROWS[0] | {"name": "short", "measured": 5, "parameters": {"n": 11}})
    monkeypatch.setattr(plan, "_record", lambda *_: "")
    tried = [[row.name for row, _ in plan.work(root, ["cpu"], minutes=m, say=str)] for m in (20, 100)]
    assert tried == [["short", "the small one"], ["the small one", "short"]]


def test_a_claim_that_a_run_leaves_open_is_not_counted(planned):
    small, big = plan.read(planned(ROWS[0], ROWS[1] | {"leaves": ["one-second"]})).rows
    assert small.decides == big.decides == ["one-first"]


def test_a_claim_measured_on_a_stand_in_still_waits(make_book, planned):
    claims = CLAIMS.replace("needs=", 'same={"images": (images, "cifar10")}, needs=')
    chapter = make_notebook("One", f'{PARAMETERS}images: str = "digits"  # what [images]\n', (RUN, claims))
    on_copy = ROWS[1] | {"name": "copy", "device": "cpu", "parameters": {"images": "folder:cifar10-jpeg"}}
    root = planned()
    make_book(one=chapter)
    (root / plan.PLAN).write_text(yaml.safe_dump([on_copy, ROWS[1] | {"parameters": {"images": "cifar10"}}]))
    found = plan.read(root)
    assert [(row.decides, row.on_a_stand_in) for row in found.rows] == [
        ([], ["one-first", "one-second"]), (["one-first", "one-second"], [])
    ]  # fmt: skip
    assert "the big one" in found.waits_for()["one-first"]


def test_a_book_without_a_plan_wants_nothing(make_book):
    assert plan.read(make_book(one=make_notebook())).waits_for() == {}


BIG = ROWS[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([BIG | {"chapter": "won"}], r"plan.yml, run 1: no chapter is called 'won': did you mean one\?"),
        ([BIG | {"profile": "papre"}], r"no profile is called 'papre': did you mean 'paper'\?"),
        ([BIG | {"parameters": {"m": 3}}], r"one: m: no such parameter; there are: n, networks, slow"),
        ([BIG | {"parameters": {"network": 3}}], r"network: no such parameter; did you mean 'networks'\?"),
        ([BIG | {"parameters": {"n": 101}}], r"n: expected a value in the range \[1..100\], got 101"),
        ([BIG | {"parameters": {"networks": ["lenett"]}}], r"unknown architecture 'lenett'; did you mean 'lenet'\?"),
        ([BIG | {"parameters": [3]}], "parameters: expected 'parameter: value' lines"),
        ([BIG | {"leaves": ["one-frist"]}], r"one has no claim 'one-frist': did you mean 'one-first'\?"),
        ([ROWS[0] | {"leaves": ["one-second"]}], "one-second need not stand there: not measured"),
        ([BIG | {"leaves": "one-first"}], "leaves: expected a list of claims"),
        ([BIG | {"device": "gpus"}], r"device: expected cpu or gpu, got 'gpus'; did you mean 'gpu'\?"),
        ([BIG | {"measured": 3}], "expected the minutes as one number above 0"),
        ([BIG | {"estimated": "3 min"}], "expected the minutes as one number above 0"),
        ([{**BIG, "estimate": 3}], r"estimate: no such entry; did you mean 'estimated'\?"),
        ([{k: v for k, v in BIG.items() if k != "name"}], "name: expected words, got None"),
        ([ROWS[0] | {"parameters": {"n": 9}}], "it decides no claim; one-first: samples: 9 of the 10 needed"),
        ([BIG, BIG | {"name": "again"}], "run 2: 'again' is the same run as 'the big one'"),
        ([ROWS[0], BIG | {"name": ROWS[0]["name"]}], "run 2: there are two runs called 'the small one'"),
        (["one"], "expected 'name: ...', 'chapter: ...' and so on, got 'one'"),
    ],
)
def test_a_faulty_plan_is_refused_and_nothing_is_written(planned, capsys, rows, message):
    root = planned(*rows)
    assert main(["record", "--plan", "--root", str(root)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (root / "runs").exists()
    assert [path.name for path in (root / "book" / "recorded").iterdir()] == ["plan.yml"]


def test_a_draft_that_cannot_be_read_yet_is_passed_over(planned):
    root = planned(*ROWS)
    (root / "book" / "draft.ipynb").write_text("{")
    assert [row.name for row in plan.read(root).rows] == ["the small one", "the big one"]


@pytest.mark.parametrize("text", ["a: 1", "- [", "one"])
def test_a_damaged_plan_is_refused(planned, text):
    root = planned()
    (root / plan.PLAN).write_text(text)
    with pytest.raises(BadInput, match=r"plan.yml"):
        plan.read(root)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan", "one"], "expected no chapter and no parameters"),
        (["--plan", "-p", "n=3"], "expected no chapter and no parameters"),
        ([], "expected a CHAPTER to record a run of, or --plan"),
        (["one", "--dry-run"], "are for --plan"),
        (["--plan", "--device", "gpu"], "no GPU is at hand"),
    ],
)
def test_options_that_do_not_go_together_are_refused(planned, capsys, monkeypatch, words, message):
    monkeypatch.setattr(plan, "at_hand", lambda: ("cpu",))
    assert main(["record", *words, "--root", str(planned(*ROWS))]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_shows_the_runs(planned, capsys):
    root = planned(*ROWS)
    assert main(["record", "--plan", "--dry-run", "--root", str(root)]) == 0
    head, small, big, *_, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "device", "minutes", "claims", "undecided", "state"]
    assert small.split()[-7:] == ["cpu", "1", "measured", "1", "1", "to", "run"]
    assert big.split()[-7:] == ["gpu", "3", "estimated", "2", "2", "to", "run"]
    assert last == "left: 2 runs, 1 minutes on the CPU and 3 minutes on the GPU, for 2 claims that no record decides"
    assert not (root / "runs").exists()


# ---- the book's own plan -------------------------------------------------------------------------


def test_every_claim_of_a_paper_is_decided_or_waits_for_a_run():
    found = plan.read(ROOT)
    known = {*found.decided, *found.waits_for()}
    chapters = [load(ROOT, name) for name in find_chapters(ROOT)]
    made = [claim for chapter in chapters for claim in expected(chapter, profile_values(chapter, "paper"))]
    assert [claim.id for claim in made if claim.paper and claim.id not in known] == []


def test_a_record_without_a_later_claim_is_made_again(planned):
    root = planned(ROWS[0])
    path = root / "book" / "one.ipynb"
    path.write_text(
        path.read_text().replace(
            '"id": "cell-3",\n   "metadata": {}', '"id": "cell-3",\n   "metadata": {"tags": ["presentation"]}'
        )
    )
    git(root, "commit", "-am", "claims are shown")
    assert [problem for _, problem in plan.work(root, ["cpu"])] == [""]
    assert plan.read(root).rows[0].state == "current"
    path.write_text(path.read_text().replace("one-first", "one-later"))
    git(root, "add", ".")
    git(root, "commit", "-m", "another claim")
    assert plan.read(root).rows[0].state == plan.LACKING
    assert [problem for _, problem in plan.work(root, ["cpu"])] == [""]
    (row,) = plan.read(root).rows
    assert "one-later" in [claim.id for claim in row.record.claims]
    assert not row.is_open


def test_a_run_stays_until_its_successor_is_there(planned, stand_in, monkeypatch):
    root = planned(ROWS[0])
    monkeypatch.setattr(plan.Row, "state", plan.LACKING)
    run = root / "runs" / "one" / "quick,n=10.ipynb"
    run.parent.mkdir(parents=True)
    run.touch()
    assert len(list(plan.work(root, ["cpu"], say=str))) == 1
    assert run.exists()


def test_a_folder_with_changes_is_refused(planned):
    root = planned(*ROWS)
    (root / "book" / "intro.md").write_text("# Other words\n")
    with pytest.raises(BadInput, match=r"has changes that no commit holds.*work in a clone"):
        list(plan.work(root, ["cpu"]))


def test_check_reads_the_plan(planned, capsys):
    root = planned(ROWS[0] | {"chapter": "onee"})
    assert main(["check", "--root", str(root)]) == 2
    assert "did you mean one?" in capsys.readouterr().err
