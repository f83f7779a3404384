"""Records: big runs that git keeps, and whether today's code still gives their numbers."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from test_results import CODE, PARAMETERS, edited, run, toy
from toy import make_notebook

from nadkit.book import prints, records, witness
from nadkit.book.chapters import BadInput, load
from nadkit.book.claims import FAILS
from nadkit.book.collect import stored
from nadkit.book.records import record, recorded, renew, verify
from nadkit.book.witness import Series, Witness

SEEN = Witness({"seed": 1}, {"torch": "2.11.0"}, "a processor", [], [], {"number total": Series([1.0])})


@pytest.fixture(scope="module")
def once():
    """What the first test ran, for the others."""
    return {}


@pytest.fixture
def finished(make_book, tmp_path, once):
    """A toy book and an executed notebook of its chapter."""
    root, notebook = toy(make_book), tmp_path / "runs" / "one.ipynb"
    if not once:
        once["bytes"] = run(root, notebook, "paper", seed=2).read_bytes()
    notebook.parent.mkdir(exist_ok=True)
    notebook.write_bytes(once["bytes"])
    return root, notebook


def test_a_record_of_a_run_comes_back(finished):
    root, notebook = finished
    path = record(notebook, root, SEEN)
    assert path == root / "book" / "recorded" / "part" / "one" / "paper,seed=2.json"
    (found,) = recorded("one", root)
    about = nbformat.read(notebook, as_version=4).metadata.nadkit
    assert found.name == "paper,seed=2"
    assert found.parameters == {"seed": 2, "names": ["c"], "device": "cpu", "highest": 0.5}
    assert (found.started, found.seconds, found.versions) == (about.started, about.seconds, about.versions)
    assert found.numbers == {"total": 0.666667, "highest": 4, "seconds": 7.5}
    assert found.tables == {"squares": {"columns": ["n", "square"], "rows": [[1, 1.0], [2, 4.5]]}}
    assert found.data == [{"name": "data", "kind": "synthetic", "sha256": None}]
    assert (found.claims[0].measured, found.claims[0].verdict) == (0.2, FAILS)
    assert found.commit is None
    assert "commit unknown" in found.provenance
    assert found.validity.state == "current"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_record_of_other_data_of_the_same_name_is_not_replaced(finished, monkeypatch):
    root, notebook = finished
    kept = replace(stored(notebook), data=[{"name": "images", "kind": "a folder", "sha256": "1234"}])
    monkeypatch.setattr(records, "stored", lambda _: kept)
    path = record(notebook, root, SEEN)
    before = path.read_bytes()
    assert record(notebook, root, SEEN) == path
    kept.data[0] = kept.data[0] | {"sha256": "5678"}
    with pytest.raises(BadInput, match=r"another data set of the same name, .*1234.*this run is of .*5678.*delete it"):
        record(notebook, root, SEEN)
    assert path.read_bytes() == before


def test_a_record_is_legible_in_a_diff(finished):
    root, notebook = finished
    lines = record(notebook, root, SEEN).read_text().splitlines()
    assert "    [1, 1.0]," in lines
    assert "    [2, 4.5]" in lines
    assert '   "columns": ["n", "square"],' in lines
    assert '  "names": ["c"],' in lines
    assert '  "highest": 4,' in lines
    assert '   "statement": "It is positive",' in lines


def test_a_record_is_current_until_the_experiment_changes(finished, make_book):
    root, notebook = finished
    record(notebook, root, SEEN)
    toy(make_book, code=f"{CODE}# a remark\n")
    assert recorded("one", root)[0].validity.state == "current"
    toy(make_book, code=CODE.replace("seed / 3", "seed / 4"))
    (found,) = recorded("one", root)
    assert found.validity.state == "not verified yet"
    assert "'nadkit verify' has not looked yet" in found.mark
    assert found.counts


def test_a_record_holds_no_verdict(finished):
    root, notebook = finished
    assert "verdict" not in record(notebook, root, SEEN).read_text()
    assert recorded("one", root)[0].claims[0].verdict == FAILS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"measured": 0.2', '"measured": 0.9'),
        ("[2, 4.5]", "[2, 4.6]"),
        ('"total": 0.666667', '"total": 0.666668'),
        ('"holds_if": ">= 0.5"', '"holds_if": ">= 0.1"'),
        ('"spread": 0.0', '"spread": 0.01'),
        ('"values": [1.0]', '"values": [2.0]'),
        ('"commit": null', '"commit": "0123"'),
    ],
)
def test_a_tampered_record_is_refused(finished, old, new):
    root, notebook = finished
    path = record(notebook, root, SEEN)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=r"paper,seed=2\.json is not a record that can be read: its seal is broken"):
        recorded("one", root)


def test_what_is_recorded_is_a_finished_run_of_this_book_as_it_is_now(finished, make_book, tmp_path):
    root, notebook = finished
    with pytest.raises(BadInput, match="not a finished run"):
        record(edited(notebook, status="interrupted"), root, SEEN)
    with pytest.raises(BadInput, match="run of 'part/two', which the book"):
        record(edited(notebook, chapter="part/two"), root, SEEN)
    with pytest.raises(BadInput, match="no profile is called 'papers'"):
        record(edited(notebook, profile="papers"), root, SEEN)
    with pytest.raises(BadInput, match="found nothing"):
        record(tmp_path / "absent.ipynb", root, SEEN)
    with pytest.raises(BadInput, match="found a folder"):
        record(tmp_path, root, SEEN)
    with pytest.raises(BadInput, match="not a finished run"):
        record(root / "book" / "part" / "one.ipynb", root, SEEN)
    with pytest.raises(BadInput, match="failed run"):
        record(edited(notebook, status="failed"), root, SEEN)
    toy(make_book, parameters=PARAMETERS + "more: int = 1  # of it [0..]\n")
    with pytest.raises(BadInput, match="the experiment of part/one changed since this run; run it again"):
        record(notebook, root, SEEN)
    toy(make_book, code=CODE + "print(1)\n")
    with pytest.raises(BadInput, match="the experiment of part/one changed since this run; run it again"):
        record(notebook, root, SEEN)
    assert not (root / "book" / "recorded").exists()


def test_a_run_that_kept_nothing_is_not_recorded(make_book, tmp_path):
    root = toy(make_book, code="print(seed)")
    with pytest.raises(BadInput, match="nothing to record"):
        record(run(root, tmp_path / "one.ipynb"), root, SEEN)


def test_a_record_replaces_the_one_before_it_whole_or_not_at_all(finished, monkeypatch):
    root, notebook = finished
    path = record(notebook, root, SEEN)
    before = path.read_text()

    def full_disk(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(records.files.os, "replace", full_disk)
    with pytest.raises(KeyboardInterrupt):
        record(notebook, root, SEEN)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"version": 2', '"version": 3'),
        ("{", ""),
        ('"seal"', '"sea"'),
    ],
)
def test_a_damaged_record_is_named(finished, old, new):
    root, notebook = finished
    path = record(notebook, root, SEEN)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(BadInput, match=r"paper,seed=2\.json is not a record that can be read"):
        recorded("one", root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"holds_if": ">= 0.5"', '"holds_if": "maybe"', "holds_if: expected"),
        ('"seconds": ', '"hours": ', "hours"),
        ("[1, 1.0]", "[1]", "argument 2 is shorter|zip"),
        ('"kind"', '"sort"', "kind"),
        ('"spread"', '"width"', "width"),
    ],
)
def test_a_record_of_another_form_is_named_though_it_is_sealed(finished, old, new, message):
    root, notebook = finished
    path = record(notebook, root, SEEN)
    assert old in path.read_text()
    content = json.loads(path.read_text().replace(old, new))
    records.write(path, {name: value for name, value in content.items() if name not in ("version", "seal")})
    with pytest.raises(BadInput, match=rf"paper,seed=2\.json is not a record that can be read: .*({message})"):
        recorded("one", root)


def test_what_is_being_written_is_not_read(finished):
    root, notebook = finished
    path = record(notebook, root, SEEN)
    path.with_name(".paper-1a2b3c4d.json").write_text("{")
    assert len(recorded("one", root)) == 1


def test_a_chapter_reads_the_records_of_its_book(finished, monkeypatch, tmp_path):
    root, notebook = finished
    monkeypatch.chdir(root / "book" / "part")
    assert recorded("part/one") == []
    record(notebook, root, SEEN)
    assert len(recorded("part/one")) == 1
    with pytest.raises(BadInput, match="did you mean"):
        recorded("part/won")
    monkeypatch.chdir(tmp_path)
    assert recorded("part/one") == []


# ---- whether they hold ---------------------------------------------------------------------------

TRAINED = """\
from nadkit import seeds, training
from nadkit.book import results
from nadkit.data import synthetic
from nadkit.inputs.basis import random_basis
from nadkit.book.claims import Claim, show
problem = synthetic.Separable(v=random_basis(seed=0)[3], n_train=64, n_test=50, seed=seed)
recipe = training.Recipe(epochs=2, batch_size=16, learning_rate=0.1)
(history,) = training.fit_many("logreg", [problem], recipe, seed=seed)
results.keep(loss=history.train_loss[-1], accuracy=history.test_accuracy[-1])
show([Claim("learns", "It learns", history.train_loss[0] - history.train_loss[-1], "> 0")])
"""
MOVED = TRAINED.replace("recipe = training.Recipe(epochs=2, batch_size=16, learning_rate=0.1)\n", "").replace(
    "problem =",
    "def usual():\n    return training.Recipe(epochs=2, batch_size=16, learning_rate=0.1)\n\n\n"
    "recipe = usual()\nproblem =",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The text of a record of a chapter that trains a network."""
    patch = pytest.MonkeyPatch()
    patch.setattr(witness, "ENVIRONMENTS", {"two threads": {"OMP_NUM_THREADS": "2"}})
    folder = tmp_path_factory.mktemp("trained")
    root = book_of(folder, TRAINED)
    path = record(run(root, folder / "one.ipynb"), root, witness.make(load(root, "part/one"), print))
    patch.undo()
    return path.name, path.read_text()


def book_of(folder: Path, code: str) -> Path:
    """A book of one chapter."""
    (folder / "book" / "part").mkdir(parents=True, exist_ok=True)
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/part/one\n")
    parameters = "seed: int = 1  # of what [0..]\nn: int = 2  # how many [1..]\n"
    nbformat.write(make_notebook(parameters=parameters, code=(code,)), folder / "book" / "part" / "one.ipynb")
    return folder


def with_record(folder: Path, code: str, trained: tuple[str, str]) -> Path:
    """A book of one chapter with the record of another version of it."""
    root = book_of(folder, code)
    path = root / "book" / "recorded" / "part" / "one" / trained[0]
    path.parent.mkdir(parents=True)
    path.write_text(trained[1])
    return root


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (TRAINED.replace(", batch_size=16,", ",\n    batch_size=16,\n   "), "current"),
        (f"# a remark\n{TRAINED}", "current"),
        (MOVED, "verified"),
        (TRAINED.replace("history", "learned"), "verified"),
        (f"{TRAINED}results.keep(more=1)\n", "verified"),
        (TRAINED.replace(", learning_rate=0.1", ""), "differs"),  # another default
        (TRAINED.replace("recipe, seed=seed", "recipe, seed=seed + 1"), "differs"),  # another initialisation
        (TRAINED.replace("n_test=50, seed=seed", "n_test=50, seed=7"), "differs"),  # other samples
        ("1 / 0", "not verified yet"),
        ("from nadkit.book import results\nresults.keep(other=1)", "not verifiable here"),
    ],
)
def test_a_record_outlives_what_leaves_its_numbers_alone(tmp_path, trained, code, state):
    root = with_record(tmp_path, code, trained)
    said = []
    (found,) = verify(root, say=said.append)
    assert found.validity.state == state, found.validity.why
    assert found.counts is (state != "differs")
    assert bool(said) is (state != "current")
    if state not in ("current", "not verified yet"):
        said.clear()
        assert [r.validity for r in verify(root, say=said.append)] == [found.validity]
        assert said == []  # what is known by the checksum of the code is not found again
        assert recorded("one", root)[0].validity == found.validity
        with pytest.MonkeyPatch.context() as patch:  # but it is where witnesses are compared by other rules
            patch.setattr(records, "_rules", lambda: "others")
            assert recorded("one", root)[0].validity.state == "not verified yet"


@pytest.mark.parametrize(("edit", "state"), [("", "verified"), ("another ", "differs")])
def test_a_record_outlives_a_function_that_moves_to_another_module(tmp_path, trained, monkeypatch, edit, state):
    root = with_record(tmp_path, TRAINED, trained)
    library = shutil.copytree(prints.PACKAGE, root / "nadkit", ignore=shutil.ignore_patterns("__pycache__"))
    basis, drawn = library / "inputs" / "basis.py", library / "inputs" / "drawn.py"
    before, start, function = basis.read_text().partition("@checks.typed\ndef random_basis(")
    needed = "import math, torch\nfrom nadkit import checks, seeds\nfrom nadkit.inputs.basis import Basis, Shape\n"
    drawn.write_text(needed + start + function.replace('"random basis"', f'"{edit}random basis"'))
    basis.write_text(f"{before}from nadkit.inputs.drawn import random_basis\n")
    monkeypatch.setattr(prints, "PACKAGE", library)
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.chdir(root)  # the witness runs with this library
    (found,) = recorded("one", root)
    assert found.validity.state == "not verified yet"
    (found,) = verify(root, say=print)
    assert found.validity.state == state, found.validity.why


def test_rounding_is_told_from_another_experiment(tmp_path, trained, monkeypatch):
    """On another processor a difference within the tolerance is rounding; a deliberate one lies far outside."""
    monkeypatch.setattr("nadkit.book.prints.processor", lambda: "another one")
    (found,) = recorded("one", with_record(tmp_path / "a", TRAINED, trained))
    same = witness.observe(load(tmp_path / "a", "one"), found.witness.parameters, {"OMP_NUM_THREADS": "2"})
    comparison = witness.compare(found.witness, same)
    assert not comparison.exact
    assert comparison.agrees
    other = witness.observe(load(tmp_path / "a", "one"), found.witness.parameters | {"seed": 2})
    differing = witness.compare(found.witness, other).differing
    assert "number loss" in differing
    assert differing["number loss"] > 100 * found.witness.series["number loss"].tolerance


def test_where_data_of_the_witness_are_missing_it_cannot_be_verified(trained, tmp_path):
    (found,) = recorded("one", with_record(tmp_path, TRAINED, trained))
    today = witness.observe(load(tmp_path, "one"), found.witness.parameters | {"seed": 2})
    had_more = replace(found, witness=replace(found.witness, at_hand=["lenet.npy"]))
    validity = records.validity_of(had_more, replace(today, at_hand=[]), None)
    assert validity.state == "not verifiable here"
    assert "lenet.npy" in validity.why
    images = {"name": "images", "kind": "digits, 10 of them (seed 0)", "sha256": "0"}
    had = replace(found, witness=replace(found.witness, data=[images], at_hand=[]))
    others = [images | {"kind": "digits, 10 of them (seed 1)", "sha256": "1"}]
    assert records.validity_of(had, replace(today, data=others), None).state == "differs"
    assert records.validity_of(had, today, None).state == "not verifiable here"
    for more in (["new.csv"], []):
        bare = replace(found, witness=replace(found.witness, at_hand=[]))
        assert records.validity_of(bare, replace(today, at_hand=more), None).state == "differs"


def test_damaged_verifications_are_named(tmp_path, trained):
    root = with_record(tmp_path, TRAINED, trained)
    (root / "book" / "recorded" / "verified.json").write_text("{")
    with pytest.raises(BadInput, match=r"verified\.json is damaged .*delete it"):
        recorded("one", root)


def test_a_witness_is_made_anew_at_the_commit_that_the_record_names(tmp_path, trained, short_witness):
    root = with_record(tmp_path, TRAINED, trained)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    (found,) = recorded("one", root)
    with pytest.raises(BadInput, match="no commit holds all that it was made with"):
        renew(found, root)
    content = json.loads(found.path.read_text())
    for name in ("version", "seal"):
        content.pop(name)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    records.write(found.path, content | {"commit": head, "witness": SEEN.to_json()})
    book_of(root, TRAINED.replace("epochs=2", "epochs=3"))
    renew(recorded("one", root)[0], root, {"n": 3}, say=print)
    assert recorded("one", root)[0].witness.parameters["n"] == 3
    (renewed,) = recorded("one", root)
    assert renewed.witness.series["number loss"] == found.witness.series["number loss"]
    assert verify(root, say=print)[0].validity.state == "differs"
    (root / "book" / "profiles").mkdir()
    (root / "book" / "profiles" / "smoke.yml").write_text("part/one: {n: 4}")  # today's size, not the commit's
    less = make_notebook(parameters="n: int = 2  # how many [1..]\n", code=(TRAINED,))
    nbformat.write(less, root / "book" / "part" / "one.ipynb")  # which has no seed any more
    renew(replace(renewed, witness=replace(renewed.witness, parameters={"seed": 5})), root, say=print)
    assert recorded("one", root)[0].witness.parameters == {"n": 4, "seed": 5}
    assert (
        subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True).stdout.count("\n") == 1
    )
    records.write(found.path, content | {"commit": "0" * 40})
    with pytest.raises(BadInput, match="cannot be checked out"):
        renew(recorded("one", root)[0], root)
