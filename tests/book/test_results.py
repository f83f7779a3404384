"""Results: stored beside what people see, read back as a table of runs, and recorded for later ones."""

import html
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from toy import make_notebook

from nadkit import plots
from nadkit.book import collect as collected
from nadkit.book import results
from nadkit.book.chapters import BadInput, load, validate
from nadkit.book.claims import Claim, Claims
from nadkit.book.collect import collect, to_json, write
from nadkit.book.pages import first_panel
from nadkit.book.records import Record, Validity
from nadkit.book.results import MIME
from nadkit.book.runner import RunFailed, execute
from nadkit.data.images import load as load_images
from nadkit.inputs.basis import NADs, random_basis

matplotlib.use("agg")


@pytest.fixture
def shown(monkeypatch):
    """What was displayed so far: pairs of the data, by type, and the store."""
    outputs = []

    def display(data: dict, *, metadata: dict, raw: bool) -> None:
        assert raw
        assert json.dumps(metadata, allow_nan=False)
        outputs.append((data, metadata[MIME]))

    monkeypatch.setattr("IPython.display.display", display)
    return outputs


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns or {"k": [1, 10], "overlap": [0.5, 0.25]})


def draw(frame: pd.DataFrame) -> Figure:
    figure, axes = plt.subplots()
    axes.plot(frame["k"], frame["overlap"])
    return figure


OTHER = Validity("differs", "1 of 2 series differ")
CLAIM = Claim("works", "It works", 0.5, ">= 0.9", source="Paper, fig. 1", reported=0.99, paper="somebody2020")


def a_record(**changes) -> Record:
    fields = {
        "path": Path("paper,architectures=lenet.json"),
        "chapter": "inputs/nads",
        "profile": "paper",
        "parameters": {"architectures": ["lenet"], "seed": 3},
        "experiment": "abc",
        "commit": "0123456789abcdef+",
        "versions": {"torch": "2.11.0", "nadkit": "0.1.0", "python": "3.12.1"},
        "platform": "Linux",
        "device": "NVIDIA H200",
        "data": [{"name": "images", "kind": "original CIFAR-10", "sha256": "00ff"}],
        "started": "2025-11-20T10:00:00+00:00",
        "seconds": 5400.0,
        "numbers": {"highest": 0.5},
        "tables": {"overlaps": {"columns": ["k", "overlap"], "rows": [[1, 0.9], [10, None]]}},
        "claims": Claims([CLAIM]),
    }
    return Record(**fields | changes)


# ---- plain data ----------------------------------------------------------------------------------


def test_numbers_become_plain_data(shown):
    results.keep(
        a=np.float32(0.1),
        b=torch.tensor(2.5),
        c=math.nan,
        d=np.bool_(True),
        e=None,
        f="words",
        g=np.int64(3),
        h=1234567.0,
        i=math.inf,
        j=False,
    )
    ((data, store),) = shown
    expected = {
        "a": 0.1, "b": 2.5, "c": None, "d": True, "e": None, "f": "words", "g": 3, "h": 1234570.0, "i": None, "j": False
    }  # fmt: skip
    assert store["numbers"] == expected
    assert store["numbers"]["d"] is True
    assert "b = 2.5" in data["text/plain"].splitlines()


@pytest.mark.parametrize("value", [[1, 2], np.zeros(2), torch.zeros(2), {"a": 1}, object()])
def test_what_is_no_number_is_refused(shown, value):
    with pytest.raises(ValueError, match="highest: expected a number"):
        results.keep(highest=value)
    assert shown == []


def test_a_table_comes_back_as_it_was(shown):
    made = table(
        name=["a", "b"],
        count=np.array([1, 2]),
        part=np.array([0.1, np.nan], dtype=np.float32),
        nothing=[None, None],
        right=[True, False],
        word=["x", None],
    )
    results.show("parts", made, alt="Parts.")
    ((data, store),) = shown
    plain = json.loads(json.dumps(store))["tables"]["parts"]
    assert plain["rows"] == [["a", 1, 0.1, None, True, "x"], ["b", 2, None, None, False, None]]
    back = results.to_frame(plain)
    assert [kind.kind for kind in back.dtypes[["count", "part", "nothing", "right"]]] == ["i", "f", "f", "b"]
    assert back["part"].tolist()[0] == 0.1
    assert "Parts." in data["text/plain"]


@pytest.mark.parametrize("draw", [None, lambda frame: plots.lines(frame, x="a", y="b")])
def test_a_table_that_is_too_large_is_shown_and_not_stored(shown, draw):
    """A run of hours must not fail where it shows what it found."""
    results.show("t", pd.DataFrame({"a": range(2500), "b": range(2500)}), draw, alt="Small.")
    results.show("t", pd.DataFrame({"a": range(2501), "b": range(2501)}), draw, alt="Large.")
    (small, stored), (large, not_stored) = shown
    assert "t" in stored["tables"]
    assert "tables" not in not_stored
    said = "has 5,002 cells. It is not stored: a run keeps tables of up to 5,000."
    said += "" if draw else " Its first 2,500 rows of 2,501 are shown."
    for kind in ("text/plain", "text/html"):
        assert said in html.unescape(large[kind])
        assert "cells" not in small[kind]
    assert large["text/html"].count("<tr") == small["text/html"].count("<tr") == (0 if draw else 2501)
    # the page, its excerpts and the files of figures know it all the same
    output = {"data": large, "metadata": {MIME: not_stored}}
    assert collected.shown_by(output)["t"] == collected.Shown(large["text/html"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (table(a=[1, 2]).set_index("a"), "reset_index"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "a name of its own"),
        (pd.DataFrame([[1, 2]]), "a name of its own"),
        (table(a=[[1], [2]]), "column 'a': expected a number"),
    ],
)
def test_a_table_has_named_columns_of_numbers_and_words(wrong, message):
    with pytest.raises(ValueError, match=message):
        results._to_plain("t", wrong)


# ---- tabs ----------------------------------------------------------------------------------------

VOID = {"input", "br", "img"}


class Page(HTMLParser):
    """Checks that elements nest, and collects them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def test_without_records_there_are_no_tabs(shown):
    results.show("overlaps", table(), draw, alt='A falling "line" & more.')
    page = Page(shown[0][0]["text/html"])
    assert [tag for tag, _ in page.found] == ["img"]
    (image,) = page.all("img")
    assert image["alt"] == 'A falling "line" & more.'
    assert image["src"].startswith("data:image/png;base64,iVBOR")
    assert plt.get_fignums() == []


def test_recorded_runs_stand_beside_this_one(shown):
    others = [
        a_record(),
        a_record(path=Path("gpu.json"), validity=OTHER, device="<b>GPU</b>"),
        a_record(path=Path("other.json"), tables={}),
    ]
    for _ in range(2):
        results.show("overlaps", table(), draw, alt="Overlaps.", recorded=others)
    pages = [Page(data["text/html"]) for data, _ in shown]
    page = pages[0]
    buttons = page.all("input")
    assert [b["type"] for b in buttons] == ["radio"] * 3
    assert len({b["name"] for b in buttons}) == 1
    assert ["checked" in b for b in buttons] == [True, False, False]
    assert [label["for"] for label in page.all("label")] == [b["id"] for b in buttons]
    assert len({b["id"] for p in pages for b in p.all("input")}) == 6
    assert len({b["name"] for p in pages for b in p.all("input")}) == 2
    assert [image["alt"] for image in page.all("img")] == [
        "Overlaps. Recorded run: paper,architectures=lenet.",
        "Overlaps.",
        "Overlaps. Recorded run: gpu.",
    ]
    assert (
        "profile paper, architectures=lenet · NVIDIA H200 · torch 2.11.0 · nadkit 0.1.0 · commit 01234567+ · seed 3 · "
        "90 min · 2025-11-20 · images: original CIFAR-10 (SHA-256 00ff)"
    ) in page.text
    assert "<b>GPU</b>" in page.text
    assert page.text.count("differs: 1 of 2 series differ") == 1
    labels = [
        "recorded: profile paper, 90 min on NVIDIA H200",
        "this run",
        "recorded: profile paper, 90 min on <b>GPU</b> (differs)",
    ]
    assert re.findall("|".join(map(re.escape, labels)), page.text) == labels
    source = shown[0][0]["text/html"]
    assert not re.search(r"https?:|//[a-z]|<script|url\(|@import", re.sub(r"base64,[^\"]*", "", source))
    # The live table alone is this run's result.
    assert shown[0][1]["tables"]["overlaps"]["rows"] == [[1, 0.5], [10, 0.25]]


def test_the_record_that_counts_most_is_open_first(shown):
    later = "2026-01-01T00:00:00+00:00"
    mnist = [{"name": "images", "kind": "MNIST, as 1x28x28, 12,000 and 10,000 of them (seed 0)", "sha256": "00ff"}]
    others = [
        a_record(profile="cpu", started=later, device="AMD EPYC, 2 cores"),
        a_record(profile="gpu", path=Path("gpu,n=3,m=4.json"), started=later, seconds=61),
        a_record(profile="gpu", path=Path("gpu,n=3.json")),
        a_record(profile="gpu", started=later, data=mnist, seconds=59),
    ]
    results.show("overlaps", table(), alt="Overlaps.", recorded=others)
    found = re.findall(r"<label[^>]*>(.*?)</label>", shown[0][0]["text/html"])
    assert found == [
        "recorded: MNIST, 12,000 images, 59 s on NVIDIA H200",
        "recorded: profile gpu, 90 min on NVIDIA H200",
        "recorded: profile gpu, 61 s on NVIDIA H200",
        "recorded: profile cpu, 90 min on 2 cores",
        "this run",
    ]


def test_a_record_is_named_for_people():
    long = Path("paper,mlp_epochs=30,mlp_repeats=160,co~e20ec445e6.json")
    assert a_record(path=long).title == "paper, mlp_epochs=30, mlp_repeats=160 and more"
    assert a_record(path=Path("gpu,networks=lenet+vgg11.json")).title == "gpu, networks=lenet+vgg11"
    kinds = [
        "MNIST, as 1x28x28, 60,000 and 10,000 of them (seed 0)",
        "MNIST, as 1x28x28, 6,000 and 10,000 of them (seed 1)",
        "scikit-learn's digits (1,797 images of 8x8), fixed split of 1,297 and 500, as 1x32x32, "
        "1,297 and 500 of them (seed 0); the first 500 to train on, others to test",
    ]
    of_all = a_record(data=[{"name": "images", "kind": kind} for kind in kinds])
    said = "MNIST, 60,000 and 6,000 images and scikit-learn's digits, 500 images, 90 min on NVIDIA H200"
    assert of_all.words == said
    # the time of its last try would mislead
    assert a_record(resumed=True).words == "profile paper, in several tries on NVIDIA H200"


def test_tables_without_a_drawing_are_shown_as_tables(shown):
    results.show("overlaps", table(k=[1], word=["<i>"]), alt="Words & numbers", recorded=[a_record()])
    page = Page(shown[0][0]["text/html"])
    assert len(page.all("table")) == len(page.all("caption")) == 2
    assert all(head["scope"] == "col" for head in page.all("th"))
    assert "<i>" in page.text
    assert page.all("i") == []
    assert "Words & numbers Recorded run" in page.text


def cells_of(frame):
    found = re.findall(r"<(th|td)\b[^>]*>(.*?)</", results._as_table(frame, "Numbers"))
    return [text for tag, text in found if tag == "th"], [text for tag, text in found if tag == "td"]


@pytest.mark.parametrize("name", ["error", "error, of a", "error, a", "of a, error", "± of a", "±"])
def test_a_table_says_a_number_with_its_error(name):
    frame = pd.DataFrame({"a": [1, 2, 3], "of a": [0.12345, 2.0, 3.0], name: [0.0123, 0.0, math.nan], "b": 1.0})
    assert cells_of(frame) == (["a", "of a", "b"], ["1", "0.123 ± 0.012", "1", "2", "2", "1", "3", "3", "1"])


def test_an_error_of_no_column_stays_a_column():
    frame = pd.DataFrame({"error": [0.5], "a": [1.0], "b": [2.0], "error, a": [0.1]})
    assert cells_of(frame) == (["error", "a", "b", "error, a"], ["0.5", "1", "2", "0.1"])


def test_a_table_that_is_wide_and_low_is_turned():
    wide = {f"c{i}": [i, 2 * i] for i in range(8)}
    heads, cells = cells_of(pd.DataFrame({"network": ["<a>", "b"]} | wide))
    assert heads == ["network", "&lt;a&gt;", "b", *wide]
    assert cells == [str(n) for i in range(8) for n in (i, 2 * i)]
    assert cells_of(pd.DataFrame(wide))[0] == [*wide]
    assert cells_of(pd.DataFrame({"network": list("abcd")} | {name: 1 for name in wide}))[0] == ["network", *wide]


def test_a_record_that_cannot_be_drawn_fails_no_run(shown):
    other = a_record(tables={"overlaps": {"columns": ["rank"], "rows": [[1]]}})
    results.show("overlaps", table(), draw, alt="Overlaps.", recorded=[other])
    page = Page(shown[0][0]["text/html"])
    assert len(page.all("img")) == 1
    assert "It could not be drawn (KeyError: 'k')." in page.text
    assert "rank" in page.text


def test_where_this_run_has_nothing_the_records_still_show(shown):
    results.show("overlaps", pd.DataFrame([]), draw, alt="Overlaps.", recorded=[a_record()])
    page = Page(shown[0][0]["text/html"])
    assert len(page.all("img")) == 1
    assert "Nothing to show here." in page.text
    assert shown[0][1]["tables"]["overlaps"] == {"columns": [], "rows": []}


def test_what_only_records_have_is_shown_and_not_stored(shown):
    others = [a_record(path=Path("gpu.json"), validity=OTHER), a_record(), a_record(tables={})]
    results.show_recorded("overlaps", draw, alt="Overlaps.", caption="Their overlaps.", recorded=others)
    results.show_recorded("others", draw, alt="Others.", recorded=others)
    ((data, metadata),) = shown
    page = Page(data["text/html"])
    assert [image["alt"] for image in page.all("img")] == [
        "Overlaps. Recorded run: paper,architectures=lenet.",
        "Overlaps. Recorded run: gpu.",
    ]
    assert "this run" not in page.text
    assert "(differs)" in page.text
    assert first_panel(data["text/html"])[0] == "recorded: profile paper, 90 min on NVIDIA H200"
    assert "tables" not in metadata
    assert metadata["captions"] == {"overlaps": "Their overlaps."}


def test_what_only_records_have_is_known_where_nobody_looks(shown, monkeypatch):
    monkeypatch.setenv(results.UNSEEN, "1")
    results.show_recorded("overlaps", draw, alt="Overlaps.", recorded=[a_record()])
    ((data, metadata),) = shown
    assert "text/html" not in data
    assert metadata["captions"] == {"overlaps": ""}


def test_the_only_panel_of_records_has_its_label(shown):
    results.show_recorded("overlaps", alt="Overlaps.", recorded=[a_record()])
    assert first_panel(shown[0][0]["text/html"])[0] == "recorded: profile paper, 90 min on NVIDIA H200"


# ---- provenance ----------------------------------------------------------------------------------


def test_provenance_names_the_device_and_the_data(shown):
    digits = load_images("digits")
    basis = random_basis(seed=0)
    results.made_with("cpu", images=digits, waves=basis, noise="synthetic: D(v)")
    ((data, store),) = shown
    assert re.search(r", \d+ cores?$", store["device"])
    images, waves, noise = store["data"]
    assert images["kind"] == digits.source
    assert re.fullmatch(r"[0-9a-f]{16}", images["sha256"])
    assert re.fullmatch(r"[0-9a-f]{16}", waves["sha256"])
    assert noise == {"name": "noise", "kind": "synthetic: D(v)", "sha256": None}
    assert f"images: {digits.source} (SHA-256 {images['sha256']})" in data["text/plain"]
    with pytest.raises(ValueError, match="data images: expected images, directions or words, got list"):
        results.made_with("cpu", images=[1])


def test_a_checksum_follows_every_value(shown):
    digits, basis = load_images("digits"), random_basis(seed=0)
    changed = digits.test_labels.clone()
    changed[0] = (changed[0] + 1) % 10
    nads = NADs(vectors=basis.vectors, shape=basis.shape, eigenvalues=torch.ones(len(basis)), n_networks=2000)
    sets = {"a": digits, "b": replace(digits, test_labels=changed), "c": basis, "d": random_basis(seed=1), "e": nads}
    results.made_with("cpu", **sets, f=replace(digits))
    sums = {item["name"]: item["sha256"] for item in shown[0][1]["data"]}
    assert sums["a"] == sums.pop("f")
    assert len(set(sums.values())) == 5


def test_checkpoints_lie_where_the_runner_looks_for_them(monkeypatch, tmp_path):
    monkeypatch.delenv("NADKIT_CHECKPOINTS", raising=False)
    assert results.checkpoint("lenet") is None
    monkeypatch.setenv("NADKIT_CHECKPOINTS", str(tmp_path / "deep" / "er"))
    assert results.checkpoint("lenet") == tmp_path / "deep" / "er" / "lenet"
    assert (tmp_path / "deep" / "er").is_dir()
    told = results.resumable("lenet", "cpu")
    assert told == {"device": "cpu", "executor": None, "checkpoint": results.checkpoint("lenet"), "progress": True}


def test_the_module_is_light():
    heavy = "torch", "pandas", "numpy", "matplotlib", "papermill", "IPython"
    code = f"import sys, nadkit.book.results, nadkit.book.scorecard\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- runs of a toy book --------------------------------------------------------------------------

PARAMETERS = """\
seed: int = 1  # of what [0..]
names: list[str] = ["a", "b"]  # of whom
device: str = "cpu"  # where [device]
highest: float = 0.5  # bound [>0]
"""
CODE = """\
import pandas as pd
from nadkit.book import claims, results
assert seed != 13, "unlucky"
results.made_with(device, data="synthetic")
results.keep(total=seed / 3, highest=2 * seed, seconds=7.5)
results.show("squares", pd.DataFrame({"n": [1, 2], "square": [1.0, 4.5]}), alt="Squares.")
claims.show([claims.Claim("positive", "It is positive", seed / 10, ">= 0.5", "us")])
"""


def toy(make_book, *, code: str = CODE, parameters: str = PARAMETERS) -> Path:
    profiles = {"paper": {"part/one": {"names": ["c"]}}}
    return make_book(profiles, part__one=make_notebook(parameters=parameters, code=(code,)))


def run(root: Path, out: Path, profile: str = "quick", **overrides) -> Path:
    chapter = load(root, "part/one")
    execute(chapter, validate(chapter, profile, overrides), out, profile=profile)
    return out


def edited(path: Path, **changes) -> Path:
    """A copy of an executed notebook whose run's record says something else."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.nadkit.update(changes)
    copy = path.with_name(f"edited-{path.name}")
    nbformat.write(notebook, copy)
    return copy


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


# ---- collect -------------------------------------------------------------------------------------


def copies(notebook: Path, folder: Path, *changes: dict) -> Path:
    """A folder of executed notebooks like `notebook`, whose runs' records differ."""
    folder.mkdir(parents=True)
    for i, change in enumerate(changes):
        edited(notebook, **change).rename(folder / f"{i}.ipynb")
    return folder


def test_runs_become_rows(make_book, tmp_path):
    root, folder = toy(make_book), tmp_path / "runs"
    run(root, folder / "x" / "ten.ipynb", seed=10)
    run(root, folder / "two.ipynb", seed=2)
    with pytest.raises(RunFailed):
        run(root, folder / "thirteen.ipynb", seed=13)
    found = collect(folder)
    assert found["seed"].tolist() == [2, 10]
    assert found["names"].tolist() == ["a+b", "a+b"]
    assert found["total"].tolist() == [0.666667, 3.33333]
    assert found["highest"].tolist() == [0.5, 0.5]
    assert found["result.highest"].tolist() == [4, 20]
    assert found["result.seconds"].tolist() == [7.5, 7.5]
    assert (found["seconds"] > 0).all()
    assert found["device"].tolist() == ["cpu", "cpu"]
    assert found["run.device"].str.contains("core").all()
    assert found["claim.positive"].tolist() == [0.2, 1.0]
    assert found["verdict.positive"].tolist() == ["fails", "holds"]
    assert found["data"].tolist() == ["data: synthetic"] * 2
    assert found["file"].tolist() == ["two.ipynb", "x/ten.ipynb"]
    assert found["profile"].tolist() == ["quick", "quick"]
    assert list(found.columns[:5]) == ["seed", "names", "device", "highest", "result.highest"]
    assert {"started", "commit", "torch", "nadkit", "platform"} < set(found.columns)
    assert len(collect(folder / "two.ipynb")) == 1


def test_rows_are_in_the_natural_order_of_the_parameters(finished, tmp_path):
    _, notebook = finished
    values = ["net10", "net2", None, 10, 2.5, ["b"], ["a", "b"], ["a"], True]
    changes = [{"parameters": {"p": value}} for value in values]
    found = collect(copies(notebook, tmp_path / "folder", *changes))
    assert found["p"].tolist() == [None, True, 2.5, 10, "net2", "net10", "a", "a+b", "b"]


def test_runs_of_different_parameters_make_one_table(finished, tmp_path):
    _, notebook = finished
    changes = [{"parameters": {"n": 1}}, {"parameters": {"m": 2}}, {"parameters": {}}]
    found = collect(copies(notebook, tmp_path / "folder", *changes))
    assert list(found.columns[:2]) == ["m", "n"] or list(found.columns[:2]) == ["n", "m"]
    assert sorted(found["n"].fillna(0)) == [0, 0, 1]
    assert "highest" in found
    assert "device" in found


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_runs_is_written_and_read_back(finished, tmp_path, suffix):
    _, notebook = finished
    changes = [{"parameters": {"seed": n, "p": p}} for n, p in [(1, True), (2, None), (3, False)]]
    found = collect(copies(notebook, tmp_path / "folder", *changes))
    path = tmp_path / "new" / f"table{suffix}"
    write(found, path)
    write(found, path)
    back = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    assert list(back.columns) == list(found.columns)
    assert back["seed"].tolist() == [1, 2, 3]
    assert back["p"].isna().tolist() == [False, True, False]
    assert back["p"].dropna().astype(bool).tolist() == [True, False]
    assert back["total"].tolist() == [0.666667] * 3
    assert back["verdict.positive"].tolist() == ["fails"] * 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_only_csv_and_parquet_are_written(tmp_path):
    for name in ("table.xlsx", "table", "csv"):
        with pytest.raises(BadInput, match=r"expected a file called NAME\.csv or NAME\.parquet"):
            write(table(), tmp_path / name)
    with pytest.raises(BadInput, match=r"a \.csv file takes any column"):
        write(table(a=[1, "x"]), tmp_path / "table.parquet")
    write(table(a=[1, "x"]), tmp_path / "table.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_table_as_plain_data_keeps_all_digits():
    columns = {"n": [1, 2], "small": [3e-12, 1 / 3], "word": ["a", None], "wide": [math.inf, math.nan]}
    rows = to_json(table(**columns, yes=[True, False]))
    assert json.loads(json.dumps(rows, allow_nan=False)) == [
        {"n": 1, "small": 3e-12, "word": "a", "wide": None, "yes": True},
        {"n": 2, "small": 1 / 3, "word": None, "wide": None, "yes": False},
    ]


def test_what_cannot_be_collected_is_named(finished, tmp_path):
    _, notebook = finished
    with pytest.raises(BadInput, match="no finished run"):
        collect(copies(notebook, tmp_path / "other", {"status": "interrupted"}))
    with pytest.raises(BadInput, match="found nothing"):
        collect(tmp_path / "absent")
    folder = copies(notebook, tmp_path / "folder", {})
    (folder / "bad.ipynb").write_text('{"cells": [')
    with pytest.raises(BadInput, match=r"bad\.ipynb is not a notebook"):
        collect(folder)
    text = notebook.read_text()
    assert '"rows"' in text
    (folder / "bad.ipynb").write_text(text.replace('"rows"', '"lines"'))
    with pytest.raises(BadInput, match=r"bad\.ipynb: the results stored in it cannot be read"):
        collect(folder)


def test_two_results_of_one_name_are_refused(make_book, tmp_path):
    root = toy(make_book, code="from nadkit.book import results\nfor i in range(2):\n    results.keep(best=i)")
    out = run(root, tmp_path / "one.ipynb")
    with pytest.raises(BadInput, match="there are two called 'best'"):
        collect(out)
