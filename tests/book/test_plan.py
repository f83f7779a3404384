"""The plan of records: what it says, what its runs decide, and how it is worked through."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from toy import make_notebook

from nadkit.book import plan, records
from nadkit.book.chapters import BadInput
from nadkit.book.cli import main

PARAMETERS = """\
n: int = 3  # how many [1..100]
networks: list[str] = ["lenet"]  # which [architecture]
slow: bool = False  # whether to wait
"""
RUN = """\
import time
from nadkit.book import results
state = results.checkpoint("state")
state.write_text("begun")
time.sleep(60 if slow else 0)
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
    monkeypatch.setattr(plan, "NADKIT", [sys.executable, "-c", STAND_IN])


def test_a_run_has_its_parameters_and_threads_and_a_low_priority(planned, stand_in):
    ((_, told),) = plan.work(planned(*ROWS), ["cpu"], threads=1, say=str)
    assert json.loads(told) == ["record", "one", {"n": 10}, "1", os.nice(0) + plan.NICE]


def test_a_run_is_stopped_when_the_time_is_over(planned, stand_in):
    (row,) = plan.read(planned(ROWS[0] | {"parameters": {"n": 10, "slow": True}})).rows
    assert plan._record(row, 0.5, None) == plan.STOPPED


def test_a_folder_with_changes_is_refused(planned):
    root = planned(*ROWS)
    (root / "book" / "intro.md").write_text("# Other words\n")
    with pytest.raises(BadInput, match=r"has changes that no commit holds.*work in a clone"):
        list(plan.work(root, ["cpu"]))
