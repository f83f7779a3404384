"""What values name outside the book: modules of one's own and folders of images, known by their contents."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from toy import make_notebook

from nadkit.book import outside
from nadkit.book.chapters import load, validate
from nadkit.book.cli import main
from nadkit.book.collect import collect
from nadkit.book.outside import ABSENT, checksums
from nadkit.book.prints import fingerprint, result_print, result_printer
from nadkit.book.runner import environment_of
from nadkit.book.sources import files_of, imported
from nadkit.data import image_files

PARAMETERS = """\
networks: list[str] = ["logreg"]  # of what [architecture]
images: str = "digits"  # of what [images]
note: str = "mine:net"  # a word
"""
NET = """\
from torch import nn

def net(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, classes))
"""
HELPED = "from helpers.sizes import WIDTH\n" + NET


@pytest.fixture
def chapter(make_book, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return load(make_book(one=make_notebook(parameters=PARAMETERS, code=("1",))), "one")


def write(**modules: str) -> None:
    """Write modules by their dotted names, with an underscore for the dot."""
    for name, content in modules.items():
        path = Path(*name.split("_")).with_suffix(".py")
        path = path.with_stem("__init__") if path.stem == "package" else path
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)


# ---- modules -------------------------------------------------------------------------------------


def marks(chapter) -> tuple[str, str]:
    values = {"networks": ["lenet", "mine:net"], "images": "digits", "note": "a"}
    return result_print(chapter, values), fingerprint(chapter, values)


def test_names_of_the_library_have_no_content_of_their_own(chapter):
    values = validate(chapter, overrides={"networks": ["lenet", "torchvision:resnet18"]})
    assert checksums(chapter, values) == {}


@pytest.mark.parametrize(
    ("edited", "same"),
    [
        ({"mine": HELPED + "# words\n"}, True),
        ({"other": "WIDTH = 2"}, True),
        ({"mine": HELPED.replace("nn.Flatten()", "nn.Flatten(), nn.Tanh()")}, False),
        ({"helpers_sizes": "from .base import SIZE as WIDTH\nMORE = 1"}, False),
        ({"helpers_base": "SIZE = 17"}, False),
        ({"helpers_init": "SIZE = 17"}, True),
        ({"helpers_package": "STATE = 1"}, False),
    ],
)
def test_a_module_and_what_it_imports_beside_it_are_part_of_a_run(chapter, edited, same):
    sizes = "from .base import SIZE as WIDTH"
    write(mine=HELPED, other="WIDTH = 1", helpers_sizes=sizes, helpers_base="SIZE = 16", helpers_package="")
    before = marks(chapter)
    assert marks(chapter) == before
    write(**edited)
    assert [a == b for a, b in zip(marks(chapter), before, strict=True)] == [same, same]


def test_modules_are_found_where_the_chapter_finds_them(chapter, tmp_path, monkeypatch):
    values = {"networks": ["mine:net"]}
    (absent,) = checksums(chapter, values).values()
    assert absent == ABSENT
    write(mine=NET)
    here = checksums(chapter, values)
    assert here != {"content of mine:net": ABSENT}
    first = tmp_path / "first"
    first.mkdir()
    (first / "mine.py").write_text("WIDTH = 1\n" + NET)
    monkeypatch.setenv("PYTHONPATH", str(first))
    there = checksums(chapter, values)
    assert there != here
    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.chdir(tmp_path)
    assert checksums(chapter, values) == {"content of mine:net": ABSENT}
    with environment_of(tmp_path / "work", {}):  # a worker's, of a command given there
        assert checksums(chapter, values) == here


def test_of_what_is_installed_a_package_alone_counts():
    found = files_of("tqdm.auto", sys.path)
    assert {"tqdm", "tqdm.auto", "tqdm.std"} <= set(found)
    assert {name.partition(".")[0] for name in found} == {"tqdm"}
    assert files_of("sys", sys.path) == files_of("no_such_module", sys.path) == files_of("", []) == {}


def test_a_folder_without_a_package_file_holds_modules_too(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "nets.py").write_text("import helper")
    (tmp_path / "helper.py").write_text("")
    assert sorted(files_of("plain.nets", [str(tmp_path)])) == ["helper", "plain.nets"]
    assert files_of("plain.none", [str(tmp_path)]) == {}


def test_imports_are_dotted_names():
    source = "import a.b, c\nfrom d import e as f\nfrom . import g\nfrom ..h import i\n%matplotlib inline"
    assert list(imported(source, "p.q")) == ["a.b", "c", "d.e", "p.q.g", "p.h.i"]
    assert list(imported("import (")) == []


def test_a_grid_reads_a_module_once(chapter, monkeypatch):
    write(mine=NET)
    read = []
    monkeypatch.setattr(outside, "module_checksum", lambda *asked: read.append(asked) or "1")
    mark = result_printer(chapter)
    assert len({mark({"networks": ["mine:net"], "note": str(i)}) for i in range(5)}) == 5
    assert len(read) == 1


# ---- folders of images ---------------------------------------------------------------------------


@pytest.fixture
def pictures(chapter, tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            (tmp_path / "pictures" / split / name / "0.png").write_bytes(b"pixels")
    return tmp_path / "pictures"


def edited(path):
    """Same size, same times."""
    about = path.stat()
    path.write_bytes(b"pixelz")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda f: (f / "train/a/0.png").write_bytes(b"other!"), False),
        (lambda f: (f / "test/b/0.png").rename(f / "test/b/1.png"), False),
        (lambda f: (f / "test/b/1.png").write_bytes(b"one more"), False),
        (lambda f: shutil.rmtree(f / "test" / "b"), False),
        (lambda f: os.utime(f / "train/a/0.png", (1, 1)), True),
        (lambda f: (f / "notes.txt").write_text("beside the splits"), True),
        (lambda f: (f / "train/a/.hidden").write_text("."), True),
        (lambda f: edited(f / "train/a/0.png"), False),
    ],
)
def test_the_files_of_a_folder_are_part_of_a_run(chapter, pictures, change, same):
    values = {"images": f"folder:{pictures}"}
    before = result_print(chapter, values), fingerprint(chapter, values)
    change(pictures)
    outside._sha256.cache_clear()  # as in another process
    after = result_print(chapter, values), fingerprint(chapter, values)
    assert [a == b for a, b in zip(before, after, strict=True)] == [same, same]


@pytest.mark.parametrize("split", image_files.TEST_SPLITS)
def test_every_name_that_a_test_split_may_have_counts(chapter, pictures, split):
    (pictures / "test").rename(pictures / split)
    values = {"images": f"folder:{pictures}"}
    before = checksums(chapter, values)
    (pictures / split / "a" / "0.png").write_bytes(b"other!")
    outside._sha256.cache_clear()
    assert checksums(chapter, values) != before


def test_classes_behind_links_and_folders_elsewhere_count(chapter, pictures, tmp_path, monkeypatch):
    before = checksums(chapter, {"images": f"folder:{pictures}"})
    (pictures / "train" / "a").rename(tmp_path / "a")
    (pictures / "train" / "a").symlink_to(tmp_path / "a")
    assert checksums(chapter, {"images": f"folder:{pictures}"}) == before
    monkeypatch.setenv("NADKIT_DATA", str(tmp_path))
    assert [*checksums(chapter, {"images": "folder:pictures"}).values()] == [*before.values()]
    assert checksums(chapter, {"images": "folder:none"}) == {"content of folder:none": ABSENT}


# ---- sweeps --------------------------------------------------------------------------------------

PROGRAM = """\
import importlib
from pathlib import Path

from nadkit.book import results

module, _, function = networks[0].partition(":")
width = getattr(importlib.import_module(module), function)() if function else 0
picture = Path(images.removeprefix("folder:"), "train", "a", "0.png")
results.keep(width=width, picture=picture.read_text())
"""


def test_a_sweep_runs_again_what_an_edit_changed(make_book, tmp_path, monkeypatch, capsys):
    """The runs do without torch, which takes seconds to import."""
    monkeypatch.chdir(tmp_path)
    make_book(one=make_notebook(parameters=PARAMETERS, code=(PROGRAM,)))
    picture = tmp_path / "mine" / "train" / "a" / "0.png"
    picture.parent.mkdir(parents=True)
    (tmp_path / "mine" / "test").mkdir()

    def swept() -> tuple[str, list[int], list[str]]:
        sweep = ["sweep", "one", "-p", "networks=nets:net;logreg", "-p", "images=folder:mine", "--root", "toy"]
        assert main([*sweep, "--out", "swept"]) == 0
        table = collect(tmp_path / "swept").sort_values("networks", ascending=False)
        return capsys.readouterr().out, table.width.tolist(), table.picture.tolist()

    picture.write_text("first")
    write(nets="def net(): return 8")
    assert swept()[1:] == ([8, 0], ["first"] * 2)
    told, *same = swept()
    assert "2 unchanged" in told
    assert same == [[8, 0], ["first"] * 2]
    write(nets="def net(): return 9")
    told, *of_edit = swept()
    assert "1 unchanged" in told
    assert of_edit == [[9, 0], ["first"] * 2]
    picture.write_text("other")
    assert swept()[1:] == ([9, 0], ["other"] * 2)
