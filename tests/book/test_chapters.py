"""Chapters: found below the book, with the values of every profile."""

import json
from pathlib import Path

import pytest
from toy import PARAMETERS, make_notebook

from nadkit.book import chapters
from nadkit.book.chapters import (
    BadInput,
    describe,
    find_chapters,
    find_profiles,
    find_root,
    load,
    read_mapping,
    read_profile,
    validate,
)


@pytest.fixture
def book(make_book):
    """A book of three chapters and one profile."""
    smoke = {"inputs/nads": {"n": 1, "scale": "1e-3"}, "bias": {"sizes": [4]}}
    return make_book(
        profiles={"smoke": smoke},
        inputs__bias=make_notebook("Bias"),
        inputs__nads=make_notebook("NADs"),
        other__nads=make_notebook("More NADs", parameters=""),
    )


@pytest.mark.parametrize("folder", [".", "book", "book/inputs"])
def test_the_book_is_found_from_below(book, monkeypatch, folder):
    monkeypatch.chdir(book / folder)
    assert find_root() == find_root(Path.cwd()) == book


def test_outside_any_book_it_is_the_one_that_the_code_lies_in(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_root() == Path(chapters.__file__).parents[2]


def test_no_book_says_what_was_looked_for(tmp_path):
    with pytest.raises(BadInput, match=r"expected '_toc.yml' and a folder 'book'.*--root"):
        find_root(tmp_path)


def test_chapters_are_named_by_their_path(book):
    (book / "book" / "inputs" / ".ipynb_checkpoints").mkdir()
    (book / "book" / "inputs" / ".ipynb_checkpoints" / "nads-checkpoint.ipynb").write_text("{}")
    assert list(find_chapters(book)) == ["inputs/bias", "inputs/nads", "other/nads"]


def test_the_last_part_of_a_name_is_enough(book):
    assert load(book, "bias").name == "inputs/bias"
    with pytest.raises(BadInput, match="several chapters: inputs/nads, other/nads"):
        load(book, "nads")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("inputs/bais", "did you mean inputs/bias"),
        ("nds", "did you mean inputs/nads or other/nads"),
        ("xyz", "there are: inputs/bias, inputs/nads, other/nads"),
    ],
)
def test_an_unknown_chapter_gets_a_suggestion(book, name, hint):
    with pytest.raises(BadInput, match=f"no chapter is called '{name}': {hint}"):
        load(book, name)


def test_a_chapter_knows_its_title_and_file(book):
    chapter = load(book, "inputs/nads")
    assert chapter.title == "NADs"
    assert chapter.path == book / "book" / "inputs" / "nads.ipynb"
    assert list(chapter.parameters) == ["n", "scale", "method", "sizes"]


def test_a_malformed_parameter_names_chapter_and_line(make_book):
    book = make_book(bad=make_notebook(parameters="n: int = 3\nm: int = 'a'"))
    with pytest.raises(BadInput, match=r"bad, parameters cell, line 2, 'm: int = 'a'': expected"):
        load(book, "bad")


def test_two_parameters_cells_are_refused(make_book):
    notebook = make_notebook(code=("x: int = 3",))
    notebook.cells[-1].metadata["tags"] = ["parameters"]
    with pytest.raises(BadInput, match="expected one cell tagged 'parameters', got 2"):
        load(make_book(bad=notebook), "bad")


def test_a_damaged_chapter_is_named(book):
    path = book / "book" / "inputs" / "bias.ipynb"
    path.write_text(path.read_text()[:100])
    with pytest.raises(BadInput, match=r"bias\.ipynb is not a notebook"):
        load(book, "inputs/bias")


def test_a_byte_order_mark_is_no_damage(book):
    path = book / "book" / "inputs" / "bias.ipynb"
    before = load(book, "bias")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(book, "bias") == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cells": {"a": 1}, "metadata": {}}, r"expected a list of 'cells', got \{'a': 1\}"),
        ({"metadata": {}}, "expected a list of 'cells', got None"),
        ({"cells": [], "metadata": None}, "expected a mapping, with a mapping 'metadata'"),
        ({"cells": []}, "expected a mapping, with a mapping 'metadata'"),
        ({"cells": ["cell_type"], "metadata": {}}, "cell 1: expected a mapping with a 'cell_type'"),
        (
            {"cells": [{"cell_type": "code", "metadata": {}}, {"cell_type": "code"}], "metadata": {}},
            "cell 2: .*'metadata'",
        ),
        ({"cells": [{"cell_type": "code", "metadata": None}], "metadata": {}}, "cell 1: .*'metadata'"),
    ],
)
def test_a_malformed_chapter_is_named_with_its_fault(book, content, message):
    (book / "book" / "inputs" / "bias.ipynb").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=rf"bias\.ipynb is not a notebook: {message}"):
        load(book, "inputs/bias")


@pytest.mark.parametrize("sizes", ["", "4,4"])
def test_a_list_of_nothing_or_of_one_thing_twice_is_refused(book, sizes):
    with pytest.raises(BadInput, match=r"inputs/nads: sizes: (expected at least one value|4 is there twice)"):
        validate(load(book, "inputs/nads"), overrides={"sizes": sizes})


def test_a_folder_of_images_reaches_the_chapter_as_an_absolute_path(make_book, monkeypatch, tmp_path):
    chapter = load(make_book(one=make_notebook(parameters='data: str = "digits"  # which [images]')), "one")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets" / "train").mkdir(parents=True)
    with pytest.raises(BadInput, match="one: data: pets/test: expected a folder of images per class; looked for test"):
        validate(chapter, overrides={"data": "folder:pets"})
    (tmp_path / "pets" / "test").mkdir()
    assert validate(chapter, overrides={"data": "folder:pets"}) == {"data": f"folder:{tmp_path / 'pets'}"}


def test_overrides_beat_the_profile_which_beats_the_notebook(book):
    chapter = load(book, "inputs/nads")
    quick = {"n": 3, "scale": 0.5, "method": "mean", "sizes": [1, 2]}
    assert validate(chapter) == quick
    assert validate(chapter, "smoke") == quick | {"n": 1, "scale": 1e-3}
    assert validate(chapter, "smoke", {"n": "7", "sizes": "5,6"}) == quick | {
        "n": 7,
        "scale": 1e-3,
        "sizes": [5, 6],
    }


def test_everything_wrong_is_said_at_once(book):
    overrides = {"n": "0", "scale": "nan", "methd": "sum", "sizes": "1,x", "method": "maen"}
    with pytest.raises(BadInput) as caught:
        validate(load(book, "inputs/nads"), overrides=overrides)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert "inputs/nads: n: expected a value in the range [1..100], got 0" in lines
    assert "inputs/nads: methd: no such parameter; did you mean 'method'?" in lines


def test_profiles_start_with_quick(book):
    assert find_profiles(book) == ["quick", "smoke"]
    assert read_profile(book, "smoke") == {
        "inputs/nads": {"n": 1, "scale": 1e-3},
        "inputs/bias": {"sizes": [4]},
    }
    with pytest.raises(BadInput, match="no profile is called 'smok': did you mean 'smoke'"):
        read_profile(book, "smok")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("inputs/nad: {n: 1}", "no chapter is called 'inputs/nad': did you mean"),
        ("inputs/nads: {m: 1}", "inputs/nads: m: no such parameter"),
        ("inputs/nads: {3: 1}", "inputs/nads: 3: no such parameter"),
        ("inputs/nads: {n: 1.5}", "inputs/nads: n: expected int, got 1.5"),
        ("inputs/nads: {n: 101}", "inputs/nads: n: expected a value in the range"),
        ("inputs/nads: [n]", "expected 'parameter: value' lines"),
        ("- n", "expected 'name: value' lines"),
        ("a: [", "not readable as YAML"),
        ("inputs/nads:\n  n: 1\n  scale: 1.0\n  n: 2\n", "'n' is there twice, in lines 2 and 4; keep one"),
        ("inputs/nads: {n: 1}\nbias: {n: 1}\ninputs/nads: {n: 2}", "'inputs/nads' is there twice, in lines 1 and 3"),
        ('{"bias": {"n": 1, "n": 2}}', "'n' is there twice, in lines 1 and 1"),
        ("bias: {n: 1}\ninputs/bias: {n: 2}", "inputs/bias is there twice, under its whole name and the last part"),
    ],
)
def test_a_wrong_profile_names_its_file(book, content, message):
    (book / "book" / "profiles" / "gpu.yml").write_text(content)
    with pytest.raises(BadInput, match=rf"gpu\.yml.*{message}"):
        read_profile(book, "gpu")


def test_an_empty_profile_changes_nothing(book):
    (book / "book" / "profiles" / "gpu.yml").write_text("# nothing yet\n")
    assert read_profile(book, "gpu") == {}


def test_a_file_cannot_redefine_quick(book):
    (book / "book" / "profiles" / "quick.yml").write_text("{}")
    with pytest.raises(BadInput, match="the notebooks' own values"):
        find_profiles(book)


def test_what_a_mapping_takes_over_from_another_is_not_there_twice(tmp_path):
    (tmp_path / "p.yml").write_text("a: &a {n: 1}\nb: &b\n  <<: *a\n  n: 2\nc: {<<: *b, n: 3}\n")
    assert read_mapping(tmp_path / "p.yml") == {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 3}}


def test_a_missing_file_of_parameters_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"absent\.yml: no such file"):
        read_mapping(tmp_path / "absent.yml")
    with pytest.raises(BadInput, match="is a directory; expected a file"):
        read_mapping(tmp_path)


def test_a_description_is_plain_data(book):
    description = describe(load(book, "inputs/nads"))
    assert json.loads(json.dumps(description)) == description
    assert description["profiles"] == ["quick", "smoke"]
    entries = {entry["name"]: entry for entry in description["parameters"]}
    assert entries["n"] == {
        "name": "n",
        "type": "int",
        "help": "how often",
        "range": "1..100",
        "values": {"quick": 3, "smoke": 1},
    }
    assert entries["method"]["choices"] == ["mean", "sum"]


def test_a_parameter_may_be_a_name_the_library_knows(make_book):
    source = PARAMETERS + 'device: str = "auto"  # where [device]\n'
    chapter = load(make_book(one=make_notebook(parameters=source)), "one")
    assert describe(chapter)["parameters"][-1]["known"] == "device"
    with pytest.raises(BadInput, match="one: device: device 'gpuu'"):
        validate(chapter, overrides={"device": "gpuu"})
